"""``flask history``: a past for the demo, so that its dashboard has months to show. A real app has no such file.

Every call is made up, and goes the way that a real one goes: it is priced by the price book and written by the ledger.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random

import click
from flask import current_app
from flask.cli import with_appcontext

from example.extensions import costs, db
from example.models import Tenant, User
from flask_llm_cost.records import CallRecord, Usage, new_call_id

TENANTS = [
    ("harbour", "Harbour Logistics", "gpt-5.4"),
    ("kestrel", "Kestrel Insurance", "claude-sonnet-4-6"),
    ("atlas", "Atlas Museum of Maps and Globes", "gemini-2.5-flash"),
]
PEOPLE = {
    "harbour": ["Femi", "Greta", "Hugo", "Ines"],
    "kestrel": ["Jonas", "Katarzyna", "Liam"],
    "atlas": ["Mira", "Noor"],
}
#: How much of the desk each company uses.
WEIGHTS = {"northwind": 30, "kestrel": 24, "harbour": 17, "juniper": 14, "atlas": 7}
_DAY = timedelta(days=1)


@dataclass(frozen=True)
class Work:
    """What one feature asks for: of whom, how long its questions and answers are, and how much is read from cache."""

    feature: str
    weight: int
    provider: str
    model: str
    operation: str
    tokens_in: int
    tokens_out: int
    cached: float = 0.0
    stream: bool = False
    mode: str | None = None
    latency: int = 1400


WORK = [
    Work("support_chat", 40, "anthropic", "claude-sonnet-4-6", "messages", 14_000, 620, 0.62, stream=True, latency=2300),
    Work("support_chat", 14, "openai", "gpt-5.4", "chat.completions", 11_000, 540, 0.12, stream=True, latency=1900),
    Work("summaries", 16, "anthropic", "claude-haiku-4-5", "messages", 42_000, 900, latency=2600),
    Work("summaries", 5, "anthropic", "claude-sonnet-4-6", "messages", 61_000, 1_300, latency=5200),
    Work("translate", 9, "openai", "gpt-5.4", "responses", 5_200, 3_800, latency=3400),
    Work("search", 18, "openai", "text-embedding-3-small", "embeddings", 9_000, 0, latency=240),
    Work("search", 9, "gemini", "gemini-2.5-flash", "generate_content", 7_500, 260, 0.35, latency=800),
    Work("digest", 3, "openai", "gpt-4.1-nano", "responses", 18_000, 450, mode="batch", latency=9000),
    Work("triage", 6, "in_house", "desk-triage-2", "chat.completions", 1_100, 12, latency=350),
]
INVOICES = Work("invoice_reader", 12, "gemini", "gemini-2.5-pro", "generate_content", 24_000, 1_150, latency=4100)


@click.command()
@click.option("--days", default=75, show_default=True, help="How far back.")
@click.option("--until", type=click.DateTime(["%Y-%m-%dT%H:%M:%S"]), help="The time after the last of them (UTC); now.")
@with_appcontext
def history(days: int, until: datetime | None) -> None:
    """Make up the calls of the days before now."""
    people = _people()
    now = until.replace(tzinfo=UTC) if until else datetime.now(UTC)
    recorder = current_app.extensions["llm_cost"].recorder
    count = 0
    for record in past(now, days, people):
        recorder.record(record)
        count += 1
    if not costs.flush(timeout=120):
        raise click.ClickException("The calls are in the spool, but not in the database yet.")
    click.echo(f"{count} calls in {days} days.")


def _people() -> dict[str, list[str]]:
    """The ids of everybody who uses the desk, by tenant."""
    for tenant_id, name, chat_model in TENANTS:
        if db.session.get(Tenant, tenant_id) is None:
            db.session.add(Tenant(id=tenant_id, name=name, chat_model=chat_model))
            for person in PEOPLE[tenant_id]:
                # No password fits this hash: they are names on the dashboard, nobody who signs in.
                email = f"{person.lower()}@{tenant_id}.example"
                db.session.add(User(email=email, name=person, tenant_id=tenant_id, password_hash="!"))
    db.session.commit()
    found: dict[str, list[str]] = {}
    for user in db.session.scalars(db.select(User).where(User.is_staff.is_(False)).order_by(User.id)):
        found.setdefault(user.tenant_id, []).append(str(user.id))
    return found


def past(now: datetime, days: int, people: dict[str, list[str]], seed: int = 7) -> list[CallRecord]:
    """The calls of the *days* before *now*, the same for the same *seed*.

    A new feature starts in the third week before the end, translations move to a cheaper model, a prompt gets cached, and on
    one day the summaries of one company run away.
    """
    dice = Random(seed)
    jump = next(now - _DAY * back for back in range(8, 15) if (now - _DAY * back).weekday() == 1)
    calls = []
    for back in range(days, -1, -1):
        day = now - _DAY * back
        busy = (0.35 if day.weekday() > 4 else 1.0) * dice.uniform(0.88, 1.12) * (1 + 0.35 * (days - back) / days)
        calls += [_call(dice, day, back, people) for _ in range(int(46 * busy))]
        if day.date() == jump.date():
            runaway = WORK[3]
            calls += [_call(dice, day, back, people, work=runaway, tenant="northwind") for _ in range(18)]
    return sorted((call for call in calls if call.occurred_at < now), key=lambda call: call.occurred_at)


def _call(
    dice: Random, day: datetime, back: int, people: dict[str, list[str]], *, work: Work | None = None, tenant: str = ""
) -> CallRecord:
    tenant = tenant or dice.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    offered = [*WORK, INVOICES] if tenant in ("harbour", "kestrel") and back < 17 else WORK
    work = work or dice.choices(offered, [item.weight for item in offered])[0]
    provider, model, cached = work.provider, work.model, work.cached
    if work.feature == "translate" and back < 12:
        model = "gpt-5.4-mini"
    if model == "gpt-5.4" and work.stream and back < 20:
        cached = 0.41
    outcome = dice.choices(["ok", "interrupted", "error"], [960, 26 if work.stream else 0, 12])[0]
    tokens_in = int(work.tokens_in * dice.lognormvariate(0, 0.45))
    tokens_out = int(work.tokens_out * dice.lognormvariate(0, 0.5)) // (3 if outcome == "interrupted" else 1)
    read = int(tokens_in * min(0.95, cached * dice.uniform(0.7, 1.3)))
    quantities = {"input": tokens_in - read, "cache_read": read, "output": tokens_out}
    latency = int(work.latency * dice.lognormvariate(0, 0.35))
    # A working day, busiest before noon.
    at = day.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(hours=dice.triangular(6, 21, 11))
    tags = {"tenant_id": tenant, "feature": work.feature, "user_id": dice.choice(people[tenant])}
    if work.feature in ("digest", "triage"):
        del tags["user_id"]
        tags["command"] = "digest"
    elif dice.random() < 0.03:
        del tags["feature"]
    failed = outcome == "error"
    usage = Usage({name: count for name, count in quantities.items() if count}, _source(work, outcome))
    return CallRecord(
        id=new_call_id(int(at.timestamp() * 1e9)),
        occurred_at=at,
        provider=provider,
        operation=work.operation,
        host=f"api.{provider}.example",
        model=None if failed else model,
        requested_model=model,
        stream=work.stream,
        attempt=2 if failed and dice.random() < 0.4 else 1,
        outcome=outcome,
        http_status=429 if failed else 200,
        error_class="RateLimitError" if failed else None,
        usage=Usage() if failed else usage,
        pricing_mode=work.mode,
        latency_ms=latency,
        first_token_ms=latency // 6 if work.stream and not failed else None,
        provider_response_id=None if failed else f"resp-{dice.getrandbits(48):012x}",
        tags=tags,
    )


def _source(work: Work, outcome: str) -> str:
    if outcome == "interrupted":
        return "stream_partial"
    return "stream_final" if work.stream else "response"
