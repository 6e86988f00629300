"""The pages, thin: read the query string, ask, hand on. Each is HTML, JSON, and CSV where it shows a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final
from uuid import UUID

from flask import Response
from sqlalchemy.orm import Session

from flask_llm_cost.dashboard import pages_json
from flask_llm_cost.dashboard.access import secured
from flask_llm_cost.dashboard.controls import calls_controls, chips, overview_controls
from flask_llm_cost.dashboard.export import csv_response, json_response
from flask_llm_cost.dashboard.filters import Selection
from flask_llm_cost.dashboard.formatting import UNTAGGED
from flask_llm_cost.dashboard.overview import build
from flask_llm_cost.dashboard.rendering import stylesheet as stylesheet_content
from flask_llm_cost.dashboard.visit import Visit
from flask_llm_cost.errors import QueryError
from flask_llm_cost.ledger import call_queries, queries
from flask_llm_cost.ledger.call_queries import CallRow

_SPEND: Final = ("calls", "unpriced_calls", "cost", "input_tokens", "cache_read_tokens", "output_tokens", "total_tokens")
_CALL: Final = (
    "occurred_at", "id", "provider", "model", "requested_model", "operation", "stream", "attempt", "outcome", "http_status",
    "usage_source", "cost_status", "total_cost", "currency", "pricing_mode", "input_tokens", "cache_read_tokens",
    "cache_write_tokens", "output_tokens", "reasoning_tokens", "total_tokens", "latency_ms", "first_token_ms",
)  # fmt: skip


def stylesheet() -> Response:
    """The one stylesheet. It stands behind the guard as well."""
    content, mark = stylesheet_content()
    response = Response(content, mimetype="text/css")
    response.set_etag(mark)
    return secured(response, stylesheet=True)


def overview(visit: Visit) -> Response:
    """How much, against what, where it heads, who and what explains it, and how complete it is."""
    selection = visit.selection()
    report_tags = tuple(visit.state.config.report_tags)
    with visit.session() as session:
        if selection.format == "csv":
            return _spend_csv(session, selection)
        total = queries.totals(session, selection.filter)
        if not total.calls and selection.format == "html":
            return _nothing(visit, session, selection)
        page = build(session, selection, visit.links, visit.names, report_tags, total)
    if selection.format == "json":
        return json_response(pages_json.overview(selection, page))
    return visit.html(
        "overview.html",
        sel=selection,
        it=page,
        controls=overview_controls(selection, report_tags),
        chips=chips(selection, visit.links, "overview", visit.names),
    )


def _nothing(visit: Visit, session: Session, selection: Selection) -> Response:
    """The first run, or a filter that lets nothing through."""
    if not queries.any_calls(session, selection.base):
        return visit.html("first_run.html", health=None if visit.scoped else visit.state.ledger.health())
    first, last = queries.extent(session, selection.without_range())
    elsewhere = queries.pivot(session, selection.filter.narrowed(currency=None), ("currency",))
    return visit.html(
        "empty.html",
        sel=selection,
        first=first,
        last=last,
        elsewhere=elsewhere,
        controls=overview_controls(selection, tuple(visit.state.config.report_tags)),
        chips=chips(selection, visit.links, visit.page, visit.names),
    )


def _spend_csv(session: Session, selection: Selection) -> Response:
    by, currency = selection.by, selection.filter.currency
    dimensions = ("day", by) if selection.table == "days" else (by,)
    found = queries.pivot(session, selection.filter, dimensions, zone=selection.period.zone)
    empty = UNTAGGED if by.startswith("tag:") else None
    rows = [
        [*(empty if row[name] is None else row[name] for name in dimensions), *(row[name] for name in _SPEND), currency]
        for row in found
    ]
    return csv_response(_filename("spend", selection), [*dimensions, *_SPEND, "currency"], rows)


def calls(visit: Visit) -> Response:
    """Single calls, by page."""
    selection = visit.selection()
    if selection.format == "csv":
        return _calls_csv(visit, selection)
    report_tags = tuple(visit.state.config.report_tags)
    with visit.session() as session:
        found = call_queries.calls_page(
            session,
            selection.filter,
            order=selection.order,
            after=selection.after,
            before=selection.before,
            limit=selection.limit,
        )
        if selection.format == "json":
            return json_response(pages_json.calls(selection, found))
        total = queries.totals(session, selection.filter)
        if not total.calls:
            return _nothing(visit, session, selection)
        controls = calls_controls(session, selection, report_tags)
    shown = [key for key in report_tags if key not in visit.base.scope]
    names = {key: visit.names(key, sorted({row.tags[key] for row in found.rows if key in row.tags})) for key in shown}
    return visit.html(
        "calls.html",
        sel=selection,
        total=total,
        found=found,
        controls=controls,
        tags=shown,
        names=names,
        chips=chips(selection, visit.links, "calls", visit.names),
    )


def calls_csv(visit: Visit) -> Response:
    """Every call of the selection, streamed."""
    selection = visit.selection()
    if selection.format not in ("html", "csv"):
        raise QueryError("calls.csv is a CSV file; calls?format=json is the JSON")
    return _calls_csv(visit, selection)


def _calls_csv(visit: Visit, selection: Selection) -> Response:
    keys = tuple(visit.state.config.report_tags)
    header = [*_CALL, *(f"tag:{key}" for key in keys), "other_tags"]
    return csv_response(_filename("calls", selection), header, _call_rows(visit, selection, keys))


def _call_rows(visit: Visit, selection: Selection, keys: tuple[str, ...]) -> Iterator[list[Any]]:
    with visit.session() as session:
        for row in call_queries.all_calls(session, selection.filter, order=selection.order):
            yield _call_cells(row, keys)


def _call_cells(row: CallRow, keys: tuple[str, ...]) -> list[Any]:
    others: Mapping[str, str] = {key: value for key, value in row.tags.items() if key not in keys}
    return [
        *(getattr(row, name) for name in _CALL),
        *(row.tags.get(key) for key in keys),
        "; ".join(f"{key}={value}" for key, value in others.items()),
    ]


def _filename(what: str, selection: Selection) -> str:
    return f"llm-{what}-{selection.period.first}-to-{selection.period.last}.csv"


def call(visit: Visit, call_id: UUID) -> Response:
    """One call, and the arithmetic of its bill. A call outside the scope is not there."""
    selection = visit.selection()
    with visit.session() as session:
        found = call_queries.one_call(session, visit.base, call_id)
    if found is None:
        text = ["It was never recorded, was pruned since, or is not yours to see."]
        if selection.format == "json":
            return json_response({"error": "There is no such call", "message": text[0]}, 404)
        return visit.html("notice.html", 404, title="There is no such call", sentences=text, commands=(), retry=False)
    if selection.format == "json":
        return json_response(pages_json.call(found))
    if selection.format == "csv":
        header = ("component", "unit", "quantity", "rate", "rate_per", "cost", "status")
        rows = [[getattr(line, name) for name in header] for line in found.lines]
        return csv_response(f"llm-call-{call_id}.csv", header, rows)
    names = {key: visit.names(key, [value]).get(value) for key, value in found.call.tags.items()}
    return visit.html("call.html", it=found, row=found.call, names=names, zone=visit.state.config.timezone)
