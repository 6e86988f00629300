"""Real SDKs of many versions, none of them written for, against what the played provider says it billed."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from environments import ENVIRONMENTS, Environment, python_of

pytestmark = pytest.mark.matrix

HERE = Path(__file__).parent

#: What a version does not have. Everything else must be there.
ABSENT = {
    ("old", "openai_routes"): [
        "async beta responses",
        "async beta responses stream",
        "beta responses",
        "beta responses stream",
        "legacy_client",
    ],
    ("old", "openai_media_routes"): ["async responses compact", "responses compact"],
    ("middle", "openai_routes"): ["legacy_client"],
}

RUNS = [
    # One worker makes an environment, and runs a driver there once for all that is asked of its report.
    pytest.param(environment, run, id=f"{environment.name} {run}", marks=pytest.mark.xdist_group(environment.name))
    for environment in ENVIRONMENTS
    for run in environment.runs
]


@cache
def report_of(environment: Environment, run: str) -> dict[str, Any]:
    python = python_of(environment)
    driver = subprocess.run(
        [python, "driver.py", *run.split()], cwd=HERE, capture_output=True, text=True, timeout=180, check=False
    )
    assert driver.returncode == 0, driver.stderr
    report: dict[str, Any] = json.loads(driver.stdout.splitlines()[-1])
    return report


@pytest.mark.parametrize(("environment", "run"), RUNS)
def test_what_was_billed_is_recorded(environment: Environment, run: str) -> None:
    """Each route of each SDK gives one row per billed exchange, with the provider's numbers and id, and no row besides."""
    report = report_of(environment, run)
    routes = report["routes"]
    assert {name: route["error"] for name, route in routes.items() if route["error"]} == {}
    assert sorted(report["absent"]) == ABSENT.get((environment.name, run), [])
    wrong = {name: route for name, route in routes.items() if numbers(route["billed"]) != numbers(route["recorded"])}
    assert wrong == {}
    ids = {name: {entry["id"] for entry in route["billed"]} - {None} for name, route in routes.items()}
    assert ids == {name: ids[name] & {row["id"] for row in route["recorded"]} for name, route in routes.items()}
    assert {name: route["billed"] for name, route in routes.items() if not route["billed"]}.keys() <= {"free"}


@pytest.mark.parametrize(("environment", "run"), RUNS)
def test_sums_are_equal_and_priced(environment: Environment, run: str) -> None:
    """Over all calls of an SDK the ledger's tokens are the provider's, and each call has a price and a complete usage."""
    routes = report_of(environment, run)["routes"].values()
    for key in ("input", "output"):
        assert sum(row[key] for route in routes for row in route["recorded"]) == sum(
            entry[key] for route in routes for entry in route["billed"]
        )
    rows = [row for route in routes for row in route["rows"]]
    assert Counter((row["outcome"], row["cost_status"]) for row in rows) == {("ok", "priced"): len(rows)}
    assert {row["usage_source"] for row in rows} <= {"response", "stream_final"}
    assert all(float(row["total_cost"]) > 0 for row in rows)
    assert all(row["model"] or row["requested_model"] for row in rows)


@pytest.mark.xdist_group(ENVIRONMENTS[0].name)
@pytest.mark.parametrize(("environment", "run"), RUNS)
def test_a_blocked_call_is_never_sent(environment: Environment, run: str) -> None:
    """Where a budget has no room, each route raises BudgetExceededError itself, and nothing of it was billed."""
    blocked = report_of(environment, run)["blocked"]
    assert {name for name, found in blocked.items() if found["billed"]} == set()
    raised = {name: found["raised"] for name, found in blocked.items()}
    raised.pop("free", None)
    assert raised
    assert set(raised.values()) == {"flask_llm_cost.errors.BudgetExceededError"}, raised


def test_the_newest_sdks_have_at_least_61_routes() -> None:
    """The matrix covers the routes that were counted when the choke points were chosen."""
    newest = ENVIRONMENTS[0]
    routes = [name for run in newest.runs if "--without" not in run for name in report_of(newest, run)["routes"]]
    assert len(routes) >= 61


def numbers(exchanges: list[dict[str, Any]]) -> list[str]:
    """What was counted, without ids: not every provider has them, and not every test here knows them."""
    return sorted(json.dumps({**exchange, "id": None}, sort_keys=True) for exchange in exchanges)
