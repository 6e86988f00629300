"""``budgets …``: how they stand, which apply and why, and what to do at two in the morning."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final, TypeVar
from zoneinfo import ZoneInfo

import click
import sqlalchemy as sa
from flask.cli import with_appcontext

from flask_llm_cost.budgets import operating
from flask_llm_cost.budgets.accounts import ALL, Account, Subject, account_of, judge
from flask_llm_cost.budgets.declaration import Budget, DeclarationError, scale_of
from flask_llm_cost.budgets.enforcement import Budgets
from flask_llm_cost.budgets.statuses import BudgetStatus
from flask_llm_cost.cli.group import actor, cli, format_option
from flask_llm_cost.extension import state_of
from flask_llm_cost.ledger.transaction import WriteError, not_written
from flask_llm_cost.wording import plural, symbol

_T = TypeVar("_T")
_MOST_SHOWN: Final = 200


def _budgets() -> Budgets:
    budgets = state_of().budgets
    if budgets is None:
        raise click.ClickException("this app has no budgets; declare some in LLM_COST_BUDGETS")
    return budgets


def _run(budgets: Budgets, work: Callable[[sa.Connection], _T]) -> _T:
    try:
        return budgets.keeper.run(work)
    except WriteError as error:
        raise not_written(error) from None


@cli.group(invoke_without_command=True)
@click.option("--check", is_flag=True, help="Exit with 1 when a limit is reached, or a budget has none, for cron.")
@click.option("--repair", is_flag=True, help="Make held and unresolved what the holds add up to.")
@click.option("--release", is_flag=True, help="Stop counting what is unresolved.")
@click.option("--name", help="Show, check or release this budget only.")
@click.option("--scope", help="Show, check or release this scope only: tenant_id=42.")
@format_option("text", "json")
@with_appcontext
def budgets(check: bool, repair: bool, release: bool, name: str | None, scope: str | None, form: str) -> None:
    """Show what each budget has spent and holds, its limit, and when that is reached at this pace."""
    if click.get_current_context().invoked_subcommand is not None:
        return
    ours = _budgets()
    if repair:
        wrong = _run(ours, lambda connection: operating.repair(connection, actor()))
        for mismatch in wrong:
            click.echo(f"{mismatch.budget} ({mismatch.scope}) since {mismatch.starts_at:%Y-%m-%d %H:%M} UTC is set right")
        click.echo(f"{plural(len(wrong), 'account')} did not add up" if wrong else "every account adds up")
        return
    try:
        ours.keeper.sweep()
    except WriteError as error:
        raise not_written(error) from None
    if release:
        released = _run(ours, lambda connection: operating.release(connection, name, scope, actor(), None))
        for item in released:
            shown = item.amount * scale_of(item.unit)
            click.echo(f"{item.budget} ({item.scope}): {_amount(shown, item)} of {plural(item.calls, 'call')} released")
        if not released:
            _chosen(ours, name, scope)
            click.echo("nothing is unresolved")
        return
    chosen = _chosen(ours, name, scope)
    found = ours.statuses(scope, chosen, most=None)
    click.echo(_as_json(found) if form == "json" else _as_text(found, ours.zone))
    missing = [budget for budget in chosen if ours.limits.missing(budget)]
    for budget in missing:
        click.echo(f"{budget.name} has no limit; declare one, or register @costs.budget_limit", err=True)
    if check and (missing or any(status.exhausted for status in found)):
        raise SystemExit(1)


@budgets.command("explain")
@click.option("--tag", "given", multiple=True, help="A tag of the call: tenant_id=42. May come more than once.")
@click.option("--provider", help="Of the call: openai.")
@click.option("--model", help="Of the call: gpt-4o.")
def explain_(given: tuple[str, ...], provider: str | None, model: str | None) -> None:
    """Say which budgets apply to a call, why the others do not, and how they stand."""
    ours = _budgets()
    tags = dict(_pair(pair, "--tag") for pair in given)
    now = datetime.now(UTC)
    subject = Subject(provider, (model,) if model else (), tags, now)
    for verdict in ours.explain(subject):
        budget = verdict.budget
        mark = "does not apply" if verdict.scope is None else f"applies, to {verdict.scope}"
        click.echo(f"{budget.name} ({budget.action}, per {budget.period}) {mark}: {verdict.why}")
        if verdict.scope is not None:
            account = account_of(budget, verdict.scope, now, ours.zone)
            click.echo(f"  {_line(ours.status(account), ours.zone)}")


@budgets.command("lift")
@click.argument("name")
@click.option("--scope", default=ALL, show_default=True, help="Whose limit: tenant_id=42.")
@click.option("--to", "to", required=True, help="The higher limit.")
@click.option("--until", help="18:00, 2026-11-30 or 2026-11-30T18:00, in LLM_COST_TIMEZONE; left out, the period's end.")
@click.option("--reason", help="Why, for the audit.")
def lift_(name: str, scope: str, to: str, until: str | None, reason: str | None) -> None:
    """Raise the limit of a budget for a while, without a deploy. It is written down who did it."""
    ours = _budgets()
    account = _account(ours, name, scope)
    try:
        limit = account.budget.amount(to)
    except DeclarationError as problem:
        raise click.BadParameter(f"{to!r} is no limit: {problem}", param_hint="--to") from None
    now = datetime.now(UTC)
    ends = account.period.ends_at if until is None else _until(until, ours.zone, now)
    current = ours.status(account).limit
    if current is None:
        raise click.ClickException(f"budget {name!r} has no limit to lift, or its function does not say it")
    if limit <= current:
        raise click.ClickException(
            f"the limit is {_amount(current, account.budget)} already; lift it to more, or declare a lower one"
        )
    _run(ours, lambda connection: operating.lift(connection, account, limit, ends, actor(), reason))
    end = "for good" if ends is None else f"until {ends.astimezone(ours.zone):%Y-%m-%d %H:%M %Z}"
    click.echo(f"{name} ({scope}) may use {_amount(limit, account.budget)} {end}")


def _chosen(ours: Budgets, name: str | None, scope: str | None) -> Sequence[Budget]:
    """The budgets that options mean, which may have such a scope."""
    chosen = ours.declared if name is None else (_named(ours, name, "--name"),)
    if scope in (None, ALL):
        return chosen
    key, _ = _pair(scope, "--scope")
    if any(budget.per == key for budget in chosen):
        return chosen
    known = sorted({budget.per for budget in chosen if budget.per is not None})
    there_are = "; give --scope " + " or ".join(f"{per}=…" for per in known) if known else "; leave --scope out"
    whose = "no budget is" if name is None else f"budget {name!r} is not"
    raise click.BadParameter(f"{whose} per {key}{there_are}", param_hint="--scope")


def _named(ours: Budgets, name: str, option: str) -> Budget:
    for budget in ours.declared:
        if budget.name == name:
            return budget
    known = ", ".join(budget.name for budget in ours.declared)
    raise click.BadParameter(f"there is no budget {name!r}; there are: {known}", param_hint=option)


def _account(ours: Budgets, name: str, scope: str) -> Account:
    budget = _named(ours, name, "NAME")
    tags = {} if scope == ALL else dict([_pair(scope, "--scope")])
    if budget.per is None and tags:
        raise click.BadParameter(f"budget {name!r} has one limit in all; leave --scope out", param_hint="--scope")
    if budget.per is not None and set(tags) != {budget.per}:
        raise click.BadParameter(f"budget {name!r} is per {budget.per}; give --scope {budget.per}=…", param_hint="--scope")
    found = judge(budget, Subject(None, (), tags, datetime.now(UTC)))
    return account_of(budget, found.scope or scope, datetime.now(UTC), ours.zone)


def _pair(text: str, option: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key or not value:
        raise click.BadParameter(f"{text!r} is no tag; write key=value, such as tenant_id=42", param_hint=option)
    return key, value


def _until(text: str, zone: ZoneInfo, now: datetime) -> datetime:
    local = now.astimezone(zone)
    try:
        if len(text) == 5 and text[2] == ":":
            end = datetime.combine(local.date(), datetime.strptime(text, "%H:%M").time(), zone)
            end = end if end > local else end + timedelta(days=1)
        else:
            end = datetime.fromisoformat(text)
            end = end.replace(tzinfo=zone) if end.tzinfo is None else end
        # The first and the last hours that can be written are in no year of another zone.
        end = end.astimezone(zone).astimezone(UTC)
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{text!r} is no time; write 18:00 or 2026-11-30T18:00", param_hint="--until") from None
    if end <= now:
        raise click.BadParameter(f"{end.astimezone(zone):%Y-%m-%d %H:%M} is over", param_hint="--until")
    return end


def _amount(value: Decimal, of: Budget | BudgetStatus | operating.Released) -> str:
    return f"{symbol(of.currency)}{value:,.4f}" if of.unit == "cost" else f"{value:,f} {of.unit}"


def _line(status: BudgetStatus, zone: ZoneInfo) -> str:
    limit = "no limit" if status.limit is None else f"of {_amount(status.limit, status)}"
    parts = [f"{_amount(status.spent, status)} spent", f"{_amount(status.held, status)} held"]
    if status.unresolved:
        parts.append(f"{_amount(status.unresolved, status)} unresolved")
    line = f"{', '.join(parts)}, {limit}"
    if status.share is not None:
        line += f" ({status.share:.0%})"
    if status.lifted_until is not None:
        line += f", lifted until {status.lifted_until.astimezone(zone):%Y-%m-%d %H:%M %Z}"
    if status.blocked_calls:
        line += f", {plural(status.blocked_calls, 'call')} blocked"
    if status.exhausted:
        line += ", used up"
    elif status.exhausted_at is not None:
        line += f", used up by {status.exhausted_at.astimezone(zone):%Y-%m-%d %H:%M %Z} at this pace"
    return line


def _as_text(found: Sequence[BudgetStatus], zone: ZoneInfo) -> str:
    if not found:
        return "no budget has been used in this period"
    lines = []
    for status in found[:_MOST_SHOWN]:
        lines.append(f"{status.budget} ({status.scope}, per {status.period}, {status.action})")
        lines.append(f"  {_line(status, zone)}")
    if len(found) > _MOST_SHOWN:
        lines.append(f"and {len(found) - _MOST_SHOWN:,} more that are used less; --format json has them all")
    return "\n".join(lines)


def _as_json(found: Sequence[BudgetStatus]) -> str:
    return json.dumps([asdict(status) for status in found], indent=2, default=_jsonable)


def _jsonable(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
