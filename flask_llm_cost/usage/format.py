"""What a wire format is, and how its numbers are read without trusting them."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, TypeGuard

from flask_llm_cost.records import BatchNews, Quantity, Reading, Usage
from flask_llm_cost.usage.excerpt import MAX_KEPT, Salvaged

#: Of a format whose counts stand all over its body, :attr:`Format.most_kept`.
LARGE_BODY: Final = 8 * 1024 * 1024

#: Stands for an amount of money that is none: who takes the provider's word for the bill refuses it, nobody else cares.
NO_AMOUNT: Final = Decimal("NaN")

#: More than any provider bills in one call; a count beyond it is an error of the sender.
MAX_COUNT: Final = 10**12

#: The only keys of a usage block whose text is kept: enum words, never content.
_ENUMS: Final = frozenset({"inference_geo", "modality", "object", "service_tier", "speed", "trafficType", "ttl", "type"})
_LONGEST_WORD: Final = 64
_WORD: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")
_FIELD_VALUE: Final = re.compile(rb'name="\w+"\r\n(?:[^\r\n]{1,256}\r\n){0,4}\r\n([^\r\n]{1,256})\r\n')
_NUMBERS: Final = (int, float)
_MAX_ITEMS: Final = 64
_MAX_DEPTH: Final = 6
_LONGEST_NAME: Final = 512
_LAST_SECOND: Final = 4102444800  # the year 2100


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

    #: Further keys, with their quotes, whose events are kept as well.
    also_kept: Sequence[bytes] = ()

    #: One more key, with its quotes: an event is kept for each text that stands there, such as each model at work.
    each_kept: bytes = b""

    #: Whether each marked event, or line, is a bill of its own, as in the results of a batch.
    each_event_counts: bool = False

    #: Whether ``stream_options`` in the request ask a stream for its usage, which it leaves out otherwise.
    takes_stream_options: bool = False

    #: Whether only the shape of the reply proves a call, even on a known host: it may as well be something else.
    shape_only: bool = False

    #: Reply bodies of this format may be megabytes of numbers with the usage after them, so read their end only.
    usage_comes_last: bool = False

    #: How many bytes of a body or an event are kept, without the insides of its long strings and arrays of numbers. Of a
    #: longer one there are names and usage, flat. Formats with more bills than one, or with counts elsewhere, keep more.
    most_kept: int = MAX_KEPT

    #: Whether the request says what is billed (characters to speak): then :meth:`quantities_of_request` is asked.
    reads_request: bool = False

    #: The reply's headers, lower case, that count a component where the body counts nothing.
    header_counts: Mapping[str, str] = {}

    #: The reply's headers, lower case, that name the tier it was served at, where the body does not. The first one counts.
    tier_headers: Sequence[str] = ()

    @property
    def reads_headers(self) -> bool:
        """Whether the reply's headers say anything that counts."""
        return bool(self.header_counts or self.tier_headers)

    def quantities_of_request(self, content: bytes) -> Mapping[str, Quantity]:
        """What the request itself says is billed. Counts only where the reply says nothing."""
        return {}

    def fits(self, body: Mapping[str, Any]) -> bool:
        """Whether *body* (or an event) looks like this format: the evidence where neither host nor SDK is known."""
        return is_object(body.get("usage"))

    def read(self, body: Mapping[str, Any]) -> Reading:
        """Read a reply's JSON body.

        :raises MalformedUsageError: when the usage block says something impossible
        """
        raise NotImplementedError

    def read_all(self, body: Mapping[str, Any]) -> list[Reading]:
        """Read a reply's JSON body in which several things may be billed: other models at work, or the lines of a batch.

        :raises MalformedUsageError: when a usage block says something impossible
        """
        return [self.read(body)]

    def batch_news(self, body: Mapping[str, Any]) -> list[BatchNews]:
        """What a reply's JSON body says of batches that were created earlier."""
        return []

    def read_stream(self, events: Sequence[Mapping[str, Any]], ended: bool) -> Reading:
        """Read the events of a stream: the first one, and those that matched :attr:`mark`.

        :param ended: whether the stream was read to its end
        :raises MalformedUsageError: when a usage block says something impossible
        """
        body = self.last_body(events)
        return self.name_of(events[0] if events else {}) if body is None else in_stream(self.read(body), ended)

    def read_stream_all(self, events: Sequence[Mapping[str, Any]], ended: bool) -> list[Reading]:
        """Read the events of a stream in which several things may be billed.

        :raises MalformedUsageError: when a usage block says something impossible
        """
        return [self.read_stream(events, ended)]

    def last_body(self, events: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
        """The last event that fits, with the names that only the first one says; ``None`` when none fits."""
        last = next((event for event in reversed(events) if self.fits(event)), None)
        return None if last is None else {**events[0], **{name: value for name, value in last.items() if value is not None}}

    def name_of(self, body: Mapping[str, Any]) -> Reading:
        """Model and id of a body or an event, and nothing else: what can be said where the usage makes no sense."""
        return Reading(model=text(body, "model"), response_id=text(body, "id"))


def doubted(usage: Usage, *bodies: Mapping[str, Any]) -> Usage:
    """The same usage, flagged where more than what it says may have stood in what was cut out of *bodies*."""
    if not usage.known or "usage_inconsistent" in usage.flags or not any(isinstance(body, Salvaged) for body in bodies):
        return usage
    return replace(usage, flags=(*usage.flags, "usage_inconsistent"))


def with_source(reading: Reading, source: str) -> Reading:
    """The same reading, with another ``usage_source`` where it knows any usage."""
    return replace(reading, usage=replace(reading.usage, source=source)) if reading.usage.known else reading


def in_stream(reading: Reading, ended: bool) -> Reading:
    """The same reading, as what a stream said at its end, or before it was cut off."""
    return with_source(reading, "stream_final" if ended else "stream_partial")


def is_object(value: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether a value is a JSON object. Nearly all are plain dicts, and those are known five times as quickly."""
    return type(value) is dict or isinstance(value, Mapping)


def block(body: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The object at *key*; empty when it is missing or null.

    :raises MalformedUsageError: when something else is there
    """
    value = body.get(key)
    if value is None:
        return {}
    if is_object(value):
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
    """The name at *key*, ``None`` when it is missing, empty or no name."""
    value = body.get(key)
    return value if isinstance(value, str) and 0 < len(value) <= _LONGEST_NAME and value.isprintable() else None


def form_field(content: bytes, name: str) -> str | None:
    """A short field of a form, ``multipart/form-data``. Its files may be long, and are passed over."""
    place = content.find(b'name="' + name.encode() + b'"\r\n')
    found = _FIELD_VALUE.match(content, place) if place >= 0 else None
    return found.group(1).decode("utf-8", "replace") if found else None


def items(body: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """The objects in the list at *key*; none when it is missing or something else."""
    value = body.get(key)
    return [item for item in value if is_object(item)] if isinstance(value, list) else []


def moment(body: Mapping[str, Any], key: str) -> datetime | None:
    """The Unix time in seconds at *key*, where it is one."""
    value = body.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _LAST_SECOND:
        return None
    return datetime.fromtimestamp(value, UTC)


def amount(body: Mapping[str, Any], key: str, longest: int = MAX_COUNT) -> Decimal | None:
    """The exact number at *key*, such as an amount of dollars or seconds; ``None`` when it is missing or null.

    :raises MalformedUsageError: when it is no number, negative, not finite, or absurdly large
    """
    value = body.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= longest:
        raise MalformedUsageError(key)
    return Decimal(str(value))


def shared_out(surplus: int, *kinds: int) -> list[int]:
    """How many of each kind a surplus is, as far as there are any: what was read from a cache, and is more than the text."""
    taken = []
    for kind in kinds:
        taken.append(max(0, min(surplus, kind)))
        surplus -= taken[-1]
    return taken


def counted_or_zero(**counted: Quantity) -> dict[str, Quantity]:
    """The components that were counted; a provider that counted nothing at all said zero, which is known."""
    return quantities(**counted) or {"input": 0, "output": 0}


def quantities(**counted: Quantity) -> dict[str, Quantity]:
    """The components that were counted at all."""
    return {name: quantity for name, quantity in counted.items() if quantity}


def numbers_only(value: Any, depth: int = 0) -> Any:
    """A copy of a usage block that can hold no content: numbers, and the enum words of known keys."""
    if is_object(value):
        return _kept_items(value, depth) if depth < _MAX_DEPTH else {}
    if isinstance(value, list):
        return [numbers_only(item, depth + 1) for item in value[:_MAX_ITEMS] if _is_count(item) or is_object(item)]
    return value


def _kept_items(mapping: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    kept = {}
    for key, value in itertools.islice(mapping.items(), _MAX_ITEMS):
        if not isinstance(key, str) or len(key) > _LONGEST_WORD or not _is_word(key):
            continue
        if value is None or _is_count(value):
            kept[key] = value
        elif isinstance(value, str):
            if key in _ENUMS and _WORD.match(value):
                kept[key] = value
        elif is_object(value) or isinstance(value, list):
            kept[key] = numbers_only(value, depth + 1)
    return kept


@functools.lru_cache(maxsize=1024)
def _is_word(key: str) -> bool:
    # A provider's counts have the same names in every reply, and a call waits for this. Never asked of long ones: they stay.
    return _WORD.match(key) is not None


def _is_count(value: Any) -> bool:
    return isinstance(value, _NUMBERS) and -MAX_COUNT <= value <= MAX_COUNT
