"""Beside Sentry and OpenTelemetry, which wrap the same clients, in both orders, on and off."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent

#: How many of the six calls each sees: OpenTelemetry's instrumentation of httpx does not know requests.
SEES = {"sentry": 6, "opentelemetry": 5}

BOTH = pytest.mark.parametrize(("neighbour", "first"), [(name, first) for name in SEES for first in ("ours", "theirs")])


@cache
def report_of(neighbour: str, first: str) -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, "coexisting.py", neighbour, first],
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    report: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return report


@BOTH
def test_each_call_is_seen_once_by_both(neighbour: str, first: str) -> None:
    """Whoever patches first: the app gets its answers, the ledger a row a call, the neighbour a span a request."""
    steps = report_of(neighbour, first)["steps"]
    both = {"answers": 6, "ours": 6, "theirs": SEES[neighbour]}
    for step in ("both", "installed twice", "theirs on again", "ours on again"):
        assert steps[step] == both, step
    assert steps["theirs off"] == {"answers": 6, "ours": 6, "theirs": 0}


@BOTH
def test_uninstalling_leaves_the_neighbour_in_place(neighbour: str, first: str) -> None:
    """Uninstalled, the neighbour sees what it saw, and only what it has wrapped since still goes through us."""
    report = report_of(neighbour, first)
    wrapped = neighbour == "sentry" and first == "ours"
    # Sentry has taken our `send` for the original and calls it: it passes on, and the app that is there still records. Only
    # the patch on requests could be taken back.
    assert report["steps"]["ours off"] == {"answers": 6, "ours": 5 if wrapped else 0, "theirs": SEES[neighbour]}
    # Where it says what it wraps we know that ours is still there; its async function does not say.
    assert report["left"] == (["httpx.Client.send", "httpx2.Client.send"] if wrapped else [])


def test_greenlets_keep_their_tags_apart() -> None:
    """Under gevent's monkey patches forty mixed calls in twenty greenlets are forty rows, each with its own tags."""
    run = subprocess.run(
        [sys.executable, "gevent_calls.py"], cwd=HERE, capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout.splitlines()[-1])
    assert report["flushed"] is True
    assert report["billed"] == 40
    assert {call["outcome"] for call in report["calls"]} == {"ok"}
    assert sorted(int(call["number"]) for call in report["calls"]) == list(range(40))
    assert all(int(call["number"]) % 4 == int(call["kind"]) for call in report["calls"])
    assert {(call["kind"], call["operation"]) for call in report["calls"]} == {
        ("0", "chat.completions"),
        ("1", "chat.completions"),
        ("2", "chat.completions"),
        ("3", "responses"),
    }
