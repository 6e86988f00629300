"""Pricing calls again that are in the ledger: what moves, what stays, and what goes on meanwhile."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from flask_llm_cost import LlmCostTracker, track
from flask_llm_cost import reprice as repricing
from flask_llm_cost.extension import state_of
from flask_llm_cost.ledger.models import Adjustment, BudgetPeriod, Call, LineItem, PriceSnapshot, UsageRollup

NOW = datetime.now(UTC)
TODAY = NOW.date().isoformat()


class Shop:
    """An app with a price file of its own and a budget that counts all."""

    def __init__(self, url: sa.URL, folder: Path) -> None:
        self.prices = folder / "prices.json"
        self.prices.write_text("{}")
        app = self.app = Flask("shop", instance_path=str(folder))
        app.config.update(
            SQLALCHEMY_DATABASE_URI=url,
            LLM_COST_PRICES_FILE=self.prices,
            LLM_COST_BUDGETS=[{"name": "all", "limit": "1000000", "period": "total", "action": "notify"}],
            LLM_COST_UNKNOWN_PRICE="ignore",
        )
        app.testing = True
        self.database = SQLAlchemy(app)
        self.costs = LlmCostTracker(app)
        with app.app_context():
            self.database.create_all()
            self.engine = self.database.engine

    def book(self, **models: Any) -> None:
        self.prices.write_text(json.dumps({"models": {f"acme/{name}": raw for name, raw in models.items()}}))

    def call(self, model: str = "a", count: int = 1, at: datetime = NOW, **usage: int) -> None:
        with self.app.app_context():
            for _ in range(count):
                track(
                    "acme", model=model, usage=usage or {"input": 1000, "output": 10}, tags={"feature": "x"}, occurred_at=at
                )
            assert self.costs.flush(30)

    def run(self, *args: str) -> Any:
        return self.app.test_cli_runner().invoke(args=["llm-cost", *args])

    def rows(self, *columns: Any) -> list[Any]:
        with self.engine.connect() as connection:
            return list(connection.execute(sa.select(*columns)))

    def agree(self) -> Decimal:
        """What all calls cost; rows, lines, rollups and the budget say the same."""
        calls = sum((total or Decimal(0) for (total,) in self.rows(Call.total_cost)), Decimal(0))
        lines = sum((cost or Decimal(0) for (cost,) in self.rows(LineItem.cost)), Decimal(0))
        assert lines == calls
        if rollups := self.rows(UsageRollup.component, UsageRollup.cost):
            by_component: dict[str, Decimal] = {}
            for component, cost in rollups:
                by_component[component] = by_component.get(component, Decimal(0)) + cost
            assert by_component.pop("") == by_component.pop("*") == calls
            assert sum(by_component.values()) == calls
        ((spent,),) = self.rows(BudgetPeriod.spent)
        assert spent == calls
        return calls


@pytest.fixture
def shop(database_url: sa.URL, tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(database_url, tmp_path)
    yield shop
    state_of(shop.app).ledger.close()
    shop.engine.dispose()


def test_backfill_prices_what_had_no_price(shop: Shop) -> None:
    """Rows, lines, tags, rollups and budgets move together; each change is on record; what has a price keeps it."""
    shop.book(b={"input": "1", "output": "1"})
    shop.call("a", count=3)
    shop.call("b")
    before = shop.agree()
    shop.book(a={"input": "2", "output": "10"}, b={"input": "7", "output": "7"})
    result = shop.run("backfill", "--dry-run")
    assert "3 of 3 calls would change" in result.output
    assert shop.agree() == before
    result = shop.run("backfill")
    assert result.exit_code == 0, result.output
    assert "acme/a" in result.output
    assert "3 without a price before" in result.output
    assert shop.agree() == before + 3 * Decimal("0.0021")
    adjustments = shop.rows(Adjustment.kind, Adjustment.old_cost, Adjustment.new_cost, Adjustment.actor)
    assert adjustments == [("backfill", None, Decimal("0.0021"), "flask llm-cost")] * 3
    assert "0 of 0 calls changed" in shop.run("backfill").output


def test_a_call_from_before_a_budget_moves_none_of_it(shop: Shop) -> None:
    """A budget that began after a call never counted it, so a new price of the call is nothing that was spent of it."""
    shop.call("a", count=2)
    with shop.engine.begin() as connection:
        connection.execute(sa.update(BudgetPeriod).values(created_at=datetime.now(UTC) + timedelta(hours=1)))
    shop.book(a={"input": "2", "output": "10"})
    assert "2 of 2 calls changed" in shop.run("backfill").output
    assert shop.rows(BudgetPeriod.spent) == [(Decimal(0),)]


def test_backfill_fills_a_partial_bill_and_moves_no_line_of_it(shop: Shop) -> None:
    """A line that has a price keeps it, whatever the book says now: then the call is left for a reprice."""
    shop.book(a={"input": "2"})
    shop.call("a")
    assert [status for (status,) in shop.rows(Call.cost_status)] == ["partial"]
    shop.book(a={"input": "3", "output": "10"})
    assert "0 of 1 call changed" in shop.run("backfill").output
    shop.book(a={"input": "2", "output": "10"})
    assert "1 of 1 call changed" in shop.run("backfill").output
    assert [status for (status,) in shop.rows(Call.cost_status)] == ["priced"]
    assert shop.agree() == Decimal("0.0021")


def test_a_price_that_changes_moves_no_old_call_until_somebody_reprices(shop: Shop) -> None:
    """A dry run shows the difference by model and writes nothing; ``--yes`` moves everything by exactly that."""
    shop.book(a={"input": "2", "output": "10"}, b={"input": "1"})
    shop.call("a", count=4)
    shop.call("b", input=1000)
    shop.call("a", at=NOW - timedelta(days=3))
    before = shop.agree()
    shop.book(a={"input": "3", "output": "10"}, b={"input": "1"})
    assert shop.agree() == before
    dry = shop.run("reprice", "--from", TODAY, "--to", TODAY, "--dry-run")
    assert "acme/a" in dry.output
    assert "+0.004000" in dry.output
    assert "acme/b" not in dry.output
    assert shop.agree() == before
    asked = shop.run("reprice", "--from", TODAY, "--to", TODAY)
    assert asked.exit_code == 1
    assert shop.agree() == before
    result = shop.run("reprice", "--from", TODAY, "--to", TODAY, "--yes")
    assert result.exit_code == 0, result.output
    assert shop.agree() == before + 4 * Decimal("0.001")
    adjustments = shop.rows(
        Adjustment.kind,
        Adjustment.old_cost,
        Adjustment.new_cost,
        Adjustment.reason,
        Adjustment.made_at,
        Adjustment.occurred_at,
    )
    assert len(adjustments) == 4
    for kind, old, new, reason, made_at, occurred_at in adjustments:
        assert (kind, old, new) == ("reprice", Decimal("0.0021"), Decimal("0.0031"))
        assert reason.startswith("prices ")
        assert made_at >= occurred_at
    assert "0 of 5 calls changed" in shop.run("reprice", "--from", TODAY, "--to", TODAY, "--yes").output


def test_the_prices_are_those_of_the_time_of_each_call(shop: Shop) -> None:
    """Not those of the day on which it is priced."""
    cut = NOW - timedelta(days=2)
    shop.call("a", at=NOW - timedelta(days=4), input=1_000_000)
    shop.call("a", input=1_000_000)
    shop.book(a={"rates": {"input": "2"}, "history": [{"until": cut.isoformat(), "rates": {"input": "5"}}]})
    assert shop.run("backfill").exit_code == 0
    assert sorted(total for (total,) in shop.rows(Call.total_cost)) == [Decimal(2), Decimal(5)]


def test_a_minimum_is_undone_before_another_price_counts(shop: Shop) -> None:
    """What is billed as ten seconds stays known as three and a half: with a least of five it is five, with none itself."""
    shop.book(a={"rates": {"audio_seconds": "1"}, "minimum": {"audio_seconds": "10"}})
    with shop.app.app_context():
        used = {"audio_seconds": Decimal("3.5")}
        track("acme", model="a", usage=used, occurred_at=NOW, tags={"feature": "x"})
        track("acme", model="b", usage=used, occurred_at=NOW, tags={"feature": "x"})
        assert shop.costs.flush(30)
    quantities = sa.select(LineItem.quantity).join(Call, Call.id == LineItem.call_id).order_by(Call.model)

    def billed() -> list[Decimal]:
        with shop.engine.connect() as connection:
            return list(connection.scalars(quantities))

    assert billed() == [10, Decimal("3.5")]
    shop.book(
        a={"rates": {"audio_seconds": "3"}, "minimum": {"audio_seconds": "5"}},
        b={"rates": {"audio_seconds": "1"}, "minimum": {"audio_seconds": "60"}},
    )
    assert shop.run("backfill").exit_code == 0
    assert billed() == [10, 60]
    assert "1 of 2 calls changed" in shop.run("reprice", "--from", TODAY, "--to", TODAY, "--yes").output
    assert billed() == [5, 60]
    assert shop.agree() == 75
    shop.book(a={"audio_seconds": "3"}, b={"audio_seconds": "1"})
    assert "2 of 2 calls changed" in shop.run("reprice", "--from", TODAY, "--to", TODAY, "--yes").output
    assert billed() == [Decimal("3.5"), Decimal("3.5")]
    assert shop.agree() == 14
    assert shop.rows(Call.raw_usage) == [(None,), (None,)]


def test_a_tier_is_chosen_again_by_all_input(shop: Shop) -> None:
    """Plain and cached together, as when the call came in; reasoning parts from output where the new price says so."""
    tiers = [{"above": 1000, "rates": {"input": "4", "cache_read": "2", "output": "20", "reasoning": "40"}}]
    shop.book(a={"input": "2", "cache_read": "1", "output": "10"})
    with shop.app.app_context():
        block = {
            "prompt_tokens": 1001,
            "completion_tokens": 100,
            "total_tokens": 1101,
            "prompt_tokens_details": {"cached_tokens": 600},
            "completion_tokens_details": {"reasoning_tokens": 40},
        }
        track("acme", model="a", usage=block, occurred_at=NOW, tags={"feature": "x"})
        assert shop.costs.flush(30)
    assert shop.agree() == Decimal("0.002402")
    rates = {"input": "2", "cache_read": "1", "output": "10", "reasoning": "40"}
    shop.book(a={"rates": rates, "tiers": tiers})
    assert "1 of 1 call changed" in shop.run("reprice", "--from", TODAY, "--to", TODAY, "--yes").output
    # 401 x 4 + 600 x 2 + 60 x 20 + 40 x 40, by the million
    assert shop.agree() == Decimal("0.005604")
    assert {tier for (tier,) in shop.rows(PriceSnapshot.tier)} == {None, ">1000"}
    shop.book(a={"input": "2", "cache_read": "1", "output": "10"})
    assert "1 of 1 call changed" in shop.run("reprice", "--from", TODAY, "--to", TODAY, "--yes").output
    assert shop.agree() == Decimal("0.002402")


def test_what_a_provider_billed_stays_the_bill(shop: Shop) -> None:
    """A book never wins over what the provider says it charged; nor does a price that is lost take one away."""
    shop.book(a={"input": "2"})
    with shop.app.app_context():
        for billed in ("0.5", None):
            track("acme", model="a", usage={"input": 1000}, billed=billed, occurred_at=NOW, tags={"feature": "x"})
        assert shop.costs.flush(30)
    (figures,) = [row for row in shop.rows(Call.total_cost, Call.computed_cost) if row[1] is not None]
    assert figures == (Decimal("0.5"), Decimal("0.002"))
    before = shop.agree()
    shop.book()
    result = shop.run("reprice", "--from", TODAY, "--to", TODAY, "--yes")
    assert "1 call stays: the provider said what it charged" in result.output
    assert "1 call stays: the book has no whole price" in result.output
    assert shop.agree() == before


def test_it_is_safe_while_calls_come_in(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that are written meanwhile are counted once, at their own price, and no figure is lost in between."""
    monkeypatch.setattr(repricing, "BATCH", 20)
    shop.call("a", count=150, input=1000)
    shop.book(a={"input": "2"})
    stop = threading.Event()
    made = 0

    def keep_calling() -> None:
        nonlocal made
        while not stop.is_set():
            shop.call("a", count=5, input=1000)
            made += 5

    thread = threading.Thread(target=keep_calling)
    thread.start()
    try:
        results = [shop.run("backfill") for _ in range(3)]
    finally:
        stop.set()
        thread.join()
    assert [result.exit_code for result in results] == [0, 0, 0], results[0].output
    assert "150 of 150 calls changed" in results[0].output
    assert shop.agree() == (150 + made) * Decimal("0.002")


def test_stopped_half_way_the_next_run_does_the_rest(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that were committed stay; nothing is done twice."""
    monkeypatch.setattr(repricing, "BATCH", 20)
    shop.call("a", count=45, input=1000)
    shop.book(a={"input": "2"})
    state = state_of(shop.app)

    def told(_count: int) -> None:
        raise KeyboardInterrupt

    where = repricing.conditions(backfill=True)
    with pytest.raises(KeyboardInterrupt), shop.app.app_context():
        repricing.price_again(state.ledger, state.book, kind="backfill", where=where, dry_run=False, told=told)
    assert shop.agree() == 20 * Decimal("0.002")
    assert "25 of 25 calls changed" in shop.run("backfill").output
    assert shop.agree() == 45 * Decimal("0.002")
    assert len(shop.rows(Adjustment.id)) == 45


def test_days_are_those_of_the_reporting_zone_and_to_is_not_before_from(shop: Shop) -> None:
    """The last day is included; a range that is none is refused."""
    result = shop.run("reprice", "--from", "2026-11-02", "--to", "2026-11-01", "--yes")
    assert result.exit_code == 2
    assert "is before --from" in result.output


def test_every_call_can_be_recomputed_from_its_own_rows(shop: Shop) -> None:
    """Without the price book: the rates of its frozen price, times the quantities of its lines, are its cost."""
    golden = json.loads((Path(__file__).parents[1] / "pricing" / "golden.json").read_text("utf-8"))
    with shop.app.app_context():
        for case in golden:
            usage = {line[0]: line[1] for line in case["lines"]}
            at = datetime.fromisoformat(case["at"])
            track(case["provider"], model=case["model"], usage=usage or {"input": 0}, mode=case["mode"], occurred_at=at)
        assert shop.costs.flush(60)
    prices = {row.id: row for row in shop.rows(PriceSnapshot.__table__)}
    lines: dict[Any, list[Any]] = {}
    for line in shop.rows(LineItem.__table__):
        lines.setdefault(line.call_id, []).append(line)
    calls = shop.rows(Call.__table__)
    assert len(calls) == len(golden)
    recomputed = 0
    for call in calls:
        own = lines.get(call.id, [])
        if call.total_cost is None:
            assert all(line.cost is None and line.rate is None for line in own)
            continue
        price = prices[call.price_id]
        total = Decimal(0)
        for line in own:
            if line.cost is None:
                assert call.cost_status == "partial"
                continue
            rate, per = (Decimal(text) for text in price.rates[line.component])
            exact = line.quantity * rate / per
            assert abs(line.cost - exact) <= Decimal("5e-13")
            assert (line.rate, line.rate_per) == (rate.quantize(Decimal("1e-12")), per)
            total += exact
        assert call.total_cost == total.quantize(Decimal("1e-12"))
        assert (price.match_kind, price.matched_key) != ("", "")
        assert price.multiplier > 0
        assert 0 <= price.discount < 1
        recomputed += 1
    assert recomputed > 120
