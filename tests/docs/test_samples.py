"""The code on the pages runs, and does what the page says."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask, g
from flask_sqlalchemy import SQLAlchemy
from openai import OpenAI
from pages import ROOT, code_blocks, page

from flask_llm_cost import LlmCostTracker, tags, track
from flask_llm_cost.config import Config
from flask_llm_cost.ledger import Call, CallTag, LineItem
from flask_llm_cost.ledger.queries import NOTHING
from flask_llm_cost.report import Report, as_text
from flask_llm_cost.testing import capture_calls
from flask_llm_cost.testing.provider import PlayedProvider

CHUNKS = [
    {"id": "c", "object": "chat.completion.chunk", "model": "gpt-4o", "choices": [{"index": 0, "delta": {"content": "Hi"}}]},
    {
        "id": "c",
        "object": "chat.completion.chunk",
        "model": "gpt-4o",
        "choices": [],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
    },
]


@pytest.fixture
def names(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """What the samples take for granted: an app, its database, a client whose calls are answered."""
    app = Flask("docs", instance_path=str(tmp_path))
    with PlayedProvider() as provider, OpenAI(base_url=provider.openai_url, api_key="any") as client:
        app.config.update(
            SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path}/app.db", TESTING=True, LLM_COST_HOSTS=provider.hosts
        )
        db = SQLAlchemy(app)
        costs = LlmCostTracker(app)
        with app.app_context():
            db.create_all()
            yield {
                "app": app,
                "db": db,
                "costs": costs,
                "client": client,
                "tags": tags,
                "g": g,
                "messages": [{"role": "user", "content": "Why is the sky blue?"}],
                "texts": ["one", "two", "three"],
                "events": CHUNKS,
                "current_user": SimpleNamespace(get_id=lambda: "42"),
                "users_by_id": lambda ids: [SimpleNamespace(id=each, name=f"User {each}") for each in ids],
            }
            db.session.remove()
            db.engine.dispose()
        app.extensions["llm_cost"].ledger.close()
    gc.collect()  # an app is a cycle, and a dead one must not own the next test's calls


@pytest.fixture
def run(names: dict[str, Any]) -> Callable[[str], dict[str, Any]]:
    """Run all samples of a page, from top to bottom, as one program."""

    def run(name: str) -> dict[str, Any]:
        blocks = code_blocks(page(name))
        assert blocks
        for number, block in enumerate(blocks):
            exec(compile(block, f"{name}.rst, sample {number + 1}", "exec"), names)
        Config.from_mapping(names["app"].config)
        return names

    return run


def test_samples_of_the_capture_page(run: Callable[[str], dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    """Hosts are accepted; track() and track_stream() record calls that have a price."""
    with capture_calls() as calls:
        run("capture")
    printed = [Decimal(line) for line in capsys.readouterr().out.split()]
    assert printed == [call.total_cost for call in calls]
    assert all(printed)
    assert [(call.provider, call.stream) for call in calls] == [("anthropic", False), ("openai", True)]
    assert calls[1].usage.output_tokens == 2


def test_samples_of_the_tags_page(run: Callable[[str], dict[str, Any]]) -> None:
    """Each call has the tags that the comment beside it says, also those in the thread pool."""
    with capture_calls() as calls:
        names = run("tags")
        with names["app"].test_request_context("/"):
            names["g"].tenant_id = "acme"
            assert "".join(names["answer"]("Why?"))
    assert [call.tags for call in calls[:3]] == [
        {"feature": "support_chat"},
        {"feature": "ocr", "plan": "pro"},
        {"feature": "import"},
    ]
    assert [call.tags["feature"] for call in calls[3:6]] == ["summaries"] * 3
    assert calls[6].tags == {"feature": "support_chat", "user_id": "42", "tenant_id": "acme"}
    assert names["costs"].tag_labels["user_id"](["42"]) == {"42": "User 42"}


def test_samples_of_the_configuration_page(run: Callable[[str], dict[str, Any]]) -> None:
    """The values on the page are accepted."""
    assert run("configuration")["app"].config["LLM_COST_TIMEZONE"] == "Europe/Berlin"


def test_the_environment_of_the_configuration_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """The three lines for the shell set the same as the lines in Python."""
    for key, value in re.findall(r"\$ export (FLASK_LLM_COST_\w+)=(.+)", page("configuration")):
        monkeypatch.setenv(key, value.strip("'"))
    from_shell, from_python = Flask("shell"), Flask("python")
    from_shell.config.from_prefixed_env()
    exec(code_blocks(page("configuration"))[0], {"app": from_python})
    config = Config.from_mapping(from_shell.config)
    assert config == Config.from_mapping(from_python.config)
    assert config.discounts == {"azure": Decimal("0.15")}


def test_samples_of_the_index_page(names: dict[str, Any], tmp_path: Path) -> None:
    """The first lines that a reader sees set an app up and tag a call."""
    names["app"] = app = Flask("first", instance_path=str(tmp_path / "first"))
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    names |= {"SQLAlchemy": SQLAlchemy, "LlmCostTracker": LlmCostTracker}
    with app.app_context(), capture_calls() as calls:
        exec(code_blocks(page("index"))[0], names)
    assert calls[0].tags == {"feature": "support_chat"}


def test_samples_of_the_api_page(run: Callable[[str], dict[str, Any]], caplog: pytest.LogCaptureFixture) -> None:
    """The receiver on the page hears of a dear call, and says nothing of a cheap one."""
    names = run("api")
    track("openai", model="gpt-4o", usage={"input": 1000})
    assert names["costs"].flush()
    assert not caplog.messages
    track("openai", model="gpt-4o", usage={"input": 1_000_000})
    assert names["costs"].flush()
    assert caplog.messages == ["$2.50 on one call of gpt-4o"]


def test_commands_of_the_privacy_page(names: dict[str, Any]) -> None:
    """Old calls are gone with all that hangs on them; of a forgotten person the money stays."""
    for days, user in ((500, "42"), (1, "42"), (1, "7")):
        when = datetime.now(UTC) - timedelta(days=days)
        track("openai", model="gpt-4o", usage={"input": 10}, tags={"user_id": user}, occurred_at=when)
    assert names["costs"].flush()
    commands = re.findall(r"\$ flask (llm-cost .+)", page("privacy"))
    assert [command.split()[1] for command in commands] == ["prune", "forget"]
    for command in commands:
        result = names["app"].test_cli_runner().invoke(args=command.split())
        assert result.exit_code == 0, result.output
    db = names["db"]
    assert sorted(db.session.scalars(db.select(CallTag.value))) == ["(erased)", "7"]
    costs = db.session.scalars(db.select(Call.total_cost)).all()
    assert costs == [Decimal("0.000025")] * 2
    assert len(db.session.scalars(db.select(LineItem)).all()) == 2


@pytest.mark.slow
def test_samples_of_the_testing_page(tmp_path: Path) -> None:
    """The page's fixtures and tests, put into one file, pass against an app."""
    blocks = code_blocks(page("testing"))
    preamble = "from decimal import Decimal\n\nimport pytest\n\nfrom shop import costs, create_app\n"
    (tmp_path / "test_shop.py").write_text("\n\n".join([preamble, *blocks]), encoding="utf-8")
    (tmp_path / "shop.py").write_text((Path(__file__).parent / "shop.py").read_text(encoding="utf-8"), encoding="utf-8")
    env = {**os.environ, "FLASK_SQLALCHEMY_DATABASE_URI": f"sqlite:///{tmp_path}/app.db"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "pytest_flask_llm_cost", "-p", "no:cacheprovider", "test_shop.py"],
        cwd=tmp_path, env={**env, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout


@pytest.mark.slow
def test_the_readme_keeps_its_word(tmp_path: Path) -> None:
    """The README's app, copied as it is, and its commands, end in a report of the call that was made."""
    text = page("README.rst")
    (app,) = code_blocks(text)
    with PlayedProvider() as provider:
        hosts = f'app.config["LLM_COST_HOSTS"] = {provider.hosts!r}\n'
        (tmp_path / "app.py").write_text(app.replace("db = SQLAlchemy(app)\n", hosts + "db = SQLAlchemy(app)\n"))
        env = {name: value for name, value in os.environ.items() if not name.startswith("FLASK_")}
        env |= {"OPENAI_API_KEY": "any", "OPENAI_BASE_URL": provider.openai_url}

        def run(*command: str) -> str:
            return subprocess.run(
                [sys.executable, *command], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
            ).stdout

        for command in re.findall(r"\$ flask (llm-cost install)$", text, re.MULTILINE):
            run("-m", "flask", *command.split())
        asked = run("-c", "from app import app; print(app.test_client().get('/ask?q=Why+is+the+sky+blue').text)")
        report = run("-m", "flask", "llm-cost", "report")
        page_shown = run("-c", "from app import app; print(app.test_client().get('/llm-costs/').status_code)")
    assert "Why is the sky blue" in asked
    assert re.search(r"gpt-4o-mini\S* +1 ", report)
    assert page_shown.strip() == "200"


def test_the_report_in_the_readme_is_one_of_ours() -> None:
    """The picture of a report has the columns, the totals and the last lines that the command prints."""
    text = page("README.rst")
    shown = re.search(r"    LLM spend, (\S+) to (\S+) \(UTC, USD\)\n(?:    .*\n|\n)+", text)
    assert shown is not None
    lines = [line[4:] for line in shown[0].splitlines()]
    cells = [line.split() for line in lines if re.match(r"(northwind|juniper) ", line)]

    def spend(keys: dict[str, Any], calls: str, read: str, cached: str, written: str, cost: str) -> Any:
        amount = None if cost == "unknown" else Decimal(cost.removeprefix("$"))
        return replace(
            NOTHING, keys=keys, calls=int(calls), cost=amount, input_tokens=int(read), cache_read_tokens=int(cached),
            output_tokens=int(written), unpriced_calls=int(calls) if amount is None else 0,
        )  # fmt: skip

    rows = [spend({"tag:tenant_id": row[0], "tag:feature": row[1]}, *row[2:]) for row in cells]
    total = spend({}, *next(line.split()[1:] for line in lines if line.startswith("total ")))
    for measure in ("calls", "input_tokens", "output_tokens"):
        assert getattr(total, measure) == sum(getattr(row, measure) for row in rows)
    calls = sum(row.unpriced_calls for row in rows)
    unpriced: Any = SimpleNamespace(provider="in_house", model="desk-triage-2", calls=calls, partial=0)
    since, until = (datetime.fromisoformat(shown[number]).date() for number in (1, 2))
    report = Report(since, until, "UTC", "USD", ("tag:tenant_id", "tag:feature"), rows, total, [unpriced])
    assert as_text(report).rstrip().splitlines() == "\n".join(lines).rstrip().splitlines()


def test_the_playing_provider_starts_as_the_page_says() -> None:
    """The options of the command on the testing page are those of the command."""
    (options,) = re.findall(r"\$ python -m flask_llm_cost\.testing\.provider (.+)", page("testing"))
    shown = subprocess.run(
        [sys.executable, "-m", "flask_llm_cost.testing.provider", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert all(flag in shown for flag in re.findall(r"--[a-z-]+", options))


@pytest.mark.slow
def test_the_benchmark_starts_as_the_page_says() -> None:
    """The scripts that the page starts are there, and the options that it names are theirs."""
    text = page("benchmarks")
    scripts = sorted(set(re.findall(r"\$ python (\S+\.py)", text)))
    assert scripts
    shown = "".join(
        subprocess.run(
            [sys.executable, str(ROOT / script), "--help"], capture_output=True, text=True, check=True, cwd=ROOT
        ).stdout
        for script in scripts
    )
    flags = re.findall(r"--[a-z]+", text)
    assert flags
    assert all(flag in shown for flag in flags)
