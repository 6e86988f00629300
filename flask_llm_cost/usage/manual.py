"""Usage that a person hands in, as our components or a provider's own block, and when it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from flask_llm_cost.errors import UsageError
from flask_llm_cost.records import COMPONENTS, Quantity, Reading, Usage
from flask_llm_cost.usage import provider_format
from flask_llm_cost.usage.format import MAX_COUNT, NO_AMOUNT, MalformedUsageError

#: What only this provider calls so: another name for our component.
_ALIASES = {"cache_write_5m": "cache_write"}


def usage_from(provider: str, given: Any) -> Usage:
    """Usage in our components, as :func:`readings_from` has it: of several models, that of the one which answered."""
    return readings_from(provider, given)[0].usage


def readings_from(provider: str, given: Any) -> list[Reading]:
    """What was used, in our components, and at which tier: first by the model that answered, then by others that took part.

    :param given: component to quantity, where ``input`` is the uncached input; or the provider's own usage block, as a
        mapping or as an SDK's object
    :raises UsageError: an unknown component, with those that are known; or a quantity that is no count
    """
    block = _as_mapping(given)
    if all(name in COMPONENTS or name in _ALIASES for name in block):
        quantities = {_ALIASES.get(name, name): _quantity(name, value) for name, value in block.items()}
        return [Reading(Usage(quantities=quantities, source="manual"))]
    try:
        wire = provider_format(provider, block)
        # The model is the caller's to name, unless the counts do.
        readings = wire.read_all({**block, "usage": block, "usageMetadata": block, "model": None})
        if any(reading.usage.billed is NO_AMOUNT for reading in readings):
            raise MalformedUsageError("cost")
    except MalformedUsageError as error:
        raise UsageError(f"the usage block makes no sense: {error}", name=error.field) from None
    if not readings[0].usage.known or not _speaks(block):
        unknown = next(name for name in block if name not in COMPONENTS)
        raise UsageError(f"{unknown!r} is no component", name=unknown, choices=COMPONENTS)
    return [replace(reading, usage=replace(reading.usage, source="manual")) for reading in readings]


def time_from(name: str, given: datetime | None) -> datetime:
    """When it was, with its zone: now where nothing is given, and UTC where no zone is.

    :raises UsageError: it is no time
    """
    if given is None:
        return datetime.now(UTC)
    if not isinstance(given, datetime):
        raise UsageError(f"{name}={str(given)[:64]!r} must be a datetime", name=name)
    return given.replace(tzinfo=UTC) if given.tzinfo is None else given


def _speaks(block: Mapping[str, Any]) -> bool:
    """Whether this is a provider's block at all: they all count their tokens under some such name."""
    return any(name.endswith(("_tokens", "Tokens", "TokenCount", "_units", "eval_count")) for name in block)


def _as_mapping(given: Any) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        dump = getattr(given, "model_dump", None)  # the SDKs' objects are pydantic models, Google's with aliases
        given = dump(exclude_none=True, by_alias=True) if callable(dump) else given
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise UsageError(
            f"usage must be a dict of components or the provider's usage block, not {type(given).__name__}",
            choices=COMPONENTS,
        )
    return given


def _quantity(name: str, value: Any) -> Quantity:
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        number = Decimal("NaN")
    if isinstance(value, bool) or not number.is_finite() or not 0 <= number <= MAX_COUNT:
        raise UsageError(f"{name!r} must be a quantity from 0 up to 10^12", name=name)
    return int(number) if number == number.to_integral_value() else number
