"""What calls come to in the rollups: the same arithmetic for a batch that is written and for a rebuild."""

from __future__ import annotations

import functools
import hashlib
from collections import defaultdict
from collections.abc import Collection, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from operator import itemgetter
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from flask_llm_cost.ledger.local_time import start_of_day
from flask_llm_cost.ledger.rollup_state import RollupDays, RollupState
from flask_llm_cost.ledger.rows import CallRows, Row
from flask_llm_cost.records import content_id

#: Usage that was counted here, not reported by the provider to its end.
ESTIMATED_SOURCES: Final = ("estimated", "stream_partial")
#: Nothing was counted, or not yet.
UNCOUNTED_SOURCES: Final = ("unknown", "pending")
FAILED_OUTCOMES: Final = ("error", "blocked")

#: The columns that add up, in the order of the sums below. Line items alone have the last.
MEASURES: Final = (
    "calls", "input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "total_tokens", "cost",
    "priced_calls", "unpriced_calls", "uncounted_calls", "partial_calls", "failed_calls", "estimated_calls", "wasted_calls",
    "wasted_priced_calls", "wasted_cost", "latency_ms", "latency_calls", "quantity",
)  # fmt: skip
#: What none of a rollup's calls exceeds, and in which places of the measures that is.
BOUNDS: Final = ("most_cost", "most_latency_ms")
_BOUNDED: Final = (MEASURES.index("cost"), MEASURES.index("latency_ms"))
USAGE_KEYS: Final = ("bucket", "provider", "model", "component", "currency")
#: What ends the key under which calls are kept over all models; alone it is the component of those of a quarter of an hour.
#: No tag's key can end so.
OVER_MODELS: Final = "*"
#: The same by parts of a day, whose number is the second value; alone it is the key of all calls.
IN_PARTS: Final = "@"
#: The parts of a day: so many, and so long from its start on. The last one has what is left, whatever the clocks do.
PARTS: Final = 12
PART: Final = timedelta(hours=2)
#: What ends the key under which calls that have a tag are kept, whatever its value.
PRESENT: Final = "?"
#: What ends the key under which it is kept how calls ended and were counted, and their operation, in the second value; alone
#: it is the key of all calls.
ENDING: Final = "~"
#: The columns of a call that make it, besides whether it was both billed by the provider and computed here.
ENDING_COLUMNS: Final = ("stream", "outcome", "usage_source", "cost_status", "flags", "operation")
#: What stands for what separates its parts, within one of them.
ESCAPED: Final = "\x1f"
TAG_KEYS: Final = ("day", "key", "value", "second_value", "provider", "model", "currency")

_NOTHING: Final = Decimal(0)
#: The components whose rollups count calls.
_COUNTING: Final = ("", OVER_MODELS)
_ending_columns: Final = itemgetter(*ENDING_COLUMNS)

#: The amounts of :data:`MEASURES`, in order. Never changed: calls that are alone in a rollup share theirs.
_Amounts = tuple[Any, ...]


class Sums:
    """Adds calls up by the keys of both rollup tables.

    :param zone: whose days the tag rollups are of
    :param state: which tags have rollups, and of which it is kept only which calls have them
    """

    def __init__(self, zone: ZoneInfo, state: RollupState) -> None:
        self._zone = zone
        self._days = RollupDays(zone, state.pruned, state.pruned_day)
        self._state = state
        self._pairs = {tuple(key.split(",")): key for key in state.kept if "," in key}
        # What each rollup gets, call by call: columns of many are added up several times as fast as one after the other.
        self._usage: defaultdict[tuple[datetime, str, str, str, str], list[_Amounts]] = defaultdict(list)
        self._tags: defaultdict[tuple[date, str, str, str, str, str, str], list[_Amounts]] = defaultdict(list)
        self._starts: dict[date, datetime] = {}

    def add(self, sign: int, rows: CallRows) -> None:
        """Add one call, or take it off with a *sign* of -1."""
        call = rows.call
        at: datetime = call["occurred_at"].astimezone(UTC)
        provider, model, currency = call["provider"], call["model"] or call["requested_model"] or "", call["currency"]
        measured = _measures(sign, call)
        counted = (*measured, _NOTHING)
        usage, sums = self._usage, self._tags
        bucket = at.replace(minute=at.minute // 15 * 15, second=0, microsecond=0)
        usage[bucket, provider, model, "", currency].append(counted)
        usage[bucket, "", "", OVER_MODELS, currency].append(counted)
        for item in rows.items:
            usage[bucket, provider, model, item["component"], currency].append(_of_item(sign, item))
        day = self._days.of(at)
        part = self._part(at, day)
        sums[day, "", "", "", provider, model, currency].append(measured)
        sums[day, IN_PARTS, "", part, "", "", currency].append(measured)
        ended = _ending(call)
        sums[day, ENDING, "", ended, provider, model, currency].append(measured)
        tags = {tag["key"]: tag["value"] for tag in rows.tags if tag["key"] in self._state.kept}
        for key in (*tags, *(tag["key"] for tag in rows.tags if tag["key"] in self._state.left_out)):
            sums[day, f"{key}{PRESENT}", "", "", provider, model, currency].append(measured)
        for key, value in tags.items():
            _, over_models, in_parts, ending, ending_over_models = by_value(key)
            sums[day, key, value, "", provider, model, currency].append(measured)
            sums[day, over_models, value, "", "", "", currency].append(measured)
            sums[day, in_parts, value, part, "", "", currency].append(measured)
            sums[day, ending, value, ended, provider, model, currency].append(measured)
            sums[day, ending_over_models, value, ended, "", "", currency].append(measured)
        for (first, second), key in self._pairs.items():
            if first in tags and second in tags:
                sums[day, key, tags[first], tags[second], provider, model, currency].append(measured)
                sums[day, f"{key}{OVER_MODELS}", tags[first], tags[second], "", "", currency].append(measured)

    def _part(self, at: datetime, day: date) -> str:
        start = self._starts.get(day)
        if start is None:
            start = self._starts[day] = start_of_day(day, self._zone)
        return part_value(min(max((at - start) // PART, 0), PARTS - 1))

    def usage_rows(self) -> list[_Amounts]:
        """What changes in ``llm_cost_usage_rollups``, in order of id: id, :data:`USAGE_KEYS`, measures, :data:`BOUNDS`."""
        bounded = {
            key: [[amounts[place] for amounts in found] for place in _BOUNDED]
            for key, found in self._usage.items()
            if key[3] in _COUNTING
        }
        # What is taken off is below 0, and what only comes back raises nothing.
        raised = {key for key, columns in bounded.items() if any(max(column) > max(0, -min(column)) for column in columns)}
        bounds = {key: [max(0, *column) for column in columns] for key, columns in bounded.items()}
        nothing = [None] * len(BOUNDS)
        return [(*row, *bounds.get(row[1 : 1 + len(USAGE_KEYS)], nothing)) for row in _rows(self._usage, raised)]

    def tag_rows(self) -> list[_Amounts]:
        """What changes in ``llm_cost_tag_rollups``, in order of id: the id, :data:`TAG_KEYS`, all but the last measure."""
        return _rows(self._tags)


def part_value(number: int) -> str:
    """The number of a part of a day as the second value of its rows, which are in its order."""
    return f"{number:02}"


@functools.lru_cache(maxsize=256)
def by_value(key: str) -> tuple[str, ...]:
    """The keys of the rows that tell a tag's values, or those of two tags together."""
    return (key, *(key + kind for kind in (OVER_MODELS, IN_PARTS, ENDING, ENDING + OVER_MODELS)))


def _measures(sign: int, call: Row) -> _Amounts:
    status, source, outcome = call["cost_status"], call["usage_source"], call["outcome"]
    cost, latency = call["total_cost"], call["latency_ms"]
    uncounted, failed = source in UNCOUNTED_SOURCES, outcome in FAILED_OUTCOMES
    unpriced = status == "unpriced"
    wasted = outcome in ("interrupted", "error")
    found = (
        1,
        call["input_tokens"] or 0,
        call["cache_read_tokens"] or 0,
        call["cache_write_tokens"] or 0,
        call["output_tokens"] or 0,
        call["total_tokens"] or 0,
        cost or _NOTHING,
        int(cost is not None),
        # What failed and reported nothing is not missing from the sum.
        int(unpriced and not (failed and uncounted)),
        int(unpriced and uncounted and not failed),
        int(status == "partial"),
        int(unpriced and uncounted and failed),
        int(not unpriced and source in ESTIMATED_SOURCES),
        int(wasted),
        int(wasted and cost is not None),
        cost if wasted and cost is not None else _NOTHING,
        latency or 0,
        int(latency is not None),
    )
    return found if sign == 1 else tuple([sign * amount for amount in found])


def _ending(call: Row) -> str:
    """How a call ended and was counted, as the second value of rollups of :data:`ENDING`: ``endings.ended`` reads it."""
    stream, outcome, source, status, flags, operation = _ending_columns(call)
    computed = call["computed_cost"] is not None
    # Flags may be anybody's, and their commas stay what they are.
    flags = (flags or "").replace("|", ESCAPED)
    return f"{int(stream)}|{outcome}|{source}|{status}|{flags}|{int(computed)}|{operation}"


def _of_item(sign: int, item: Row) -> _Amounts:
    cost, priced = item["cost"], item["cost"] is not None
    amounts = sign * cost if cost else _NOTHING
    counts = (sign, 0) if priced else (0, sign)
    return (sign, 0, 0, 0, 0, 0, amounts, *counts, 0, 0, 0, 0, 0, 0, _NOTHING, 0, 0, sign * item["quantity"])


def _rows(sums: Mapping[Any, list[_Amounts]], besides: Collection[Any] = ()) -> list[_Amounts]:
    """The sums that move anything, and those of the keys *besides*."""
    added = {key: found[0] if len(found) == 1 else tuple(map(sum, zip(*found, strict=True))) for key, found in sums.items()}
    rows = [(rollup_id(key), *key, *amounts) for key, amounts in added.items() if any(amounts) or key in besides]
    # Everyone in the same order, so that nobody waits for each other in a circle.
    rows.sort(key=lambda row: row[0].int)
    return rows


@functools.lru_cache(maxsize=8192)
def rollup_id(key: tuple[Any, ...]) -> UUID:
    """The id of a rollup: a hash of its dimensions."""
    return content_id(hashlib.blake2b("\0".join(map(str, key)).encode(), digest_size=16).digest())
