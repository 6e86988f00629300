"""``report``: what was spent, to read or to hand on."""

from __future__ import annotations

from datetime import datetime

import click

from flask_llm_cost import report as reports
from flask_llm_cost.cli.group import cli
from flask_llm_cost.extension import state_of


@cli.command()
@click.option("--days", type=click.IntRange(1, 3660), default=30, show_default=True, help="How many days, today included.")
@click.option(
    "--by", "by", default="model", show_default=True, help="model, provider, day, tag:feature, …; several with commas."
)
@click.option("--format", "form", type=click.Choice(["text", "json", "csv"]), default="text", show_default=True)
def report(days: int, by: str, form: str) -> None:
    """Print what was spent, and on what."""
    state = state_of()
    zone = state.config.timezone
    dimensions = [name.strip() for name in by.split(",") if name.strip()]
    with state.ledger.session() as session:
        made = reports.make_report(session, dimensions, days=days, today=datetime.now(zone).date(), zone=zone)
    text = {"text": reports.as_text, "json": reports.as_json, "csv": reports.as_csv}[form](made)
    click.echo(text.rstrip("\n"))
