"""Calls that no client library shows us: hand them in with :func:`track` and :func:`track_stream`."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from types import TracebackType
from typing import Any
from uuid import UUID

from flask_llm_cost.budgets.accounts import Subject
from flask_llm_cost.capture.attribution import collect_tags
from flask_llm_cost.errors import UsageError
from flask_llm_cost.extension import AppState, state_of
from flask_llm_cost.pricing.modes import told_mode
from flask_llm_cost.records import UNKNOWN_USAGE, CallRecord, Reading, Usage, new_call_id
from flask_llm_cost.usage import Format, fed_scanner, known_route, named_format, read_stream
from flask_llm_cost.usage.format import MAX_COUNT
from flask_llm_cost.usage.manual import readings_from, time_from
from flask_llm_cost.usage.scanner import Scanner


def track(
    provider: str,
    *,
    model: str | None = None,
    usage: Any = None,
    tags: Mapping[str, Any] | None = None,
    mode: str | None = None,
    occurred_at: datetime | None = None,
    latency_ms: int | None = None,
    response_id: str | None = None,
    billed: Decimal | str | int | None = None,
    stream: bool = False,
    operation: str = "manual",
    enforce_budget: bool = False,
) -> CallRecord:
    """Record a call that was made some other way.

    :param usage: component to quantity, where ``input`` is the uncached input; or the provider's own block, as a mapping or
        as the SDK's object (``usage=response.usage``). What other models took part in, as its block says, is recorded too
    :param tags: win over every other tag
    :param mode: ``batch``, ``flex``, ``priority``, … or ``standard``; where it is left out, what the provider's block says
    :param occurred_at: when the call was made; now when it is left out. A time without a zone is UTC
    :param latency_ms: how long it took, in milliseconds
    :param response_id: the provider's id of the reply
    :param billed: what the provider says it charged, in US dollars; then it is the bill
    :param stream: whether it was streamed
    :param operation: what kind of call it was, for reports: ``chat.completions``, ``embeddings``, …
    :param enforce_budget: raise, once it is recorded, where a budget that blocks or raises is used up by now
    :returns: the record, priced; of several, that of the model that answered
    :raises BudgetExceededError: *enforce_budget* is set, and the call is recorded all the same
    :raises UsageError: an unknown component, a quantity that is no count, or a time that is none; the message lists what is
        known
    """
    _check_words(provider=provider, model=model, mode=mode, response_id=response_id, operation=operation)
    if usage is None and billed is None:
        raise UsageError("say what was used: usage={...}, billed=..., or both")
    readings = [Reading(Usage(source="manual"))] if usage is None else readings_from(provider, usage)
    if billed is not None:
        # The amount is that of all of it: it stands on the first record, and what others took part in is paid with it.
        amounts = [_dollars(billed), *[Decimal(0)] * (len(readings) - 1)]
        readings = [
            replace(reading, usage=replace(reading.usage, billed=amount))
            for reading, amount in zip(readings, amounts, strict=True)
        ]
    when, took = time_from("occurred_at", occurred_at), _milliseconds(latency_ms)
    state = state_of()
    collected = collect_tags(state, explicit=tags)
    records = [
        _record(
            state,
            collected,
            provider=provider,
            operation=operation,
            reading=Reading(
                reading.usage,
                reading.model or (None if number else model),
                response_id,
                reading.mode if mode is None else told_mode(mode),
            ),
            requested_model=None if number else model,
            occurred_at=when,
            latency_ms=took,
            stream=stream,
            enforce_budget=enforce_budget and number == len(readings) - 1,
        )
        for number, reading in enumerate(readings)
    ]
    return records[0]


class track_stream:  # noqa: N801 - reads as a word in ``with track_stream(...)``
    """Collect the usage of a stream that no client library shows us, and record it once, at the end of the block.

    ``feed`` it the stream's events as they come, or ``set_usage`` when you know it. It may be fed from several threads. When
    the block raises, the call is recorded as interrupted, and the exception goes its way. The app and the tags are those
    where the block was entered.

    With ``enforce_budget=True`` the block is not entered where a budget that blocks or raises is used up, and at its end it
    raises :exc:`~flask_llm_cost.BudgetExceededError` where one is by then. The call is recorded all the same.
    """

    def __init__(
        self,
        provider: str,
        *,
        model: str | None = None,
        tags: Mapping[str, Any] | None = None,
        mode: str | None = None,
        response_id: str | None = None,
        operation: str = "manual",
        enforce_budget: bool = False,
    ) -> None:
        _check_words(provider=provider, model=model, mode=mode, response_id=response_id, operation=operation)
        self._provider = provider
        self._model = model
        self._tags = tags
        self._mode = told_mode(mode)
        self._response_id = response_id
        self._operation = operation
        self._enforce_budget = enforce_budget
        self._lock = threading.Lock()
        self._format: Format | None = None
        self._scanners: dict[str, Scanner] = {}
        self._usage: list[Reading] | None = None
        self._open = self._finished = False
        self._began: tuple[AppState, dict[str, str]] | None = None
        self._occurred_at = datetime.now(UTC)
        self._start = time.perf_counter()
        self._first: float | None = None
        #: The record, once the block has ended.
        self.call: CallRecord | None = None

    def feed(self, event: Any) -> None:
        """Take one event: a dict, an SDK's event object, or raw bytes or text of the stream, in pieces of any size.

        What is read of them is what the provider's own format says, or the one that ``costs.register_format`` taught under
        its name. Long streams do not add up in memory.

        :raises UsageError: the block is not open, or this is none of them
        """
        kind, piece = _as_bytes(event)
        with self._lock:
            self._refuse_outside("feed")
            if self._first is None:
                self._first = time.perf_counter()
            if (scanner := self._scanners.get(kind)) is None:
                if not piece.strip():
                    return
                scanner = self._scanners[kind] = fed_scanner(self._wire(), piece)
            scanner.feed(piece)

    def set_usage(self, given: Any = None, /, **components: Any) -> None:
        """Say what was used, in our components (``input=1500, output=320``) or as the provider's own block.

        :raises UsageError: the block is not open, or this makes no sense
        """
        usage = readings_from(self._provider, components if given is None else given)
        with self._lock:
            self._refuse_outside("set_usage")
            self._usage = usage

    def __enter__(self) -> track_stream:
        state = state_of()
        with self._lock:
            self._wire(state)
        # Not at the end: a generator that is dropped ends wherever that happens, in the request of somebody else.
        tags = collect_tags(state, explicit=self._tags)
        if self._enforce_budget:
            _enforce(state, "check", self._provider, (self._model,), tags)
        with self._lock:
            self._began = state, tags
            self._open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            if self._finished or self._began is None:
                return
            self._open, self._finished = False, True
            state, tags = self._began
        first = None if self._first is None else int((self._first - self._start) * 1000)
        try:
            readings, whole = self._read(ended=error is None)
            for number, reading in enumerate(readings):
                call = _record(
                    state,
                    tags,
                    provider=self._provider,
                    operation=self._operation,
                    reading=Reading(
                        reading.usage,
                        reading.model or (None if number else self._model),
                        reading.response_id or self._response_id,
                        reading.mode or self._mode,
                    ),
                    requested_model=None if number else self._model,
                    occurred_at=self._occurred_at,
                    latency_ms=int((time.perf_counter() - self._start) * 1000),
                    first_token_ms=first,
                    stream=True,
                    outcome="ok" if whole else "interrupted",
                    error_class=type(error).__name__ if error is not None else None,
                    enforce_budget=self._enforce_budget and error is None and number == len(readings) - 1,
                )
                self.call = self.call or call
        except Exception:
            if error is None:
                raise
            # The app's own exception is on its way, and wins.

    def _refuse_outside(self, method: str) -> None:
        if self._finished:
            raise UsageError(f"{method}() after the end of the track_stream block: the call is recorded already")
        if not self._open:
            raise UsageError(f"{method}() outside a block records nothing; write 'with track_stream(...) as stream:'")

    def _wire(self, state: AppState | None = None) -> Format:
        if self._format is None:
            self._format = named_format(self._provider, (state or state_of()).hosts.formats)
        return self._format

    def _read(self, ended: bool) -> tuple[list[Reading], bool]:
        """What was used, and whether the stream came to its end: the block did, and no event said that it failed."""
        if self._usage is not None:
            return self._usage, ended
        events: list[Mapping[str, Any]] = []
        for scanner in self._scanners.values():
            scanner.finish()
            events += scanner.events
            ended = ended and not scanner.failed
        self._scanners.clear()
        route = known_route(self._provider, self._operation, self._wire(), self._model)
        return read_stream(route, events, ended) or [Reading()], ended


def _as_bytes(event: Any) -> tuple[str, bytes]:
    """An event as bytes of a stream, and of which: one of the app's own bytes, or one of lines, an event each."""
    if isinstance(event, bytes | bytearray | memoryview):
        return "raw", bytes(event)
    if isinstance(event, str):
        return "raw", event.encode(errors="replace")
    if not isinstance(event, Mapping):
        dump = getattr(event, "model_dump", None)  # the SDKs' objects are pydantic models, Google's with aliases
        event = dump(exclude_none=True, by_alias=True) if callable(dump) else event
    if not isinstance(event, Mapping):
        raise UsageError(f"feed() takes a dict, an SDK event, bytes or text, not {type(event).__name__}")
    try:
        return "events", json.dumps(event, default=str, skipkeys=True).encode() + b"\n"
    except (ValueError, RecursionError):
        raise UsageError("feed() takes a dict that can be written as JSON; this one holds itself, or is too deep") from None


def _record(
    state: AppState,
    tags: dict[str, str],
    *,
    provider: str,
    operation: str,
    reading: Reading,
    occurred_at: datetime,
    latency_ms: int | None,
    stream: bool,
    requested_model: str | None = None,
    first_token_ms: int | None = None,
    outcome: str = "ok",
    error_class: str | None = None,
    enforce_budget: bool = False,
) -> CallRecord:
    record = CallRecord(
        id=new_call_id(int(occurred_at.timestamp() * 1e9)),
        occurred_at=occurred_at.astimezone(UTC),
        provider=provider,
        operation=operation,
        model=reading.model,
        requested_model=requested_model or reading.model,
        stream=stream,
        outcome=outcome,
        error_class=error_class,
        usage=reading.usage if reading.usage.known or reading.usage.flags else UNKNOWN_USAGE,
        pricing_mode=reading.mode,
        latency_ms=latency_ms,
        first_token_ms=first_token_ms,
        provider_response_id=reading.response_id,
        tags=tags,
    )
    record = state.recorder.price(record)
    if state.config.enabled:
        record = state.recorder.record(record)
        if enforce_budget:
            _enforce(state, "enforce", provider, (record.model, record.requested_model), record.tags, record.id)
    return record


def _enforce(
    state: AppState,
    stage: str,
    provider: str,
    models: tuple[str | None, ...],
    tags: Mapping[str, str],
    call_id: UUID | None = None,
) -> None:
    if state.budgets is None or not state.config.enabled:
        return
    subject = Subject(provider, tuple(model for model in models if model), tags, datetime.now(UTC))
    if (error := state.budgets.used_up(subject, stage, call_id)) is not None:
        raise error


def _check_words(**words: object) -> None:
    for name, word in words.items():
        needed = name in ("provider", "operation")
        if (not isinstance(word, str) and (needed or word is not None)) or (needed and not word):
            raise UsageError(f"{name}={word!r} must be a string", name=name)


def _milliseconds(value: int | None) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**31:
        raise UsageError(f"latency_ms={value!r} must be milliseconds, from 0 up to 24 days", name="latency_ms")
    return int(value)


def _dollars(value: Decimal | str | int) -> Decimal:
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        amount = Decimal("NaN")
    if isinstance(value, bool) or not amount.is_finite() or not 0 <= amount <= MAX_COUNT:
        raise UsageError("billed must be an amount of dollars, as a Decimal or a string such as '0.0123'", name="billed")
    return amount
