"""What is deleted and erased: ``prune``, ``forget``."""

from __future__ import annotations

import time
from datetime import datetime, timedelta

import click

from flask_llm_cost.cli.group import actor, cli
from flask_llm_cost.config import MOST_DAYS
from flask_llm_cost.extension import AppState, state_of
from flask_llm_cost.ledger import retention
from flask_llm_cost.ledger.health import Health
from flask_llm_cost.ledger.outlasting import outlast
from flask_llm_cost.records import REDACTED, TAG_KEY
from flask_llm_cost.wording import plural


@cli.command()
@click.option(
    "--older-than",
    type=click.IntRange(1, MOST_DAYS),
    help="Days of calls to keep. The default is LLM_COST_RETENTION_DAYS.",
)
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
    with state.ledger.session(replica=False) as session:
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
        click.echo(f"{_pruned(state, cutoff)}; nothing was deleted")
        return
    deleted = 0
    with click.progressbar(length=found.calls + found.holds, label="prune") as bar:
        for count in retention.prune(state.ledger.writer.transactions, state.ledger.rollups, cutoff):
            bar.update(count)
            deleted += count
    swept = retention.sweep(files)
    click.echo(f"deleted {plural(deleted, 'row')} and {plural(swept, 'damaged spool file')}")
    click.echo(_pruned(state, cutoff))


def _pruned(state: AppState, cutoff: retention.Cutoff) -> str:
    """Since when all calls are there: an earlier prune may have taken more than this one."""
    with state.ledger.session(replica=False) as session:
        return f"detail is pruned before {(retention.pruned(session.connection()) or cutoff).day}"


@cli.command()
@click.argument("tag")
@click.option("--dry-run", is_flag=True, help="Say how many calls have it, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--timeout", type=float, default=10, show_default=True, help="Seconds to wait for records that still wait.")
def forget(tag: str, dry_run: bool, yes: bool, timeout: float) -> None:
    """Erase a person: put "(erased)" in the place of a tag's value, user_id=42, wherever the ledger keeps it.

    Every sum stays what it was. The change is on record without the value. Exits 1 when records that are not in the
    database may still have it.
    """
    state = state_of()
    key, value = _tag(state, tag)
    ledger = state.ledger
    deadline = time.monotonic() + timeout
    if not ledger.flush(timeout) and not dry_run:
        raise click.ClickException("some records still wait in the spool and may have it: run 'flask llm-cost flush' first")
    waiting = outlast(ledger, deadline - time.monotonic())
    with ledger.session(replica=False) as session:
        count = retention.calls_tagged(session.connection(), key, value)
        anywhere = count > 0 or retention.kept_besides(session.connection(), key, value)
    click.echo(f"{plural(count, 'call has', 'calls have')} that tag" if count else "no call has that tag")
    if anywhere and not count:
        click.echo("sums of pruned calls, or budgets, have it")
    if anywhere and not dry_run:
        if not yes:
            click.confirm("Erase it? It does not come back.", abort=True)
        erased = 0
        with click.progressbar(length=count, label="forget") as bar:
            for done in retention.forget(ledger.writer.transactions, ledger.rollups, key, value, actor=actor()):
                bar.update(done)
                erased += done
        click.echo(f"erased in {plural(erased, 'call')}, in the rollups and in budgets; backups of yours still have it")
    left = _left(ledger.health(), waiting)
    for line in left:
        click.echo(line)
    if left and not dry_run:
        raise SystemExit(1)


def _tag(state: AppState, tag: str) -> tuple[str, str]:
    """A tag as calls have it."""
    key, _, value = tag.partition("=")
    if key and not TAG_KEY.fullmatch(key):
        raise click.BadParameter("a key is a letter, then up to 63 of a-z, 0-9, '_', '.', '-'", param_hint="TAG")
    cleaned = state.tag_rules.clean({key: value}).get(key) if key else None
    if cleaned is None:
        raise click.BadParameter("write the tag as key=value: user_id=42", param_hint="TAG")
    if cleaned == retention.ERASED:
        raise click.BadParameter(f"{cleaned} stands in the place of values that were erased already", param_hint="TAG")
    # Calls that are older than a rule have what it redacts now, and what is redacted is anybody's.
    return key, value if cleaned == REDACTED else cleaned


def _left(health: Health, waiting: int) -> list[str]:
    """What may have a tag outside the database, and comes into it or stays where it is."""
    left = []
    if waiting:
        left.append(
            f"{plural(waiting, 'call waits', 'calls wait')} in running processes and may have it: "
            "run forget again when 'flask llm-cost flush' says that all are written"
        )
    if health.quarantined:
        left.append(
            f"{plural(health.quarantined, 'call')} that the database refused may have it: "
            "run 'flask llm-cost spool replay', then forget again"
        )
    if health.corrupt:
        left.append(
            f"{plural(health.corrupt, 'damaged spool file')} in {health.spool_dir} may have it: "
            "what could be read is in the ledger, so delete by hand"
        )
    return left
