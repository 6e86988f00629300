"""Where records wait: ``spool`` and ``spool replay``."""

from __future__ import annotations

import json

import click
from flask.cli import with_appcontext

from flask_llm_cost.cli.group import cli, format_option
from flask_llm_cost.extension import state_of
from flask_llm_cost.ledger.health import Health
from flask_llm_cost.wording import plural


@cli.group(invoke_without_command=True)
@format_option("text", "json")
@click.pass_context
@with_appcontext
def spool(context: click.Context, form: str) -> None:
    """Show what waits for the database. Exits 1 when records were set aside or files damaged."""
    if context.invoked_subcommand is not None:
        return
    health = state_of().ledger.health()
    if form == "json":
        shown = {
            "folder": health.spool_dir and str(health.spool_dir),
            "waiting": health.waiting,
            "waiting_since": health.waiting_since and health.waiting_since.isoformat(),
            "set_aside": health.quarantined,
            "damaged": health.corrupt,
            "others": health.foreign_calls,
        }
        click.echo(json.dumps(shown, indent=2))
    else:
        _show(health)
    if health.quarantined or health.corrupt:
        raise SystemExit(1)


def _show(health: Health) -> None:
    since = f", the oldest since {health.waiting_since:%Y-%m-%d %H:%M} UTC" if health.waiting_since else ""
    click.echo(f"folder     {health.spool_dir or 'none: records wait in memory'}")
    click.echo(f"waiting    {plural(health.waiting, 'call')}{since}")
    click.echo(f"set aside  {plural(health.quarantined, 'call')} that the database refused")
    click.echo(f"damaged    {plural(health.corrupt, 'file')}, kept to be looked at")
    if health.foreign_calls:
        click.echo(f"others     {plural(health.foreign_calls, 'call')} of other ledgers in the same folder")
    if health.quarantined:
        click.echo("When the reason is gone, 'flask llm-cost spool replay' tries what was set aside again.")


@spool.command()
@click.option("--timeout", type=float, default=30, show_default=True, help="Seconds to wait.")
def replay(timeout: float) -> None:
    """Try again what the database refused. What it refuses once more is set aside as before. Exits 1 when some is left."""
    ledger = state_of().ledger
    count = ledger.put_back()
    done = ledger.flush(timeout)
    left = ledger.health().quarantined
    click.echo(f"{plural(count, 'call')} tried again, {left:,} refused once more")
    if not done:
        click.echo("some records still wait; 'flask llm-cost doctor' says why")
    if left or not done:
        raise SystemExit(1)
