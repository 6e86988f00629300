"""What keeps the ledger: ``flush``."""

from __future__ import annotations

import click

from flask_llm_cost.cli.group import cli
from flask_llm_cost.extension import state_of


@cli.command()
@click.option("--timeout", type=float, default=10, show_default=True, help="Seconds to wait.")
def flush(timeout: float) -> None:
    """Write every waiting record to the database, also those that dead processes left. Exits 1 when some still wait."""
    ledger = state_of().ledger
    done = ledger.flush(timeout)
    click.echo("all records are in the database" if done else "some records still wait; 'flask llm-cost doctor' says why")
    if others := ledger.health().foreign_calls:
        click.echo(f"{others} calls of other ledgers are in the same spool folder: flush them from their own app")
    if not done:
        raise SystemExit(1)
