"""Data quality: what is not in the number, why, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any, Final

from flask import Response
from sqlalchemy.orm import Session

from flask_llm_cost.dashboard import pages_json, quality_issues
from flask_llm_cost.dashboard.breakdown import dimension_name
from flask_llm_cost.dashboard.controls import chips, page_controls
from flask_llm_cost.dashboard.empty import nothing
from flask_llm_cost.dashboard.export import csv_response, filename, json_response
from flask_llm_cost.dashboard.filters import Selection
from flask_llm_cost.dashboard.quality_issues import Issue, listing
from flask_llm_cost.dashboard.visit import Visit
from flask_llm_cost.ledger import queries
from flask_llm_cost.ledger.drift import billed_drift
from flask_llm_cost.ledger.quality_queries import Change, Soundness, changes, marks, soundness
from flask_llm_cost.ledger.quality_queries import count as calls_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """A bar: of how many calls something is known."""

    name: str
    known: int
    of: int
    says: str

    @property
    def share(self) -> Decimal | None:
        return Decimal(self.known) / self.of if self.of else None


#: The lists behind the figures of streams.
_NARROWED: Final = (
    {"stream": "yes"},
    {"stream": "yes", "usage_source": "unknown"},
    {"stream": "yes", "usage_source": "stream_partial"},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderStreams:
    """The streams of one provider, and how many of them told no usage or were cut.

    :param listed: how many calls each figure's list has: some were blocked or failed, and are not counted here
    """

    provider: str
    streams: int
    without: int
    cut: int
    listed: tuple[int | None, int | None, int | None]

    @property
    def figures(self) -> Iterator[tuple[int, int | None, dict[str, str]]]:
        """The figures, each with how many calls its list has, and what narrows that."""
        for number, listed, narrowed in zip((self.streams, self.without, self.cut), self.listed, _NARROWED, strict=True):
            yield number, listed, {"provider": self.provider, **narrowed}


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Everything on the page."""

    calls: int
    expected: int
    issues: tuple[Issue, ...]
    coverage: tuple[Coverage, ...]
    streams: tuple[ProviderStreams, ...]
    changes: tuple[Change, ...]

    @property
    def open(self) -> int:
        """How many rows want something done."""
        return sum(issue.level != "ok" for issue in self.issues)


def quality(visit: Visit) -> Response:
    """The page, its file and its JSON."""
    selection = visit.selection()
    with visit.session() as session:
        page = build(visit, session, selection)
        if selection.format == "json":
            return json_response({**pages_json.asked(selection), **asdict(page), "open": page.open})
        if selection.format == "csv":
            what = f"data-quality-{selection.table}" if selection.table else "data-quality"
            header, rows = _table(page, selection.table)
            return csv_response(filename(what, selection), header, rows, decimal=selection.decimal)
        if not page.calls and not queries.any_calls(session, visit.base):
            return nothing(visit, session, selection)
        controls = page_controls(visit, session, selection)
    return visit.html(
        "quality.html",
        sel=selection,
        it=page,
        controls=controls,
        zone=selection.period.zone,
        chips=chips(selection, visit.here, visit.names),
    )


def _table(page: Quality, name: str) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """The header and the rows of one of the page's tables."""
    if name == "streams":
        streams = [(row.provider, row.streams, row.without, row.cut) for row in page.streams]
        return ("provider", "streams", "without_usage", "cut_short"), streams
    if name == "changes":
        moved = [(c.month, c.booked, c.kind, c.last, c.calls, c.amount, c.currency) for c in page.changes]
        return ("month", "after_it_had_ended", "kind", "last", "calls", "amount", "currency"), moved
    issues = [(i.name, i.level, i.calls, i.found, i.why, i.remedy, i.command) for i in page.issues]
    return ("issue", "level", "calls", "found", "why", "what_to_do", "command"), issues


def build(visit: Visit, session: Session, selection: Selection) -> Quality:
    """Ask all that the page shows."""
    flt = selection.filter
    rows = soundness(session, flt)
    calls = calls_of(rows)
    unpriced = (
        queries.unpriced_models(session, flt) if any(row.cost_status in ("unpriced", "partial") for row in rows) else []
    )
    untagged = {
        key: queries.totals(session, flt.narrowed(tags={key: None})).calls
        for key in visit.report_tags
        if key not in visit.base.scope and key not in flt.tags and calls
    }
    drifts = billed_drift(session, flt) if any(row.compared for row in rows) else []
    issues = [
        *quality_issues.of_calls(visit, selection, rows, unpriced),
        *quality_issues.of_tags(visit, selection, untagged, calls),
        *quality_issues.of_bills(visit, selection, drifts, visit.list_since(session, selection)),
    ]
    moved: list[Change] = []
    if not visit.scoped:
        found = marks(session)
        moved = changes(session, since=selection.period.now - timedelta(days=92), zone=selection.period.zone)
        issues += quality_issues.of_prices(visit, selection.period.now)
        issues += quality_issues.of_ledger(visit, visit.state.ledger.health(), found, selection.period.now)
    expected = calls - calls_of(row for row in rows if row.failed)
    return Quality(
        calls=calls,
        expected=expected,
        issues=tuple(sorted(issues, key=lambda issue: ("error", "warning", "ok").index(issue.level))),
        coverage=_coverage(rows, untagged, calls, expected),
        streams=_streams(rows, selection.carried),
        changes=tuple(moved),
    )


def _coverage(rows: Iterable[Soundness], untagged: Mapping[str, int], calls: int, expected: int) -> tuple[Coverage, ...]:
    rows = [row for row in rows if not row.failed]
    priced = calls_of(row for row in rows if row.cost_status in ("priced", "free"))
    exact = calls_of(row for row in rows if not row.uncounted and not row.estimated)
    timed = sum(row.timed for row in rows)
    return (
        Coverage(name="Priced in full", known=priced, of=expected, says="the bill has a price to its last part"),
        Coverage(name="Counted to the end", known=exact, of=expected, says="the provider reported the usage, uncut"),
        *(
            Coverage(
                name=f"{dimension_name(f'tag:{key}').capitalize()} known",
                known=calls - missing,
                of=calls,
                says=f"has the tag {key}",
            )
            for key, missing in untagged.items()
        ),
        Coverage(name="Timed", known=timed, of=expected, says="how long it took is known"),
    )


def _streams(rows: Iterable[Soundness], carried: Mapping[str, Any]) -> tuple[ProviderStreams, ...]:
    found: dict[str, list[Soundness]] = {}
    for row in rows:
        if row.stream:
            found.setdefault(row.provider, []).append(row)
    return tuple(
        ProviderStreams(
            provider=provider,
            streams=calls_of(row for row in parts if row.outcome != "blocked"),
            without=calls_of(row for row in parts if row.uncounted and not row.failed),
            cut=calls_of(row for row in parts if row.usage_source == "stream_partial"),
            listed=(
                listing(parts, carried, _NARROWED[0]),
                listing(parts, carried, _NARROWED[1]),
                listing(parts, carried, _NARROWED[2]),
            ),
        )
        for provider, parts in sorted(found.items())
        if any(row.outcome != "blocked" for row in parts)
    )
