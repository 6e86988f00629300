"""One watched call: begun when the request goes out, fed with what comes back, finished exactly once.

Nothing in here knows a client library, and nothing may raise into one: every method that a client library's thread runs
through is guarded, and what goes wrong is logged as the name of an exception class.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Final
from uuid import UUID

from flask_llm_cost import usage as wire
from flask_llm_cost.budgets.accounts import Subject
from flask_llm_cost.budgets.asking import Answer, Ask
from flask_llm_cost.capture.asked import attempt, length, requested_model
from flask_llm_cost.capture.attribution import Tags, collect_tags
from flask_llm_cost.capture.complaints import complaint
from flask_llm_cost.capture.decoding import Tolerant, decoder_for
from flask_llm_cost.capture.guard import guarded, report
from flask_llm_cost.capture.sdk import Marker
from flask_llm_cost.capture.withholding import Withheld
from flask_llm_cost.log import log
from flask_llm_cost.recorder import capturing_now
from flask_llm_cost.records import (
    UNKNOWN_USAGE,
    BatchNews,
    CallRecord,
    Reading,
    Usage,
    new_call_id,
    settled_call_id,
)
from flask_llm_cost.usage.scanner import Scanner
from flask_llm_cost.usage.stream_options import ask_for_usage

if TYPE_CHECKING:
    from flask_llm_cost.budgets.enforcement import Budgets
    from flask_llm_cost.capture.exchange import Request
    from flask_llm_cost.extension import AppState


#: From this status on a reply is a place to ask at instead, or a refusal: nothing was billed.
UNBILLED: Final = 300

#: How much of a whole reply is looked at at once, and how many lines of a batch wait to be counted.
_PIECE: Final = 64 * 1024
_MANY_LINES: Final = 256

_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


class Observation:
    """One watched call."""

    __slots__ = (
        "_asked", "_begun", "_body", "_carried", "_decoder", "_first_ns", "_headers", "_holds", "_kept", "_occurred_at",
        "_open", "_requested_model", "_route", "_scanner", "_silent", "_start_ns", "_state", "_status", "_stream", "_tags",
        "ask", "attempt", "call_id", "content", "host", "marker", "on_its_way", "withheld",
    )  # fmt: skip

    def __init__(
        self, state: AppState, route: wire.Route, marker: Marker | None, request: Request, carried: Tags | None
    ) -> None:
        now_ns = time.time_ns()
        self._start_ns = time.perf_counter_ns() if request.begins else 0
        self.call_id = new_call_id(now_ns)
        self._occurred_at = datetime.fromtimestamp(now_ns / 1e9, UTC)
        self._state = state
        self._route = route
        self.marker = marker
        self._carried = carried
        self._tags = collect_tags(state, carried)
        content = request.content()
        fields = request.form() if content is None else content
        self._requested_model = route.model or (marker.model if marker else None) or requested_model(fields)
        self._asked = route.format.quantities_of_request(fields) if route.format.reads_request and fields else {}
        self._status: int | None = None
        self._headers: Mapping[str, str] = _NO_HEADERS
        self._stream = False
        self._first_ns = 0
        self._scanner: Scanner | None = None
        self._decoder: Tolerant | None = None
        self._body: wire.BodyCollector | None = None
        self._silent = False
        self._begun = False
        self._kept = 0
        # Whoever takes the token out finishes the call. A list pops atomically: close, finaliser and other threads agree.
        self._open: list[None] = [None]
        #: Whether a layer of the client library has it in hand already.
        self.on_its_way = False
        self.host = request.host
        self.attempt = attempt(request.headers)
        #: What to send instead of the request's body, where a stream is asked for its usage.
        self.content: bytes | None = None
        if route.takes_stream_options and content is not None and request.may_change():
            self.content = ask_for_usage(content)
        #: Takes the event that was asked for out of the reply; where there is one, :meth:`feed` gives back other bytes.
        self.withheld: Withheld | None = Withheld() if self.content is not None else None
        #: What budgets are asked before this is sent, and again once it is recorded; ``None`` where they have no say.
        self.ask: Ask | None = None
        self._holds = False
        if state.budgets is not None and self._may_be_billed(request.method) and not capturing_now(self.host):
            subject, size = self.subject, length(request.headers)
            accounts = state.budgets.blocking(subject)
            self.ask = Ask(self.call_id, subject, route.operation, content, size, accounts, self.host, route.residency)

    def _may_be_billed(self, method: str) -> bool:
        """Whether budgets may stop it: on a host that nobody knows ``/messages`` is anybody's, unless it names a model."""
        # What is asked for with GET, or by its id, was paid for elsewhere; a batch is when its results are read.
        route, own = self._route, self._route.format in self._state.hosts.formats
        if method != "POST" or route.subject is not None or (route.operation == "batch" and not own):
            return False
        return route.certain or own or route.provider != self.host or self._requested_model is not None

    @property
    def subject(self) -> Subject:
        """What budgets ask of a call before its reply is there."""
        models = (self._requested_model,) if self._requested_model else ()
        return Subject(self._route.provider, models, self._tags, self._occurred_at)

    @property
    def budgets(self) -> Budgets:
        """The app's budgets, where :attr:`ask` says that there are some."""
        assert self._state.budgets is not None
        return self._state.budgets

    @property
    def ended(self) -> bool:
        """Whether it is recorded, or was no call after all."""
        return not self._open

    @guarded
    def answered(self, ask: Ask, answer: Answer) -> None:
        """What budgets said. A call that must not be sent is recorded as blocked, and costs nothing."""
        self._holds = self._holds or answer.holds
        self.ask = replace(ask, before=ask.accounts)
        if answer.error is not None:
            self._finish([Reading()], "blocked", type(answer.error).__name__)

    def carry(self, carried: Tags | None) -> None:
        """Take the tags of an adapter or transport that turned up on the way. They may put the call to other accounts."""
        if not carried or carried is self._carried:
            return
        self._carried, self._tags = carried, collect_tags(self._state, carried)
        if self.ask is not None:
            subject = self.subject
            self.ask = replace(self.ask, subject=subject, accounts=self.budgets.blocking(subject))

    # What came back.

    @guarded
    def failed(self, error: BaseException, sent: Callable[[Exception], bool]) -> None:
        """No reply. A call that never left costs nothing; one that did may have been billed.

        :param sent: whether a request that failed so may have reached the provider
        """
        cancelled = not isinstance(error, Exception)
        if isinstance(error, Exception) and not sent(error):
            self.discard()
            return
        self._finish([Reading()], "interrupted" if cancelled else "error", type(error).__name__)

    def discard(self) -> None:
        """This was no billed call: nothing is kept, and no budget has a say in how it ended."""
        if self._open:
            self._open.clear()
            self.ask = None
            if self._holds:
                self.budgets.void(self.call_id)

    @guarded
    def replied(self, status: int, content_type: str, content: bytes, headers: Mapping[str, str] = _NO_HEADERS) -> None:
        """The whole reply is there, decoded: a JSON body, or a stream that the client has read to its end."""
        if status >= UNBILLED:
            self.discard()
            return
        self._status = status
        self._headers = headers if self._route.format.reads_headers else _NO_HEADERS
        scanner = self._scanner = wire.scanner(self._route, content_type, content)
        if scanner is not None:
            self._stream = True
            for start in range(0, len(content), _PIECE):
                self._scan(scanner, content[start : start + _PIECE])
            self._close(ended=True, error=None)
        else:
            self.withheld = None
            readings = wire.read_body(self._route, content, self._asked, self._headers)
            self._finish(readings, "ok", news=wire.batch_news(self._route, content))

    @guarded
    def opened(self, status: int, content_type: str, headers: Mapping[str, str] = _NO_HEADERS) -> bool:
        """The headers of a streamed reply are there. Whether its body is to be fed in."""
        if status >= UNBILLED:
            self.discard()
            return False
        self._status = status
        self._headers = headers if self._route.format.reads_headers else _NO_HEADERS
        self._scanner = wire.scanner(self._route, content_type)
        self._stream = self._scanner is not None
        if self._scanner is None:
            self._body = wire.BodyCollector(self._route)
        if self._route.certain and not self._route.format.shape_only:
            self._begun = True
            self._state.recorder.started(self._record(Reading(), "interrupted", None))
        return True

    def encoded(self, encoding: str) -> None:
        """Say how the pieces are encoded that will be fed. What is encoded passes whole: nothing can be taken out of it."""
        try:
            if encoding:
                self.withheld = None
            decoder = decoder_for(encoding)
            self._decoder = None if decoder is None else Tolerant(decoder)
        except Exception as error:
            self._stop_reading(error)

    def feed(self, piece: bytes) -> bytes:
        """A piece of the body, as it came. Returns what the app may see of it."""
        try:
            if not self._first_ns:
                self._first_ns = time.perf_counter_ns()
            for text in (piece,) if self._decoder is None else self._decoder.decode(piece):
                if self._scanner is not None:
                    self._scan(self._scanner, text)
                elif self._body is not None:
                    self._collect(self._body, text)
        except Exception as error:
            self._stop_reading(error)
        return piece if self.withheld is None else self.withheld.feed(piece)

    def _collect(self, body: wire.BodyCollector, text: bytes) -> None:
        if body.empty and text:
            # Only now it shows whether it is a body: some servers do not say that they stream.
            self._scanner = wire.scanner(self._route, "", text)
            if self._scanner is not None:
                self._stream, self._body = True, None
                self._scan(self._scanner, text)
                return
            self.withheld = None
        body.feed(text)

    def _scan(self, scanner: Scanner, text: bytes) -> None:
        scanner.feed(text)
        if self._route.format.each_event_counts and len(scanner.events) >= _MANY_LINES:
            # The lines of a batch are thousands of bills: none waits for the others.
            lines, scanner.events = scanner.events, []
            self._keep(wire.read_stream(self._route, lines, False, self._asked, self._headers), "ok")

    def rest(self) -> bytes:
        """What the app has still to see when the body has ended."""
        try:
            return b"" if self.withheld is None else self.withheld.rest()
        except Exception as error:
            report(error)
            return b"" if self.withheld is None else self.withheld.rest()

    @guarded
    def closed(self, ended: bool, error: BaseException | None = None) -> None:
        """The body was read to its end, broken off, or cut."""
        self._close(ended, error)

    def __del__(self) -> None:
        # A reply that nobody read or closed. This may run inside the garbage collector, in the middle of somebody's locked
        # section: no locks, no logging.
        try:
            if self._open and self._status is not None:
                self._silent = True
                self._close(ended=False, error=None)
        except Exception:
            return  # there is nobody left to tell

    # What becomes of it.

    def _close(self, ended: bool, error: BaseException | None) -> None:
        if not self._open:
            return
        scanner = self._scanner
        news: Sequence[BatchNews] = ()
        if scanner is not None:
            scanner.finish()
            # An event in place of the end that says what went wrong is no end, however well it was read.
            ended = (ended or scanner.done) and not scanner.failed
            # Where it could not be decoded to its end, its end was not seen.
            whole = ended and (scanner.done or self._decoder is None or not self._decoder.failed)
            readings = wire.read_stream(self._route, scanner.events, whole, self._asked, self._headers)
            scanner.events = []
            if whole and self._route.format.each_event_counts and self._route.subject and self._status == 200:
                news = [BatchNews(self._route.subject)]
            ended = ended or (not scanner.failed and any(reading.usage.source == "stream_final" for reading in readings))
        elif self._body is not None:
            content = self._body.finish()
            self._body = None
            readings = wire.read_body(self._route, content, self._asked, self._headers)
            news = wire.batch_news(self._route, content)
        else:
            readings = [Reading()]
        self._finish(readings, "ok" if ended else "interrupted", type(error).__name__ if error else None, news)

    def _stop_reading(self, error: Exception) -> None:
        self._scanner = None
        self._decoder = None
        self._body = None
        log.warning("reading a reply failed with %s: its usage stays unknown", type(error).__name__)

    def _finish(
        self, readings: Sequence[Reading], outcome: str, error_class: str | None = None, news: Sequence[BatchNews] = ()
    ) -> None:
        try:
            self._open.pop()
        except IndexError:
            return
        self._keep(readings, outcome, error_class)
        for new in news:
            self._hand_over(self._record_of_news(new))
        if self._begun and not any(reading.settles is None for reading in readings):
            # It goes by another id, or was no call: what was said when it began must not outlive it.
            self._hand_over(self._ended(self.call_id))

    def _keep(self, readings: Sequence[Reading], outcome: str, error_class: str | None = None) -> None:
        for reading in readings:
            said_itself = "error" if reading.failed else "interrupted" if reading.cancelled else "ok"
            how = said_itself if outcome == "ok" else outcome
            said = complaint(self._route, self.host, self._stream, reading, whole=how == "ok")
            if said is not None:
                self._warn(*said)
            self._hand_over(self._record(reading, how, error_class, self._kept))
            self._kept += 1

    def _hand_over(self, record: CallRecord) -> None:
        try:
            self._state.recorder.record(record, quick=self._silent)
        except self._state.recorder.raises as error:
            # Inside the client's send the SDKs would swallow it and pay again: it is raised at the marker.
            if self.marker is None:
                self._warn("%s", error)
            else:
                self.marker.error = error

    def _warn(self, message: str, *args: object) -> None:
        if not self._silent:
            log.warning(message, *args)

    def _record(self, reading: Reading, outcome: str, error_class: str | None, number: int = 0) -> CallRecord:
        """The record of what one reading bills. A reply may bill several things; each has an id of its own."""
        now_ns = time.perf_counter_ns()
        if reading.settles is not None:
            call_id = settled_call_id(self._route.provider, reading.settles, reading.created_at)
        else:
            call_id = new_call_id() if number else self.call_id
        usage, requested = reading.usage, self._requested_model
        if requested is None and reading.settles is not None and self._route.subject is None:
            requested = reading.model  # of a stored prompt: by it the ledger tells who made a call from who asks how it went
        return CallRecord(
            id=call_id,
            occurred_at=self._occurred_at,
            provider=self._route.provider,
            operation=self._route.operation,
            host=self.host,
            model=reading.model,
            # What else a reply bills, another model did: it must not be priced as the one that was asked.
            requested_model=None if number else requested,
            stream=self._stream,
            attempt=self.attempt,
            outcome=outcome,
            http_status=self._status,
            error_class=error_class,
            usage=usage if usage.known or usage.flags or usage.source == "pending" else UNKNOWN_USAGE,
            pricing_mode=reading.mode,
            latency_ms=(now_ns - self._start_ns) // 1_000_000 if self._start_ns else None,
            first_token_ms=(self._first_ns - self._start_ns) // 1_000_000 if self._stream and self._first_ns else None,
            provider_response_id=reading.response_id,
            tags=self._tags,
            hold_id=self.call_id if self._holds and not number and call_id != self.call_id else None,
            batch=settled_call_id(self._route.provider, reading.batch, None) if reading.batch else None,
        )

    def _record_of_news(self, news: BatchNews) -> CallRecord:
        batch = settled_call_id(self._route.provider, news.batch, None)
        if news.becomes is None:
            return self._ended(batch)
        moved = Reading(Usage(source="pending"), None, news.batch, "batch", news.becomes, batch=news.batch)
        return self._record(moved, "ok", None)

    def _ended(self, call_id: UUID) -> CallRecord:
        """Word that nothing more comes of a pending call, or of one that has only begun."""
        own_id = call_id if call_id == self.call_id else new_call_id()
        return CallRecord(
            id=own_id,
            occurred_at=self._occurred_at,
            provider=self._route.provider,
            operation=self._route.operation,
            batch=call_id,
            batch_ended=True,
        )
