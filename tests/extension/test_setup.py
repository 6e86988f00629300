"""Setting the extension up, in the right order and the wrong one."""

from __future__ import annotations

import asyncio
import gc
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from apps import Apps
from flask import Flask
from sqlalchemy import select

from flask_llm_cost import ConfigError, LlmCostTracker, SetupError, UnknownPriceError, UsageError, track, track_stream
from flask_llm_cost.ledger import Call, spend
from flask_llm_cost.signals import call_recorded, unknown_price
from flask_llm_cost.testing import capture_calls


@pytest.fixture
def make_app(tmp_path: Path) -> Iterator[Callable[..., Flask]]:
    apps = Apps(tmp_path)
    yield apps.make
    apps.close()


def test_flask_sqlalchemy_comes_first() -> None:
    """Set up before the database, the error shows the two lines in order."""
    with pytest.raises(ConfigError, match=r"db\.init_app\(app\)\n\s+costs\.init_app\(app\)"):
        LlmCostTracker(Flask("early"))


def test_without_an_app_the_error_says_so() -> None:
    """Used outside any app, or on one without it, the error says what to call."""
    # In a process of its own: in this one, the app of some other test may be the only one alive, and take it.
    alone = "from flask_llm_cost import LlmCostTracker; LlmCostTracker().flush()"
    died = subprocess.run([sys.executable, "-c", alone], capture_output=True, text=True, check=False)
    assert died.stderr.splitlines()[-1].startswith("flask_llm_cost.errors.SetupError: there is no app here")
    assert "app_context" in died.stderr
    with Flask("without").app_context(), pytest.raises(SetupError, match=r"LlmCostTracker\(app\)"):
        track("openai", model="gpt-4o", usage={"input": 1})


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("ENABLED", "maybe", "choose True or False"),
        ("INSTRUMENT", ["htpx"], "'htpx' cannot be watched; choose"),
        ("WRITE_MODE", "async", "'background', 'inline', 'log'"),
        ("WRITE_ERRORS", "raise", "LLM_COST_WRITE_MODE='inline'"),
        ("UNKNOWN_PRICE", "zero", "'warn', 'ignore', 'raise'"),
        ("HOSTS", {"https://llm.example": "openai"}, "leave out the scheme"),
        ("HOSTS", ["llm.example"], "give a dict"),
        ("DISCOUNTS", {"azure": "15"}, "'0.15' for 15%"),
        ("TIMEZONE", "Europe/Berln", "near: Europe/Berlin"),
        ("INSTRUMENT", [{}], "{} cannot be watched; choose"),
        ("INSTRUMENT", "[" * 9000, "is no valid JSON"),
        ("PRICES_FILE", "prices\0.json", "give a path"),
        ("SPOOL_MAX_MB", 0, "at least 1"),
        ("HOSTS", {"llm example": "openai"}, "'llm example' is no host; give host, host:port or host/prefix"),
        ("STREAM_USAGE", ["https://llm.example"], "leave out the scheme"),
        ("STREAM_USAGE", [5], "5 is no host; give host, host:port or host/prefix"),
        ("STREAM_USAGE", 5, "choose True or False, or give a list of hosts"),
        ("DEFAULT_TAGS", {"Plan Name": "pro"}, "'Plan Name' is no tag key"),
        ("REDACTED_TAGS", [5], "5 is no name; give a list of texts"),
        ("DISCOUNTS", {"azure": "much"}, "'0.15' for 15%"),
        ("SPOOL_MAX_MB", "many", "at least 1"),
        ("REPORT_TAGS", ["Feature"], "'Feature' is no tag key"),
        ("RETENTION_DAYS", -1, "at least 1"),
        ("RETENTION_DAYS", 1_000_000_000, "36,500 days at most"),
        ("BIND_KEY", "costs", "is no key of SQLALCHEMY_BINDS"),
        ("BUDGETS", {"limit": "5", "period": "day"}, "give a list of dicts"),
        ("BUDGETS", "daily", "give a list of dicts"),
        ("BUDGETS", [{"limit": "5", "period": "day", "warn_at": [80]}], "0.8 for 80%"),
        ("BUDGETS", [{"limit": "5", "period": "daily"}], "entry 0: period='daily': choose one of 'call', 'hour', 'day'"),
        ("PRICES_FILE", 7, "give a path"),
        ("MODEL_ALIASES", {"azure/x": 5}, "must have a name"),
    ],
)
def test_a_bad_value_stops_start_up(make_app: Callable[..., Flask], key: str, value: Any, words: str) -> None:
    """A value that cannot be used stops start-up, naming the key, the value and what would be right."""
    with pytest.raises(ConfigError) as raised:
        make_app(**{f"LLM_COST_{key}": value})
    message = str(raised.value)
    assert words in message
    assert f"LLM_COST_{key}={value!r}" in message
    assert (raised.value.key, raised.value.value) == (f"LLM_COST_{key}", value)


def test_bad_overrides_stop_start_up(make_app: Callable[..., Flask]) -> None:
    """A price override that is none stops start-up, and names the entry."""
    with pytest.raises(ValueError, match="openai/x"):
        make_app(LLM_COST_PRICE_OVERRIDES={"openai/x": {"input": "cheap"}})


def test_values_may_come_from_the_environment(make_app: Callable[..., Flask]) -> None:
    """Strings of the environment are read as what they say."""
    app = make_app(
        LLM_COST_ENABLED="False",
        LLM_COST_INSTRUMENT="httpx, openai",
        LLM_COST_DISCOUNTS='{"azure": 0.15}',
        LLM_COST_REPORT_TAGS='["feature"]',
        LLM_COST_STREAM_USAGE="llm.example,other.example",
        LLM_COST_SPOOL_MAX_MB="64",
    )
    config = app.extensions["llm_cost"].config
    assert config.enabled is False
    assert config.instrument == ("httpx", "openai")
    assert config.discounts == {"azure": Decimal("0.15")}
    assert config.report_tags == ("feature",)
    assert config.stream_usage == ("llm.example", "other.example")
    assert config.spool_max_mb == 64


def test_an_unknown_key_is_named(make_app: Callable[..., Flask], caplog: pytest.LogCaptureFixture) -> None:
    """A mistyped key warns and proposes the one that was meant."""
    make_app(LLM_COST_TIMEZON="UTC")
    assert "LLM_COST_TIMEZON is no key of flask-llm-cost; did you mean LLM_COST_TIMEZONE?" in caplog.text
    caplog.clear()
    make_app(LLM_COST_COLOUR="red")
    assert caplog.messages == ["LLM_COST_COLOUR is no key of flask-llm-cost"]


def test_what_applies_can_be_seen(make_app: Callable[..., Flask]) -> None:
    """After init_app every key is in app.config with the value that applies."""
    app = make_app()
    assert app.config["LLM_COST_WRITE_MODE"] == "background"


def test_the_models_work_in_the_apps_own_session(make_app: Callable[..., Flask], tmp_path: Path) -> None:
    """db.session reads the ledger's models, on the default database and on a bind, in two apps with different binds."""
    plain = make_app()
    bound = make_app(LLM_COST_BIND_KEY="costs", SQLALCHEMY_BINDS={"costs": f"sqlite:///{tmp_path}/costs.db"})
    for app in (plain, bound, plain):
        with app.app_context():
            track("openai", model="gpt-4o", usage={"input": 1})
            assert app.extensions["llm_cost"].tracker.flush()
            database = app.extensions["sqlalchemy"]
            assert database.session.scalars(select(Call.model)).all()[0] == "gpt-4o"
    with plain.app_context():
        assert spend.total().calls == 2
    with bound.app_context():
        assert spend.total().calls == 1


# Manual calls.


def test_a_tracked_call_is_in_the_ledger(make_app: Callable[..., Flask]) -> None:
    """track() takes our components, prices them, returns the record, and keeps it with its tags."""
    app = make_app()
    with app.app_context():
        record = track("anthropic", model="claude-sonnet-4-6", usage={"input": 1500, "output": 320}, tags={"job": "digest"})
        assert record.total_cost == Decimal("0.0093")
        assert app.extensions["llm_cost"].tracker.flush()
        row = spend.by("tag:job")[0]
    assert (row["tag:job"], row.cost, row.calls) == ("digest", Decimal("0.0093"), 1)


def test_a_providers_own_block_is_understood(make_app: Callable[..., Flask]) -> None:
    """usage=response.usage works for each provider's own names, where cached input is inside or beside."""
    openai_block = {"prompt_tokens": 100, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 60}}
    responses_block = {"input_tokens": 100, "output_tokens": 5, "input_tokens_details": {"cached_tokens": 60}}
    anthropic_block = {"input_tokens": 40, "cache_read_input_tokens": 60, "output_tokens": 5}
    with make_app().app_context():
        for provider, block in (("openai", openai_block), ("openai", responses_block), ("anthropic", anthropic_block)):
            record = track(provider, model="m", usage=block)
            assert dict(record.usage.quantities) == {"input": 40, "cache_read": 60, "output": 5}


def test_a_billed_amount_is_the_bill(make_app: Callable[..., Flask]) -> None:
    """What the provider says it charged wins over the book, and the book's figure is kept beside it."""
    with make_app().app_context():
        record = track("openai", model="gpt-4o", usage={"input": 1000}, billed="0.5")
    assert record.cost is not None
    assert (record.cost.total, record.cost.computed) == (Decimal("0.5"), Decimal("0.0025"))


def test_the_caller_s_amount_goes_before_the_provider_s(make_app: Callable[..., Flask]) -> None:
    """And the provider's, in its own block, before the book's."""
    block = {"prompt_tokens": 1000, "completion_tokens": 1, "cost": 0.25}
    with make_app().app_context():
        totals = [
            track("openrouter", model="openai/gpt-4o", usage=block, billed=billed).total_cost
            for billed in ("0.5", "0", None)
        ]
    assert totals == [Decimal("0.5"), 0, Decimal("0.25")]


@pytest.mark.parametrize(
    "usage",
    [
        {"inptu": 5},
        {"input": -1},
        {"input": "many"},
        {"input": float("nan")},
        {"input": True},
        [1],
        "input",
        {"input": 1e30},
    ],
)
def test_usage_that_makes_no_sense_is_refused(make_app: Callable[..., Flask], usage: Any) -> None:
    """An unknown component or an impossible quantity is an error that names it, and nothing is recorded."""
    app = make_app()
    with app.app_context():
        with pytest.raises(UsageError):
            track("openai", model="gpt-4o", usage=usage)
        assert spend.total().calls == 0
        with pytest.raises(UsageError, match="cache_read, cache_write"):
            track("openai", model="gpt-4o", usage={"inptu": 5})


def test_the_apps_chance_stays_its_own(make_app: Callable[..., Flask]) -> None:
    """An app that has seeded Python's generator gets the numbers that it counts on, whatever is recorded meanwhile."""
    app = make_app()
    with app.app_context():
        random.seed(7)
        before = random.getstate()
        for number in range(3):
            track("openai", model="gpt-4o", usage={"input": 1}, tags={"feature": f"f{number}"})
            assert app.extensions["llm_cost"].tracker.flush(20)
        assert app.test_cli_runner().invoke(args=["llm-cost", "doctor"]).exit_code == 0
    assert random.getstate() == before


def test_a_mode_and_a_time_that_are_none_are_refused(make_app: Callable[..., Flask]) -> None:
    """What a person asks about is checked, with what is known in the error; of a call that was made no mode loses it."""
    app = make_app()
    asked = {"model": "gpt-4o", "usage": {"input": 1}}
    with app.app_context():
        quote = app.extensions["llm_cost"].tracker.quote
        with pytest.raises(UsageError, match="mode='bulk' is no pricing mode; write batch, flex, priority"):
            quote("openai", **asked, mode="bulk")
        with pytest.raises(UsageError, match="mode"):
            track_stream("openai", model="gpt-4o", mode=7)  # type: ignore[arg-type]
        when: Any
        for when in (date(2026, 11, 1), "2026-11-01"):
            with pytest.raises(UsageError, match=r"occurred_at='2026-11-01' must be a datetime"):
                track("openai", **asked, occurred_at=when)
            with pytest.raises(UsageError, match=r"at='2026-11-01' must be a datetime"):
                quote("openai", **asked, at=when)
        assert app.extensions["llm_cost"].tracker.flush()
        assert spend.total().calls == 0
        modes = {"standard": None, "auto": None, "": None, "residency:eu+batch": "batch+residency:eu", "scale": "scale"}
        tracked = {mode: track("openai", **asked, mode=mode) for mode in modes}
        assert {mode: call.pricing_mode for mode, call in tracked.items()} == modes
        # A reply's tier that the book does not know: without a price, and there.
        assert (tracked["scale"].total_cost, tracked["auto"].total_cost is None) == (None, False)


def test_a_stream_that_no_block_ends_takes_nothing(make_app: Callable[..., Flask]) -> None:
    """Without ``with`` nothing would ever be recorded: feeding it is an error that says so, and the block works after it."""
    with make_app().app_context():
        stream = track_stream("openai", model="gpt-4o")
        for feed in (lambda: stream.feed({"choices": []}), lambda: stream.set_usage(input=1)):
            with pytest.raises(UsageError, match="with track_stream"):
                feed()
        with stream:
            stream.set_usage(input=5)
        assert stream.call is not None
        assert stream.call.usage["input"] == 5


def test_a_tracked_stream_is_one_call(make_app: Callable[..., Flask]) -> None:
    """track_stream() counts the events that it is fed, in any of their forms, or what it is told."""
    last = {
        "model": "gpt-4o-2024-08-06",
        "choices": [],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
    }
    raw = b'data: {"model": "gpt-4o-2024-08-06", "choices": [{}]}\n\ndata: {"choices": [], "usage": {"prompt_tokens": 10, '
    raw += b'"completion_tokens": 2, "total_tokens": 12}}\n\ndata: [DONE]\n\n'
    with make_app().app_context():
        for events in ([{"choices": [{}]}, last], [raw[:50], raw[50:]]):
            with track_stream("openai", model="gpt-4o") as stream:
                for event in events:
                    stream.feed(event)
            assert stream.call is not None
            assert stream.call.model == "gpt-4o-2024-08-06"
            assert (stream.call.usage["input"], stream.call.usage["output"], stream.call.stream) == (10, 2, True)
        with track_stream("acme", model="m") as stream:
            stream.set_usage(input=3, output=4)
        assert stream.call is not None
        assert stream.call.usage["output"] == 4
        with pytest.raises(UsageError, match="recorded already"):
            stream.feed({})


def test_the_apps_exception_wins_in_a_tracked_stream(make_app: Callable[..., Flask]) -> None:
    """A block that raises records the call as interrupted, once, and raises what it raised."""
    with make_app().app_context():
        stream = track_stream("openai", model="gpt-4o")
        with pytest.raises(LookupError), stream:
            raise LookupError
        assert stream.call is not None
        assert (stream.call.outcome, stream.call.error_class) == ("interrupted", "LookupError")


@pytest.mark.parametrize("error", [LookupError, GeneratorExit, KeyboardInterrupt, asyncio.CancelledError])
def test_the_apps_exception_wins_over_one_of_ours(make_app: Callable[..., Flask], error: type[BaseException]) -> None:
    """Where recording the call would raise as well, the block raises what the app raised; else it raises ours. Each once."""
    app = make_app(LLM_COST_UNKNOWN_PRICE="raise")
    with app.app_context():
        stream = track_stream("openai", model="inhouse-7b")

        def interrupted() -> None:
            with stream:
                stream.set_usage(input=5)
                raise error

        with pytest.raises(error):
            interrupted()
        with pytest.raises(UnknownPriceError), track_stream("openai", model="inhouse-7b") as another:
            another.set_usage(input=5)
        another.__exit__(None, None, None)
        assert app.extensions["llm_cost"].tracker.flush()
        total = spend.total()
        assert (total.calls, total.unpriced_calls) == (2, 2)


def test_a_quote_stores_nothing(make_app: Callable[..., Flask]) -> None:
    """quote() says what a call would cost, in a mode and at a time, and leaves no row."""
    app = make_app()
    with app.app_context():
        costs = app.extensions["llm_cost"].tracker
        assert costs.quote("openai", "gpt-4o", usage={"input": 1_000_000}).total == Decimal("2.5")
        assert costs.quote("openai", "gpt-4o", usage={"input": 1_000_000}, mode="batch").total == Decimal("1.25")
        assert costs.quote("openai", "nobody-knows", usage={"input": 1}).total is None
        assert costs.flush()
        assert spend.total().calls == 0


# Signals and the testing helper.


def test_signals_tell_after_the_row_is_safe(make_app: Callable[..., Flask], caplog: pytest.LogCaptureFixture) -> None:
    """call_recorded comes once, in an app context, when the row is readable; a receiver that raises loses nothing."""
    app = make_app()
    told = []

    def receive(sender: Flask, call: Any) -> None:
        told.append((sender, call.total_cost, spend.total().calls))
        raise RuntimeError("the receiver's own")

    unpriced = []
    remember = lambda sender, call: unpriced.append(call.model)  # noqa: E731 - a receiver must stay referred to
    with call_recorded.connected_to(receive), unknown_price.connected_to(remember), app.app_context():
        track("openai", model="gpt-4o", usage={"input": 1000})
        track("openai", model="nobody-knows", usage={"input": 1000})
        assert app.extensions["llm_cost"].tracker.flush()
    assert [(sender, cost) for sender, cost, _ in told] == [(app, Decimal("0.0025")), (app, None)]
    assert min(calls for *_, calls in told) >= 1
    assert unpriced == ["nobody-knows"]
    assert "the receiver's own" not in caplog.text


def test_calls_are_captured_before_the_app_is_made(make_app: Callable[..., Flask]) -> None:
    """capture_calls() collects the calls of an app that its block makes, also where an earlier test left one alive."""
    gc.collect()  # that one must be alone: several have nobody's calls
    _earlier = make_app()
    with capture_calls() as calls:
        _app = make_app()
        track("openai", model="gpt-4o", usage={"input": 1})
    assert [call.usage["input"] for call in calls] == [1]


def test_calls_can_be_captured_without_a_database(make_app: Callable[..., Flask]) -> None:
    """capture_calls() collects the calls of a block, priced, with an app or without, and writes none."""
    gc.collect()  # an app is a cycle: those of earlier tests may be there still
    with capture_calls() as calls:
        track("openai", model="gpt-4o", usage={"input": 1000, "output": 10})
    assert (calls[0].usage["output"], calls[0].total_cost) == (10, Decimal("0.0026"))
    app, _other = make_app(), make_app()
    with capture_calls() as calls:
        track("openai", model="gpt-4o", usage={"input": 1})
    assert len(calls) == 1
    with app.app_context(), capture_calls() as calls:
        track("openai", model="gpt-4o", usage={"input": 1})
        assert len(calls) == 1
        assert spend.total().calls == 0
