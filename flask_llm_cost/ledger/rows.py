"""From a priced record to the rows that keep it. The last line of defence: what a column cannot hold is cut or repaired."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa

from flask_llm_cost.ledger.columns import to_money, to_quantity
from flask_llm_cost.ledger.models import Call, CallTag, LineItem, PriceSnapshot
from flask_llm_cost.records import COMPONENTS, UNPRICED, CallRecord, Cost, Line, Price, Quantity

Row = dict[str, Any]

#: Beside the usage block: what was counted where a price bills otherwise, ten seconds for three. Another price needs it.
COUNTED: Final = "counted"

_BIGGEST: Final = 2**63 - 1
_DEEPEST: Final = 8


def _lengths(model: Any) -> dict[str, int]:
    return {
        column.key: column.type.length
        for column in model.__table__.columns
        if isinstance(column.type, sa.String) and column.type.length is not None
    }


_CALL: Final = _lengths(Call)
_ITEM: Final = _lengths(LineItem)
_TAG: Final = _lengths(CallTag)
_PRICE: Final = _lengths(PriceSnapshot)


def clean_text(value: str, length: int) -> str:
    """*value* as every database takes it: valid UTF-8 without NUL, cut to *length*, no space at its end.

    MySQL compares strings as if they had none.
    """
    if not value.isascii():
        value = value.encode("utf-8", "replace").decode()
    if "\0" in value:
        value = value.replace("\0", "")
    return value[:length].rstrip(" ")


#: For what is the same in most calls.
_word: Final = functools.lru_cache(maxsize=4096)(clean_text)


def _text(value: str | None, length: int) -> str | None:
    return None if value is None else _word(value, length)


def _count(value: int | None) -> int | None:
    return value if value is None or -_BIGGEST <= value <= _BIGGEST else None


def plain(value: Any, depth: int = 0) -> Any:
    """*value* with nothing in it but what JSON of every database takes."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return _count(value)
    if isinstance(value, str):
        return clean_text(value, 256)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return str(value) if value.is_finite() else None
    if depth < _DEEPEST and isinstance(value, Mapping):
        return {_word(str(key), 64): plain(item, depth + 1) for key, item in value.items()}
    if depth < _DEEPEST and isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [plain(item, depth + 1) for item in value]
    return None


@dataclass(frozen=True, slots=True)
class CallRows:
    """One call as the ledger keeps it: its row, its line items in order, its tags by key. Columns to values.

    :param hold_id: the id under which budgets hold something for it, where that is not its own
    """

    call: Row
    items: tuple[Row, ...]
    tags: tuple[Row, ...]
    hold_id: UUID | None = None

    @property
    def id(self) -> UUID:
        """The call's id."""
        call_id: UUID = self.call["id"]
        return call_id


def call_rows(record: CallRecord, recorded_at: datetime) -> CallRows:
    """The rows of one record: the call, its line items, its tags."""
    usage = record.usage
    cost = record.cost or UNPRICED
    price = cost.price
    input_tokens, output_tokens = usage.input_tokens, usage.output_tokens
    total_tokens = usage.total_tokens
    if total_tokens is None and input_tokens is not None and output_tokens is not None:
        total_tokens = input_tokens + output_tokens
    currency = _word(cost.currency, _CALL["currency"])
    call: Row = {
        "id": record.id,
        "occurred_at": record.occurred_at,
        "recorded_at": recorded_at,
        "provider": _word(record.provider, _CALL["provider"]),
        "model": _text(record.model, _CALL["model"]),
        "requested_model": _text(record.requested_model, _CALL["requested_model"]),
        "host": _word(record.host, _CALL["host"]),
        "operation": _word(record.operation, _CALL["operation"]),
        "stream": record.stream,
        "attempt": min(record.attempt, 32767),
        "outcome": _word(record.outcome, _CALL["outcome"]),
        "http_status": record.http_status,
        "error_class": _text(record.error_class, _CALL["error_class"]),
        "usage_source": _word(usage.source, _CALL["usage_source"]),
        "cost_status": _word(cost.status, _CALL["cost_status"]),
        "total_cost": to_money(cost.total),
        "computed_cost": to_money(cost.computed),
        "currency": currency,
        "pricing_mode": _text(record.pricing_mode, _CALL["pricing_mode"]),
        "price_id": price.id if price is not None else None,
        "input_tokens": _count(input_tokens),
        "cache_read_tokens": _count(usage.cache_read_tokens),
        "cache_write_tokens": _count(usage.cache_write_tokens),
        "output_tokens": _count(output_tokens),
        "reasoning_tokens": _count(usage.reasoning_tokens),
        "total_tokens": _count(total_tokens),
        "latency_ms": record.latency_ms,
        "first_token_ms": record.first_token_ms,
        "provider_response_id": (
            None
            if record.provider_response_id is None
            else clean_text(record.provider_response_id, _CALL["provider_response_id"])
        ),
        "flags": _word(",".join(usage.flags), _CALL["flags"]) if usage.flags else None,
        "raw_usage": _with_counted(plain(usage.raw), usage.quantities, cost),
    }
    items = tuple(_item_row(record.id, position, line) for position, line in enumerate(_lines(record, cost)))
    tags = {_word(key, _TAG["key"]): clean_text(value, _TAG["value"]) for key, value in record.tags.items()}
    return CallRows(call, items, tag_rows(call, tags), record.hold_id)


def repriced_rows(stored: CallRows, cost: Cost) -> CallRows:
    """The rows of a call that is in the ledger, with another cost. Without lines its quantities stay, without a price."""
    call: Row = {
        **stored.call,
        "cost_status": _word(cost.status, _CALL["cost_status"]),
        "total_cost": to_money(cost.total),
        "computed_cost": to_money(cost.computed),
        "currency": _word(cost.currency, _CALL["currency"]),
        "price_id": cost.price.id if cost.price is not None else None,
    }
    if cost.lines:
        items = tuple(_item_row(stored.id, position, line) for position, line in enumerate(cost.lines))
        call["raw_usage"] = _with_counted(stored.call["raw_usage"], counted_quantities(stored), cost)
    else:
        unpriced = {"rate": None, "rate_per": None, "cost": None, "cost_status": "unpriced"}
        items = tuple({**item, **unpriced} for item in stored.items)
    return CallRows(call, items, tag_rows(call, {tag["key"]: tag["value"] for tag in stored.tags}))


def counted_quantities(stored: CallRows) -> dict[str, Quantity]:
    """What was counted of a call that is in the ledger, before a price had its say; output perhaps without its reasoning."""
    raw = stored.call["raw_usage"]
    counted = raw.get(COUNTED) if isinstance(raw, Mapping) else None
    found = {item["component"]: item["quantity"] for item in stored.items}
    if isinstance(counted, Mapping):
        found |= {name: Decimal(str(quantity)) for name, quantity in counted.items()}
    return {name: int(quantity) if quantity == int(quantity) else quantity for name, quantity in found.items()}


def _with_counted(raw: Any, quantities: Mapping[str, Quantity], cost: Cost) -> Any:
    kept = {name: value for name, value in raw.items() if name != COUNTED} if isinstance(raw, Mapping) else raw
    billed = {line.component: line.quantity for line in cost.lines}
    if cost.price is None or "billed_request" in billed:
        return kept or None
    # Output is billed without its reasoning where that has a rate of its own; how much that was is a column.
    changed = {
        name: plain(quantity)
        for name, quantity in quantities.items()
        if name != "output" and isinstance(quantity, int | Decimal) and quantity and billed.get(name) != quantity
    }
    changed = {name: quantity for name, quantity in changed.items() if quantity is not None}
    return {**(kept or {}), COUNTED: changed} if changed else kept or None


def _lines(record: CallRecord, cost: Cost) -> Sequence[Line]:
    if cost.lines or cost.price is not None:
        return cost.lines
    # Without a price the quantities are kept all the same, so that the call can be priced later.
    return [
        Line(name, COMPONENTS[name].unit if name in COMPONENTS else "token", quantity, None, None, None, "unpriced")
        for name, quantity in record.usage.quantities.items()
    ]


def _item_row(call_id: UUID, position: int, line: Line) -> Row:
    return {
        "call_id": call_id,
        "position": position,
        "component": _word(line.component, _ITEM["component"]),
        "unit": _word(line.unit, _ITEM["unit"]),
        "quantity": to_quantity(line.quantity),
        "rate": line.rate,
        "rate_per": line.rate_per,
        "cost": to_money(line.cost),
        "cost_status": _word(line.status, _ITEM["cost_status"]),
    }


def tag_rows(call: Row, tags: Mapping[str, str]) -> tuple[Row, ...]:
    """The rows of a call's tags, by key."""
    return tuple(_tag_row(call, key, value) for key, value in sorted(tags.items()))


def _tag_row(call: Row, key: str, value: str) -> Row:
    return {
        "call_id": call["id"],
        "key": key,
        "value": value,
        "occurred_at": call["occurred_at"],
    }


def price_row(price: Price, created_at: datetime) -> Row:
    """The row of a price as applied. Rates are ``{component: [rate, per]}``, decimals as strings."""
    return {
        "id": price.id,
        "source": _word(price.source, _PRICE["source"]),
        "source_version": _word(price.source_version, _PRICE["source_version"]),
        "matched_key": _word(price.key, _PRICE["matched_key"]),
        "match_kind": _word(price.match, _PRICE["match_kind"]),
        "currency": _word(price.currency, _PRICE["currency"]),
        "rates": {name: [str(rate.rate), str(rate.per)] for name, rate in price.rates.items()},
        "pricing_mode": _text(price.mode, _PRICE["pricing_mode"]),
        "tier": _text(price.tier, _PRICE["tier"]),
        "multiplier": price.multiplier,
        "discount": price.discount,
        "effective_from": price.effective_from,
        "created_at": created_at,
    }
