"""What may be wrong with the number, row by row: what was found, why, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from flask_llm_cost.dashboard.breakdown import dimension_name
from flask_llm_cost.dashboard.filters import UNPRICED, Selection
from flask_llm_cost.dashboard.formatting import clock, count, exact_money, full_day, long_day, shell_word
from flask_llm_cost.dashboard.visit import Visit
from flask_llm_cost.ledger.drift import BilledDrift
from flask_llm_cost.ledger.health import Health
from flask_llm_cost.ledger.quality_queries import Mark, Soundness
from flask_llm_cost.ledger.quality_queries import count as calls_of
from flask_llm_cost.ledger.queries import UnpricedModel
from flask_llm_cost.ledger.variety import MANY_VALUES, MANY_VALUES_OF
from flask_llm_cost.pricing.book import OLD_DAYS
from flask_llm_cost.wording import plural

#: From where on the book's figure is off the provider's bill.
_OFF: Final = Decimal("0.01")
_RECENT: Final = timedelta(days=7)


@dataclass(frozen=True, slots=True, kw_only=True)
class Issue:
    """A row of the table.

    :param level: ``error``, ``warning`` or ``ok``
    :param found: how much of it there is, in words
    :param calls: of how many calls; ``None`` where it is not about single calls
    :param params: the query string of the calls page that lists them
    :param page: the page that tells more, where that is no list of calls
    :param among: how many calls that lists, where it is not these alone or not all: not everything can be filtered by
    :param command: what helps, to be copied
    """

    name: str
    level: str
    found: str
    why: str
    remedy: str
    calls: int | None = None
    params: Mapping[str, Any] | None = None
    page: str | None = None
    among: int | None = None
    command: str | None = None


#: How calls may have ended: name, level, which they are, why, what to do, the filters that list them, and a
#: command, in which ``{what}`` is what spend is broken down by first.
_KINDS: Final[tuple[tuple[str, str, Any, str, str, dict[str, str], str | None], ...]] = (
    (
        "No usage reported",
        "warning",
        lambda row: row.uncounted and not row.failed and row.usage_source == "unknown",
        "The reply, or the stream until its end, named no usage: there is nothing to multiply.",
        "Leave LLM_COST_STREAM_USAGE on, and name the host there if it is not asked for usage yet.",
        {"usage_source": "unknown"},
        "flask llm-cost doctor",
    ),
    (
        "Not settled yet",
        "warning",
        lambda row: row.usage_source == "pending" or row.outcome == "unresolved",
        "A background or batch call whose result nobody has fetched yet, or a process that died with the call open.",
        "Fetch the result through a watched client; a call that never ended counts as unresolved in its budget.",
        {"outcome": "unresolved"},
        "flask llm-cost budgets --repair",
    ),
    (
        "Estimated from what was cut short",
        "ok",
        lambda row: row.estimated,
        "A stream was abandoned before its last event. What had arrived is priced and marked ~.",
        "Read streams to their end where you can. The providers bill what they had produced by then.",
        {"usage_source": "stream_partial"},
        "flask llm-cost report --by usage_source,{what}",
    ),
    (
        "Usage that contradicts itself",
        "warning",
        lambda row: row.inconsistent,
        "The parts of a usage block do not add up to its total, or one of them is no count.",
        "Compare the call with the provider's own list by the last four characters of its id.",
        {},
        None,
    ),
    (
        "Interrupted",
        "ok",
        lambda row: row.outcome == "interrupted",
        "The app stopped reading, or the connection broke. It is paid for all the same.",
        "Look whether the same feature does it again and again.",
        {"outcome": "interrupted"},
        "flask llm-cost report --by outcome,{what}",
    ),
    (
        "Failed",
        "ok",
        lambda row: row.outcome == "error",
        "The provider refused or failed. Where it reported no usage, nothing is missing from the sums.",
        "Retries show as a higher attempt in the list.",
        {"outcome": "error"},
        "flask llm-cost report --by outcome,provider,model",
    ),
)


def of_calls(visit: Visit, selection: Selection, rows: list[Soundness], unpriced: list[UnpricedModel]) -> Iterable[Issue]:
    for model, status, calls in _without_price(unpriced):
        whole = status == "unpriced"
        yield Issue(
            name=f"{model.provider}/{model.model or '(no model)'} has no {'full ' if not whole else ''}price",
            level="warning",
            calls=calls,
            found=plural(calls, "call"),
            why="No price is known for it, so what it cost is unknown and in no sum."
            if whole
            else "A part of its bill has no rate: what is shown is a lower bound.",
            remedy=_told(
                visit, "Say what it costs in LLM_COST_PRICE_OVERRIDES, then price what was left: flask llm-cost backfill."
            ),
            # There is no filter for calls without a model, and the list would be longer than what is said.
            params={**(UNPRICED if whole else {"cost_status": status}), **selection.carried}
            | {"provider": model.provider, "model": model.model}
            if model.model
            else None,
            command=_command(visit, f"flask llm-cost prices explain {shell_word(model.provider)} {shell_word(model.model)}")
            if model.model
            else None,
        )
    what = f"tag:{visit.report_tags[0]}" if visit.report_tags else "model"
    for name, level, matches, why, remedy, params, command in _KINDS:
        calls = calls_of(row for row in rows if matches(row))
        yield Issue(
            name=name,
            level=level if calls else "ok",
            calls=calls,
            found=plural(calls, "call") if calls else "none",
            why=why,
            remedy=_told(visit, remedy) if calls else "Nothing to do.",
            command=_command(visit, command and command.format(what=what)) if calls else None,
            **_list_of(selection, rows, calls, params),
        )


def _without_price(models: Iterable[UnpricedModel]) -> Iterator[tuple[UnpricedModel, str, int]]:
    for model in models:
        for status, calls in (("unpriced", model.calls - model.partial), ("partial", model.partial)):
            if calls:
                yield model, status, calls


def of_tags(visit: Visit, selection: Selection, untagged: Mapping[str, int], calls: int) -> Iterable[Issue]:
    for key, missing in untagged.items():
        yield Issue(
            name=f"Without the tag {key}",
            level="warning" if calls and missing * 5 > calls else "ok",
            calls=missing,
            found=plural(missing, "call") if missing else "none",
            why=f"Nobody said which {dimension_name('tag:' + key)} they are for. They are in every sum, as (untagged).",
            remedy=_told(visit, f"Set it in the request tagger, or with tags({key}=...) around the call.")
            if missing
            else "Nothing to do.",
            params=selection.with_value(f"tag:{key}", None) if missing else None,
            command=_command(visit, f"flask llm-cost report --by tag:{key},tag:endpoint") if missing else None,
        )


def of_bills(visit: Visit, selection: Selection, drifts: list[BilledDrift], since: date | None) -> Iterable[Issue]:
    """What providers charged and the book makes of it.

    :param since: the day from which calls are there, where earlier ones of the range were pruned
    """
    only = f", since {full_day(since)}: detail pruned before" if since is not None else ""
    for drift in drifts:
        name = f"{drift.provider}/{drift.model or '(no model)'}"
        off = drift.share is None or abs(drift.share) >= _OFF
        book, bill = (exact_money(amount, drift.currency) for amount in (drift.computed, drift.billed))
        says = _told(visit, "the book says", "by list prices")
        share = f", {abs(drift.share):.1%} {'more' if drift.share > 0 else 'less'}" if drift.share else ""
        yield Issue(
            name=f"{name}: billed and computed",
            level="warning" if off else "ok",
            calls=drift.calls,
            found=f"{plural(drift.calls, 'call')}: billed {bill}, {says} {book}{share}{only}",
            why=_told(
                visit,
                "This provider says what it charged, and that is the bill. The price book's figure beside it shows how far "
                "to trust the book for what others do not say.",
                "This provider says what it charged, and that is the bill.",
            ),
            remedy=_told(visit, "Fetch current prices, or set this one.") if off else "Nothing to do.",
            params={**selection.carried, "provider": drift.provider, "model": drift.model} if drift.model else None,
            command=_command(visit, f"flask llm-cost prices explain {shell_word(drift.provider)} {shell_word(drift.model)}")
            if off and drift.model
            else None,
        )


def of_prices(visit: Visit, now: datetime) -> Iterable[Issue]:
    book = visit.state.book
    age = book.days_old(now.date())
    yield Issue(
        name="Age of the prices",
        level="warning" if age is None or age > OLD_DAYS else "ok",
        found=book.version if age is None else plural(age, "day"),
        why="Providers change prices without a word. Old calls keep the price that they were made at.",
        remedy="Fetch the current ones, and look at the difference before you accept it.",
        page="pricing",
        command=_command(visit, "flask llm-cost prices sync --preview"),
    )


def of_ledger(visit: Visit, health: Health, found: Mapping[str, Mark], now: datetime) -> Iterable[Issue]:
    zone = visit.state.config.timezone

    def counted(name: str) -> int:
        return found[name].value if name in found else 0

    def last(name: str) -> str:
        return f", last on {long_day(found[name].at.astimezone(zone))}" if counted(name) else ""

    def level(name: str, bad: str) -> str:
        return bad if counted(name) and found[name].at > now - _RECENT else "ok"

    failed = health.last_error_class
    when = health.last_write_at
    yield Issue(
        name="Writer",
        level="error" if failed else "ok",
        found=f"failed: {failed}" if failed else f"wrote at {clock(when, zone)}" if when else "idle in this process",
        why="Records go from the spool to the database in a thread of each process.",
        remedy="They are written as soon as the database takes them." if failed else "Nothing to do.",
        command=_command(visit, "flask llm-cost doctor") if failed else None,
    )
    waiting = health.waiting
    yield Issue(
        name="Waiting in the spool",
        level="warning" if waiting > 1000 else "ok",
        found=plural(waiting, "call") if waiting else "none",
        why="Recorded, safe on disk, and not in this number yet."
        if health.durable
        else "No folder can be written: records wait in memory, and a killed process loses them.",
        remedy="Load the page again, or write them now." if waiting else "Nothing to do.",
        command=_command(visit, "flask llm-cost flush") if waiting else None,
    )
    for name, title, bad, why, remedy, command in (
        (
            "lost",
            "Lost",
            "error",
            "The spool was full while the database was away. These calls are in no sum.",
            "Raise LLM_COST_SPOOL_MAX_MB.",
            "flask llm-cost spool",
        ),
        (
            "unattributed",
            "Made outside every app",
            "warning",
            "Several apps were there, and nobody could say whose call it was. These calls are in no sum.",
            "Wrap them in with app.app_context().",
            "flask llm-cost doctor",
        ),
        (
            "quarantined",
            "Refused by the database",
            "warning",
            "A record that the database does not take is kept in a file beside the spool, and the others go on.",
            "Look at it, repair what it complains of, and replay it.",
            "flask llm-cost spool",
        ),
        (
            "duplicates",
            "Duplicates suppressed",
            "ok",
            "The same call was handed in twice, by a replay or by two watchers. It counts once.",
            "Nothing to do: that is how it should be.",
            None,
        ),
        (
            "redacted",
            "Tags redacted",
            "warning",
            "A value that looked like a key, a token or a card number was not kept.",
            "Find who tags with it, and tag with ids, not with content.",
            None,
        ),
    ):
        value = counted(name)
        yield Issue(
            name=title,
            level=level(name, bad),
            found=f"{count(value)}{last(name)}" if value else "none",
            why=why,
            remedy=remedy if value else "Nothing to do.",
            command=_command(visit, command) if value else None,
        )
    for name in sorted(name for name in found if name.startswith(MANY_VALUES_OF)):
        yield Issue(
            name=f"Very many values of the tag {name.removeprefix(MANY_VALUES_OF)}",
            level=level(name, "warning"),
            found=f"over {count(MANY_VALUES)}{last(name)}",
            why="Spend by it is slow to ask and long to read: ids of requests, times and texts are no tags.",
            remedy="Tag with what spend is asked by. Doctor counts the values that are kept.",
            command=_command(visit, "flask llm-cost doctor"),
        )


def listing(rows: Iterable[Soundness], carried: Mapping[str, Any], wanted: Mapping[str, Any]) -> int | None:
    """How many calls a list has that is narrowed to *wanted*; ``None`` where that would undo a filter that is set."""
    if any(carried.get(name, value) != value for name, value in wanted.items()):
        return None
    has = {name: value == "yes" if name == "stream" else value for name, value in wanted.items()}
    return calls_of(row for row in rows if all(getattr(row, name) == value for name, value in has.items()))


def _list_of(selection: Selection, rows: list[Soundness], calls: int, wanted: Mapping[str, str]) -> dict[str, Any]:
    listed = listing(rows, selection.carried, wanted) if calls and wanted else None
    if not listed:
        return {}
    return {"params": {**selection.carried, **wanted}, "among": listed if listed != calls else None}


#: What a customer can do about what only the app's makers can set.
_THEIRS: Final = "Nothing that you have to do: whoever runs this app sees it too."


def _told(visit: Visit, text: str, customers: str = _THEIRS) -> str:
    return customers if visit.scoped else text


def _command(visit: Visit, text: str | None) -> str | None:
    return None if visit.scoped else text
