"""How a record looks in a spool file: one line, checked by its CRC.

``\\n<crc32, 8 hex digits> <JSON object>\\n``. The newline in front keeps a torn predecessor from swallowing the line; blank
lines mean nothing. The object's ``kind`` says what it is: a header, a call that has started, how many were given up, or
(left out) a finished call. What has its default value is left out too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID
from zlib import crc32

from flask_llm_cost.records import CallRecord, Cost, Line, Price, Rate, Usage

HEADER: Final = "header"
STARTED: Final = "started"
LOST: Final = "lost"
CALL: Final = "call"

#: Of what is in a file; a file of another format is left alone.
FORMAT: Final = 1

_PLAIN_FIELDS: Final = (
    "host",
    "model",
    "requested_model",
    "stream",
    "attempt",
    "outcome",
    "http_status",
    "error_class",
    "pricing_mode",
    "latency_ms",
    "first_token_ms",
    "provider_response_id",
)


def _jsonable(value: Any) -> Any:
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no place in a spool line")


_dumps: Final = json.JSONEncoder(separators=(",", ":"), default=_jsonable, check_circular=False).encode
_loads: Final = json.JSONDecoder().decode


def pack(fields: Mapping[str, Any]) -> bytes:
    """A whole line, both newlines included."""
    body = _dumps(fields).encode("ascii")
    return b"\n%08x %b\n" % (crc32(body), body)


def pack_lost(calls: int) -> bytes:
    """The line that says that so many calls were given up."""
    return pack({"kind": LOST, "calls": calls})


def is_whole(line: bytes) -> bool:
    """Whether a line without its newlines is one of ours, and not torn."""
    try:
        return line[8:9] == b" " and int(line[:8], 16) == crc32(line[9:])
    except ValueError:
        return False


def unpack(line: bytes) -> dict[str, Any] | None:
    """The object of one line without its newlines; ``None`` for one that is torn or no line of ours."""
    if not is_whole(line):
        return None
    try:
        fields = _loads(line[9:].decode("ascii"))
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None


def encode(record: CallRecord, kind: str = CALL) -> bytes:
    """The line of a record. Takes some microseconds: the app's call waits for it."""
    fields: dict[str, Any] = {
        "id": record.id.hex,
        "at": record.occurred_at.isoformat(),
        "provider": record.provider,
        "operation": record.operation,
    }
    if kind != CALL:
        fields["kind"] = kind
    if record.host:
        fields["host"] = record.host
    if record.model is not None:
        fields["model"] = record.model
    if record.requested_model is not None:
        fields["requested_model"] = record.requested_model
    if record.stream:
        fields["stream"] = True
    if record.attempt != 1:
        fields["attempt"] = record.attempt
    if record.outcome != "ok":
        fields["outcome"] = record.outcome
    if record.http_status is not None:
        fields["http_status"] = record.http_status
    if record.error_class is not None:
        fields["error_class"] = record.error_class
    if record.pricing_mode is not None:
        fields["pricing_mode"] = record.pricing_mode
    if record.latency_ms is not None:
        fields["latency_ms"] = record.latency_ms
    if record.first_token_ms is not None:
        fields["first_token_ms"] = record.first_token_ms
    if record.provider_response_id is not None:
        fields["provider_response_id"] = record.provider_response_id
    if record.batch is not None:
        fields["batch"] = record.batch.hex
    if record.batch_ended:
        fields["batch_ended"] = True
    if record.tags:
        fields["tags"] = dict(record.tags)
    usage = record.usage
    if usage.source != "unknown" or usage.quantities or usage.flags or usage.raw:
        fields["usage"] = _usage_fields(usage)
    if record.hold_id is not None:
        fields["hold"] = record.hold_id.hex
    if record.cost is not None:
        fields["cost"] = _cost_fields(record.cost)
    return pack(fields)


def _usage_fields(usage: Usage) -> dict[str, Any]:
    fields: dict[str, Any] = {"source": usage.source}
    if usage.quantities:
        fields["quantities"] = dict(usage.quantities)
    if usage.reasoning_tokens is not None:
        fields["reasoning_tokens"] = usage.reasoning_tokens
    if usage.total_tokens is not None:
        fields["total_tokens"] = usage.total_tokens
    if usage.billed is not None:
        fields["billed"] = str(usage.billed)
    if usage.flags:
        fields["flags"] = usage.flags
    if usage.raw is not None:
        fields["raw"] = usage.raw
    return fields


def _cost_fields(cost: Cost) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "total": cost.total,
        "status": cost.status,
        "currency": cost.currency,
        "computed": cost.computed,
        "lines": [
            [line.component, line.unit, line.quantity, line.rate, line.rate_per, line.cost, line.status]
            for line in cost.lines
        ],
    }
    if cost.price is not None:
        price = cost.price
        fields["price"] = {
            "id": price.id.hex,
            "source": price.source,
            "source_version": price.source_version,
            "key": price.key,
            "match": price.match,
            "currency": price.currency,
            "rates": {name: [rate.rate, rate.per] for name, rate in price.rates.items()},
            "mode": price.mode,
            "tier": price.tier,
            "multiplier": price.multiplier,
            "discount": price.discount,
            "effective_from": price.effective_from.isoformat() if price.effective_from else None,
        }
    return fields


def decode(line: bytes) -> CallRecord:
    """The record of one line without its newlines.

    :raises ValueError: the line is torn, or no record
    """
    fields = unpack(line)
    if fields is None or fields.get("kind") == HEADER:
        raise ValueError("no record in this line")
    return record_of(fields)


def record_of(fields: Mapping[str, Any]) -> CallRecord:
    """The record of an unpacked line.

    :raises ValueError: something that a record needs is missing or of the wrong kind
    """
    try:
        return CallRecord(
            id=UUID(fields["id"]),
            occurred_at=datetime.fromisoformat(fields["at"]),
            provider=fields["provider"],
            operation=fields["operation"],
            tags=fields.get("tags", {}),
            usage=_usage_of(fields["usage"]) if "usage" in fields else Usage(),
            cost=_cost_of(fields["cost"]) if "cost" in fields else None,
            hold_id=UUID(fields["hold"]) if "hold" in fields else None,
            batch=UUID(fields["batch"]) if "batch" in fields else None,
            batch_ended=fields.get("batch_ended", False),
            **{name: fields[name] for name in _PLAIN_FIELDS if name in fields},
        )
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"no record in this line ({type(error).__name__})") from None


def _usage_of(fields: Mapping[str, Any]) -> Usage:
    return Usage(
        quantities={
            name: quantity if type(quantity) is int else Decimal(quantity)
            for name, quantity in fields.get("quantities", {}).items()
        },
        source=fields["source"],
        reasoning_tokens=fields.get("reasoning_tokens"),
        total_tokens=fields.get("total_tokens"),
        billed=_decimal(fields.get("billed")),
        flags=tuple(fields.get("flags", ())),
        raw=fields.get("raw"),
    )


def _decimal(value: Any) -> Decimal | None:
    return None if value is None else Decimal(value)


def _cost_of(fields: Mapping[str, Any]) -> Cost:
    price = fields.get("price")
    return Cost(
        total=_decimal(fields["total"]),
        status=fields["status"],
        currency=fields["currency"],
        computed=_decimal(fields["computed"]),
        lines=tuple(
            Line(
                component=component,
                unit=unit,
                quantity=quantity if type(quantity) is int else Decimal(quantity),
                rate=_decimal(rate),
                rate_per=_decimal(rate_per),
                cost=_decimal(cost),
                status=status,
            )
            for component, unit, quantity, rate, rate_per, cost, status in fields["lines"]
        ),
        price=None if price is None else _price_of(price),
    )


def _price_of(fields: Mapping[str, Any]) -> Price:
    since = fields["effective_from"]
    return Price(
        id=UUID(fields["id"]),
        source=fields["source"],
        source_version=fields["source_version"],
        key=fields["key"],
        match=fields["match"],
        currency=fields["currency"],
        rates={name: Rate(Decimal(rate), Decimal(per)) for name, (rate, per) in fields["rates"].items()},
        mode=fields["mode"],
        tier=fields["tier"],
        multiplier=Decimal(fields["multiplier"]),
        discount=Decimal(fields["discount"]),
        effective_from=datetime.fromisoformat(since) if since else None,
    )
