"""``report`` and ``export``: what was spent, to read or to hand on."""

from __future__ import annotations

import json
from datetime import datetime

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from flask_llm_cost import anomalies, invoice
from flask_llm_cost import report as reports
from flask_llm_cost.cli.group import cli, format_option
from flask_llm_cost.export import export_calls
from flask_llm_cost.extension import AppState, state_of
from flask_llm_cost.ledger.filter import Filter, dimensions
from flask_llm_cost.ledger.local_time import range_of
from flask_llm_cost.wording import plural


def _complete_dimension(context: click.Context, option: click.Parameter, incomplete: str) -> list[CompletionItem]:
    begun, comma, last = incomplete.rpartition(",")
    names = [*(name for name in dimensions() if name != "tag:<key>"), "tag:feature", "tag:tenant_id", "tag:user_id"]
    return [CompletionItem(begun + comma + name) for name in names if name.startswith(last)]


@cli.command()
@click.option("--days", type=click.IntRange(1, 3660), default=30, show_default=True, help="How many days, today included.")
@click.option(
    "--by",
    "by",
    default="model",
    show_default=True,
    shell_complete=_complete_dimension,
    help="model, provider, day, tag:feature, …; several with commas.",
)
@format_option("text", "json", "csv")
@click.option("--anomalies", "odd", is_flag=True, help="Show odd days instead, and exit 1 when there is one: for cron.")
@click.option(
    "--invoice",
    "invoices",
    multiple=True,
    metavar="MONTH=PROVIDER:DOLLARS",
    help="Put an invoice beside the ledger instead: 2026-10=openai:1234.56. May be repeated.",
)
def report(days: int, by: str, form: str, odd: bool, invoices: tuple[str, ...]) -> None:
    """Print what was spent, and on what.

    Calls without a price, and calls in other currencies than USD, are not in the number; the report says how many they are.
    """
    if odd and invoices:
        raise click.UsageError("--anomalies and --invoice are two different reports; ask for one at a time")
    _refuse_unused(by=odd or bool(invoices), days=bool(invoices))
    if (odd or invoices) and form == "csv":
        raise click.UsageError("--format csv is for the table of spend; use json")
    state = state_of()
    if invoices:
        _compare(state, invoices, form)
    elif odd:
        _judge(state, days, form)
    else:
        zone, tags = state.config.timezone, state.config.report_tags
        chosen = list(dict.fromkeys(name.strip() for name in by.split(",") if name.strip()))
        if not chosen:
            raise click.BadParameter("name what to group by, such as model or tag:feature", param_hint="--by")
        today = datetime.now(zone).date()
        with state.ledger.session() as session:
            made = reports.make_report(session, chosen, days=days, today=today, zone=zone, tags=tags)
        text = {"text": reports.as_text, "json": reports.as_json, "csv": reports.as_csv}[form](made)
        click.echo(text.rstrip("\n"))
        if form == "csv" and (apart := reports.in_others(made)):
            click.echo("\n".join(apart), err=True)


def _refuse_unused(**unused: bool) -> None:
    """What a report does not look at is not to be given: one would take the answer for another."""
    context = click.get_current_context()
    for name, is_unused in unused.items():
        if is_unused and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name} is for the table of spend, and means nothing to this report; leave it out")


def _judge(state: AppState, days: int, form: str) -> None:
    zone = state.config.timezone
    with state.ledger.session() as session:
        made = anomalies.find_anomalies(
            session, days=days, today=datetime.now(zone).date(), zone=zone, tags=state.config.report_tags
        )
    if form == "json":
        click.echo(json.dumps({"since": made.since.isoformat(), "until": made.until.isoformat(), "timezone": made.zone,
                               "anomalies": anomalies.as_rows(made), "other_currencies": reports.plainly(made.apart)},
                              indent=2))  # fmt: skip
    else:
        click.echo(anomalies.as_text(made))
    if made.found:
        raise SystemExit(1)


def _compare(state: AppState, written: tuple[str, ...], form: str) -> None:
    wanted = invoice.parse_invoices(written)
    with state.ledger.session() as session:
        made = [invoice.compare(session, each) for each in wanted]
    if form == "json":
        click.echo(json.dumps([invoice.as_row(each) for each in made], indent=2))
    else:
        click.echo("\n\n".join(invoice.as_text(each) for each in made))


@cli.command()
@click.argument("path", type=click.Path(dir_okay=False, allow_dash=True))
@click.option(
    "--from", "first", type=click.DateTime(["%Y-%m-%d"]), help="The first day. Left out: the day of the first call."
)
@click.option("--to", "last", type=click.DateTime(["%Y-%m-%d"]), help="The last day, included. Left out: today.")
def export(path: str, first: datetime | None, last: datetime | None) -> None:
    """Write every call to a CSV file, newest first: the rows of the dashboard's file.

    PATH is a file, which is there only when it is complete, or - for standard output. Days are those of LLM_COST_TIMEZONE.
    """
    state = state_of()
    if first is not None and last is not None and last < first:
        raise click.UsageError("--to is before --from")
    since, until = range_of(first and first.date(), last and last.date(), state.config.timezone)
    flt = Filter(scope={}, since=since, until=until, currency=None)
    try:
        written = export_calls(state, flt, path)
    except OSError as error:
        raise click.FileError(path, hint=f"{error.strerror}; name a file in a folder that can be written") from None
    if path != "-":
        click.echo(f"{plural(written, 'call')} in {path}")
