"""Keeping from the app the event with the usage that it did not ask for, whatever goes wrong in doing so."""

from __future__ import annotations

from flask_llm_cost.capture.guard import report
from flask_llm_cost.log import log
from flask_llm_cost.usage.stream_options import UsageEventFilter


class Withheld:
    """Takes that event out of a stream. Nothing here raises, and no other byte is lost."""

    __slots__ = ("_events",)

    def __init__(self) -> None:
        self._events: UsageEventFilter | None = UsageEventFilter()

    def feed(self, piece: bytes) -> bytes:
        """What the app may see now that this piece is there."""
        try:
            return piece if self._events is None else self._events.feed(piece)
        except Exception:
            return self._fed_again(piece)

    def _fed_again(self, piece: bytes) -> bytes:
        """Once more, as that event is not the app's to see. What goes wrong twice lets everything pass."""
        events = self._events
        if events is None:
            return piece
        try:
            return events.feed(piece)
        except Exception as error:
            log.warning("taking our event out of a stream failed with %s: it passes", type(error).__name__)
            self._events = None
            return b"".join(events.pieces) + piece

    def rest(self) -> bytes:
        """What the app has still to see when the body has ended."""
        try:
            return b"" if self._events is None else self._events.finish()
        except Exception as error:
            report(error)
            return b"" if self._events is None else b"".join(self._events.pieces)

    def whole(self, content: bytes) -> bytes:
        """What the app may see of a body that somebody has read to its end already."""
        return self.feed(content) + self.rest()
