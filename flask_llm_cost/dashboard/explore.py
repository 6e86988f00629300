"""Explore: spend by any dimension against any other. The sums of its rows and of its columns are the overview's total."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date, timedelta
from decimal import localcontext
from typing import Any, Final, TypeAlias

from flask import Response
from sqlalchemy.orm import Session

from flask_llm_cost.dashboard import pages_json
from flask_llm_cost.dashboard.breakdown import MOST_VALUES, Names, dimension_name, leading, value_name
from flask_llm_cost.dashboard.controls import Option, Select, chips, dimensions, page_controls
from flask_llm_cost.dashboard.empty import nothing
from flask_llm_cost.dashboard.export import csv_response, filename, json_response
from flask_llm_cost.dashboard.filters import ParameterError, Selection
from flask_llm_cost.dashboard.formatting import MONTHS, UNTAGGED
from flask_llm_cost.dashboard.formatting import day as short_day
from flask_llm_cost.dashboard.periods import first_of_month, last_of_month
from flask_llm_cost.dashboard.pivot import Heading, Invoice, Pivot, PivotRow
from flask_llm_cost.dashboard.sums import before_of, per_call, together, without
from flask_llm_cost.dashboard.visit import Visit
from flask_llm_cost.ledger import queries
from flask_llm_cost.ledger.columns import USUAL
from flask_llm_cost.ledger.local_time import start_of_day
from flask_llm_cost.ledger.queries import NOTHING, Spend
from flask_llm_cost.ledger.tag_queries import tag_keys

_MOST_ROWS: Final = 50
_MOST_COLUMNS: Final = 8
_DAYS: Final = 10
_WEEKS: Final = 92
#: What the cells show, for people.
SHOWN: Final[Mapping[str, str]] = {"cost": "cost", "calls": "calls", "tokens": "tokens", "each": "cost a call"}
_SPEND: Final = ("calls", "unpriced_calls", "cost", "input_tokens", "cache_read_tokens", "output_tokens", "total_tokens")


def explore(visit: Visit) -> Response:
    """The page, its file and its JSON."""
    selection = visit.selection()
    with visit.session() as session:
        if not selection.rows:
            selection = replace(selection, rows=leading(session, selection, visit.report_tags))
        if selection.format == "csv":
            header, rows = _table(session, selection, visit.names)
            name = f"explore-{SHOWN[selection.show].replace(' ', '-')}" if selection.cols != "none" else "explore"
            by = (selection.rows, *([selection.cols] if selection.cols != "none" else []))
            return csv_response(filename(name, selection, *by), header, rows, decimal=selection.decimal)
        top = queries.pivot(session, selection.filter, (selection.rows,), top=_MOST_ROWS + 1)
        if not top and selection.format == "html":
            return nothing(visit, session, selection)
        if selection.format == "json":
            return json_response(as_json(selection, build(session, selection, visit.names, top)))
        keys = [f"tag:{key}" for key in tag_keys(session, visit.base) if key not in visit.base.scope]
        choices = dict.fromkeys([*dimensions(selection, visit.report_tags), *keys, selection.rows])
        sentence = [
            Select(
                "show", "Figure", tuple(Option(name, text, name == selection.show) for name, text in SHOWN.items()), "the"
            ),
            Select(
                "rows", "Rows", tuple(Option(name, dimension_name(name), name == selection.rows) for name in choices), "by"
            ),
            Select("cols", "Columns", tuple(_columns_options(selection, choices)), "and"),
        ]
        controls = page_controls(visit, session, selection, sentence)
        page = build(session, selection, visit.names, top)
    return visit.html(
        "explore.html",
        sel=selection,
        it=page,
        controls=controls,
        keys=keys,
        shown=SHOWN[selection.show],
        chips=chips(selection, visit.here, visit.names),
    )


def _columns_options(selection: Selection, choices: Iterable[str]) -> Iterator[Option]:
    yield Option("time", "time", selection.cols == "time")
    yield Option("none", "nothing else", selection.cols == "none")
    for name in dict.fromkeys([*choices, *([selection.cols] if selection.cols not in ("time", "none") else [])]):
        yield Option(name, dimension_name(name), name == selection.cols)


#: What a cell shows, as a figure.
MEASURES: Final[Mapping[str, Callable[[Spend], Any]]] = {
    "cost": lambda spend: spend.cost,
    "calls": lambda spend: spend.calls,
    "tokens": lambda spend: spend.total_tokens,
    "each": per_call,
}


def build(session: Session, selection: Selection, names: Names, top: Sequence[Spend]) -> Pivot:
    """Ask for the table, in five to seven queries whatever the number of values.

    :param top: the rows, and one more where that is not all; asked already to see that there is anything
    """
    dimension, flt = selection.rows, selection.filter
    found, more = list(top[:_MOST_ROWS]), f"All but the {_MOST_ROWS} dearest"
    whole = len(top) <= _MOST_ROWS
    # Calls without the tag have their row however little they came to.
    apart = not whole and dimension.startswith("tag:") and all(row.key is not None for row in found)
    if apart and (bare := queries.pivot(session, flt, (dimension,), only={dimension: [None]})):
        found, more = [*found, *bare], f"{more} and {UNTAGGED}"
    values = [row.key for row in found]
    total = together(top) if whole else queries.totals(session, flt)
    compared, none = before_of(session, selection, (dimension,), top=MOST_VALUES + 1) if whole else ([], NOTHING)
    if not whole or len(compared) > MOST_VALUES:
        whole = False
        compared, none = before_of(session, selection, (dimension,), only={dimension: values})
    before = {row.key: row for row in compared}
    columns, sums, cells = _cells(session, selection, names, only={dimension: values}, total=total)
    labels = _labels(dimension, values, names)
    rows = [
        PivotRow(
            value=None if row.key is None else str(row.key),
            label=labels[row.key],
            cells=_with_other(cells.get(row.key, {}), columns, row),
            total=row,
            before=before.get(row.key, none),
            share=row.cost / total.cost if row.cost is not None and total.cost else None,
        )
        for row in found
    ]
    # What values beyond those that were asked for came to before would be one question more.
    before_all = together(compared) if whole else NOTHING
    all_of_it = PivotRow(value=None, label="All", cells=tuple(sums), total=total, before=before_all, share=None)
    rest = None
    if len(top) > _MOST_ROWS and total.calls > sum(row.calls for row in found):
        rest = _minus(all_of_it, rows)
    return Pivot(
        columns=tuple(heading for _, heading in columns),
        rows=tuple(rows),
        rest=rest,
        more=more,
        total=all_of_it,
        invoice=_invoice(session, selection),
        measure=MEASURES[selection.show],
    )


#: The key of the column for all other values; no value of any dimension.
_OTHER: Final = "\x00other"
Column: TypeAlias = tuple[Any, Heading]


def _cells(
    session: Session, selection: Selection, names: Names, *, only: Mapping[str, Any], total: Spend
) -> tuple[list[Column], list[Spend], dict[object, dict[object, Spend]]]:
    """The columns, each with its key; their sums; and the cells by row and column key."""
    dimension, flt, zone = selection.rows, selection.filter, selection.period.zone
    if selection.cols == "none":
        return [], [], {}
    cells: dict[object, dict[object, Spend]] = {}
    if selection.cols == "time":
        spans, unit = _spans(session, selection)
        daily = queries.over(session, flt, unit, zone)
        found = queries.pivot(session, flt, (unit, dimension), zone=zone, only=only) if only[dimension] else []
        by_row: dict[object, dict[object, list[Spend]]] = {}
        for row in found:
            by_row.setdefault(row[dimension], {}).setdefault(_span_of(spans, row[unit]), []).append(row)
        cells = {key: {span: together(parts) for span, parts in row.items()} for key, row in by_row.items()}
        sums = [together(row for day, row in daily.items() if _span_of(spans, day) == span) for span in spans]
        # Before the first call there is nothing to see, and after today only what is recorded with a later time.
        begun = next((index for index, spend in enumerate(sums) if spend.calls), 0)
        ended = max((index for index, spend in enumerate(sums) if spend.calls), default=0)
        ended = max(ended, sum(span[0] <= selection.period.today for span in spans) - 1)
        spans, sums = spans[begun : ended + 1], sums[begun : ended + 1]
        return [(span, _days(selection, span)) for span in spans], sums, cells
    column = selection.cols
    top = queries.pivot(session, flt, (column,), top=_MOST_COLUMNS + 2)
    # A column that says "other" would take the room of the one value that it hides.
    shown = top if len(top) == _MOST_COLUMNS + 1 else top[:_MOST_COLUMNS]
    values = [row.key for row in shown]
    labels = _labels(column, values, names)
    columns: list[Column] = [
        (value, Heading(labels[value], _alone(selection, column, text), text))
        for value, text in ((value, None if value is None else str(value)) for value in values)
    ]
    sums = list(shown)
    if column == dimension:
        cells = {row.key: {row.key: row} for row in shown}
    elif values:
        for row in queries.pivot(session, flt, (dimension, column), only={**only, column: values}):
            cells.setdefault(row[dimension], {})[row[column]] = row
    if len(top) > len(shown):
        columns.append((_OTHER, Heading("other")))
        sums.append(without(total, shown))
    return columns, sums, cells


def _alone(selection: Selection, column: str, value: str | None) -> Mapping[str, Any] | None:
    return selection.with_value(column, value) if selection.reaches(column, value) else None


def _with_other(cells: Mapping[object, Spend], columns: Sequence[Column], total: Spend) -> tuple[Spend, ...]:
    known = [cells.get(key, NOTHING) for key, _ in columns if key is not _OTHER]
    return (*known, without(total, known)) if len(known) < len(columns) else tuple(known)


def _minus(total: PivotRow, rows: Sequence[PivotRow]) -> PivotRow:
    cells = tuple(without(cell, [row.cells[index] for row in rows]) for index, cell in enumerate(total.cells))
    left = without(total.total, [row.total for row in rows])
    share = left.cost / total.total.cost if left.cost is not None and total.total.cost else None
    return PivotRow(value=None, label="", cells=cells, total=left, before=NOTHING, share=share)


def _labels(dimension: str, values: Sequence[object], names: Names) -> dict[object, str]:
    plain: dict[object, str] = {value: value_name(dimension, value) for value in values}
    if not dimension.startswith("tag:"):
        return plain
    known = [value for value in values if isinstance(value, str)]
    if known:
        plain.update(names(dimension[4:], known))
    return plain


Span = tuple[date, date]


def _spans(session: Session, selection: Selection) -> tuple[list[Span], str]:
    """The range in columns of days, weeks or months, and in what unit to ask for them."""
    period = selection.period
    days = [day for day in period.days if day <= max(period.today, period.first)]
    if days[-1] < period.last:
        later = selection.filter.narrowed(since=start_of_day(days[-1] + timedelta(days=1), period.zone))
        days = list(period.days) if queries.any_calls(session, later) else days
    if len(days) <= _DAYS:
        return [(day, day) for day in days], "day"
    weekly = len(days) <= _WEEKS
    groups: dict[date, list[date]] = {}
    for day in days:
        groups.setdefault(day - timedelta(days=day.weekday()) if weekly else first_of_month(day), []).append(day)
    return [(group[0], group[-1]) for group in groups.values()], "day" if weekly else "month"


def _span_of(spans: Sequence[Span], day: Any) -> Span | None:
    # A month is told by its first day, which may lie before the range.
    return next((span for span in spans if span[0] <= day <= span[1]), None) or next(
        (span for span in spans if first_of_month(span[0]) == day), None
    )


def _days(selection: Selection, span: Span) -> Heading:
    first, last = span
    label = f"{short_day(first)}–{short_day(last)}" if first != last else short_day(first)
    if first == first_of_month(first) and last == last_of_month(first):
        label = f"{MONTHS[first.month - 1][:3]} {first.year}"
    elif first.month == last.month and first != last:
        label = f"{first.day}–{short_day(last)}"
    days = f"{first}" if first == last else f"{first} to {last}"
    return Heading(label, selection.changed(range="custom", **{"from": first.isoformat(), "to": last.isoformat()}), days)


def _invoice(session: Session, selection: Selection) -> Invoice | None:
    if selection.invoice is None:
        return None
    provider, amount = selection.invoice
    ledger = queries.totals(session, selection.filter.narrowed(provider=provider))
    if not ledger.calls:
        # Written as on the invoice, or no provider at all: told by those that ever had calls here.
        rows = queries.pivot(session, selection.base.narrowed(currency=None), ("provider", "currency"))
        known = {str(row["provider"]).casefold(): str(row["provider"]) for row in rows}
        if known and provider.casefold() not in known:
            raise ParameterError("invoice", f"no call went to a provider {provider[:40]!r}", choices=sorted(known.values()))
        provider = known.get(provider.casefold(), provider)
        ledger = queries.totals(session, selection.filter.narrowed(provider=provider))
    return Invoice(provider=provider, amount=amount, ledger=ledger)


def _table(session: Session, selection: Selection, names: Names) -> tuple[list[str], Iterator[list[Any]]]:
    """The table with all of its rows, in the same columns as on the page."""
    dimension, flt = selection.rows, selection.filter
    every = queries.pivot(session, flt, (dimension,))
    labels = _labels(dimension, [row.key for row in every], names)
    if selection.cols == "none":
        plain = (
            [_key(dimension, row.key), labels[row.key], *(row[name] for name in _SPEND), selection.currency] for row in every
        )
        return [dimension, "name", *_SPEND, "currency"], plain
    everything = {dimension: [row.key for row in every]} if len(every) <= _MOST_ROWS else {dimension: ()}
    total = queries.totals(session, flt)
    columns, _, cells = _cells(session, selection, names, only=everything, total=total)
    if len(every) > _MOST_ROWS:
        cells = _all_cells(session, selection, columns)
    measure = MEASURES[selection.show]

    def rows() -> Iterator[list[Any]]:
        for row in every:
            with localcontext(USUAL):  # this runs when the file is sent, where the app's own may be here
                parts = _with_other(cells.get(row.key, {}), columns, row)
                figures = [*(measure(cell) if cell.calls else None for cell in parts), measure(row)]
            yield [_key(dimension, row.key), labels[row.key], *figures, SHOWN[selection.show], selection.currency]

    return _header(dimension, columns), rows()


def _header(dimension: str, columns: Sequence[Column]) -> list[str]:
    """The names of a file's columns: days in full, and a value besides its name where other columns share that."""
    ends = ("total", "figure", "currency")
    named = [heading.value or "" if isinstance(key, tuple) else heading.label for key, heading in columns]
    found = Counter((dimension, "name", *named, *ends))
    told = [
        f"{name} ({heading.value})" if found[name] > 1 and heading.value is not None else name
        for name, (_, heading) in zip(named, columns, strict=True)
    ]
    return [dimension, "name", *told, *ends]


def _all_cells(session: Session, selection: Selection, columns: Sequence[Column]) -> dict[object, dict[object, Spend]]:
    dimension, flt, zone = selection.rows, selection.filter, selection.period.zone
    if selection.cols == "time":
        spans, unit = _spans(session, selection)
        grouped: dict[object, dict[object, list[Spend]]] = {}
        for row in queries.pivot(session, flt, (unit, dimension), zone=zone):
            grouped.setdefault(row[dimension], {}).setdefault(_span_of(spans, row[unit]), []).append(row)
        return {key: {span: together(parts) for span, parts in row.items()} for key, row in grouped.items()}
    cells: dict[object, dict[object, Spend]] = {}
    if selection.cols == dimension:
        return {row.key: {row.key: row} for row in queries.pivot(session, flt, (dimension,))}
    wanted = {selection.cols: [key for key, _ in columns if key is not _OTHER]}
    for row in queries.pivot(session, flt, (dimension, selection.cols), only=wanted):
        cells.setdefault(row[dimension], {})[row[selection.cols]] = row
    return cells


def _key(dimension: str, value: object) -> object:
    return value_name(dimension, None) if value is None else value


def as_json(selection: Selection, page: Pivot) -> dict[str, Any]:
    """The same table, exact."""

    def row(item: PivotRow) -> dict[str, Any]:
        return {
            "value": item.value,
            "label": item.label,
            "cells": [pages_json.spend(cell) for cell in item.cells],
            "total": pages_json.spend(item.total),
        }

    invoice = page.invoice
    return {
        **pages_json.asked(selection),
        "rows_by": selection.rows,
        "columns_by": selection.cols,
        "columns": [{"value": heading.value, "label": heading.label} for heading in page.columns],
        "rows": [{**row(item), "compared_cost": item.before.cost} for item in page.rows],
        "rest": row(page.rest) if page.rest else None,
        "total": row(page.total),
        "invoice": {
            "provider": invoice.provider,
            "amount": invoice.amount,
            "ledger": pages_json.spend(invoice.ledger),
            "difference": invoice.difference,
        }
        if invoice
        else None,
    }
