"""Numbers and amounts in sentences."""

from __future__ import annotations

from typing import Final

_SYMBOLS: Final = {"USD": "$", "EUR": "€", "GBP": "£", "JPY": "¥", "CHF": "CHF ", "CAD": "C$", "AUD": "A$"}
#: Currencies of which the minor unit is 0 in ISO 4217, table A.1 (kept by SIX), without its funds.
_NO_MINOR_UNIT: Final = frozenset({
    "BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "VND", "VUV", "XAF", "XOF", "XPF",
})  # fmt: skip


def symbol(currency: str) -> str:
    """``$``, ``€``, or the code itself."""
    return _SYMBOLS.get(currency, currency + " ")


def cents(currency: str) -> int:
    """How many places an amount has on a bill: two, or none where there is nothing smaller than the unit."""
    return 0 if currency in _NO_MINOR_UNIT else 2


def plural(number: int, one: str, many: str | None = None) -> str:
    """``1 call``, ``1,204 calls``, ``60 categories``."""
    return f"{number:,} {one if number == 1 else many or several(one)}"


def several(noun: str) -> str:
    """The plural of a noun that follows the rules: ``tenants``, ``categories``, ``batches``."""
    if noun.endswith("y") and noun[-2:-1] not in ("", *"aeiou"):
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "z", "ch", "sh")) else "s")
