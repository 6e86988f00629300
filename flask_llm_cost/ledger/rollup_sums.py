"""What calls come to in the rollups: the same arithmetic for a batch that is written and for a rebuild."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from flask_llm_cost.ledger.rows import CallRows, Row
from flask_llm_cost.records import content_id

#: Usage that was counted here, not reported by the provider to its end.
ESTIMATED_SOURCES: Final = ("estimated", "stream_partial")
#: Nothing was counted, or not yet.
UNCOUNTED_SOURCES: Final = ("unknown", "pending")
FAILED_OUTCOMES: Final = ("error", "blocked")

#: The columns that add up, in the order of the sums below.
MEASURES: Final = (
    "calls", "input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "total_tokens", "cost",
    "priced_calls", "unpriced_calls", "uncounted_calls", "partial_calls", "failed_calls", "estimated_calls", "wasted_calls",
    "wasted_priced_calls", "wasted_cost", "latency_ms", "latency_calls", "quantity",
)  # fmt: skip
USAGE_KEYS: Final = ("bucket", "provider", "model", "component", "currency")
TAG_KEYS: Final = ("day", "key", "value", "second_value", "provider", "model", "currency")

_AT: Final = {name: position for position, name in enumerate(MEASURES)}
_COST, _PRICED, _UNPRICED, _QUANTITY = _AT["cost"], _AT["priced_calls"], _AT["unpriced_calls"], _AT["quantity"]
_NOTHING: Final = Decimal(0)
_EMPTY: Final[list[Any]] = [_NOTHING if name in ("cost", "wasted_cost", "quantity") else 0 for name in MEASURES]

_Sum = list[Any]


class Sums:
    """Adds calls up by the keys of both rollup tables.

    :param zone: whose days the tag rollups are of
    :param kept: tag keys and pairs that have rollups
    """

    def __init__(self, zone: ZoneInfo, kept: Collection[str]) -> None:
        self._zone = zone
        self._kept = kept
        self._pairs = {tuple(key.split(",")): key for key in kept if "," in key}
        self.usage: dict[tuple[datetime, str, str, str, str], _Sum] = {}
        self.tags: dict[tuple[date, str, str, str, str, str, str], _Sum] = {}

    def add(self, sign: int, rows: CallRows) -> None:
        """Add one call, or take it off with a *sign* of -1."""
        call = rows.call
        at: datetime = call["occurred_at"].astimezone(UTC)
        provider, model, currency = call["provider"], call["model"] or call["requested_model"] or "", call["currency"]
        measured = _measures(sign, call)
        bucket = at.replace(minute=at.minute // 15 * 15, second=0, microsecond=0)
        _put(self.usage, (bucket, provider, model, "", currency), measured)
        for item in rows.items:
            _put(self.usage, (bucket, provider, model, item["component"], currency), _of_item(sign, item))
        day = at.astimezone(self._zone).date()
        _put(self.tags, (day, "", "", "", provider, model, currency), measured)
        tags = {tag["key"]: tag["value"] for tag in rows.tags if tag["key"] in self._kept}
        for key, value in tags.items():
            _put(self.tags, (day, key, value, "", provider, model, currency), measured)
            _put(self.tags, (day, f"{key}*", value, "", "", "", currency), measured)
        for (first, second), key in self._pairs.items():
            if first in tags and second in tags:
                _put(self.tags, (day, key, tags[first], tags[second], provider, model, currency), measured)
                _put(self.tags, (day, f"{key}*", tags[first], tags[second], "", "", currency), measured)

    def usage_rows(self) -> list[Row]:
        """What changes in ``llm_cost_usage_rollups``, in order of id."""
        return _rows(self.usage, USAGE_KEYS)

    def tag_rows(self) -> list[Row]:
        """What changes in ``llm_cost_tag_rollups``, in order of id."""
        return _rows(self.tags, TAG_KEYS)


def _measures(sign: int, call: Row) -> list[tuple[int, Any]]:
    """Position and amount of what is not zero: of most calls most is."""
    status, source, outcome = call["cost_status"], call["usage_source"], call["outcome"]
    cost, latency = call["total_cost"], call["latency_ms"]
    uncounted, failed = source in UNCOUNTED_SOURCES, outcome in FAILED_OUTCOMES
    unpriced = status == "unpriced"
    wasted = outcome in ("interrupted", "error")
    found = {
        "calls": 1,
        "cost": cost,
        "priced_calls": cost is not None,
        # What failed and reported nothing is not missing from the sum.
        "unpriced_calls": unpriced and not (failed and uncounted),
        "uncounted_calls": unpriced and uncounted and not failed,
        "partial_calls": status == "partial",
        "failed_calls": unpriced and uncounted and failed,
        "estimated_calls": not unpriced and source in ESTIMATED_SOURCES,
        "wasted_calls": wasted,
        "wasted_priced_calls": wasted and cost is not None,
        "wasted_cost": cost if wasted else None,
        "latency_ms": latency,
        "latency_calls": latency is not None,
        "input_tokens": call["input_tokens"],
        "cache_read_tokens": call["cache_read_tokens"],
        "cache_write_tokens": call["cache_write_tokens"],
        "output_tokens": call["output_tokens"],
        "total_tokens": call["total_tokens"],
    }
    return [(_AT[name], sign * amount) for name, amount in found.items() if amount]


def _of_item(sign: int, item: Row) -> list[tuple[int, Any]]:
    cost = item["cost"]
    found = [(0, sign), (_QUANTITY, sign * item["quantity"])]
    found.append((_UNPRICED, sign) if cost is None else (_PRICED, sign))
    return [*found, (_COST, sign * cost)] if cost else found


def _put(sums: dict[Any, _Sum], key: tuple[Any, ...], measured: list[tuple[int, Any]]) -> None:
    found = sums.get(key)
    if found is None:
        found = sums[key] = _EMPTY.copy()
    for position, amount in measured:
        found[position] += amount


def _rows(sums: dict[Any, _Sum], names: tuple[str, ...]) -> list[Row]:
    rows = [
        {"id": rollup_id(key), **dict(zip(names, key, strict=True)), **dict(zip(MEASURES, amounts, strict=True))}
        for key, amounts in sums.items()
        if any(amounts)
    ]
    # Everyone in the same order, so that nobody waits for each other in a circle.
    rows.sort(key=lambda row: row["id"].int)
    return rows


def rollup_id(key: tuple[Any, ...]) -> UUID:
    """The id of a rollup: a hash of its dimensions."""
    return content_id(hashlib.blake2b("\0".join(map(str, key)).encode(), digest_size=16).digest())
