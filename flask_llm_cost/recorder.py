"""The hallway: the only file that knows the order in which a call walks through the house."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from blinker import Signal

from flask_llm_cost import signals
from flask_llm_cost.config import Config
from flask_llm_cost.errors import LedgerError, LlmCostError, UnknownPriceError
from flask_llm_cost.ledger.store import Ledger
from flask_llm_cost.log import log
from flask_llm_cost.pricing import PriceBook
from flask_llm_cost.records import UNPRICED, CallRecord

#: Who gets calls instead of the ledger, tests and doctor, and to which host alone; ``None`` for any.
_captures: Final[list[tuple[list[CallRecord], str | None]]] = []

_MAX_WARNED: Final = 1000


class Recorder:
    """Takes the calls of one app from capture to the ledger.

    In the app's own time a call is only made safe. Pricing follows when it is written, with the prices of the time at
    which it was made, unless somebody needs the price at once.
    """

    def __init__(
        self, config: Config, book: Callable[[], PriceBook], ledger: Ledger, send: Callable[[Signal, CallRecord], None]
    ) -> None:
        self._config = config
        self._book = book
        self._ledger = ledger
        self._send = send
        self._warned: set[tuple[str, str | None]] = set()
        #: The errors that the app asked to see. Any other is ours, and stays with us.
        self.raises: tuple[type[LlmCostError], ...] = (
            *((UnknownPriceError,) if config.unknown_price == "raise" else ()),
            *((LedgerError,) if config.write_errors == "raise" else ()),
        )

    def started(self, record: CallRecord) -> None:
        """A stream has begun. Should its end never come, this is what is known of it."""
        if not _captured(record.host):
            self._ledger.started(record)

    def record(self, record: CallRecord, *, quick: bool = False) -> CallRecord:
        """Keep a finished call.

        :param quick: whether this runs in a finaliser, where nothing may take a lock
        :raises UnknownPriceError: it has no price, and the app asked for that to be raised; it is kept all the same
        :raises LedgerError: it could not be written at once, and the app asked for that to be raised
        """
        captured = _captured(record.host)
        if not record.is_call:
            if not captured:
                self._ledger.append(record, quick=quick)
            return record
        if captured or self._config.unknown_price == "raise":
            record = self.price(record)
        if captured:
            for calls in captured:
                calls.append(record)
        else:
            self._ledger.append(record, quick=quick)
        if self._config.unknown_price == "raise" and _lacks_price(record):
            raise UnknownPriceError(record.provider, record.price_model)
        return record

    def price(self, record: CallRecord) -> CallRecord:
        """The same call with its cost, frozen from now on."""
        if record.cost is not None:
            return record
        try:
            cost = self._book().price_record(record)
        except Exception as error:
            self._warn_fault(type(error).__name__)
            cost = UNPRICED
        return replace(record, cost=cost)

    def committed(self, records: Sequence[CallRecord]) -> None:
        """Tell about calls that are safe in the ledger. Runs where they were committed, in an app context."""
        for record in records:
            self._send(signals.call_recorded, record)
            if _lacks_price(record):
                self._send(signals.unknown_price, record)
                self._warn_unpriced(record)
            else:
                self._warn_gap(record)

    def _warn_fault(self, name: str) -> None:
        if ("", name) not in self._warned:
            self._warned.add(("", name))
            log.warning("pricing a call failed with %s: such calls are kept without a price", name)

    def _warn_unpriced(self, record: CallRecord) -> None:
        key = record.provider, record.price_model
        if self._config.unknown_price != "warn" or key in self._warned or len(self._warned) >= _MAX_WARNED:
            return
        self._warned.add(key)
        log.warning(
            "no price for %.64s/%.128s: its calls are kept, but their cost is unknown; "
            "'flask llm-cost prices explain' says why, LLM_COST_PRICE_OVERRIDES sets a price",
            *(str(part).encode("unicode_escape").decode() for part in key),
        )

    def _warn_gap(self, record: CallRecord) -> None:
        """A price of the app's own that names no cache rate, of a model that is cached: probably forgotten."""
        cost = record.cost
        if cost is None or cost.status != "partial" or cost.price is None or cost.price.source not in ("overrides", "file"):
            return
        for line in cost.lines:
            key = cost.price.key, line.component
            if line.cost is not None or not line.component.startswith("cache_") or key in self._warned:
                continue
            if self._config.unknown_price == "warn" and len(self._warned) < _MAX_WARNED:
                self._warned.add(key)
                log.warning(
                    "your price of %.320s names no %s, and there are calls with it: they are priced in part only; "
                    'add it, or say "inherit": true',
                    str(key[0]).encode("unicode_escape").decode(),
                    line.component,
                )


def _lacks_price(record: CallRecord) -> bool:
    return record.cost is not None and record.cost.status == "unpriced" and record.usage.known


def capturing_now(host: str) -> bool:
    """Whether calls to *host* go to a test, or to doctor, instead of a ledger."""
    return bool(_captured(host))


def _captured(host: str) -> list[list[CallRecord]]:
    return [calls for calls, only in _captures if only is None or only == host]


@contextmanager
def capturing(calls: list[CallRecord], host: str | None = None) -> Iterator[None]:
    """Send every call to *calls*, priced, and none to a ledger or a budget, while the block runs.

    :param host: with its port: only calls to it, and all others go where they would; ``None`` for any
    """
    _captures.append((calls, host))
    try:
        yield
    finally:
        # By identity: two lists with the same calls are equal.
        _captures[:] = [other for other in _captures if other[0] is not calls]
