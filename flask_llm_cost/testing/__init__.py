"""For the tests of your own app: see the calls that it makes, without a database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from flask import Flask

from flask_llm_cost.capture import attribution
from flask_llm_cost.extension import LlmCostTracker
from flask_llm_cost.recorder import capturing
from flask_llm_cost.records import CallRecord

__all__ = ["capture_calls"]


@contextmanager
def capture_calls() -> Iterator[list[CallRecord]]:
    """Collect the LLM calls made inside the block, priced, and write none to a ledger.

    ::

        with capture_calls() as calls:
            client.post("/chat", data={"message": "hello"})
        assert calls[0].usage["output"] > 0
        assert calls[0].tags["feature"] == "support_chat"

    Works with an app that is set up, without any app at all, and outside the contexts of several, made before
    the block or in it.
    """
    calls: list[CallRecord] = []
    # It stands in also where one app owns all calls now: the block may make another one.
    with attribution.standing_in(_app_without_a_database()), capturing(calls):
        yield calls


def _app_without_a_database() -> Flask:
    """An app that owns the calls of code that is tested without one."""
    app = Flask("flask_llm_cost.testing")
    app.config["LLM_COST_WRITE_MODE"] = "log"
    LlmCostTracker(app)
    return app
