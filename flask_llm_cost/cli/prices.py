"""``prices …``: what a model costs, and why; and the file that says so."""

from __future__ import annotations

import fnmatch
import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import click
from sqlalchemy.exc import SQLAlchemyError

from flask_llm_cost.cli.group import cli, format_option
from flask_llm_cost.errors import LlmCostError
from flask_llm_cost.extension import AppState, state_of
from flask_llm_cost.ledger import queries
from flask_llm_cost.ledger.filter import Filter
from flask_llm_cost.pricing.rates import default_per, plain
from flask_llm_cost.records import COMPONENTS, Usage
from flask_llm_cost.usage.manual import usage_from
from flask_llm_cost.wording import plural

if TYPE_CHECKING:
    from flask_llm_cost.pricing.sync import Plan
    from flask_llm_cost.pricing.upkeep import Sync


@cli.group()
def prices() -> None:
    """What a model costs, and why; and the file that says so."""


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


@prices.command("list")
@click.argument("pattern", default="*")
@format_option("text", "json")
def list_prices(pattern: str, form: str) -> None:
    """List what models cost now. PATTERN is a part of their keys: 'openai/gpt-5*'. Exits 1 when there are none."""
    book, now = state_of().book, datetime.now(UTC)
    keys = sorted(key for key in book.keys if fnmatch.fnmatchcase(key, pattern if "*" in pattern else f"*{pattern}*"))
    rows: list[dict[str, Any]] = []
    for key in keys:
        if (entry := book.entry(key)) is not None:
            started = [moment for moment in entry.bounds if moment <= now]
            rates = {name: plain(rate) for name, rate in entry.block_at(now).rates.items()}
            per = {name: plain(entry.per_of(name)) for name in rates if entry.per_of(name) != default_per(name)}
            origin = f"{entry.source} {entry.source_version}".rstrip()
            since = f"{max(started):%Y-%m-%d}" if started else None
            rows.append(
                {"key": key, "rates": rates, "per": per, "source": origin, "since": since, "currency": entry.currency}
            )
    if form == "json":
        click.echo(json.dumps(rows, indent=2))
    else:
        for row in rows:
            text = ", ".join(f"{name} {rate}" for name, rate in row["rates"].items())
            since = f", since {row['since']}" if row["since"] else ""
            currency = "" if row["currency"] == "USD" else f"in {row['currency']}, "
            click.echo(f"{row['key']}  {text}  ({currency}{row['source']}{since})")
    if not rows:
        click.echo(f"no model is called {pattern!r}", err=True)
        raise SystemExit(1)


@prices.command("init")
def init_file() -> None:
    """Make the price file, from the prices that ship with the package."""
    from flask_llm_cost.pricing import upkeep

    state = state_of()
    count = upkeep.start(state.prices.path, datetime.now(UTC))
    click.echo(f"{plural(count, 'model')} in {state.prices.path}; 'flask llm-cost prices sync' brings them up to date")


_add = click.option("--add", "wanted", multiple=True, metavar="MODEL", help="A provider/model to add; may be repeated.")
_from = click.option("--from", "origin", metavar="FILE|URL", help="A mirror of your own, in place of the default sources.")


@prices.command()
@click.option("--preview", is_flag=True, help="Show what would change, and write nothing.")
@click.option("--strict", is_flag=True, help="Write nothing unless every source was had and nothing is doubtful.")
@click.option("--accept", is_flag=True, help="Take what is refused otherwise. Look at it first.")
@_add
@_from
def sync(preview: bool, strict: bool, accept: bool, wanted: tuple[str, ...], origin: str | None) -> None:
    """Bring the price file up to date. Exits 1 when something was refused, or no source could be had."""
    state, now = state_of(), datetime.now(UTC)
    done = _ask(state, now, wanted, origin, accept=accept)
    path = state.prices.path
    failed = done.bad if not accept else done.plan.unknown or len(done.plan.failures) >= done.feeds
    if preview:
        click.echo("nothing was written: --preview")
    elif strict and done.plan.strictly_bad:
        click.echo("nothing was written: --strict, and something failed, was rejected, or is to be looked at")
        raise SystemExit(1)
    elif len(done.plan.failures) >= done.feeds:
        click.echo("nothing was written: no source could be had; the prices stay as they are")
    elif done.save(now, accept=accept):
        click.echo(f"written to {path}; running processes take it over at their next call")
        if done.plan.added or done.plan.changed:
            click.echo("calls that have no price yet: run 'flask llm-cost backfill'")
    else:
        click.echo("nothing was written")
    if failed:
        raise SystemExit(1)


@prices.command()
@_add
@_from
@format_option("text", "json")
def check(wanted: tuple[str, ...], origin: str | None, form: str) -> None:
    """Show where the price file differs from its sources. Exits 1 on a difference, a failure or a rejection."""
    plan = _ask(state_of(), datetime.now(UTC), wanted, origin, accept=False, shown=form == "text").plan
    same = not (plan.drifts or plan.failures or plan.rejected or plan.unknown)
    if form == "json":
        click.echo(json.dumps({"same": same, **_found(plan)}, indent=2))
    elif same:
        click.echo("the prices are those of their sources")
    if not same:
        raise SystemExit(1)


def _rate(rate: Decimal | None) -> str | None:
    return None if rate is None else plain(rate)


def _found(plan: Plan) -> dict[str, Any]:
    """What a plan says, for a program. Rates are texts, as they are in the file."""
    return {
        "changed": [
            {
                "key": merged.key,
                "rates": [{"what": row.what, "old": _rate(row.old), "new": _rate(row.new)} for row in merged.rows],
                "flags": merged.flags,
                "refused": merged.refusals,
            }
            for merged in sorted(plan.changed, key=lambda merged: merged.key)
        ],
        "added": sorted(plan.added),
        "without_a_source": sorted(plan.orphans),
        "unknown": {key: list(near) for key, near in sorted(plan.unknown.items())},
        "rejected": dict(sorted(plan.rejected.items())),
        "refused": plan.refused,
        "failures": [str(failure) for failure in plan.failures],
    }


@prices.command("set")
@click.argument("key", metavar="PROVIDER/MODEL")
@click.argument("rates", nargs=-1, required=True, metavar="COMPONENT=RATE...")
@click.option("--yes", is_flag=True, help="Take a rate that looks a hundred times too high or too low.")
def set_rates(key: str, rates: tuple[str, ...], yes: bool) -> None:
    """Write a price of your own: openai/my-ft input=0.30 output=1.20, in USD per 1,000,000 tokens."""
    from flask_llm_cost.pricing import upkeep

    pairs = [part.partition("=") for part in rates]
    if not all(equals for _, equals, _ in pairs):
        raise click.BadParameter("write component=rate, such as input=0.30 output=1.20")
    if len({name.strip() for name, _, _ in pairs}) < len(pairs):
        raise click.BadParameter("give each component once")
    state = state_of()
    made = upkeep.set_price(
        state.prices.path, state.book, key, {name.strip(): rate.strip() for name, _, rate in pairs}, datetime.now(UTC)
    )
    for line in made.lines:
        click.echo(f"{key}: {line}")
    if made.outliers and not yes:
        for outlier in made.outliers:
            click.echo(f"  {outlier}", err=True)
        raise click.ClickException("rates are per 1,000,000 tokens; nothing was written. Where it is right, add --yes")
    made.file.save()
    click.echo(f"written to {state.prices.path}; calls that have no price yet: run 'flask llm-cost backfill'")


def _ask(
    state: AppState, now: datetime, wanted: tuple[str, ...], origin: str | None, *, accept: bool, shown: bool = True
) -> Sync:
    # Only here: what talks to a network is not loaded by the app.
    from flask_llm_cost.pricing import sync as planning
    from flask_llm_cost.pricing import upkeep

    done = upkeep.synchronise(
        state.prices.path,
        now,
        whole_book=state.config.prices_file is None,
        feeds=upkeep.feeds_of(origin),
        wanted=wanted,
        unpriced=_unpriced(state),
        accept=accept,
    )
    for line in planning.describe(done.plan) if shown else ():
        click.echo(line)
    return done


def _unpriced(state: AppState) -> list[str]:
    try:
        with state.ledger.session() as session:
            found = queries.unpriced_models(session, Filter(scope={}), top=1000)
    except (LlmCostError, SQLAlchemyError) as error:
        why = str(error) if isinstance(error, LlmCostError) else f"{type(error).__name__}; 'flask llm-cost doctor' says why"
        click.echo(f"the ledger cannot be read, so models that it saw without a price are not added: {why}", err=True)
        return []
    return [f"{item.provider}/{item.model}" for item in found if item.model]


def _usage(provider: str, used: str | None) -> Usage | None:
    if used is None:
        return None
    pairs = [part.partition("=") for part in used.split(",") if part.strip()]
    if not pairs or not all(equals for _, equals, _ in pairs):
        raise click.BadParameter(f"write component=quantity, with commas; components: {', '.join(COMPONENTS)}")
    return usage_from(provider, {name.strip(): value.strip() for name, _, value in pairs})
