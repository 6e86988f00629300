"""Amazon's binary event streams, in which Bedrock answers.

A frame is four bytes of its length, four of its headers' length, a checksum of these, headers, payload and a checksum of it
all, each number big-endian (AWS's documentation of ``application/vnd.amazon.eventstream``). Checksums are the client's
business.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Final

from flask_llm_cost.usage.scanner import Scanner

_PRELUDE: Final = 12
_CHECKSUM: Final = 4
_LONGEST: Final = 16 * 1024 * 1024 + 128 * 1024 + _PRELUDE + _CHECKSUM

#: A longer frame holds content: those that say what is billed are short.
_LONG: Final = 256 * 1024

#: How long the value of a header is, by its type; what is not here has its length in front of it.
_FIXED: Final[Mapping[int, int]] = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}


class FrameScanner(Scanner):
    """Each frame is an event: ``{event type: payload}``, or the model's own JSON that a ``chunk`` holds."""

    __slots__ = ("_broken", "_skipped")

    def __init__(
        self, mark: bytes, last_only: bool = False, every: bool = False, also: Sequence[bytes] = (), each: bytes = b""
    ) -> None:
        super().__init__(mark, last_only, every, also, each)
        self._skipped = 0
        self._broken = False

    def _scan(self, final: bool) -> None:
        text = bytes(self._buffer)
        position = min(self._skipped, len(text))
        self._skipped -= position
        while not self._broken and len(text) - position >= _PRELUDE:
            length = int.from_bytes(text[position : position + 4], "big")
            if not _PRELUDE + _CHECKSUM <= length <= _LONGEST:
                self._broken = True
                break
            if length > _LONG:
                self._skipped = max(0, position + length - len(text))
                position = min(position + length, len(text))
                continue
            if len(text) - position < length:
                break
            self._take(text[position : position + length])
            position += length
        self._buffer = bytearray() if self._broken else bytearray(text[position:])

    def _take(self, frame: bytes) -> None:
        headers_end = _PRELUDE + int.from_bytes(frame[4:8], "big")
        if headers_end > len(frame) - _CHECKSUM:
            self._broken = True
            return
        headers = _text_headers(frame[_PRELUDE:headers_end])
        kind = headers.get(":event-type")
        if kind is None or headers.get(":message-type", "event") != "event":
            self.failed = True
            return
        payload = frame[headers_end:-_CHECKSUM]
        content = _chunk(payload) if kind == "chunk" else b"{%b:%b}" % (json.dumps(kind).encode(), payload)
        self._note_failure(content)
        if content and (not self._first_seen or self._matches(content)):
            self._keep(content)


def _chunk(payload: bytes) -> bytes:
    """The model's own JSON, which is base64 inside the payload's."""
    try:
        encoded = json.loads(payload)["bytes"]
        return base64.b64decode(encoded)
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
        return b""


def _text_headers(block: bytes) -> dict[str, str]:
    headers: dict[str, str] = {}
    position = 0
    while position < len(block):
        name_end = position + 1 + block[position]
        if name_end >= len(block):
            break
        kind, start = block[name_end], name_end + 1
        if kind in _FIXED:
            position = start + _FIXED[kind]
            continue
        end = start + 2 + int.from_bytes(block[start : start + 2], "big")
        if kind == 7:
            headers[block[position + 1 : name_end].decode("utf-8", "replace")] = block[start + 2 : end].decode(
                "utf-8", "replace"
            )
        position = end
    return headers
