"""An entry while it is put together from a price source, and the JSON that it is written as."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, TypeAlias

from flask_llm_cost.pricing.rates import plain

Rates: TypeAlias = dict[str, Decimal]

_ORDER: Final = [
    "input",
    "cache_read",
    "cache_write",
    "cache_write_1h",
    "cache_write_12h",
    "output",
    "reasoning",
    "audio_input",
    "audio_cache_read",
    "audio_output",
    "image_input",
    "image_cache_read",
    "image_output",
    "video_input",
    "citation",
    "audio_seconds",
    "audio_minutes",
    "characters",
    "images",
    "video_seconds",
    "pages",
    "rerank_query",
    "requests",
]

#: What a draft says beside the price.
_NO_PRICE: Final = frozenset({"source", "zeros", "filled", "max_output"})


@dataclass
class Draft:
    """One entry while it is being built. Tiers, windows and dated blocks are dicts as documented, rates decimals."""

    rates: Rates = field(default_factory=dict)
    modes: dict[str, Rates | None] = field(default_factory=dict)
    tiers: list[dict[str, Any]] = field(default_factory=list)
    windows: list[dict[str, Any]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    scheduled: list[dict[str, Any]] = field(default_factory=list)
    per: dict[str, Decimal] = field(default_factory=dict)
    minimum: dict[str, Decimal] = field(default_factory=dict)
    multipliers: dict[str, Decimal] = field(default_factory=dict)
    tools: dict[str, dict[str, Any]] = field(default_factory=dict)
    reasoning_model: bool = False
    #: The most tokens of an answer: no price, and so nothing that two drafts may differ in.
    max_output: int | None = None
    source: str = "litellm"
    #: Components that the source lists at zero, which is no price.
    zeros: set[str] = field(default_factory=set)
    #: ``input`` or ``output`` where the source has none and another does.
    filled: set[str] = field(default_factory=set)

    def price(self) -> dict[str, Any]:
        """All that it says of the price, so that two drafts can be compared."""
        return {name: value for name, value in self.__dict__.items() if name not in _NO_PRICE and value}


class Report:
    """What a person has to read before taking the prices over."""

    def __init__(self) -> None:
        self.left_out: dict[str, list[str]] = {}
        #: Key of ours to why the source has no price for it.
        self.rejected: dict[str, str] = {}
        self.conflicts: list[str] = []
        self.notes: list[str] = []

    def leave_out(self, key: str, reason: str) -> None:
        self.left_out.setdefault(reason, []).append(key)

    def lines(self) -> Iterator[str]:
        yield f"CONFLICTS ({len(self.conflicts)})"
        yield from (f"  {line}" for line in sorted(self.conflicts))
        yield f"NOTES ({len(self.notes)})"
        yield from (f"  {line}" for line in sorted(self.notes))
        for reason, keys in sorted(self.left_out.items()):
            yield f"LEFT OUT ({len(keys)}): {reason}"
            yield from (f"  {key}" for key in sorted(keys))


def as_json(draft: Draft, *, source: str | None = None) -> dict[str, Any]:
    """The entry in the documented shape: rates as texts, components and modes in a fixed order, nothing empty.

    :param source: named in the entry as its ``_source``
    """
    entry = {name: value for name, value in _tidy(draft.price()).items() if name not in ("history", "scheduled")}
    for name in ("history", "scheduled"):
        if blocks := getattr(draft, name):
            entry[name] = [_tidy(block) for block in blocks]
    found: dict[str, Any] = written(entry)
    if draft.max_output is not None:
        found["max_output"] = draft.max_output
    if source is not None:
        found["_source"] = source
    if draft.filled:
        found["_filled"] = sorted(draft.filled)
    return found


def compact(value: Any) -> str:
    """JSON on one line, in ASCII."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True)


def written(value: Any, name: str = "") -> Any:
    """*value* with rates as texts, components and modes in their fixed order."""
    if isinstance(value, Decimal):
        return plain(value)
    if isinstance(value, dict):
        keys = list(value)
        if name in ("rates", "mode", "per"):
            keys.sort(key=lambda key: (_ORDER.index(key) if key in _ORDER else len(_ORDER), key))
        elif name == "modes":
            keys.sort()
        return {key: written(value[key], "mode" if name == "modes" else key) for key in keys}
    if isinstance(value, list):
        return [written(item) for item in value]
    return value


def _tidy(block: dict[str, Any]) -> dict[str, Any]:
    """Without empty modes of a tier, which say nothing that their absence does not."""
    return {
        name: [{k: v for k, v in tier.items() if k != "modes" or v} for tier in value] if name == "tiers" else value
        for name, value in block.items()
    }
