"""``doctor --capture`` tries a call through each client library, sees it in the ledger, and leaves nothing behind."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
import requests
import responses
import sqlalchemy as sa
from apps import Apps
from databases import Server
from flask import Flask

from flask_llm_cost import signals, track
from flask_llm_cost.doctor.calls import WAYS
from flask_llm_cost.doctor.capture import is_installed
from flask_llm_cost.ledger.models import Base, Call, Counter, TagRollup, UsageRollup
from flask_llm_cost.recorder import capturing
from flask_llm_cost.testing.provider import PlayedProvider

Make = Callable[..., Flask]

NAMES = [way.name for way in WAYS if is_installed(way.library)]
ARRIVED = "a call arrived in the ledger with its 7 input and 5 output tokens, and was taken back"

#: One that is used up, one whose account a call would begin, one whose threshold a call would cross.
BUDGETS: Any = [
    {"name": "used_up", "limit": "0.01", "period": "day", "action": "block"},
    {"name": "by_command", "limit": "5", "period": "day", "per": "command", "action": "block"},
    {
        "name": "crossed",
        "limit": "1",
        "unit": "calls",
        "period": "month",
        "where": {"provider": "bedrock"},
        "warn_at": ["0.5"],
    },
]


@pytest.fixture
def make_app(tmp_path: Path) -> Iterator[Make]:
    apps = Apps(tmp_path)
    yield apps.make
    apps.close()


@pytest.fixture
def told() -> Iterator[list[str]]:
    """The signals that were sent while the test ran."""
    names: list[str] = []
    with ExitStack() as connected:
        for name in ("call_recorded", "budget_exceeded", "unknown_price", "write_failed"):
            connected.enter_context(getattr(signals, name).connected_to(lambda *_, name=name, **__: names.append(name)))
        yield names


def doctor(app: Flask) -> dict[str, list[dict[str, str]]]:
    """What ``doctor --capture`` says, by name, and a library's checks beside the ledger's of the group Capture."""
    result = app.test_cli_runner().invoke(args=["llm-cost", "doctor", "--capture", "--format", "json"])
    assert isinstance(result.exception, SystemExit | None), result.exception
    checks = json.loads(result.output)
    assert (result.exit_code == 1) == any(check["status"] == "error" for check in checks)
    found: dict[str, list[dict[str, str]]] = {}
    for check in checks:
        found.setdefault(check["name"] if check["name"] != "ledger" else "Capture's ledger", []).append(check)
    return found


def said(app: Flask) -> dict[str, tuple[str, str]]:
    """Status and sentence of each way to call."""
    checks = doctor(app)
    return {name: (checks[name][0]["status"], checks[name][0]["message"]) for name in NAMES if name in checks}


def rows(app: Flask) -> dict[str, list[str]]:
    """Every row of every table of ours, but for the mark that the writer leaves twice a minute."""
    with app.app_context(), app.extensions["sqlalchemy"].engine.connect() as connection:
        return {
            table.name: sorted(
                str(row)
                for row in connection.execute(sa.select(table))
                if table.name != Counter.__tablename__ or "heartbeat" not in row
            )
            for table in Base.metadata.sorted_tables
        }


def recorded(app: Flask) -> None:
    with app.app_context():
        track("openai", model="gpt-4o-mini", usage={"input": 1_000_000}, tags={"feature": "chat", "tenant_id": "7"})
        track("openai", model="nobody-knows", usage={"input": 1_000_000})
        assert app.extensions["llm_cost"].tracker.flush()


@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
def test_a_call_arrives_and_nothing_is_left(database_url: sa.URL, make_app: Make, told: list[str], used: bool) -> None:
    """Through each library a call arrives, and no row of any table, hold, counter or sum is other than it was before.

    Neither in a ledger that never had a call, nor where a budget is used up, an account would begin and an alert be sent.
    """
    app = make_app(database_url, LLM_COST_BUDGETS=BUDGETS, LLM_COST_DEFAULT_TAGS={"service": "shop"})
    if used:
        recorded(app)
    before = rows(app)
    assert bool(before["llm_cost_budget_periods"]) == used
    told.clear()
    assert said(app) == dict.fromkeys(NAMES, ("ok", ARRIVED))
    assert said(app) == dict.fromkeys(NAMES, ("ok", ARRIVED))
    assert rows(app) == before
    with app.app_context():
        assert app.extensions["llm_cost"].tracker.flush()
    assert told == []


def test_without_the_option_nothing_is_called(make_app: Make) -> None:
    """Doctor calls nothing unless it is asked to; asked in text, it says the same sentences."""
    app = make_app()
    plain = app.test_cli_runner().invoke(args=["llm-cost", "doctor"]).output
    tried = click.unstyle(app.test_cli_runner().invoke(args=["llm-cost", "doctor", "--capture"]).output)
    assert ARRIVED not in plain
    assert [name for name in NAMES if f"  ok       {name}: {ARRIVED}" not in tried] == []


@pytest.mark.parametrize("mode", ["background", "inline", "memory", "log"])
def test_every_way_of_writing(make_app: Make, tmp_path: Path, told: list[str], mode: str) -> None:
    """It works however calls are written, and leaves nothing in the spool; where they are only logged, it says so."""
    url = "sqlite://" if mode == "memory" else None
    spool = tmp_path / "spool"
    config = {"TESTING": False, "LLM_COST_SPOOL_DIR": spool, "LLM_COST_WRITE_MODE": mode.replace("memory", "background")}
    app = make_app(url, **config)
    before = rows(app)
    expected = "a call was seen; it would be logged, not kept" if mode == "log" else ARRIVED
    assert said(app) == dict.fromkeys(NAMES, ("ok", expected))
    assert rows(app) == before
    assert [path for path in spool.rglob("*") if path.is_file()] == []
    assert told == []


def test_switched_off(make_app: Make) -> None:
    """With LLM_COST_ENABLED off nothing is tried, and that is said in place of the calls."""
    checks = doctor(make_app(LLM_COST_ENABLED=False))
    (check,) = checks["calls"]
    assert check["status"] == "warning"
    assert check["message"] == "no call was tried: LLM_COST_ENABLED is off; take LLM_COST_ENABLED=0 away"
    assert not checks.keys() & {*NAMES}


def test_only_what_is_watched_is_tried(make_app: Make) -> None:
    """A library that LLM_COST_INSTRUMENT leaves out is not called with; where it leaves all out, that is said."""
    assert list(said(make_app(LLM_COST_INSTRUMENT=["requests"]))) == ["requests.Session"]
    (check,) = doctor(make_app(LLM_COST_INSTRUMENT=[]))["calls"]
    assert (check["status"], "no client library" in check["message"]) == ("warning", True)


def test_no_proxy_gets_the_calls(make_app: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the environment gets none of them, nor does a profile of AWS that is not there stop one."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.lower(), "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert said(make_app()) == dict.fromkeys(NAMES, ("ok", ARRIVED))


def test_no_key_is_sent(provider: PlayedProvider, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No request carries a key or a password that is to be had in the environment, in AWS's files or in .netrc."""
    secret = "the-secret"
    for name in ("OPENAI_API_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_BEARER_TOKEN_BEDROCK"):
        monkeypatch.setenv(name, secret)
    (tmp_path / "aws").write_text(f"[default]\naws_access_key_id = {secret}\naws_secret_access_key = {secret}\n")
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login {secret} password {secret}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for way in WAYS:
        provider.reply_with("/converse", body={"usage": {}})
        way.send(way.library, provider.url)
    assert len(provider.requests) == len(WAYS)
    for request in provider.requests:
        assert not {"authorization", "api-key", "x-api-key", "x-amz-security-token"} & request.headers.keys()
        assert secret.encode() not in repr(request).encode()


NETWORK = """
import json, sys
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_llm_cost import LlmCostTracker

app = Flask("app", instance_path=sys.argv[1])
app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///app.db"
database = SQLAlchemy(app)
LlmCostTracker(app)
with app.app_context():
    database.create_all()
seen = set()

def hook(event, arguments):
    if event == "socket.connect":
        seen.add(str(arguments[1][0]))
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo"):
        seen.add(f"{event} {arguments[0]}")

sys.addaudithook(hook)
checks = json.loads(app.test_cli_runner().invoke(args=["llm-cost", "doctor", "--capture", "--format", "json"]).output)
print(json.dumps([sorted(seen), [check["name"] for check in checks if check["message"].startswith("a call arrived")]]))
"""


def test_nobody_outside_is_asked(tmp_path: Path) -> None:
    """Connections go to 127.0.0.1 alone, and no name is looked up, in a process that had imported no library."""
    done = subprocess.run([sys.executable, "-c", NETWORK, str(tmp_path)], capture_output=True, text=True, check=True)
    asked, arrived = json.loads(done.stdout)
    assert arrived == NAMES
    assert "127.0.0.1" in asked
    assert {entry.removeprefix("socket.getaddrinfo ") for entry in asked} == {"127.0.0.1"}


def test_what_passes_unseen_is_an_error(make_app: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where somebody took a patch away the call is not seen: an error that says who must not do so; the others arrive."""
    app = make_app()
    original = httpx.Client.send
    monkeypatch.setattr(httpx.Client, "send", lambda *a, **k: original.__wrapped__(*a, **k))  # type: ignore[attr-defined]
    found = said(app)
    status, message = found.pop("httpx.Client")
    assert status == "error"
    assert message.startswith("a call passed unseen: somebody replaced httpx.Client.send after us")
    assert message.endswith("before LlmCostTracker(app)")
    assert {status for status, _ in found.values()} == {"ok"}


def test_what_is_counted_twice_is_an_error(make_app: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that comes out as two is an error."""
    app = make_app()
    original = requests.Session.send

    def twice(self: Any, request: Any, **options: Any) -> Any:
        original(self, request, **options)
        return original(self, request.copy(), **options)

    twice.__wrapped__ = original  # type: ignore[attr-defined]
    monkeypatch.setattr(requests.Session, "send", twice)
    status, message = said(app)["requests.Session"]
    assert (status, message.partition(":")[0]) == ("error", "a call was counted 2 times")


def test_what_cannot_be_tried_is_a_warning(make_app: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that cannot be imported, or that is mocked here, is no error: it is said why nothing was tried."""
    app = make_app()
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with responses.RequestsMock() as mocked:
        mocked.add_callback("POST", url=re.compile("http://127"), callback=lambda _: (200, {}, "{}"))
        found = said(app)
    for name, why in (("aiohttp.ClientSession", "ModuleNotFoundError"), ("requests.Session", "mocked")):
        status, message = found.pop(name)
        assert (status, message.startswith("no call could be tried"), why in message) == ("warning", True, True)
    assert {status for status, _ in found.values()} == {"ok"}


def test_calls_of_the_app_go_on(make_app: Make, provider: PlayedProvider) -> None:
    """While doctor's own calls are kept apart, what the app's threads call meanwhile goes to the ledger and its budgets."""
    hosts = provider.hosts
    app = make_app(LLM_COST_HOSTS=hosts, LLM_COST_BUDGETS=[{"limit": "5", "period": "day", "action": "block"}])
    body = {"model": "gpt-4o-mini", "messages": []}
    kept: list[Any] = []
    with app.app_context(), PlayedProvider() as other, httpx.Client() as client:
        with capturing(kept, other.host):
            client.post(f"{provider.openai_url}/chat/completions", json=body)
            client.post(f"{other.openai_url}/chat/completions", json=body)
        assert app.extensions["llm_cost"].tracker.flush()
    after = rows(app)
    assert (len(after["llm_cost_calls"]), len(after["llm_cost_budget_holds"])) == (1, 1)
    assert [call.host for call in kept] == [other.host]


@pytest.mark.parametrize("server", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def test_a_ledger_that_is_read_only(make_app: Make, request: pytest.FixtureRequest, server: str) -> None:
    """Where nothing can be written, one error says so and what to do, and the calls say that they were seen."""
    url = request.getfixturevalue(f"{server}_url")
    recorded(make_app(url))
    options = {"options": "-c default_transaction_read_only=on"} if server == "postgresql" else {}
    app = make_app(url.update_query_dict(options), tables=False)
    if server == "sqlite":
        with app.app_context():
            engine = app.extensions["sqlalchemy"].engine
        sa.event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA query_only = ON"))
    checks = doctor(app)
    (error,) = [check for found in checks.values() for check in found if check["status"] == "error"]
    assert (error["group"], error["name"]) == ("Capture", "ledger")
    why = "OperationalError SQLITE_READONLY" if server == "sqlite" else "ReadOnlySqlTransaction 25006"
    assert error["message"].startswith(f"the ledger did not take the calls ({why}); let the app's user write to its tables")
    assert {checks[name][0]["status"] for name in NAMES} == {"warning"}
    assert checks[NAMES[0]][0]["message"].startswith("a call was seen; whether it arrives is open")


def test_a_ledger_that_is_away(database_server: Server, database_url: sa.URL, make_app: Make) -> None:
    """A database that is away, and tables that are not there, stay one error each; the calls say that they were seen."""
    missing, app = doctor(make_app(tables=False)), make_app(database_url)
    with database_server.down(database_url):
        away = doctor(app)
    for checks, error in ((missing, ("Schema", "tables")), (away, ("Setup", "database"))):
        errors = [check for found in checks.values() for check in found if check["status"] == "error"]
        assert [(check["group"], check["name"]) for check in errors] == [error]
        assert {checks[name][0]["status"] for name in NAMES} == {"warning"}


def test_others_write_meanwhile(database_url: sa.URL, make_app: Make) -> None:
    """What others write while doctor tries is all there, and every sum is right to the last digit."""
    app, other = make_app(database_url), make_app(database_url, tables=False, LLM_COST_WRITE_MODE="inline")
    recorded(other)
    stop, written = threading.Event(), [2]

    def write() -> None:
        with other.app_context():
            while not stop.wait(0.002):
                track("openai", model="gpt-4o-mini", usage={"input": 1234567, "output": 89}, tags={"feature": "chat"})
                written[0] += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        answers = [said(app) for _ in range(4)]
    finally:
        stop.set()
        writer.join()
    with other.app_context():
        assert other.extensions["llm_cost"].tracker.flush()
    assert answers == [dict.fromkeys(NAMES, ("ok", ARRIVED))] * 4
    assert written[0] > 10
    usage = sa.select(sa.func.sum(UsageRollup.calls), sa.func.sum(UsageRollup.cost)).where(UsageRollup.component == "")
    tagged = sa.select(sa.func.sum(TagRollup.calls), sa.func.sum(TagRollup.cost)).where(TagRollup.key == "")
    with app.app_context(), app.extensions["sqlalchemy"].engine.connect() as connection:
        kept = connection.execute(sa.select(sa.func.count(), sa.func.sum(Call.total_cost))).one()
        assert kept[0] == written[0]
        assert connection.execute(usage).one() == connection.execute(tagged).one() == kept
        assert set(connection.scalars(sa.select(TagRollup.key).where(TagRollup.key.like("command%")))) == set()
    assert doctor(app)["rollups against calls"][0]["status"] == "ok"


KILLED = """
import os, signal, sys
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_llm_cost import LlmCostTracker

app = Flask("app", instance_path=sys.argv[1])
app.config.update(SQLALCHEMY_DATABASE_URI=sys.argv[2], LLM_COST_SPOOL_DIR=sys.argv[1] + "/spool")
database = SQLAlchemy(app)
LlmCostTracker(app)

def kill(statement):
    if statement.startswith("INSERT INTO llm_cost_tag_rollups"):
        os.write(2, b"in the middle")  # standard output is the runner's
        os.kill(os.getpid(), signal.SIGKILL)

with app.app_context():
    sa.event.listen(database.engine, "connect", lambda connection, _: connection.set_trace_callback(kill))
app.test_cli_runner().invoke(args=["llm-cost", "doctor", "--capture"])
"""


def test_killed_in_the_middle(make_app: Make, tmp_path: Path) -> None:
    """A process that is killed while its calls are being written leaves none of them, in the ledger or the spool."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    app = make_app(url, LLM_COST_WRITE_MODE="inline")
    recorded(app)
    before = rows(app)
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), url], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, "in the middle")
    assert rows(app) == before
    assert [path for path in (tmp_path / "spool").rglob("*") if path.is_file()] == []
    assert said(app) == dict.fromkeys(NAMES, ("ok", ARRIVED))
    assert rows(app) == before
