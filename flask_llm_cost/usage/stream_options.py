"""Asking an OpenAI-shaped stream for its usage, and keeping the answer from the app.

Without ``stream_options.include_usage`` such a stream says nothing about usage at all. With it, the provider sends one more
event (``"choices": []`` and the usage) and puts ``"usage": null`` into the others: both are taken out again, so that the app
reads what it would have read without us.
"""

from __future__ import annotations

import json
import re
from typing import Final

from flask_llm_cost.usage.sse import EVENT_END, last_event_end, parse_event

_FIELD: Final = re.compile(rb'"stream_options"\s*:\s*(?P<value>null|\{\s*(?P<empty>\})?)')
_STREAM: Final = re.compile(rb'"stream"\s*:\s*true')
_ASKED: Final = rb'"include_usage":true'


def ask_for_usage(content: bytes) -> bytes | None:
    """The request body with usage asked for; ``None`` where it must stay as it is.

    That is: no stream, an explicit choice of the app, or a body that is not understood. Nothing but the insertion changes.
    """
    if not _STREAM.search(content) or b'"include_usage"' in content or content[:1] != b"{":
        return None
    field = _FIELD.search(content)
    if field is None:
        changed = b'{"stream_options":{' + _ASKED + b"}," + content[1:]
    else:
        more = field["value"] != b"null" and not field["empty"]
        changed = content[: field.start("value")] + b"{" + _ASKED + (b"," if more else b"}") + content[field.end() :]
    # Words of the request may stand inside nested objects. Look before it is sent, not after.
    try:
        body = json.loads(changed)
    except (ValueError, RecursionError):
        return None
    options = body.get("stream_options") if isinstance(body, dict) and body.get("stream") is True else None
    return changed if isinstance(options, dict) and options.get("include_usage") is True else None


class UsageEventFilter:
    """Passes a stream's bytes on, without the traces of the question that the app did not ask.

    Bytes wait only until their event is complete; what is left at the end is passed on as it is.
    """

    __slots__ = ("_overlap", "pieces")

    def __init__(self) -> None:
        #: What waits for the end of its event.
        self.pieces: list[bytes] = []
        #: The end of what waits: an event's end may begin in it.
        self._overlap = b""

    def feed(self, piece: bytes) -> bytes:
        """The bytes that may pass now."""
        if not self.pieces and piece.endswith(b"\n\n"):
            if b'"usage"' not in piece:
                return piece
            piece = _without_null_usage(piece)
            return piece if b'"usage"' not in piece else self._filter(piece)
        # Only the new piece is searched: an event of megabytes comes in thousands of them.
        searched = self._overlap + piece
        end = last_event_end(searched)
        if not end:
            self.pieces.append(piece)
            self._overlap = searched[-3:]
            return b""
        whole = b"".join((*self.pieces, piece))
        end += len(whole) - len(searched)
        passed = self._filter(whole[:end])
        # Nothing has changed until here: what failed can be tried again with the same piece.
        self.pieces = [whole[end:]] if end < len(whole) else []
        self._overlap = whole[end:][-3:]
        return passed

    def finish(self) -> bytes:
        """The bytes of an event that never ended."""
        rest, self.pieces, self._overlap = b"".join(self.pieces), [], b""
        return rest

    def _filter(self, events: bytes) -> bytes:
        passed = []
        start = 0
        for end in EVENT_END.finditer(events):
            event = events[start : end.end()]
            start = end.end()
            if b'"usage"' in event:
                if _is_usage_event(event):
                    continue
                event = _without_null_usage(event)
            passed.append(event)
        return b"".join(passed) + events[start:]


def _without_null_usage(events: bytes) -> bytes:
    """The events as they would be unasked. These very bytes cannot stand inside a JSON string, whose quotes are escaped."""
    events = events.replace(b',"usage":null', b"")
    return events.replace(b', "usage": null', b"") if b'"usage"' in events else events


def _is_usage_event(event: bytes) -> bool:
    body = parse_event(event)
    return body is not None and body.get("choices") == [] and isinstance(body.get("usage"), dict)
