"""What is deleted and erased: ``prune``, ``forget``."""

from __future__ import annotations

from datetime import datetime, timedelta

import click

from flask_llm_cost.cli.group import actor, cli
from flask_llm_cost.extension import state_of
from flask_llm_cost.ledger import retention
from flask_llm_cost.wording import plural


@cli.command()
@click.option("--older-than", type=click.IntRange(1), help="Days of calls to keep. The default is LLM_COST_RETENTION_DAYS.")
@click.option("--dry-run", is_flag=True, help="Say what would be deleted, and delete nothing.")
@click.option("--mark", is_flag=True, help="Say in the ledger that they are gone, and leave it to you to drop them.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def prune(older_than: int | None, dry_run: bool, mark: bool, yes: bool) -> None:
    """Delete old calls with their line items and tags, old holds of budgets, and spool files that were damaged long ago.

    Their sums stay: days, months, models and tags that have rollups are as they were. Works in small batches while calls
    come in, and can be broken off at any time.
    """
    state = state_of()
    days = older_than or state.config.retention_days
    if days is None:
        raise click.UsageError("say how many days to keep: --older-than 90, or set LLM_COST_RETENTION_DAYS")
    zone = state.config.timezone
    cutoff = retention.Cutoff.of(datetime.now(zone).date() - timedelta(days=days), zone)
    with state.ledger.session() as session:
        found = retention.old(session.connection(), cutoff)
    click.echo(f"{plural(found.calls, 'call')} and {plural(found.holds, 'hold')} from before {cutoff.day} ({zone})")
    files = [] if mark else retention.old_files(state.ledger.damaged(), cutoff)
    for path in files:
        click.echo(f"damaged spool file {path}")
    if dry_run:
        return
    if (found.calls or files) and not yes:
        verb = "Mark them as gone" if mark else "Delete them"
        click.confirm(f"{verb}? Their sums stay, single calls do not come back.", abort=True)
    if mark:
        retention.mark(state.ledger.writer.transactions, state.ledger.rollups, cutoff)
        click.echo(f"detail is pruned before {cutoff.day}; nothing was deleted")
        return
    deleted = 0
    with click.progressbar(length=found.calls + found.holds, label="prune") as bar:
        for count in retention.prune(state.ledger.writer.transactions, state.ledger.rollups, cutoff):
            bar.update(count)
            deleted += count
    swept = retention.sweep(files)
    click.echo(f"deleted {plural(deleted, 'row')} and {plural(swept, 'damaged spool file')}")
    click.echo(f"detail is pruned before {cutoff.day}")


@cli.command()
@click.argument("tag")
@click.option("--dry-run", is_flag=True, help="Say how many calls have it, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def forget(tag: str, dry_run: bool, yes: bool) -> None:
    """Erase a person: put "(erased)" in the place of a tag's value, user_id=42, wherever the ledger keeps it.

    Every sum stays what it was. The change is on record without the value.
    """
    key, equals, value = tag.partition("=")
    if not key or not equals or not value:
        raise click.BadParameter("write the tag as key=value: user_id=42", param_hint="TAG")
    if value == retention.ERASED:
        raise click.BadParameter(f"{value} is what stands in the place of values that were erased already", param_hint="TAG")
    ledger = state_of().ledger
    if not ledger.flush(10.0) and not dry_run:
        raise click.ClickException("some records still wait in the spool and may have it: run 'flask llm-cost flush' first")
    with ledger.session() as session:
        count = retention.calls_tagged(session.connection(), key, value)
    click.echo(f"{plural(count, 'call has', 'calls have')} that tag")
    if dry_run:
        return
    if not yes:
        click.confirm("Erase it? It does not come back.", abort=True)
    erased = 0
    with click.progressbar(length=count, label="forget") as bar:
        for done in retention.forget(ledger.writer.transactions, ledger.rollups, key, value, actor=actor()):
            bar.update(done)
            erased += done
    click.echo(f"erased in {plural(erased, 'call')}, in the rollups and in budgets; backups of yours still have it")
