"""``backfill`` and ``reprice``: prices for calls that are in the ledger already."""

from __future__ import annotations

from datetime import datetime

import click

from flask_llm_cost import reprice as repricing
from flask_llm_cost.cli.group import cli
from flask_llm_cost.extension import AppState, state_of
from flask_llm_cost.ledger import retention
from flask_llm_cost.ledger.local_time import range_of
from flask_llm_cost.wording import plural


@cli.command()
@click.option("--dry-run", is_flag=True, help="Show what would be priced, and write nothing.")
def backfill(dry_run: bool) -> None:
    """Price what had no price, with the prices of the time of each call. What has a price keeps it."""
    state = state_of()
    _run(state, "backfill", None, repricing.conditions(backfill=True), dry_run=dry_run)


@cli.command()
@click.option("--from", "first", type=click.DateTime(["%Y-%m-%d"]), required=True, help="The first day.")
@click.option("--to", "last", type=click.DateTime(["%Y-%m-%d"]), required=True, help="The last day, included.")
@click.option("--dry-run", is_flag=True, help="Show the difference by model, and write nothing.")
@click.option("--yes", is_flag=True, help="Write it without being asked.")
def reprice(first: datetime, last: datetime, dry_run: bool, yes: bool) -> None:
    """Price the calls of some days again, by today's book and the prices of the time of each call."""
    if last < first:
        raise click.BadParameter("is before --from", param_hint="--to")
    state = state_of()
    since, until = range_of(first.date(), last.date(), state.config.timezone)
    where = repricing.conditions(backfill=False, since=since, until=until)
    if dry_run or not yes:
        outcome = _run(state, "reprice", since, where, dry_run=True)
        if dry_run or not outcome.changed:
            return
        click.confirm(f"Give {plural(outcome.changed, 'call')} a new cost?", abort=True)
    _run(state, "reprice", since, where, dry_run=False)


def _stay(calls: int) -> str:
    return f"{plural(calls, 'call')} {'stays' if calls == 1 else 'stay'}"


def _run(state: AppState, kind: str, since: datetime | None, where: list[object], *, dry_run: bool) -> repricing.Outcome:
    with state.ledger.session(replica=False) as session:
        total = repricing.count(session, where)
        pruned = retention.pruned(session.connection())
    with click.progressbar(length=total, label="calls") as bar:
        outcome = repricing.price_again(state.ledger, state.book, kind=kind, where=where, dry_run=dry_run, told=bar.update)
    for line in repricing.table(outcome.by_model):
        click.echo(line)
    done = "would change" if dry_run else "changed"
    click.echo(f"{outcome.changed:,} of {plural(outcome.looked_at + outcome.billed, 'call')} {done}")
    if pruned is not None and (since is None or since < pruned.instant):
        click.echo(f"detail is pruned before {pruned.day}: calls that are gone keep their cost")
    if outcome.billed:
        click.echo(f"{_stay(outcome.billed)}: the provider said what it charged")
    if outcome.without:
        click.echo(f"{_stay(outcome.without)}: the book has no whole price; see 'flask llm-cost doctor'")
    if outcome.changed_meanwhile:
        click.echo(f"{plural(outcome.changed_meanwhile, 'call')} changed by somebody else meanwhile; run it again")
    if dry_run:
        click.echo("nothing was written")
    return outcome
