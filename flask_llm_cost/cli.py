"""``flask llm-cost …``: thin commands over functions that can be called without them."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import click
from flask import current_app
from flask.cli import AppGroup

from flask_llm_cost import doctor as checks
from flask_llm_cost import report as reports
from flask_llm_cost.errors import LlmCostError
from flask_llm_cost.extension import state_of
from flask_llm_cost.installation import install_ledger
from flask_llm_cost.records import COMPONENTS, Usage
from flask_llm_cost.usage.manual import usage_from


class _Commands(AppGroup):
    """Our errors say what to do: show them as they are, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except LlmCostError as error:
            raise click.ClickException(str(error)) from None


cli = _Commands("llm-cost", help="What the LLM calls of this app cost, and for whom.")


@cli.command()
def install() -> None:
    """Make the ledger's tables: by a migration where the app uses Flask-Migrate, directly otherwise."""
    for line in install_ledger(current_app._get_current_object()):  # type: ignore[attr-defined]  # a proxy
        click.echo(line)


@cli.command()
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def doctor(form: str) -> None:
    """Look whether everything is in order, and say what to do where it is not. Exits 1 on errors."""
    found = checks.examine(state_of())
    if form == "json":
        click.echo(json.dumps([asdict(check) for check in found], indent=2))
    else:
        marks = {"ok": ("ok     ", "green"), "warning": ("warning", "yellow"), "error": ("error  ", "red")}
        group = None
        for check in found:
            if check.group != group:
                group = check.group
                click.echo(f"\n{group}" if check is not found[0] else group)
            mark, colour = marks[check.status]
            click.echo(f"  {click.style(mark, fg=colour)}  {check.name}: {check.message}")
    if any(check.status == "error" for check in found):
        raise SystemExit(1)


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


@cli.group()
def prices() -> None:
    """What a model costs, and why."""


@prices.command()
@click.argument("provider")
@click.argument("model")
@click.option("--mode", help="batch, flex, priority, batch+residency:eu, …")
@click.option("--at", type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]), help="The time whose prices count (UTC).")
@click.option("--usage", "used", help="Components to compute with: input=1000,output=200")
def explain(provider: str, model: str, mode: str | None, at: datetime | None, used: str | None) -> None:
    """Say which price a model has, where it comes from, and by which rule. Exits 1 when there is none."""
    when = (at or datetime.now()).replace(tzinfo=UTC) if at else datetime.now(UTC)
    explanation = state_of().book.explain(provider, model, mode=mode, at=when, usage=_usage(provider, used))
    click.echo(str(explanation))
    if not explanation.found:
        raise SystemExit(1)


def _usage(provider: str, used: str | None) -> Usage | None:
    if used is None:
        return None
    pairs = [part.partition("=") for part in used.split(",") if part.strip()]
    if not pairs or not all(equals for _, equals, _ in pairs):
        raise click.BadParameter(f"write component=quantity, with commas; components: {', '.join(COMPONENTS)}")
    return usage_from(provider, {name.strip(): value.strip() for name, _, value in pairs})
