"""Fills a ledger with calls, and its rollups with what they come to, as fast as the database takes them.

The calls are made up, alike in every run: 180 days, 8 models, 12 features, 500 tenants of which few make most calls, 100,000
users, three line items and three tags each. Only benchmarks use it: rollups get ids that nobody can find again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from flask_llm_cost.ledger import rollup_state
from flask_llm_cost.ledger.models import Base
from flask_llm_cost.ledger.rollup_sums import PART
from flask_llm_cost.records import new_call_id

UNTIL: Final = datetime(2026, 11, 1, tzinfo=UTC)
DAYS: Final = 180
#: Provider, model, and prices of input, cached input and output in 1e-12 dollars a token.
MODELS: Final = (
    ("openai", "gpt-4o-mini-2024-07-18", 150_000, 75_000, 600_000),
    ("openai", "gpt-4o-2024-08-06", 2_500_000, 1_250_000, 10_000_000),
    ("anthropic", "claude-haiku-4-5-20251001", 1_000_000, 100_000, 5_000_000),
    ("anthropic", "claude-sonnet-4-6", 3_000_000, 300_000, 15_000_000),
    ("gemini", "gemini-2.5-flash", 300_000, 75_000, 2_500_000),
    ("openai", "gpt-4.1-mini-2025-04-14", 400_000, 100_000, 1_600_000),
    ("mistral", "mistral-small-latest", 100_000, 100_000, 300_000),
    ("groq", "llama-3.3-70b-versatile", 590_000, 590_000, 790_000),
)
TENANTS: Final = 500
FEATURES: Final = 12
USERS: Final = 100_000

_STAGED = (
    "id", "at", "bucket", "day", "provider", "model", "feature", "tenant", "person", "fresh", "cached", "output", "latency",
    "fresh_rate", "cached_rate", "output_rate", "fresh_cost", "cached_cost", "output_cost", "cost", "status",
)  # fmt: skip
_NO_PRICE: Final = 0.01


def _rows(count: int, until: datetime) -> Iterator[tuple[Any, ...]]:
    rng = random.Random(count)
    step = timedelta(days=DAYS) / count
    since = until - timedelta(days=DAYS)
    for number in range(count):
        at = since + step * number
        provider, model, *rates = MODELS[int(len(MODELS) * rng.random() ** 2)]
        tokens = (rng.randrange(50, 6_000), rng.randrange(0, 3_000), rng.randrange(1, 1_500))
        costs = [rate * quantity for rate, quantity in zip(rates, tokens, strict=True)]
        priced = rng.random() >= _NO_PRICE
        yield (
            new_call_id(int(at.timestamp() * 1e9)).hex,
            at.strftime("%Y-%m-%d %H:%M:%S.%f"),
            at.replace(minute=at.minute // 15 * 15).strftime("%Y-%m-%d %H:%M:00.000000"),
            at.strftime("%Y-%m-%d"),
            provider,
            model,
            f"feature-{int(FEATURES * rng.random() ** 1.5)}",
            f"tenant-{int(TENANTS * rng.random() ** 3)}",
            f"user-{int(USERS * rng.random() ** 1.5)}",
            *tokens,
            rng.randrange(200, 9_000),
            *(rate * 1_000_000 if priced else None for rate in rates),
            *(cost if priced else None for cost in costs),
            sum(costs) if priced else None,
            "priced" if priced else "unpriced",
        )


def load(engine: sa.Engine, count: int, until: datetime = UNTIL) -> None:
    """Empty the ledger, and fill it with *count* calls of the 180 days before *until*, a midnight."""
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    indexes = [
        index for table in Base.metadata.sorted_tables for index in table.indexes if not table.name.endswith("rollups")
    ]
    server = engine.dialect.name == "postgresql"
    with engine.begin() as connection:
        for index in indexes:
            index.drop(connection)
        _stage(connection, count, until, server=server)
    with engine.begin() as connection:
        if server:
            connection.exec_driver_sql("SET session_replication_role = replica")  # the foreign keys hold as they are made
            connection.exec_driver_sql("SET work_mem = '256MB'")
        for statement in _statements(server=server):
            connection.exec_driver_sql(statement)
        _mark(connection)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE staged")
        if server:
            connection.exec_driver_sql("SET maintenance_work_mem = '512MB'")
        for index in indexes:
            index.create(connection)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE" if server else "ANALYZE")


def _stage(connection: sa.Connection, count: int, until: datetime, *, server: bool) -> None:
    whole = {"fresh", "cached", "output", "latency"}
    kinds = {name: "bigint" if name in whole else "text" for name in _STAGED}
    if server:
        kinds |= {"id": "uuid", "at": "timestamp", "bucket": "timestamp", "day": "date"}
        kinds |= {name: "numeric(28,12)" for name in _STAGED if name.endswith(("rate", "cost"))}
    else:
        kinds |= {name: "bigint" for name in _STAGED if name.endswith(("rate", "cost"))}
    columns = ", ".join(f"{name} {kinds[name]}" for name in _STAGED)
    connection.exec_driver_sql("DROP TABLE IF EXISTS staged")
    connection.exec_driver_sql(f"CREATE {'UNLOGGED ' if server else ''}TABLE staged ({columns})")
    if server:
        connection.exec_driver_sql(_staged_by_the_server(count, until))
    else:
        marks = ", ".join("?" * len(_STAGED))
        driver: Any = connection.connection.driver_connection
        driver.executemany(f"INSERT INTO staged VALUES ({marks})", _rows(count, until))


def _staged_by_the_server(count: int, until: datetime) -> str:
    """The same made-up calls, made where they are kept: ten million come quicker so."""
    models = ", ".join(
        f"({number}, '{provider}', '{model}', {fresh}::numeric / 1e12, {cached}::numeric / 1e12, {output}::numeric / 1e12)"
        for number, (provider, model, fresh, cached, output) in enumerate(MODELS)
    )
    return f"""
        INSERT INTO staged ({", ".join(_STAGED)})
        SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(noise, 1, 3) || 'a'
                || substr(noise, 4, 15))::uuid,
            at, date_bin('15 minutes', at, '2026-01-01'), at::date, provider, model,
            'feature-' || floor({FEATURES} * feature ^ 1.5), 'tenant-' || floor({TENANTS} * tenant ^ 3),
            'user-' || floor({USERS} * person ^ 1.5), fresh, cached, output, latency,
            CASE WHEN priced THEN fresh_rate * 1000000 END, CASE WHEN priced THEN cached_rate * 1000000 END,
            CASE WHEN priced THEN output_rate * 1000000 END, CASE WHEN priced THEN fresh * fresh_rate END,
            CASE WHEN priced THEN cached * cached_rate END, CASE WHEN priced THEN output * output_rate END,
            CASE WHEN priced THEN fresh * fresh_rate + cached * cached_rate + output * output_rate END,
            CASE WHEN priced THEN 'priced' ELSE 'unpriced' END
        FROM (
            SELECT timestamp '{until:%Y-%m-%d}' - interval '{DAYS} days' + interval '{DAYS} days' * number / {count} AS at,
                md5(random()::text) AS noise, floor({len(MODELS)} * random() ^ 2) AS kind, random() AS feature,
                random() AS tenant, random() AS person, floor(50 + 5950 * random())::bigint AS fresh,
                floor(3000 * random())::bigint AS cached, floor(1 + 1499 * random())::bigint AS output,
                floor(200 + 8800 * random())::bigint AS latency, random() >= {_NO_PRICE} AS priced
            FROM generate_series(0, {count - 1}) AS number
        ) AS made JOIN (VALUES {models}) AS known(number, provider, model, fresh_rate, cached_rate, output_rate)
            ON known.number = made.kind"""


def _statements(*, server: bool) -> Iterator[str]:
    """What fills the tables from what is staged, in the order of time, as calls come."""
    random_id = "gen_random_uuid()" if server else "lower(hex(randomblob(16)))"
    million, per = ("1000000", "1") if server else ("1000000000000", "1000000")
    no = "false" if server else "0"
    raw = """'{"prompt_tokens":1200,"completion_tokens":50,"total_tokens":1250}'"""
    yield f"""
        INSERT INTO llm_cost_calls (id, occurred_at, recorded_at, provider, model, requested_model, host, operation, stream,
            attempt, outcome, http_status, usage_source, cost_status, total_cost, currency, input_tokens, cache_read_tokens,
            cache_write_tokens, output_tokens, reasoning_tokens, total_tokens, latency_ms, first_token_ms,
            provider_response_id, raw_usage)
        SELECT id, at, at, provider, model, model, 'api.example.com', 'chat.completions', {no}, 1, 'ok', 200, 'response',
            status, cost, 'USD', fresh + cached, cached, 0, output, 0, fresh + cached + output, latency, NULL,
            'chatcmpl-' || substr(replace(CAST(id AS text), '-', ''), 1, 24), {raw}
        FROM staged ORDER BY id"""
    parts = ((0, "input", "fresh"), (1, "cache_read", "cached"), (2, "output", "output"))
    items = " UNION ALL ".join(
        f"SELECT {position} AS position, '{component}' AS component" for position, component, _ in parts
    )

    def of(suffix: str) -> str:
        cases = " ".join(f"WHEN {position} THEN {name}{suffix}" for position, _, name in parts)
        return f"CASE position {cases} END"

    yield f"""
        INSERT INTO llm_cost_line_items (call_id, position, component, unit, quantity, rate, rate_per, cost, cost_status)
        SELECT id, position, component, 'token', ({of("")}) * {per}, {of("_rate")}, {million}, {of("_cost")}, status
        FROM staged CROSS JOIN ({items}) AS part ORDER BY id, position"""
    keys = ("feature", "feature"), ("tenant_id", "tenant"), ("user_id", "person")
    names = " UNION ALL ".join(f"SELECT '{key}' AS name" for key, _ in keys)
    value = "CASE name " + " ".join(f"WHEN '{key}' THEN {column}" for key, column in keys) + " END"
    yield f"""
        INSERT INTO llm_cost_call_tags (call_id, key, value, occurred_at)
        SELECT id, name, {value}, at FROM staged CROSS JOIN ({names}) AS tag ORDER BY id, name"""

    measures = (
        "calls, input_tokens, cache_read_tokens, cache_write_tokens, output_tokens, total_tokens, cost, priced_calls, "
        "unpriced_calls, uncounted_calls, partial_calls, failed_calls, estimated_calls, wasted_calls, wasted_priced_calls, "
        "wasted_cost, latency_ms, latency_calls"
    )
    sums = (
        "count(*), sum(fresh + cached), sum(cached), NULL, sum(output), sum(fresh + cached + output), "
        "coalesce(sum(cost), 0), count(cost), nullif(count(*) - count(cost), 0), "
        "NULL, NULL, NULL, NULL, NULL, NULL, NULL, sum(latency), count(*)"
    )
    yield f"""
        INSERT INTO llm_cost_usage_rollups (id, bucket, provider, model, component, currency, {measures}, quantity,
            most_cost, most_latency_ms)
        SELECT {random_id}, bucket, provider, model, '', 'USD', {sums}, 0, max(cost), max(latency)
        FROM staged GROUP BY bucket, provider, model"""
    yield f"""
        INSERT INTO llm_cost_usage_rollups (id, bucket, provider, model, component, currency, {measures}, quantity,
            most_cost, most_latency_ms)
        SELECT {random_id}, bucket, '', '', '*', 'USD', {sums}, 0, max(cost), max(latency) FROM staged GROUP BY bucket"""
    for _, component, name in parts:
        yield f"""
            INSERT INTO llm_cost_usage_rollups (id, bucket, provider, model, component, currency, {measures}, quantity)
            SELECT {random_id}, bucket, provider, model, '{component}', 'USD', count(*), 0, 0, NULL, 0, 0,
                coalesce(sum({name}_cost), 0), count(cost), nullif(count(*) - count(cost), 0), NULL, NULL, NULL, NULL, NULL,
                NULL, NULL, 0, 0,
                sum({name}) * {per}
            FROM staged GROUP BY bucket, provider, model"""

    def by_tag(key: str, first: str, second: str, *by: str, models: bool) -> str:
        which = "provider, model" if models else "'', ''"
        names = ", ".join(["day", *by, *(["provider", "model"] if models else [])])
        return f"""
            INSERT INTO llm_cost_tag_rollups (id, day, key, value, second_value, provider, model, currency, {measures})
            SELECT {random_id}, day, '{key}', {first}, {second}, {which}, 'USD', {sums}
            FROM (SELECT staged.*, {part} AS part FROM staged) AS parted GROUP BY {names} ORDER BY {names}"""

    hours = PART // timedelta(hours=1)
    if server:
        part = f"lpad((extract(hour FROM at)::int / {hours})::text, 2, '0')"
    else:
        part = f"printf('%02d', CAST(substr(at, 12, 2) AS integer) / {hours})"
    nothing, ended = "''", "'0|ok|response|' || status || '||0|chat.completions'"
    yield by_tag("", nothing, nothing, models=True)
    yield by_tag("@", nothing, "part", "part", models=False)
    yield by_tag("~", nothing, ended, "status", models=True)
    for key, column in keys:
        yield by_tag(f"{key}?", nothing, nothing, models=True)
        if key == "user_id":
            continue  # left out: there are nearly as many as calls
        yield by_tag(key, column, nothing, column, models=True)
        yield by_tag(f"{key}*", column, nothing, column, models=False)
        yield by_tag(f"{key}@", column, "part", column, "part", models=False)
        yield by_tag(f"{key}~", column, ended, column, "status", models=True)
        yield by_tag(f"{key}~*", column, ended, column, "status", models=False)
    yield by_tag("feature,tenant_id", "feature", "tenant", "feature", "tenant", models=True)
    yield by_tag("feature,tenant_id*", "feature", "tenant", "feature", "tenant", models=False)


def _mark(connection: sa.Connection) -> None:
    """Say what the rollups hold: every call, by each tag and pair of tags but those with a user."""
    rollup_state.set_zone(connection, "UTC")
    rollup_state.set_filled_to(connection, None)
    rollup_state.set_all_kinds(connection, rollup_state.NOTHING_FILLED)
    rollup_state.decide(connection, ("feature", "tenant_id", "feature,tenant_id"), kept=True)
    rollup_state.decide(connection, ("user_id", "feature,user_id", "tenant_id,user_id"), kept=False)
