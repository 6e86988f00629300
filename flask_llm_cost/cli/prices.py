"""``prices …``: what a model costs, and why."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from flask_llm_cost.cli.group import cli
from flask_llm_cost.extension import state_of
from flask_llm_cost.records import COMPONENTS, Usage
from flask_llm_cost.usage.manual import usage_from


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
