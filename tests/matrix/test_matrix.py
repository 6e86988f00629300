"""Real SDKs of many versions, none of them written for, against what the played provider says it billed."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from decimal import Decimal
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
        [python, "driver.py", *run.split()], cwd=HERE, capture_output=True, text=True, timeout=900, check=False
    )
    assert driver.returncode == 0, driver.stderr
    report: dict[str, Any] = json.loads(driver.stdout.splitlines()[-1])
    return report


@pytest.mark.parametrize(("environment", "run"), RUNS)
def test_what_was_billed_is_recorded(environment: Environment, run: str) -> None:
    """Each route of each SDK gives one row per billed exchange, with the provider's numbers, dollars and id, and no more."""
    report = report_of(environment, run)
    assert {name: route["error"] for name, route in report["routes"].items() if route["error"]} == {}
    assert sorted(report["absent"]) == ABSENT.get((environment.name, run), [])
    routes = whole(report)
    wrong = {name: route for name, route in routes.items() if numbers(route["billed"]) != numbers(route["recorded"])}
    assert wrong == {}
    ids = {name: {entry["id"] for entry in route["billed"]} - {None} for name, route in routes.items()}
    assert ids == {name: ids[name] & {row["id"] for row in route["recorded"]} for name, route in routes.items()}
    assert {name: route["billed"] for name, route in routes.items() if not route["billed"]}.keys() <= {"free"}


@pytest.mark.parametrize(("environment", "run"), RUNS)
def test_sums_are_equal_and_priced(environment: Environment, run: str) -> None:
    """Over all calls of an SDK the ledger's tokens and dollars are the provider's, and each call has a price and a usage."""
    routes = whole(report_of(environment, run)).values()
    for key in ("input", "output", "dollars"):
        assert sum(Decimal(row[key]) for route in routes for row in route["recorded"]) == sum(
            Decimal(entry[key]) for route in routes for entry in route["billed"]
        )
    rows = [row for route in routes for row in route["rows"]]
    assert Counter((row["outcome"], row["cost_status"]) for row in rows) == {("ok", "priced"): len(rows)}
    assert {row["usage_source"] for row in rows} <= {"response", "stream_final"}
    assert all(float(row["total_cost"]) > 0 for row in rows)
    assert all(row["model"] or row["requested_model"] for row in rows)


@pytest.mark.parametrize(("environment", "run"), RUNS)
def test_a_stream_broken_off_is_one_row_that_claims_no_more_than_was_billed(environment: Environment, run: str) -> None:
    """Who leaves a stream after its first event gets one interrupted row: what was known by then, no number above."""
    for name, route in report_of(environment, run)["routes"].items():
        if route["broken"]:
            assert (len(route["billed"]), len(route["recorded"])) == (1, 1), (name, route)
            (billed,), (recorded,), (row,) = route["billed"], route["recorded"], route["rows"]
            assert row["outcome"] == "interrupted", name
            assert row["usage_source"] in ("stream_partial", "unknown"), name
            if row["usage_source"] == "unknown":
                assert recorded["dollars"] is None, name
            else:
                assert recorded["input"] == billed["input"], name
                assert 0 < recorded["output"] <= billed["output"], name
                assert 0 < Decimal(recorded["dollars"]) < Decimal(billed["dollars"]), name


@pytest.mark.parametrize(("environment", "run"), RUNS)
def test_the_attempt_that_was_answered_is_the_third(environment: Environment, run: str) -> None:
    """After two answers of a busy server the one that is billed is a row, the two are none."""
    routes = report_of(environment, run)["routes"]
    for name, route in routes.items():
        if "retried" in name:
            assert len(route["rows"]) == 1, name
            if "google" not in name and "genai" not in run:  # whose package numbers none of its attempts
                assert route["rows"][0]["attempt"] == 3, (name, route["rows"])


@pytest.mark.parametrize(("environment", "run"), RUNS)
def test_a_refused_call_is_never_sent(environment: Environment, run: str) -> None:
    """Where a budget has no room each route raises BudgetExceededError itself, at the first attempt, with nothing sent."""
    refused = {name: found for name, found in report_of(environment, run)["refused"].items() if name != "free"}
    assert refused
    wrong = {
        name: (found["error"], found["requests"], found["rows"], found["said"])
        for name, found in refused.items()
        if (found["error"], found["requests"], found["rows"]) != ("BudgetExceededError", [], ["blocked"])
    }
    assert wrong == {}


@pytest.mark.xdist_group(ENVIRONMENTS[0].name)
def test_the_newest_sdks_have_at_least_61_routes() -> None:
    """The matrix covers the routes that were counted when the choke points were chosen."""
    newest = ENVIRONMENTS[0]
    routes = [name for run in newest.runs if "--without" not in run for name in report_of(newest, run)["routes"]]
    assert len(routes) >= 61


def whole(report: dict[str, Any]) -> dict[str, Any]:
    """The routes whose answers the app took to the end."""
    return {name: route for name, route in report["routes"].items() if not route["broken"]}


def numbers(exchanges: list[dict[str, Any]]) -> list[str]:
    """What was counted, without ids: not every provider has them, and not every test here knows them."""
    return sorted(json.dumps({**exchange, "id": None}, sort_keys=True) for exchange in exchanges)
