"""Rates as the price book writes them: exact decimals per so many units of one component."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from decimal import ROUND_HALF_EVEN, Context, Decimal, DecimalException
from typing import Any, Final

from flask_llm_cost.errors import PriceBookError
from flask_llm_cost.records import COMPONENTS, Quantity

#: Wide enough for any product of a quantity, a rate and its factors, so that no amount is rounded.
EXACT: Final = Context(prec=80, rounding=ROUND_HALF_EVEN)

#: A quotient that does not end (a rate per hour, charged by the second) is kept to this, finer than what is stored.
QUOTIENT: Final = Decimal("1e-18")

PER_TOKEN_RATE: Final = Decimal(1_000_000)
ONE: Final = Decimal(1)

#: Beyond this a count is no count: it would not fit the ledger either.
MAX_QUANTITY: Final = 10**18
MAX_RATE: Final = Decimal(10) ** 9

#: Other names that are read as one of ours.
COMPONENT_ALIASES: Final[Mapping[str, str]] = {
    "cache_write_5m": "cache_write",
    "cache_read_input": "cache_read",
    "cache_write_input": "cache_write",
    "cache_write_extended_input": "cache_write_1h",
}

TOOLS: Final = frozenset(
    {
        "web_search",
        "web_search_preview",
        "web_fetch",
        "file_search",
        "container_session",
        "grounding_query",
        "grounded_prompt",
        "maps_grounding",
        "image_generation",
    }
)
RATED: Final = frozenset(COMPONENTS) - {"billed_request"}


def default_per(component: str) -> Decimal:
    """How many units a rate of *component* is for where the book does not say: a million tokens, else one."""
    return PER_TOKEN_RATE if COMPONENTS[component].unit == "token" else ONE


def amount(quantity: Quantity, rate: Decimal, per: Decimal) -> Decimal:
    """``quantity x rate / per``, exact where the quotient ends, else to 18 places."""
    product = EXACT.multiply(quantity, rate)
    if per == ONE:
        return product
    if (quotient := EXACT.divide(product, per)) and len(quotient.as_tuple().digits) >= EXACT.prec:
        return quotient.quantize(QUOTIENT, context=EXACT)
    return quotient


def plain(value: Decimal) -> str:
    """A decimal as one text and no other: no exponent, no trailing zeros."""
    text = format(value, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return text if text not in ("-0", "") else "0"


class Place:
    """Where in which price source something stands, so that an error can say so."""

    __slots__ = ("entry", "field", "source")

    def __init__(self, source: str, entry: str = "", field: str = "") -> None:
        self.source = source
        self.entry = entry
        self.field = field

    def at(self, field: str) -> Place:
        return Place(self.source, self.entry, f"{self.field}.{field}" if self.field else field)

    def error(self, value: object, remedy: str) -> PriceBookError:
        where = " ".join(part for part in (f"{self.entry!r}" if self.entry else "", self.field) if part)
        shown = repr(value)
        if len(shown) > 80:
            shown = shown[:77] + "..."
        return PriceBookError(self.source, f"{where} is {shown}: {remedy}" if where else f"{shown}: {remedy}")


def decimal(value: Any, place: Place, *, maximum: Decimal = MAX_RATE, positive: bool = False) -> Decimal:
    """A finite decimal, not negative, of a string or number. A float counts as what it prints."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise place.error(value, 'write a decimal as text, such as "0.30"')
    try:
        number = value if isinstance(value, Decimal) else Decimal(str(value).strip())
    except (DecimalException, ValueError):
        raise place.error(value, 'write a decimal as text, such as "0.30"') from None
    if not number.is_finite() or number < 0 or (positive and not number):
        raise place.error(
            value, f'write a {"positive " if positive else ""}number, such as "0.30"; leave out what is not known'
        )
    if number > maximum:
        raise place.error(value, f"that is more than {plain(maximum)}; rates are per 1,000,000 tokens")
    exponent = number.as_tuple().exponent
    if isinstance(exponent, int) and exponent < -18:
        raise place.error(value, "that has more than 18 decimal places")
    return number


def mapping(value: Any, place: Place) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise place.error(value, "write a table of names and values")
    return value


def items(value: Any, place: Place) -> Iterable[tuple[int, Any]]:
    if not isinstance(value, list | tuple):
        raise place.error(value, "write a list")
    return enumerate(value)


def known_names(found: Iterable[str], known: Iterable[str], place: Place, *, what: str) -> None:
    """Refuse a name that is not *known*, with the nearest one that is."""
    known = list(known)
    for name in found:
        if name in known or name.startswith("_"):
            continue
        near = difflib.get_close_matches(name[:64], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(sorted(known))}"
        raise place.error(name, f"no such {what}; {hint}")


def rates(value: Any, place: Place) -> dict[str, Decimal]:
    """Component to rate."""
    table = mapping(value, place)
    found: dict[str, Decimal] = {}
    for name, rate in table.items():
        component = COMPONENT_ALIASES.get(name, name)
        known_names((component,), RATED, place, what="component")
        if component in found:
            raise place.at(name).error(rate, f"{component!r} is given twice; keep one of the two names")
        if component in RATED:
            found[component] = decimal(rate, place.at(name))
    return found
