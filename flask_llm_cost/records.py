"""What walks through the house: a reply is *read*, its usage *priced*, and the call *kept*.

All are frozen: a room hands on a new value, it never changes one that it was given.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeAlias
from uuid import UUID

from flask_llm_cost.chance import CHANCE

Quantity: TypeAlias = int | Decimal

#: What stands in a tag instead of a secret.
REDACTED: Final = "[redacted]"
#: The whole of a tag's key.
TAG_KEY: Final = re.compile(r"[a-z][a-z0-9_.-]{0,63}")
#: The same for people.
TAG_KEY_RULE: Final = "a lower-case letter, then up to 63 of a-z, 0-9, '_', '.', '-'"


class _FrozenDict(dict[str, Any]):
    """A dict that stays as it is. A view of one would, too, but cannot be pickled or copied."""

    __slots__ = ()

    def __reduce__(self) -> tuple[type[_FrozenDict], tuple[dict[str, Any]]]:
        return _FrozenDict, (dict(self),)

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("what a record holds stays as it is")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse


_NOTHING: Final[Mapping[str, Any]] = _FrozenDict()


@dataclass(frozen=True, slots=True)
class Component:
    """One disjoint thing that is billed.

    :param unit: what is counted: ``token``, ``call``, ``second``, ``character``, …
    :param side: ``input``, ``output`` or ``other``; the sides add up to ``input_tokens`` and ``output_tokens``
    :param cache: ``read``, ``write`` or ``None``
    """

    name: str
    unit: str
    side: str
    cache: str | None = None


#: Every component by name. A new one is a line here, not a migration.
COMPONENTS: Final[Mapping[str, Component]] = MappingProxyType(
    {
        component.name: component
        for component in (
            Component("input", "token", "input"),
            Component("cache_read", "token", "input", "read"),
            Component("cache_write", "token", "input", "write"),
            Component("cache_write_1h", "token", "input", "write"),
            Component("cache_write_12h", "token", "input", "write"),
            Component("output", "token", "output"),
            Component("reasoning", "token", "output"),
            Component("audio_input", "token", "input"),
            Component("audio_output", "token", "output"),
            Component("audio_cache_read", "token", "input", "read"),
            Component("image_input", "token", "input"),
            Component("image_output", "token", "output"),
            Component("image_cache_read", "token", "input", "read"),
            Component("video_input", "token", "input"),
            Component("citation", "token", "other"),
            Component("web_search", "call", "other"),
            Component("web_search_preview", "call", "other"),
            Component("web_fetch", "call", "other"),
            Component("file_search", "call", "other"),
            Component("container_session", "session", "other"),
            Component("grounding_query", "query", "other"),
            Component("grounded_prompt", "prompt", "other"),
            Component("maps_grounding", "call", "other"),
            Component("image_generation", "call", "other"),
            Component("audio_seconds", "second", "other"),
            Component("audio_minutes", "minute", "other"),
            Component("characters", "character", "other"),
            Component("images", "image", "other"),
            Component("video_seconds", "second", "other"),
            Component("pages", "page", "other"),
            Component("rerank_query", "query", "other"),
            Component("requests", "request", "other"),
            Component("cache_storage_token_hour", "token-hour", "other"),
            Component("billed_request", "request", "other"),
        )
    }
)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a provider counted for one call: disjoint quantities by component, whose prices add up to the bill.

    ``usage["output"]`` is the quantity of a component, 0 where the provider counted none.

    :param quantities: component to quantity; empty when nothing is known
    :param source: ``usage_source`` of the ledger: ``response``, ``stream_final``, ``stream_partial``, ``batch``,
        ``manual``, ``estimated``, ``pending`` or ``unknown``
    :param reasoning_tokens: how many of the output tokens were reasoning, where the provider says so
    :param total_tokens: the provider's own total, where it gives one
    :param billed: what the provider says it charged, in US dollars; then it is the bill
    :param flags: what was odd about it, such as ``usage_inconsistent``
    :param raw: the usage block as received, numbers and enum words only
    """

    quantities: Mapping[str, Quantity] = field(default_factory=lambda: _NOTHING)
    source: str = "unknown"
    reasoning_tokens: int | None = None
    total_tokens: int | None = None
    billed: Decimal | None = None
    flags: tuple[str, ...] = ()
    raw: Mapping[str, Any] | None = None

    def __getitem__(self, component: str) -> Quantity:
        if component not in COMPONENTS:
            raise KeyError(component)
        return self.quantities.get(component, 0)

    def __iter__(self) -> Iterator[str]:
        return iter(self.quantities)

    def __contains__(self, component: object) -> bool:
        return component in self.quantities

    @property
    def known(self) -> bool:
        """Whether anything was counted at all. What is not known is never taken for zero."""
        return bool(self.quantities) or self.billed is not None

    @property
    def input_tokens(self) -> int | None:
        """All input tokens, cached ones included."""
        return self._tokens(side="input")

    @property
    def output_tokens(self) -> int | None:
        """All output tokens, reasoning included."""
        return self._tokens(side="output")

    @property
    def cache_read_tokens(self) -> int | None:
        """Input tokens that were read from a cache."""
        return self._tokens(cache="read")

    @property
    def cache_write_tokens(self) -> int | None:
        """Input tokens that were written to a cache, whatever its lifetime."""
        return self._tokens(cache="write")

    def _tokens(self, side: str | None = None, cache: str | None = None) -> int | None:
        if not self.quantities:
            return None
        total = 0
        for name, quantity in self.quantities.items():
            component = COMPONENTS[name]
            if component.unit == "token" and (component.side == side if side else component.cache == cache):
                total += int(quantity)
        return total


UNKNOWN_USAGE: Final = Usage()


@dataclass(frozen=True, slots=True)
class Reading:
    """What one reply says of itself, in our words.

    :param mode: ``pricing_mode`` as served: ``None`` for standard, else ``batch``, ``flex``, ``batch+residency:eu``, …
    :param settles: the provider's own key for what is billed here (the id of a background response, of a line of a batch):
        however often and wherever it is read, it counts once. ``None`` where each reply is a bill of its own
    :param created_at: when the provider says that what is settled was created
    :param batch: the provider's key of the batch that this is a line of
    :param malformed: the field of the usage block that made no sense, so that nothing of it is believed
    :param failed: whether the reply says, in place of an answer, what went wrong
    :param cancelled: whether the reply says that it was broken off; its usage is what it took until then
    """

    usage: Usage = UNKNOWN_USAGE
    model: str | None = None
    response_id: str | None = None
    mode: str | None = None
    settles: str | None = None
    created_at: datetime | None = None
    batch: str | None = None
    malformed: str | None = None
    failed: bool = False
    cancelled: bool = False


@dataclass(frozen=True, slots=True)
class BatchNews:
    """What a reply says of a batch that was created earlier, perhaps elsewhere.

    :param batch: the provider's key of it
    :param becomes: the key under which its lines are found from now on, such as the file that they are in; ``None`` when
        nothing more comes of it
    """

    batch: str
    becomes: str | None = None


@dataclass(frozen=True, slots=True)
class Rate:
    """A price per ``per`` units of one component. ``rate`` is what applied, every multiplier and discount included."""

    rate: Decimal
    per: Decimal


@dataclass(frozen=True, slots=True)
class Price:
    """The price that was applied to a call, frozen: enough to compute its bill again without the price book.

    :param id: made from the content, so that equal prices are one row
    :param source: ``overrides``, ``file``, ``bundled`` or ``provider``
    :param source_version: which edition of it
    :param key: the entry that matched, ``openai/gpt-4o``
    :param match: how: ``exact``, ``alias``, ``date_suffix``, ``fine_tune``, ``mapped``, …
    :param mode: the pricing mode that applied
    :param tier: the context tier that applied, such as ``>200000``
    :param rates: component to rate, as applied
    :param multiplier: region and fast-mode factor inside the rates
    :param discount: agreed discount inside the rates, ``0.15`` for 15%
    :param effective_from: since when, where the book knows
    """

    id: UUID
    source: str
    source_version: str
    key: str
    match: str
    currency: str
    rates: Mapping[str, Rate]
    mode: str | None = None
    tier: str | None = None
    multiplier: Decimal = Decimal(1)
    discount: Decimal = Decimal(0)
    effective_from: datetime | None = None

    def __post_init__(self) -> None:
        # Calls share a price: what a receiver does with its call's must not reach another's.
        object.__setattr__(self, "rates", _FrozenDict(self.rates))


class Line(NamedTuple):
    """One component's part of the bill. ``rate`` and ``cost`` are ``None`` where no price is known.

    A tuple, because every call makes several, and a frozen dataclass takes ten times as long.

    :param status: ``priced``, ``free``, ``derived`` (a declared rule stood in for a missing rate) or ``unpriced``
    """

    component: str
    unit: str
    quantity: Quantity
    rate: Decimal | None
    rate_per: Decimal | None
    cost: Decimal | None
    status: str


@dataclass(frozen=True, slots=True)
class Cost:
    """What a call costs.

    :param total: the sum of the priced lines; ``None`` when nothing could be priced
    :param status: ``priced``, ``partial`` (the total is a lower bound), ``unpriced`` or ``free``
    :param price: the price that applied; ``None`` when there is none
    :param computed: the book's own figure, where the provider's billed amount won over it
    """

    total: Decimal | None
    lines: tuple[Line, ...]
    status: str
    price: Price | None = None
    currency: str = "USD"
    computed: Decimal | None = None


UNPRICED: Final = Cost(total=None, lines=(), status="unpriced")


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRecord:
    """One billed exchange with a provider. The fields are the columns of ``llm_cost_calls``.

    ``cost`` is filled in by pricing, which happens after the record is safe; until then it is ``None``. ``hold_id`` is no
    column: it is the id under which budgets hold something for the call, where that is not its own. A record can be pickled,
    copied, and made a dict by :func:`dataclasses.asdict`.
    """

    id: UUID
    occurred_at: datetime
    provider: str
    operation: str
    host: str = ""
    model: str | None = None
    requested_model: str | None = None
    stream: bool = False
    attempt: int = 1
    outcome: str = "ok"
    http_status: int | None = None
    error_class: str | None = None
    usage: Usage = UNKNOWN_USAGE
    pricing_mode: str | None = None
    latency_ms: int | None = None
    first_token_ms: int | None = None
    provider_response_id: str | None = None
    tags: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    cost: Cost | None = None
    hold_id: UUID | None = None
    #: Of what a batch bills, the pending call that created the batch: this call was made for whom that one was.
    batch: UUID | None = None
    #: Whether this is no call, but word that nothing more comes of :attr:`batch`.
    batch_ended: bool = False

    @property
    def is_call(self) -> bool:
        """Whether this is a call, not just news of a batch: that it ended, or by which id it goes from now on."""
        return self.batch is None or not (self.batch_ended or self.usage.source == "pending")

    @property
    def total_cost(self) -> Decimal | None:
        """What the call costs, ``None`` where no price is known."""
        return self.cost.total if self.cost else None

    @property
    def price_model(self) -> str | None:
        """The model to price by: the one that the reply names, else the one that was asked for."""
        return self.model or self.requested_model


def content_id(digest: bytes) -> UUID:
    """An id made from content: a UUID of version 8 (RFC 9562), since MariaDB takes no 16 bytes that are none."""
    value = int.from_bytes(digest[:16], "big")
    # The last bit: MariaDB refuses one of this version whose byte with the variant is 0x80.
    return UUID(int=value & ~(0xF << 76 | 0x3 << 62) | 0x8 << 76 | 0x2 << 62 | 0x1 << 56)


def settled_call_id(provider: str, key: str, created_at: datetime | None) -> UUID:
    """The id of a call that is settled by the provider's own *key*: the same wherever and however often it is read."""
    milliseconds = 0 if created_at is None else int(created_at.timestamp() * 1000)
    digest = hashlib.sha256(f"{provider}\0{key}".encode()).digest()
    return _uuid7(milliseconds, int.from_bytes(digest[:10], "big"))


def id_milliseconds(call_id: UUID) -> int:
    """When the call of an id was made, in Unix milliseconds, by the id; 0 where that does not say."""
    return call_id.int >> 80


def new_call_id(now_ns: int | None = None) -> UUID:
    """A time-ordered UUID (version 7, RFC 9562): 48 bits of Unix milliseconds, 74 random bits."""
    milliseconds = (time.time_ns() if now_ns is None else now_ns) // 1_000_000
    return _uuid7(milliseconds, CHANCE.getrandbits(80))


def _uuid7(milliseconds: int, bits: int) -> UUID:
    value = (milliseconds & 0xFFFFFFFFFFFF) << 80 | bits
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return UUID(int=value)
