"""What a budget says: an entry of ``LLM_COST_BUDGETS``, read and checked at start-up."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from types import MappingProxyType
from typing import Any, Final

from flask_llm_cost.records import TAG_KEY

PERIODS: Final = ("call", "hour", "day", "week", "month", "total")
UNITS: Final = ("cost", "calls", "tokens")
ACTIONS: Final = ("notify", "raise", "block")
ESTIMATES: Final = ("ceiling", "expected")
UNPRICED: Final = ("dearest", "block", "allow")
ON_TROUBLE: Final = ("block", "allow")

_NAME: Final = re.compile(r"[\w.-]{1,128}\Z", re.ASCII)
_CURRENCY: Final = re.compile(r"[A-Z]{3}\Z")
_MOST: Final = Decimal(9_000_000)
_MILLION: Final = Decimal(1_000_000)


def scale_of(unit: str) -> Decimal:
    """What amounts of a unit are divided by in the database: columns end at nine million on SQLite, and tokens do not."""
    return Decimal(1) if unit == "cost" else _MILLION


class DeclarationError(ValueError):
    """What is wrong with an entry, and what would be right."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """Tokens that a request brings about beyond the bytes of its text, for the estimate.

    :param template: what the provider wraps around every request
    :param tools: what it adds where tools are offered, once
    :param media: each picture, recording or file
    :param context: what it keeps on its side and reads again: an earlier response, a cached content, a stored prompt
    """

    template: int = 64
    tools: int = 1_000
    media: int = 5_000
    context: int = 32_000


@dataclass(frozen=True, slots=True)
class Budget:
    """One budget, as declared.

    :param limit: in dollars, calls or tokens; ``None`` where only ``@costs.budget_limit`` says it
    :param period: ``call``, ``hour``, ``day``, ``week``, ``month`` or ``total``, on the clocks of ``LLM_COST_TIMEZONE``
    :param per: the tag key each of whose values has a limit of its own; ``None`` for one limit in all
    :param unit: ``cost``, ``calls`` or ``tokens``
    :param action: ``notify``, ``raise`` or ``block``
    :param where: which calls count: ``provider``, ``model`` or a tag key, to the patterns of which one must match
    :param warn_at: the shares of the limit at which ``budget_exceeded`` is sent
    :param estimate: what a blocking budget holds for a call: ``ceiling`` or ``expected``
    :param unpriced: for a call without a known price, hold at the provider's ``dearest``, ``block`` it, or ``allow`` it
    :param on_error: what becomes of a call when the database cannot be asked: ``block`` or ``allow``
    :param on_busy: the same where SQLite is locked, most often by an open write of the app's own
    :param hold_seconds: after how long a call that nobody has heard of counts as unresolved
    """

    name: str
    limit: Decimal | None
    period: str
    per: str | None = None
    unit: str = "cost"
    action: str = "notify"
    where: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    warn_at: tuple[Decimal, ...] = (Decimal("0.8"), Decimal(1))
    estimate: str = "ceiling"
    unpriced: str = "dearest"
    on_error: str = "block"
    on_busy: str = "block"
    hold_seconds: int = 900
    currency: str = "USD"
    allowance: Allowance = field(default_factory=Allowance)

    @property
    def blocks(self) -> bool:
        return self.action == "block"

    @property
    def scale(self) -> Decimal:
        """What an amount is divided by in the database, see :func:`scale_of`."""
        return scale_of(self.unit)

    def amount(self, value: Any) -> Decimal:
        """A limit of this budget as somebody wrote it, whoever it was.

        :raises DeclarationError: it is none, or more than the database can keep
        """
        number = _amount(value)
        if number > _MOST * self.scale:
            raise DeclarationError(f"the largest limit is {_MOST * self.scale:f}")
        return number


def parse_budgets(entries: Sequence[Any]) -> tuple[Budget, ...]:
    """Read all entries.

    :raises DeclarationError: names the entry, the field, its value and the choices
    """
    budgets: list[Budget] = []
    for number, entry in enumerate(entries):
        budget = _parse(entry, number)
        if any(other.name == budget.name for other in budgets):
            raise DeclarationError(f'entry {number} is a second budget {budget.name!r}; give it a "name" of its own')
        budgets.append(budget)
    return tuple(budgets)


def _parse(entry: Any, number: int) -> Budget:
    place = f"entry {number}"
    if not isinstance(entry, Mapping) or not all(isinstance(key, str) for key in entry):
        raise DeclarationError(f'{place} must be a dict such as {{"limit": "500", "period": "month"}}, not {entry!r}')
    if isinstance(entry.get("name"), str):
        place += f" ({entry['name'][:64]})"
    for key in entry:
        if key not in _FIELDS:
            near = difflib.get_close_matches(key, _FIELDS, 1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise DeclarationError(f"{place}: {key!r} is no field{meant}; choose from {', '.join(_FIELDS)}")
    for key in ("limit", "period"):
        if key not in entry:
            raise DeclarationError(f'{place}: it has no "{key}"; {_MISSING[key]}')
    values: dict[str, Any] = {}
    for key, value in entry.items():
        try:
            values[key] = _FIELDS[key](value)
        except DeclarationError as problem:
            raise DeclarationError(f"{place}: {key}={value!r}: {problem}") from None
    if values.get("name") is None:
        values["name"] = values["period"] + (f"-per-{values['per']}" if values.get("per") else "")
    budget = Budget(**values)
    if budget.limit is not None:
        try:
            budget.amount(budget.limit)
        except DeclarationError as problem:
            raise DeclarationError(f"{place}: limit={entry['limit']!r}: {problem}") from None
    return budget


def _choice(*choices: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in choices:
            raise DeclarationError(f"choose one of {', '.join(map(repr, choices))}")
        return str(value)

    return parse


def _amount(value: Any) -> Decimal:
    try:
        number = Decimal(str(value).strip())
    except InvalidOperation:
        number = Decimal("NaN")
    if isinstance(value, bool) or not number.is_finite() or number < 0:
        raise DeclarationError('give an amount of at least 0, as text: "25.00"')
    return number


def _limit(value: Any) -> Decimal | None:
    return None if value is None else _amount(value)


def _name(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not _NAME.match(value):
        raise DeclarationError("give up to 128 letters, digits, '_', '.' and '-'")
    return value


def _tag(value: Any) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str) or not TAG_KEY.fullmatch(value):
        raise DeclarationError("give a tag key such as 'tenant_id', or None for one limit in all")
    return value


def _where(value: Any) -> Mapping[str, tuple[str, ...]]:
    if not isinstance(value, Mapping):
        raise DeclarationError('give a dict such as {"provider": "openai", "feature": ["chat", "search"]}')
    where = {}
    for key, given in value.items():
        if not isinstance(key, str) or not TAG_KEY.fullmatch(key.removeprefix("tag:")):
            raise DeclarationError(f"{key!r} is neither 'provider', 'model' nor a tag key")
        patterns = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, list | tuple | set) else ()
        if not patterns or not all(isinstance(pattern, str) and pattern for pattern in patterns):
            raise DeclarationError(f"{key!r} takes a value, or a list of them; '*' stands for anything")
        where[key] = tuple(sorted(patterns))
    return MappingProxyType(where)


def _shares(value: Any) -> tuple[Decimal, ...]:
    given = value if isinstance(value, list | tuple) else [value]
    shares = set()
    for share in given:
        try:
            number = Decimal(str(share))
        except InvalidOperation:
            number = Decimal("NaN")
        if number.is_finite() and number > 10:
            raise DeclarationError(f"a share is a part of the limit, so 0.8 for 80%, and at most 10; not {share!r}")
        if isinstance(share, bool) or not number.is_finite() or number <= 0:
            raise DeclarationError("give shares of the limit, such as [0.8, 1.0]; [] for none")
        if number != round(number, 6):
            raise DeclarationError("give shares with at most 6 places")
        shares.add(number.normalize())
    return tuple(sorted(shares))


def _seconds(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        raise DeclarationError("give seconds, a whole number of at least 1")
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        number = Decimal(0)
    if not number.is_finite() or number != number.to_integral_value() or not 1 <= number <= 7 * 86_400:
        raise DeclarationError("give seconds, a whole number from 1 up to a week")
    return int(number)


def _currency(value: Any) -> str:
    if not isinstance(value, str) or not _CURRENCY.match(value):
        raise DeclarationError("give a currency of three letters such as 'USD'")
    return value


def _allowance(value: Any) -> Allowance:
    names = ("template", "tools", "media", "context")
    if not isinstance(value, Mapping) or not all(
        name in names and isinstance(count, int) and not isinstance(count, bool) and 0 <= count <= 10_000_000
        for name, count in value.items()
    ):
        raise DeclarationError(f"give whole numbers of tokens for some of {', '.join(names)}")
    return Allowance(**value)


_MISSING: Final = {
    "limit": 'give an amount such as "25.00", or None where @costs.budget_limit computes it',
    "period": f"choose one of {', '.join(map(repr, PERIODS))}",
}

_FIELDS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "name": _name,
    "limit": _limit,
    "period": _choice(*PERIODS),
    "per": _tag,
    "unit": _choice(*UNITS),
    "action": _choice(*ACTIONS),
    "where": _where,
    "warn_at": _shares,
    "estimate": _choice(*ESTIMATES),
    "unpriced": _choice(*UNPRICED),
    "on_error": _choice(*ON_TROUBLE),
    "on_busy": _choice(*ON_TROUBLE),
    "hold_seconds": _seconds,
    "currency": _currency,
    "allowance": _allowance,
}
