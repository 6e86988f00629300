"""The recipes of the pages about signals, questions and operating, run as they stand."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from pages import code_blocks, page

from flask_llm_cost import LlmCostTracker, track
from flask_llm_cost.signals import write_failed


class Inbox(ThreadingHTTPServer):
    """What a webhook or a store was sent."""

    def __init__(self) -> None:
        self.bodies: list[str] = []
        inbox = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                inbox.bodies.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/in"


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    server = Inbox()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def names(tmp_path: Path, inbox: Inbox) -> Iterator[dict[str, Any]]:
    """An app with a budget, and tables of its own."""
    app = Flask("recipes", instance_path=str(tmp_path))
    app.config.update(
        SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path}/app.db",
        TESTING=True,
        SLACK_WEBHOOK=inbox.url,
        STORE_URL=inbox.url,
        LLM_COST_BUDGETS=[{"name": "daily", "limit": "0.001", "period": "day", "warn_at": [1.0]}],
    )
    db = SQLAlchemy(app)
    costs = LlmCostTracker(app)

    class Customer(db.Model):  # type: ignore[name-defined, misc]
        id = db.Column(db.Integer, primary_key=True)
        name = db.Column(db.String(40))
        plan = db.Column(db.String(40))

    with app.app_context():
        db.create_all()
        db.session.add_all(
            Customer(id=number, name=name, plan=plan)
            for number, name, plan in ((1, "Acme", "pro"), (2, "Northwind", "free"), (3, "Quiet", "pro"))
        )
        db.session.commit()
        yield {"app": app, "db": db, "costs": costs, "Customer": Customer, "celery": Celery("recipes")}
        db.session.remove()
        db.engine.dispose()
    app.extensions["llm_cost"].ledger.close()


@pytest.fixture
def run(names: dict[str, Any]) -> Callable[[str], dict[str, Any]]:
    def run(name: str) -> dict[str, Any]:
        for number, block in enumerate(code_blocks(page(name))):
            exec(compile(block, f"{name}.rst, sample {number + 1}", "exec"), names)
        return names

    return run


def test_recipes_for_signals(run: Callable[[str], dict[str, Any]], inbox: Inbox, caplog: pytest.LogCaptureFixture) -> None:
    """Slack hears of a budget and of an unknown model once, the store gets a line a call, and a full spool is an alarm."""
    names = run("signals")
    track("openai", model="gpt-4o", usage={"input": 1000, "output": 2}, tags={"feature": "chat"})
    for _ in range(2):
        track("openai", model="nobody-knows", usage={"input": 1})
    assert names["costs"].flush(60)
    said = [body for body in inbox.bodies if "text" in body]
    assert sorted(said) == [
        '{"text": "Budget daily (all): $0.00 of $0.00 (100%)"}',
        '{"text": "No price for openai/nobody-knows: its calls count as unknown"}',
    ]
    # How many zeros an exact amount ends in is nobody's business.
    lines = sorted(
        re.sub(r"0+(?=,output)", "", body.rpartition(" ")[0]) for body in inbox.bodies if body.startswith("llm_call")
    )
    assert lines == [
        "llm_call,provider=openai,feature=chat cost=0.00252,output=2i",
        "llm_call,provider=openai,feature=none unpriced=1i",
        "llm_call,provider=openai,feature=none unpriced=1i",
    ]
    names["app"].extensions["llm_cost"]._send_all(write_failed, error_class="OperationalError", waiting=20_000)
    assert names["app"].extensions["llm_cost"].receivers.settle(30)
    assert "20000 LLM calls wait for the ledger" in caplog.text


def test_questions_of_an_apps_own(
    run: Callable[[str], dict[str, Any]], names: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Cost per paying customer comes from one join; a customer without calls is in it, one who does not pay is not."""
    for tenant, tokens in (("1", 1_000_000), ("1", 1_000_000), ("2", 1_000_000)):
        track("openai", model="gpt-4o", usage={"input": tokens}, tags={"tenant_id": tenant, "feature": "chat"})
    assert names["costs"].flush(60)
    run("queries")
    printed = [line.rsplit(" ", 1) for line in capsys.readouterr().out.splitlines()]
    assert [(who, amount if amount == "None" else Decimal(amount)) for who, amount in printed] == [
        ("Acme pro 2", Decimal(5)),
        ("Quiet pro 0", "None"),
    ]
    assert names["margin"](Decimal(10), Decimal(4)) == Decimal("0.6")
    assert names["margin"](Decimal(10), None) is None
    assert names["dearest"] == [Decimal("2.5")] * 3


def test_lines_of_the_operating_page(run: Callable[[str], dict[str, Any]]) -> None:
    """The lines for Celery and PgBouncer are accepted as they stand."""
    options = run("operating")["app"].config["SQLALCHEMY_ENGINE_OPTIONS"]
    assert options == {"connect_args": {"prepare_threshold": None}}
