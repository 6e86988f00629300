"""Tags: which keys there are and how much of the spend they explain, a page for each key, and one for each value."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any, Final

from flask import Response
from sqlalchemy.orm import Session

from flask_llm_cost.dashboard import charts, pages_json
from flask_llm_cost.dashboard.breakdown import (
    MOST_VALUES,
    NO_COST,
    Breakdown,
    Names,
    Row,
    breakdown,
    dimension_name,
    named,
    value_name,
)
from flask_llm_cost.dashboard.controls import chips, page_controls
from flask_llm_cost.dashboard.empty import nothing
from flask_llm_cost.dashboard.export import csv_response, filename, json_response
from flask_llm_cost.dashboard.filters import Selection
from flask_llm_cost.dashboard.overview import overview_of
from flask_llm_cost.dashboard.sums import together
from flask_llm_cost.dashboard.timeline import timeline
from flask_llm_cost.dashboard.visit import Visit
from flask_llm_cost.ledger import queries
from flask_llm_cost.ledger.filter import check_tag_key
from flask_llm_cost.ledger.queries import Spend
from flask_llm_cost.ledger.tag_queries import tag_keys, too_many_to_add_up

_MOST_KEYS: Final = 8
_FEW: Final = 5
_SPEND: Final = ("calls", "unpriced_calls", "cost", "input_tokens", "cache_read_tokens", "output_tokens", "total_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyCard:
    """One key: its dearest values, and what has none.

    :param rows: none where they are too many to be added up beside other things
    :param values: how many values there are; ``None`` where there are more than are told apart
    """

    key: str
    leading: bool
    rows: tuple[Row, ...]
    values: int | None
    tagged: Decimal | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    total: Spend
    cards: tuple[KeyCard, ...]
    more: tuple[str, ...]


def tags(visit: Visit) -> Response:
    """All keys."""
    selection = visit.selection()
    with visit.session() as session:
        total = queries.totals(session, selection.filter)
        if not total.calls and selection.format == "html":
            return nothing(visit, session, selection)
        if selection.format == "html":
            controls = page_controls(visit, session, selection)
        page = build(session, selection, visit, total)
        if selection.format == "csv":
            header = ("key", "values", "tagged_share", "dearest_value", "dearest_cost", "currency")
            rows = [_card_cells(card, selection.currency) for card in page.cards]
            # Of the others there are no sums here: they would take a question each.
            rows += [(key, None, None, None, None, selection.currency) for key in page.more]
            return csv_response(filename("tags", selection), header, rows, decimal=selection.decimal)
        if selection.format == "json":
            return json_response(_json(selection, page))
    return visit.html(
        "tags.html", sel=selection, it=page, controls=controls, chips=chips(selection, visit.here, visit.names)
    )


def build(session: Session, selection: Selection, visit: Visit, total: Spend) -> Tags:
    """The keys that lead reports first, then the others: one query for each of the first eight."""
    found = [key for key in tag_keys(session, visit.base) if key not in visit.base.scope]
    leading = [key for key in visit.report_tags if key in found]
    ordered = [*leading, *(key for key in found if key not in leading)]
    left = too_many_to_add_up(session, selection.filter, ordered[:_MOST_KEYS])
    cards = tuple(
        KeyCard(key=key, leading=key in leading, rows=(), values=None, tagged=None)
        if key in left
        else _card(session, selection, key, total, visit.names, key in leading)
        for key in ordered[:_MOST_KEYS]
    )
    return Tags(total=total, cards=cards, more=tuple(ordered[_MOST_KEYS:]))


def _card(session: Session, selection: Selection, key: str, total: Spend, names: Names, leading: bool) -> KeyCard:
    dimension = f"tag:{key}"
    found = queries.pivot(session, selection.filter, (dimension,), tagged=[key], top=MOST_VALUES + 1)
    counted, shown = len(found) <= MOST_VALUES, found[:_FEW]
    named = names(key, [str(row.key) for row in shown]) if shown else {}
    rows = [
        Row(
            value=str(row.key), label=named.get(str(row.key), str(row.key)), spend=row, before=NO_COST,
            share=row.cost / total.cost if row.cost is not None and total.cost else None, days={},
        )
        for row in shown
    ]  # fmt: skip
    part = (together(found).cost or Decimal(0)) / total.cost if total.cost and counted else None
    return KeyCard(
        key=key,
        leading=leading,
        rows=tuple(rows),
        values=len(found) if counted else None,
        tagged=part,
    )


def _card_cells(card: KeyCard, currency: str) -> tuple[Any, ...]:
    first = card.rows[0] if card.rows else None
    share = None if card.tagged is None else round(card.tagged, 6)
    return (card.key, card.values, share, first and first.value, first and first.cost, currency)


def _json(selection: Selection, page: Tags) -> dict[str, Any]:
    return {
        **pages_json.asked(selection),
        "total": pages_json.spend(page.total),
        "keys": [
            {
                "key": card.key,
                "values": card.values,
                "tagged_share": card.tagged,
                "dearest": [pages_json.row(row) for row in card.rows],
            }
            for card in page.cards
        ],
        "more_keys": page.more,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class TagKey:
    total: Spend
    before: Spend
    found: Breakdown
    tagged: Decimal | None
    past: tuple[date, ...]

    def spark(self, row: Row) -> str:
        return "" if row.cost is None else charts.sparkline([row.days.get(day, Decimal(0)) for day in self.past])


def tag(visit: Visit, key: str) -> Response:
    """One key, or with ``?value=``, or a filter on it, one value. A key within the scope is nobody's to look around in."""
    check_tag_key(key)
    selection = visit.selection().valued(key)
    if key in visit.base.scope:
        return visit.refusal(f"This view is held to one {dimension_name('tag:' + key)}: it has no list of them.")
    if key in selection.filter.tags:
        return overview_of(visit, selection, key)
    with visit.session() as session:
        if selection.format == "csv":
            return _values_csv(session, visit, selection, key)
        time = timeline(session, selection)
        if not time.total.calls and selection.format == "html":
            return nothing(visit, session, selection)
        if selection.format == "html":
            controls = page_controls(visit, session, selection)
        (found,) = named([breakdown(session, selection, f"tag:{key}", time, most=50, untagged=True)], visit.names)
        page = TagKey(
            total=time.total,
            before=time.before,
            found=found,
            tagged=_tagged(found, time.total),
            past=time.past,
        )
        if selection.format == "json":
            body = {**pages_json.asked(selection), "key": key, "total": pages_json.spend(time.total)}
            return json_response({**body, "tagged_share": page.tagged, "values": pages_json.breakdown(found)})
    return visit.html(
        "tag.html",
        sel=selection,
        it=page,
        key=key,
        controls=controls,
        chips=chips(selection, visit.here, visit.names),
    )


def _tagged(found: Breakdown, total: Spend) -> Decimal | None:
    if not total.cost:
        return None
    bare = found.untagged.cost if found.untagged else None
    return 1 - (bare or Decimal(0)) / total.cost


def _values_csv(session: Session, visit: Visit, selection: Selection, key: str) -> Response:
    every = queries.pivot(session, selection.filter, (f"tag:{key}",))
    named = visit.names(key, [str(row.key) for row in every if row.key is not None])
    rows = [
        (
            value_name(f"tag:{key}", row.key),
            None if row.key is None else named.get(str(row.key)),
            *(row[name] for name in _SPEND),
            selection.currency,
        )
        for row in every
    ]
    header = (f"tag:{key}", "name", *_SPEND, "currency")
    return csv_response(filename("tag-values", selection, f"tag:{key}"), header, rows, decimal=selection.decimal)
