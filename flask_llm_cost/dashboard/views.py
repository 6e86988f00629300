"""The pages, thin: read the query string, ask, hand on. Each is HTML, JSON, and CSV where it shows a table."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, time
from typing import Any
from uuid import UUID

from flask import Response, request

from flask_llm_cost.dashboard import pages_json
from flask_llm_cost.dashboard.access import secured
from flask_llm_cost.dashboard.calls_table import call_cells, call_header
from flask_llm_cost.dashboard.controls import chips, page_controls, sort_select
from flask_llm_cost.dashboard.empty import nothing
from flask_llm_cost.dashboard.export import csv_response, filename, json_response
from flask_llm_cost.dashboard.filters import Selection
from flask_llm_cost.dashboard.origins import told
from flask_llm_cost.dashboard.overview import overview_of
from flask_llm_cost.dashboard.periods import first_of_month, last_of_month
from flask_llm_cost.dashboard.rendering import asset
from flask_llm_cost.dashboard.visit import Visit
from flask_llm_cost.errors import DetailPrunedError, QueryError
from flask_llm_cost.ledger import call_queries, queries
from flask_llm_cost.ledger.call_queries import CallRow


def stylesheet() -> Response:
    """The one stylesheet. It stands behind the guard as well."""
    return _asset("app.css", "text/css")


def script() -> Response:
    """The one script, which nothing needs."""
    return _asset("app.js", "text/javascript")


def icon() -> Response:
    """The three bars, for the browser's tab."""
    return _asset("icon.svg", "image/svg+xml")


def _asset(name: str, mimetype: str) -> Response:
    content, mark = asset(name)
    response = Response(content, mimetype=mimetype)
    response.set_etag(mark)
    response.make_conditional(request)
    return secured(response, asset=True)


def overview(visit: Visit) -> Response:
    """How much, against what, where it heads, who and what explains it, and how complete it is."""
    return overview_of(visit, visit.selection())


def calls(visit: Visit) -> Response:
    """Single calls, by page."""
    selection = visit.selection()
    if selection.format == "csv":
        return _calls_csv(visit, selection)
    report_tags = visit.report_tags
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
            return json_response(pages_json.calls(selection, found, visit.list_since(session, selection)))
        total = queries.totals(session, selection.filter)
        if not total.calls:
            return nothing(visit, session, selection)
        controls = page_controls(visit, session, selection, [sort_select(selection)])
        since = visit.list_since(session, selection)
    shown = [key for key in report_tags if key not in visit.base.scope]
    names = {key: visit.names(key, sorted({row.tags[key] for row in found.rows if key in row.tags})) for key in shown}
    return visit.html(
        "calls.html",
        sel=selection,
        total=total,
        found=found,
        list_since=since,
        controls=controls,
        tags=shown,
        names=names,
        chips=chips(selection, visit.here, visit.names),
    )


def calls_csv(visit: Visit) -> Response:
    """Every call of the selection, streamed."""
    selection = visit.selection()
    if selection.format not in ("html", "csv"):
        raise QueryError("calls.csv is a CSV file; calls?format=json is the JSON")
    return _calls_csv(visit, selection)


def _calls_csv(visit: Visit, selection: Selection) -> Response:
    keys = visit.report_tags
    rows = _call_rows(visit, selection, keys)
    return csv_response(filename("calls", selection), call_header(keys), rows, decimal=selection.decimal)


def _call_rows(visit: Visit, selection: Selection, keys: tuple[str, ...]) -> Iterator[list[Any]]:
    # At the pace of who reads the file: a snapshot would keep the server from tidying up for as long.
    with visit.session(snapshot=False) as session:
        if since := visit.list_since(session, selection):
            # A file is added up by those who get it, and has no room to say what is missing.
            raise DetailPrunedError(datetime.combine(since, time(), selection.period.zone))
        for row in call_queries.all_calls(session, selection.filter, order=selection.order):
            yield call_cells(row, keys)


def call(visit: Visit, call_id: UUID) -> Response:
    """One call, and the arithmetic of its bill. A call outside the scope is not there."""
    selection = visit.selection()
    with visit.session() as session:
        found = call_queries.one_call(session, visit.base.narrowed(currency=None), call_id)
    if found is None:
        return visit.refusal("It was never recorded, was pruned since, or is not yours to see.", "There is no such call")
    price = found.price
    origin = told(price.source, price.source_version, scoped=visit.scoped) if price else None
    if selection.format == "json":
        return json_response(pages_json.call(found, origin))
    if selection.format == "csv":
        header = ("component", "unit", "quantity", "rate", "rate_per", "cost", "status")
        rows = [[getattr(line, name) for name in header] for line in found.lines]
        return csv_response(f"llm-call-{call_id}.csv", header, rows, decimal=selection.decimal)
    names = {key: visit.names(key, [value]).get(value) for key, value in found.call.tags.items()}
    return visit.html(
        "call.html",
        sel=selection,
        it=found,
        row=found.call,
        origin=origin,
        names=names,
        zone=visit.state.config.timezone,
        around=_around(selection, found.call),
    )


def _around(selection: Selection, row: CallRow) -> dict[str, str]:
    """The query string of a call's own month in its own currency, in which it is found again."""
    day = row.occurred_at.astimezone(selection.period.zone).date()
    params = {} if row.currency == "USD" else {"currency": row.currency}
    if first_of_month(day) != first_of_month(selection.period.today):
        params |= {"from": first_of_month(day).isoformat(), "to": last_of_month(day).isoformat()}
    return params
