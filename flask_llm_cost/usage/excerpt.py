"""What is kept of an event or a body that is too long to keep: its structure, without the insides of its long strings and
of its long arrays of numbers.

Pictures, audio and text are strings, and embeddings are numbers; usage, names and counts are neither, or short. So ten
megabytes of an event come down to what matters, in one pass, whatever the pieces that it arrives in. Should even that be too
long, its beginning and its end remain, and the last usage object that stood in between.
"""

from __future__ import annotations

import functools
import json
import re
from typing import Any, Final

#: What is outside of strings, and strings that are short, some at a time: what a group may go back to is kept in memory.
#: It is not possessive, as before 3.11.5 Python's re goes wrong where such a group fails half-way (gh-106052).
_SHORT: Final = re.compile(rb'(?:[^"]++|"[^"\\]{0,512}+(?:\\.[^"\\]{0,512}+){0,15}"){1,64}', re.DOTALL)
_INSIDE: Final = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_QUOTE: Final = 0x22
_CARRIED: Final = 1024

#: An array of numbers, and what may be the beginning of one. Without quotes and brackets in it, neither can end a string.
_ARRAY: Final = re.compile(rb"\[[\s0-9.,eE+-]{256,}")
_IN_ARRAY: Final = re.compile(rb"[\s0-9.,eE+-]*")
_LONGEST_BEGINNING: Final = 256

MAX_KEPT: Final = 128 * 1024
_HEAD: Final = 16 * 1024
_TAIL: Final = 48 * 1024
_OBJECT_KEPT: Final = 4 * 1024

#: Stands where something was cut out, so that what is left is never taken for whole JSON.
CUT: Final = b"\x00"


class _Eraser:
    """Empties what is long of JSON text that comes in pieces. What may be its beginning waits for the next one."""

    __slots__ = ("_carried", "_inside")

    def __init__(self) -> None:
        self._carried = b""
        self._inside = False

    def _with_carried(self, piece: bytes) -> bytes:
        carried, self._carried = self._carried, b""
        return carried + piece if carried else piece


class StringEraser(_Eraser):
    """Empties long strings. Every byte is looked at once."""

    __slots__ = ()

    def feed(self, piece: bytes) -> bytes:
        """What is known so far; the beginning of a string that has not ended waits."""
        text = self._with_carried(piece)
        passed: list[bytes] = []
        position = 0
        if self._inside:
            position = self._leave_string(text, 0)
            if position < 0:
                return b""
            passed.append(b'""')
        while position < len(text):
            end = position
            while short := _SHORT.match(text, end):
                end = short.end()
            passed.append(text[position:end])
            if end == len(text):
                break
            position = self._leave_string(text, end + 1)
            if position < 0:
                if len(text) - end <= _CARRIED:
                    self._inside, self._carried = False, text[end:]
                break
            passed.append(b'""')
        return b"".join(passed)

    def _leave_string(self, text: bytes, position: int) -> int:
        """Where a string ends whose inside begins at *position*; -1 when its end is still to come."""
        inside = _INSIDE.match(text, position)
        end = inside.end() if inside else position
        self._inside = end == len(text) or text[end] != _QUOTE
        if self._inside:
            self._carried = text[end:]  # a backslash: what it escapes is still to come
            return -1
        return end + 1

    def finish(self) -> bytes:
        """What still waited: the beginning of a string that never ended."""
        rest = self._with_carried(b"")
        return b"" if self._inside else rest


class ArrayEraser(_Eraser):
    """Empties long arrays of numbers."""

    __slots__ = ()

    def feed(self, piece: bytes) -> bytes:
        """What is known so far; what may be the beginning of a long array waits."""
        text = self._with_carried(piece)
        if self._inside:
            rest = _IN_ARRAY.match(text)
            text = text[rest.end() :] if rest else text
            if not text:
                return b""
            self._inside = False
        place = text.rfind(b"[")
        if place >= 0 and _IN_ARRAY.fullmatch(text, place + 1):
            self._inside = len(text) - place > _LONGEST_BEGINNING
            text, self._carried = (text[: place + 1], b"") if self._inside else (text[:place], text[place:])
        return _ARRAY.sub(b"[", text)

    def finish(self) -> bytes:
        """What still waited: the beginning of an array that never ended."""
        return self._with_carried(b"")


class Excerpt:
    """Collects JSON text of any length in bounded memory.

    :param mark: the key of the usage object
    :param most: how many bytes are kept, without the insides of strings and arrays; what is longer loses its middle
    """

    __slots__ = ("_arrays", "_found", "_head", "_kept", "_mark", "_most", "_strings")

    def __init__(self, mark: bytes, most: int = MAX_KEPT) -> None:
        self._mark = mark
        self._most = most
        self._strings: StringEraser | None = StringEraser()
        self._arrays = ArrayEraser()
        self._kept = bytearray()
        self._head = b""
        self._found = b""

    def feed(self, piece: bytes) -> None:
        if self._strings is not None:
            self.keep(self._strings.feed(piece))

    def keep(self, text: bytes) -> None:
        """Take text whose long strings are empty already."""
        self._kept += self._arrays.feed(text)
        if len(self._kept) > self._most:
            self._cut()

    def _cut(self) -> None:
        if not self._head:
            self._head = bytes(self._kept[:_HEAD])
            del self._kept[:_HEAD]
        dropped = len(self._kept) - _TAIL
        place = last_mark(self._kept, self._mark, 0, dropped)
        if place >= 0:
            self._found = bytes(self._kept[place : place + _OBJECT_KEPT])
        del self._kept[:dropped]

    def finish(self) -> bytes:
        """The text, or what is left of it."""
        if self._strings is not None:
            self._kept += self._arrays.feed(self._strings.finish()) + self._arrays.finish()
            self._strings = None
        if not self._head:
            return bytes(self._kept)
        return b"".join((self._head, CUT, self._found, CUT, self._kept))


def shortened(text: bytes) -> bytes:
    """JSON text without the insides of its long strings."""
    strings = StringEraser()
    return strings.feed(text) + strings.finish()


@functools.lru_cache(maxsize=64)
def _object_at(mark: bytes) -> re.Pattern[bytes]:
    return re.compile(re.escape(mark) + rb'[A-Za-z]{0,32}"?\s{0,64}:\s{0,64}\{')


def all_marks(text: bytes | bytearray, mark: bytes, floor: int = 0, ceiling: int | None = None) -> list[int]:
    """Where objects begin whose key is *mark*, or starts with it."""
    ceiling = len(text) if ceiling is None else ceiling
    if text.find(mark, floor, ceiling) < 0:  # many times quicker than a pattern
        return []
    return [found.start() for found in _object_at(mark).finditer(text, floor) if found.start() < ceiling]


def last_mark(text: bytes | bytearray, mark: bytes, floor: int = 0, ceiling: int | None = None) -> int:
    """The last of :func:`all_marks`, -1 when there is none."""
    marks = all_marks(text, mark, floor, ceiling)
    return marks[-1] if marks else -1


_NAMES: Final = re.compile(
    rb'"(type|object|id|custom_id|key|model|modelVersion|responseId|service_tier|background|status)"\s{0,64}:\s{0,64}'
    rb'("[^"\\]{1,256}"|true|false)'
)
_NAMED: Final = 64 * 1024


class Salvaged(dict[str, Any]):
    """Names and usage, flat, of an event or a body of which no more was to be had. What stood beside them is unknown."""


def salvaged(text: bytes, mark: bytes) -> Salvaged | None:
    """Names and usage of an event or a body that is no JSON any more, because it is too long, too deep or cut off.

    The first name of each kind and the last usage object count. ``None`` where there is neither.
    """
    body = Salvaged()
    for part in (text[:_NAMED], text[-_NAMED:]) if len(text) > _NAMED else (text,):
        for name, value in _NAMES.findall(part):
            body.setdefault(name.decode(), _parsed(value))
    place = last_mark(text, mark)
    if place >= 0:
        key, start = text[place + 1 : place + 65].partition(b'"')[0].decode("ascii", "replace"), text.find(b"{", place)
        try:
            body[key], _ = json.JSONDecoder().raw_decode(text[start : start + _NAMED].decode("utf-8", "replace"))
        except json.JSONDecodeError:
            if CUT in text[start : start + _NAMED]:
                body[key] = "unreadable"  # longer than what is kept of it; else the reply was cut off in the middle
        except (ValueError, RecursionError):
            body[key] = "unreadable"  # it was there, and is no object of counts
    return body or None


def _parsed(value: bytes) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return None
