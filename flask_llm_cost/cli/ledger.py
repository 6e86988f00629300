"""What keeps the ledger: ``flush``, ``rollups rebuild``."""

from __future__ import annotations

import time

import click

from flask_llm_cost.cli.group import cli
from flask_llm_cost.extension import state_of
from flask_llm_cost.ledger.outlasting import outlast
from flask_llm_cost.ledger.rebuild import rebuild as rebuild_rollups
from flask_llm_cost.wording import plural


@cli.command()
@click.option("--timeout", type=float, default=10, show_default=True, help="Seconds to wait.")
def flush(timeout: float) -> None:
    """Write the records that dead processes left, and wait until living ones have written theirs.

    Exits 1 when some still wait.
    """
    ledger = state_of().ledger
    deadline = time.monotonic() + timeout
    done = ledger.flush(timeout)
    elsewhere = outlast(ledger, deadline - time.monotonic()) if done else 0
    if not done:
        click.echo("some records still wait; 'flask llm-cost doctor' says why")
    elif elsewhere:
        calls = plural(elsewhere, "call still waits", "calls still wait")
        click.echo(f"{calls} in running processes, which write them; 'flask llm-cost doctor' says when one stands still")
    else:
        click.echo("all records are in the database")
    if others := ledger.health().foreign_calls:
        click.echo(f"{plural(others, 'call')} of other ledgers in the same spool folder: flush from their own app")
    if elsewhere or not done:
        raise SystemExit(1)


@cli.group()
def rollups() -> None:
    """The sums that reports and the dashboard read."""


@rollups.command()
def rebuild() -> None:
    """Make the rollups anew from the calls, while calls come in. Broken off, it goes on where it was when it is run again.

    Needed when LLM_COST_TIMEZONE has changed, when LLM_COST_ROLLUP_TAGS or LLM_COST_REPORT_TAGS name more than before, and
    for calls that are older than the rollups. Until it is done, questions are answered from the calls, which is slower.
    """
    ledger = state_of().ledger
    steps = rebuild_rollups(ledger.writer.transactions, ledger.rollups)
    first = next(steps)
    done = 0
    with click.progressbar(length=first.total, label="rollups") as bar:
        for progress in steps:
            bar.length = progress.total
            bar.update(progress.done - done)
            done = progress.done
    click.echo(f"the rollups hold all calls; {done} were added up")
