"""What a wire format is, and how its numbers are read without trusting them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from flask_llm_cost.records import Quantity, Reading

#: More than any provider bills in one call; a count beyond it is an error of the sender.
MAX_COUNT: Final = 10**12

#: The only keys of a usage block whose text is kept: enum words, never content.
_ENUMS: Final = frozenset({"inference_geo", "modality", "object", "service_tier", "speed", "trafficType", "ttl", "type"})
_WORD: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")
_MAX_ITEMS: Final = 64
_MAX_DEPTH: Final = 6


class MalformedUsageError(ValueError):
    """A usage block that says something impossible. Names the field; never its value, which may be anything."""

    def __init__(self, field: str) -> None:
        self.field = field
        super().__init__(f"the field {field!r} is no count")


class Format:
    """One wire format: how a reply's body, or the events of its stream, become a :class:`~flask_llm_cost.records.Reading`.

    Subclass it for a wire shape of your own; only :attr:`name` and :meth:`read` are needed where the last event with usage
    of a stream looks like a body.
    """

    name: str = ""

    #: How the paths of its calls end (``/v1/ask``), and their hosts. What :meth:`LlmCostTracker.register_format` needs.
    paths: Sequence[str] = ()
    hosts: Sequence[str] = ()

    #: The provider name of its calls; the host's where it is empty.
    provider: str = ""

    #: The key of the usage object: events of a stream without such an object pass unread. Text that contains the same
    #: words is escaped JSON and cannot match.
    mark: bytes = b'"usage"'

    #: Whether the last marked event of a stream says it all, so that earlier ones need not be parsed.
    last_event_counts: bool = True

    #: Reply bodies of this format may be megabytes of numbers with the usage after them, so read their end only.
    usage_comes_last: bool = False

    #: Whether the request says what is billed (characters to speak): then :meth:`quantities_of_request` is asked.
    reads_request: bool = False

    def quantities_of_request(self, content: bytes) -> Mapping[str, Quantity]:
        """What the request itself says is billed. Counts only where the reply says nothing."""
        return {}

    def fits(self, body: Mapping[str, Any]) -> bool:
        """Whether *body* (or an event) looks like this format: the evidence where neither host nor SDK is known."""
        return isinstance(body.get("usage"), Mapping)

    def read(self, body: Mapping[str, Any]) -> Reading:
        """Read a reply's JSON body.

        :raises MalformedUsageError: when the usage block says something impossible
        """
        raise NotImplementedError

    def read_stream(self, events: Sequence[Mapping[str, Any]], ended: bool) -> Reading:
        """Read the events of a stream that matched :attr:`mark`, after its first event.

        :param ended: whether the stream was read to its end
        """
        with_usage = [event for event in events if self.fits(event)]
        first = events[0] if events else {}
        if not with_usage:
            return Reading(model=text(first, "model"), response_id=text(first, "id"))
        reading = self.read({**first, **with_usage[-1]})
        return with_source(reading, "stream_final" if ended else "stream_partial")


def with_source(reading: Reading, source: str) -> Reading:
    """The same reading, with another ``usage_source`` where it knows any usage."""
    usage = reading.usage
    if not usage.known:
        return reading
    return replace(reading, usage=replace(usage, source=source))


def block(body: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The object at *key*; empty when it is missing or null.

    :raises MalformedUsageError: when something else is there
    """
    value = body.get(key)
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return value
    raise MalformedUsageError(key)


def count(body: Mapping[str, Any], key: str) -> int:
    """The whole number at *key*; 0 when it is missing or null.

    :raises MalformedUsageError: when it is no number, negative, not finite, not whole, or absurdly large
    """
    value = body.get(key)
    if value is None:
        return 0
    if type(value) is int and 0 <= value <= MAX_COUNT:
        return value
    if type(value) is float and 0 <= value <= MAX_COUNT and value.is_integer():
        return int(value)
    raise MalformedUsageError(key)


def text(body: Mapping[str, Any], key: str) -> str | None:
    """The text at *key*, ``None`` when it is missing, empty or no text."""
    value = body.get(key)
    return value if isinstance(value, str) and value else None


def quantities(**counted: Quantity) -> dict[str, Quantity]:
    """The components that were counted at all."""
    return {name: quantity for name, quantity in counted.items() if quantity}


def numbers_only(value: Any, depth: int = 0) -> Any:
    """A copy of a usage block that can hold no content: numbers, and the enum words of known keys."""
    if isinstance(value, Mapping):
        if depth == _MAX_DEPTH:
            return {}
        return dict(_kept_items(value, depth))
    if isinstance(value, list):
        return [numbers_only(item, depth + 1) for item in value[:_MAX_ITEMS] if isinstance(item, int | float | Mapping)]
    return value


def _kept_items(mapping: Mapping[Any, Any], depth: int) -> Iterator[tuple[str, Any]]:
    for key, value in list(mapping.items())[:_MAX_ITEMS]:
        if not isinstance(key, str) or not _WORD.match(key):
            continue
        if isinstance(value, str):
            if key in _ENUMS and _WORD.match(value):
                yield key, value
        elif isinstance(value, Mapping | list):
            yield key, numbers_only(value, depth + 1)
        elif value is None or (isinstance(value, int | float) and abs(value) <= MAX_COUNT):
            yield key, value
