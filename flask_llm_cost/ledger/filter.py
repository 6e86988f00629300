"""Which calls a question is about. Every :class:`Filter` names its scope, and nothing made from it can leave that."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final

import sqlalchemy as sa

from flask_llm_cost.errors import QueryError
from flask_llm_cost.ledger.models import Call, CallTag
from flask_llm_cost.ledger.rollup_sums import UNCOUNTED_SOURCES
from flask_llm_cost.records import TAG_KEY, TAG_KEY_RULE

_NO_TAGS: Final[Mapping[str, Any]] = MappingProxyType({})
#: A ``usage_source`` that stands for every one from which something was counted.
KNOWN: Final = "known"
#: As priced: what the reply names, else what was asked for.
MODEL: Final = sa.func.coalesce(Call.model, Call.requested_model)

#: What spend can be grouped by, besides ``tag:<key>``.
COLUMNS: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "provider": Call.provider,
        "model": MODEL,
        "requested_model": Call.requested_model,
        "operation": Call.operation,
        "host": Call.host,
        "outcome": Call.outcome,
        "usage_source": Call.usage_source,
        "cost_status": Call.cost_status,
        "pricing_mode": Call.pricing_mode,
        "stream": Call.stream,
        "currency": Call.currency,
    }
)
TIMES: Final = ("hour", "day", "month")
#: The values of the columns that have no others.
VALUES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "outcome": ("ok", "interrupted", "error", "blocked", "unresolved"),
        "cost_status": ("priced", "partial", "unpriced", "free"),
        "usage_source": (
            KNOWN, "response", "stream_final", "stream_partial", "batch", "manual", "estimated", "pending", "unknown",
        ),
    }
)  # fmt: skip


def dimensions() -> tuple[str, ...]:
    """What spend can be grouped by, for people."""
    return (*COLUMNS, *TIMES, "tag:<key>")


def check_dimension(name: str) -> str:
    """*name* if spend can be grouped by it: a column, ``hour``, ``day``, ``month`` or ``tag:<key>``.

    :raises QueryError: otherwise
    """
    if name in COLUMNS or name in TIMES or (name.startswith("tag:") and TAG_KEY.fullmatch(name[4:])):
        return name
    tag = f"; a tag is written {f'tag:{name}'!r}" if len(name) <= 80 and TAG_KEY.fullmatch(name) else ""
    raise QueryError(f"spend cannot be grouped by {name[:80]!r}{tag}", choices=dimensions())


def check_tag_key(key: str) -> str:
    """*key* if a call can have a tag of that name.

    :raises QueryError: otherwise, with the key that may be meant
    """
    if TAG_KEY.fullmatch(key):
        return key
    near = key.strip().lower().replace(" ", "_")
    meant = f"; did you mean {near!r}?" if TAG_KEY.fullmatch(near) else ""
    raise QueryError(f"no call has a tag {key[:80]!r}: a key is {TAG_KEY_RULE}{meant}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which calls a question is about.

    :param scope: tags that hold whatever else is asked for; ``{}`` is everything. Required, so that nobody forgets it
    :param since: first instant, aware
    :param until: the instant after the last, aware
    :param model: as billed, or as requested where the reply named none
    :param usage_source: where the counts are from; ``known`` means from anywhere, neither ``unknown`` nor ``pending``
    :param tags: key to value; ``None`` means that the call has no such tag
    :param currency: one currency, so that amounts add up; ``None`` only to ask for several side by side
    """

    scope: Mapping[str, str]
    since: datetime | None = None
    until: datetime | None = None
    provider: str | None = None
    model: str | None = None
    operation: str | None = None
    outcome: str | None = None
    cost_status: str | None = None
    usage_source: str | None = None
    stream: bool | None = None
    tags: Mapping[str, str | None] = field(default_factory=lambda: _NO_TAGS)
    currency: str | None = "USD"

    def __post_init__(self) -> None:
        for end in ("since", "until"):
            instant: datetime | None = getattr(self, end)
            if instant is None:
                continue
            if instant.utcoffset() is None:
                raise QueryError("since and until need a time zone; a date stands for a day of LLM_COST_TIMEZONE")
            # Python takes a time on a clock that shows it twice for another one than its own instant.
            object.__setattr__(self, end, instant.astimezone(UTC))

    def narrowed(self, *, tags: Mapping[str, str | None] = _NO_TAGS, **changes: Any) -> Filter:
        """This filter with *changes*; *tags* are added to its own. The scope stays.

        :raises QueryError: for a change of the scope
        """
        if "scope" in changes:
            raise QueryError("the scope of a filter cannot be changed")
        return replace(self, tags={**self.tags, **tags}, **changes)

    def a_tag(self, rare: Collection[str]) -> tuple[str, str] | None:
        """A tag, key and value, that it asks all its calls to have, if there is one.

        :param rare: keys of which few calls have the same value: one of these first
        """
        given = [(key, value) for tags in (self.scope, self.tags) for key, value in tags.items() if value is not None]
        return min(given, key=lambda tag: tag[0] not in rare, default=None)

    def conditions(self, joined: tuple[str, str] | None = None, *, few: bool = False) -> list[sa.ColumnElement[bool]]:
        """What a query about ``llm_cost_calls`` has to hold.

        :param joined: the tag of :attr:`a_tag` where the query joins :class:`CallTag` for it
        :param few: whether it takes only the first of them in the order of time
        """
        found: list[sa.ColumnElement[bool]] = []
        if joined is None:
            found += self._in_range(Call.occurred_at)
        if self.model is not None:
            asked_for = sa.and_(Call.model.is_(None), Call.requested_model == self.model)
            found.append(sa.or_(Call.model == self.model, asked_for))
        plain = ("provider", "operation", "outcome", "cost_status", "usage_source", "stream", "currency")
        given = {name: value for name in plain if (value := getattr(self, name)) is not None}
        if given.get("usage_source") == KNOWN:
            del given["usage_source"]
            found.append(Call.usage_source.not_in(UNCOUNTED_SOURCES))
        found += [COLUMNS[name] == value for name, value in given.items()]
        # Both, not merged: a tag that was asked for never replaces the scope's.
        tags = (tag for tags in (self.scope, self.tags) for tag in tags.items())
        found += [self._tagged(key, value, joined, few) for key, value in tags if (key, value) != joined]
        if joined is not None:
            # The tag's own copy of the time, and no other: PostgreSQL takes each for a condition of its own, expects next to
            # no call to meet all, and reads every one of them to find these.
            found += [CallTag.call_id == Call.id, *self._of_tag(*joined)]
        return found

    def _tagged(self, key: str, value: str | None, joined: tuple[str, str] | None, few: bool) -> sa.ColumnElement[bool]:
        if value is not None and joined is None:
            return Call.id.in_(sa.select(CallTag.call_id).where(*self._of_tag(key, value)))
        has = self.has_tag(key, few=few)
        return ~has if value is None else has.where(CallTag.value == value)

    def has_tag(self, key: str, *, few: bool = False) -> sa.Exists:
        """Whether a call of the range has a tag, whatever its value.

        :param few: whether only the first calls are looked at
        """
        has = sa.exists().where(CallTag.key == key, CallTag.call_id == Call.id).correlate(Call)
        # Of all of them PostgreSQL may begin with the tag, and would read every one that there ever was. The first few it
        # finds soonest call by call, and with one more condition it expects them to be rarer than they are.
        return has if few else has.where(*self._in_range(CallTag.occurred_at))

    def _of_tag(self, key: str, value: str) -> list[sa.ColumnElement[bool]]:
        """A tag in the filter's range: its own copy of the time lets its index answer for that."""
        return [CallTag.key == key, CallTag.value == value, *self._in_range(CallTag.occurred_at)]

    def _in_range(self, at: Any) -> list[sa.ColumnElement[bool]]:
        found = [at >= self.since] if self.since is not None else []
        return found + ([at < self.until] if self.until is not None else [])
