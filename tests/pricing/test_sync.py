"""What a price file becomes when its sources are asked, over HTTPS, with LiteLLM's own entries and with hostile ones."""

from __future__ import annotations

import functools
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from price_server import PriceServer
from price_sources import NOW, Entry, Sources, entry_of, said_of, total_of, write_models

from flask_llm_cost.pricing import PriceBook, upkeep
from flask_llm_cost.pricing.fetch import own_mirror
from flask_llm_cost.pricing.pricefile import PriceFile
from flask_llm_cost.pricing.sources import Feed

EXCERPT = Path(__file__).with_name("litellm_excerpt.json")


def test_what_is_there_is_refreshed_and_nothing_else_comes(sources: Sources, path: Path) -> None:
    """The new rate with its provenance; a model that nobody has asked for stays out."""
    write_models(path, a={"rates": {"input": "2", "output": "8"}, "_source": "litellm"})
    sources.models(a={"input": 1.5, "output": 8}, b={"input": 1})
    done = sources.sync(path)
    entry = entry_of(path, "a")
    assert entry["rates"] == {"input": "1.5", "output": "8"}
    assert (entry["_source"], entry["_fetched_at"]) == ("litellm", "2026-11-25T12:00:00Z")
    assert entry["_source_version"].startswith("sha256:")
    assert list(PriceFile.load(path).models) == ["acme/a"]
    assert "input" in said_of(done)
    assert "2 -> 1.5" in said_of(done)


def test_a_maximum_of_output_is_kept_up_to_date(sources: Sources, path: Path) -> None:
    """A missing one is filled in and is no difference; a changed one is shown; neither is a price that had its time."""
    plain = {"rates": {"output": "8"}, "_source": "litellm", "_source_version": "x", "_fetched_at": "2026-01-01"}
    write_models(path, a=plain, b={**plain, "max_output": 4096}, c={**plain, "max_output": 4096})
    sources.models(a={"output": 8, "max_output_tokens": "8192"}, b={"output": 8}, c={"output": 8})
    done = sources.sync(path)
    assert not done.plan.drifts, said_of(done)
    assert entry_of(path, "a") == {**plain, "max_output": 8192}
    assert (entry_of(path, "b")["max_output"], entry_of(path, "c")["max_output"]) == (4096, 4096)

    sources.models(
        a={"output": 8, "max_output_tokens": "16384"},
        b={"output": 9, "max_output_tokens": "4096"},
        c={"output": 8, "max_output_tokens": "1"},
    )
    done = sources.sync(path)
    assert "max_output" in said_of(done)
    assert "8192 -> 16384" in said_of(done)
    assert entry_of(path, "a")["max_output"] == 16384
    assert "history" not in entry_of(path, "a")
    assert (entry_of(path, "b")["max_output"], entry_of(path, "b")["rates"]) == (4096, {"output": "9"})
    assert "REFUSED: max_output would change" in said_of(done)
    assert entry_of(path, "c")["max_output"] == 4096
    assert PriceBook.load(file=path).max_output("acme", "a", NOW) == 16384
    assert not sources.sync(path).plan.added


def test_a_preview_writes_nothing(sources: Sources, path: Path) -> None:
    """Not a byte, whatever it shows."""
    write_models(path, a={"input": "2", "_source": "litellm"})
    before = path.read_bytes()
    sources.models(a={"input": 1.5})
    done = sources.sync(path, save=False)
    assert done.plan.drifts
    assert path.read_bytes() == before


def test_an_earlier_price_stays_the_price_of_its_time(sources: Sources, path: Path) -> None:
    """What was is history, marked as observed, so that an old call priced again costs what it cost."""
    old = {
        "rates": {"input": "2"},
        "modes": {"batch": {"input": "1"}},
        "multipliers": {"residency:eu": "1.1"},
        "_source": "litellm",
    }
    write_models(path, a=old)
    sources.models(a={"input": 3, "input_cost_per_token_batches": 1.5, "regional_processing_uplift_multiplier_eu": "1.2"})
    sources.sync(path)
    entry = entry_of(path, "a")
    assert entry["history"] == [
        {
            "until": "2026-11-25T12:00:00Z",
            "rates": {"input": "2"},
            "modes": {"batch": {"input": "1"}},
            "multipliers": {"residency:eu": "1.1"},
            "_observed": True,
        }
    ]
    before, after = NOW - timedelta(seconds=1), NOW
    assert [total_of(path, "a", at) for at in (before, after)] == [Decimal(2), Decimal(3)]
    assert [total_of(path, "a", at, "batch") for at in (before, after)] == [Decimal(1), Decimal("1.5")]
    later = NOW + timedelta(days=30)
    sources.models(a={"input": 4, "input_cost_per_token_batches": 1.5})
    sources.sync(path, later)
    times = (before, after, later)
    assert [total_of(path, "a", at) for at in times] == [Decimal(2), Decimal(3), Decimal(4)]
    assert [total_of(path, "a", at, "batch") for at in times] == [Decimal(1), Decimal("1.5"), Decimal("1.5")]


def test_a_factor_and_a_fee_have_their_time_too(sources: Sources, path: Path) -> None:
    """A region's factor that changes does not rewrite what calls there have cost."""
    write_models(
        path,
        a={
            "rates": {"input": "2"},
            "multipliers": {"residency:eu": "1.1"},
            "tools": {"web_search": {"rate": "10", "per": "1000"}},
            "_source": "litellm",
        },
    )
    sources.litellm = {
        "acme/a": {
            "litellm_provider": "acme",
            "input_cost_per_token": 2e-06,
            "regional_processing_uplift_multiplier_eu": 1.2,
            "search_context_cost_per_query": {"low": 0.02, "high": 0.02},
        }
    }
    sources.sync(path)
    before, after = NOW - timedelta(seconds=1), NOW
    assert [total_of(path, "a", at, "residency:eu") for at in (before, after)] == [Decimal("2.2"), Decimal("2.4")]
    assert [total_of(path, "a", at, web_search=1000) for at in (before, after)] == [Decimal(10), Decimal(20)]


def test_a_scheduled_price_that_has_come_is_no_change(sources: Sources, path: Path) -> None:
    """A source that says what the file had foreseen agrees; one that says otherwise leaves the steps in order."""
    write_models(
        path,
        a={"rates": {"input": "1"}, "scheduled": [{"from": "2026-11-01", "rates": {"input": "2"}}], "_source": "litellm"},
    )
    sources.models(a={"input": 2})
    assert not sources.sync(path).plan.drifts
    sources.models(a={"input": 3})
    sources.sync(path)
    october, november = datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 2, tzinfo=UTC)
    assert [total_of(path, "a", at) for at in (october, november, NOW)] == [Decimal(1), Decimal(2), Decimal(3)]
    assert "scheduled" not in entry_of(path, "a")


def test_what_is_yours_is_never_touched(sources: Sources, path: Path) -> None:
    """``manual``, and what inherits; nor are they called orphans."""
    manual = {"rates": {"input": "1"}, "_source": "manual", "_note": "contract"}
    write_models(path, a=manual, c={"rates": {"input": "1"}, "_source": "manual"})
    sources.models(a={"input": 9})
    done = sources.sync(path)
    assert entry_of(path, "a") == manual
    assert (done.plan.orphans, done.plan.kept) == ([], 2)


def test_a_model_that_its_source_no_longer_has_is_listed_and_kept(sources: Sources, path: Path) -> None:
    """Old calls need its price."""
    write_models(path, a={"input": "1", "_source": "litellm"}, gone={"input": "2", "_source": "litellm"})
    sources.models(a={"input": 1})
    done = sources.sync(path)
    assert done.plan.orphans == ["acme/gone"]
    assert "acme/gone: its source no longer has it; kept" in said_of(done)
    assert total_of(path, "gone") == Decimal(2)
    assert "_gone_since" in entry_of(path, "gone")


def test_a_file_that_was_cut_off_does_not_bury_why_it_is_refused(sources: Sources, path: Path) -> None:
    """Of thousands of models that are gone a few are named, and the rest counted."""
    write_models(path, **{f"m{number}": {"input": "1", "_source": "litellm"} for number in range(100)})
    sources.models(m99={"input": 1})
    done = sources.sync(path)
    assert len(done.plan.orphans) == 99
    assert said_of(done).count("no longer has it; kept") == 20
    assert "- and 79 more; 'flask llm-cost prices check --format json' has them all" in said_of(done)


def test_models_are_added_where_a_source_has_the_very_key(sources: Sources, path: Path) -> None:
    """For calls without a price, and for who asks; what nobody has is said, with what is near."""
    write_models(path)
    sources.models(**{"seen-1": {"input": 1}, "asked-1": {"input": 2}})
    done = sources.sync(path, unpriced=["acme/seen-1", "acme/seen"], wanted=["acme/asked-1", "acme/asked-2"])
    assert set(done.plan.added) == {"acme/seen-1", "acme/asked-1"}
    assert done.plan.unknown == {"acme/asked-2": ("acme/asked-1",)}
    assert done.bad
    assert total_of(path, "seen-1") == Decimal(1)
    assert "near: acme/asked-1" in said_of(done)


@pytest.mark.parametrize(
    ("there", "offered", "reason"),
    [
        ({"input": "1", "output": "2"}, {"input": 1, "output": 0}, "output would become 0"),
        ({"input": "1", "output": "2"}, {"input": 1}, "output would be removed"),
        ({"input": "1", "output": "2"}, {"output": 2}, "input would be removed"),
        ({"input": "1"}, {"input": 100}, "input would change 100 times"),
        ({"input": "1"}, {"input": 0.01}, "input would change to 1/100"),
        (
            {"rates": {"input": "1"}, "modes": {"batch": {"input": "0.5"}}},
            {"input": 1, "input_cost_per_token_batches": 60},
            "batch.input",
        ),
        ({"rates": {"input": "1"}, "currency": "EUR"}, {"input": 1}, "currency would change from EUR to USD"),
    ],
)
def test_what_is_probably_a_mistake_is_refused(
    sources: Sources, path: Path, there: Entry, offered: Entry, reason: str
) -> None:
    """The entry stays as it is, the others are taken; with ``--accept`` it is taken too."""
    write_models(path, a={**there, "_source": "litellm"}, b={"input": "1", "_source": "litellm"})
    before = entry_of(path, "a")
    sources.models(a=offered, b={"input": 1.5})
    done = sources.sync(path)
    assert reason in said_of(done)
    assert done.bad
    assert entry_of(path, "a") == before
    assert total_of(path, "b") == Decimal("1.5")
    accepted = sources.sync(path, NOW + timedelta(hours=1), accept=True)
    assert [merged.key for merged in accepted.plan.changed] == ["acme/a"]
    assert entry_of(path, "a") != before
    assert not sources.sync(path, NOW + timedelta(hours=2)).plan.drifts


def test_0_0_and_less_are_never_taken_not_even_when_accepted(sources: Sources, path: Path) -> None:
    """Unknown is not free, and -1 is no price."""
    write_models(path, a={"input": "1", "output": "2", "_source": "litellm"}, b={"input": "1", "_source": "litellm"})
    sources.models(a={"input": 0, "output": 0}, b={"input": -1}, c={"input": 1})
    done = sources.sync(path, accept=True)
    assert set(done.plan.rejected) == {"acme/a", "acme/b"}
    assert done.plan.strictly_bad
    assert total_of(path, "a") == Decimal(1)


def test_more_than_three_times_is_shown_taken_and_can_be_silenced(sources: Sources, path: Path) -> None:
    """A real price may do so; strict does not take it."""
    write_models(
        path,
        a={"input": "1", "_source": "litellm"},
        b={"rates": {"input": "1"}, "_source": "litellm", "_validator_override": ["skip_relative_change"]},
        c={"input": "1", "_source": "litellm"},
        d={"input": "3.1", "_source": "litellm"},
        e={"rates": {"input": "1"}, "modes": {"flex": {"input": "0.5"}}, "_source": "litellm"},
        f={"rates": {"input": "1"}, "tiers": [{"above": 200000, "rates": {"input": "2"}}], "_source": "litellm"},
    )
    sources.models(
        a={"input": 3.1},
        b={"input": 3.1},
        c={"input": 3},
        d={"input": 1},
        e={"input": 1, "input_cost_per_token_flex": 1.6},
        f={"input": 1, "input_cost_per_token_above_200k_tokens": 6.2},
    )
    done = sources.sync(path)
    assert {merged.key[-1]: merged.flags for merged in done.plan.flags} == {
        "a": ["input changes 3.1 times"],
        "d": ["input changes to 1/3.1"],
        "e": ["flex.input changes 3.2 times"],
        "f": [">200000.input changes 3.1 times"],
    }
    assert done.plan.strictly_bad
    assert not done.bad
    assert total_of(path, "a") == total_of(path, "b") == Decimal("3.1")
    assert entry_of(path, "b")["_validator_override"] == ["skip_relative_change"]


def test_a_part_that_costs_more_than_the_whole_is_shown(sources: Sources, path: Path) -> None:
    """A cached token dearer than a plain one, a batch dearer than standard: sources have shipped such slips."""
    write_models(
        path, a={"rates": {"input": "1", "cache_read": "0.5"}, "modes": {"batch": {"input": "0.5"}}, "_source": "litellm"}
    )
    sources.models(a={"input": 1, "cache_read": 1.2, "input_cost_per_token_batches": 1.1})
    said = said_of(sources.sync(path))
    assert "cache_read 1.2 is more than input 1" in said
    assert "batch input 1.1 is more than standard 1" in said


def test_an_hour_s_write_is_no_cheaper_than_a_short_one_s_and_sound_no_cheaper_than_text(
    sources: Sources, path: Path
) -> None:
    """Each is shown by its two rates."""
    old = {"input": "1", "cache_write": "1.25", "cache_write_1h": "2", "audio_input": "3", "audio_cache_read": "0.1"}
    write_models(path, a={"rates": old, "_source": "litellm"})
    hour = "cache_creation_input_token_cost_above_1hr"
    fields = {"cache_creation_input_token_cost": 1.25, hour: 1.1, "input_cost_per_audio_token": 0.9}
    sources.models(a={"input": 1, **fields, "cache_read_input_audio_token_cost": 0.95})
    said = said_of(sources.sync(path))
    for flag in (
        "cache_write 1.25 is more than cache_write_1h 1.1",
        "input 1 is more than audio_input 0.9",
        "audio_cache_read 0.95 is more than audio_input 0.9",
    ):
        assert flag in said


def test_an_audio_rate_far_from_its_sibling_s_is_shown(sources: Sources, path: Path) -> None:
    """LiteLLM had one model at 100 and the same by another date at 40, which is less than three times."""
    entry = {"rates": {"input": "2.5", "audio_input": "40"}, "_source": "litellm"}
    names = ("talk", "talk-2024-12-17", "talk-mini", "hear", "hear-20240101")
    write_models(path, **dict.fromkeys(names, entry))
    audio = {name: {"input": 2.5, "input_cost_per_audio_token": 40} for name in names}
    audio["talk"]["input_cost_per_audio_token"] = 100
    audio["hear"]["input_cost_per_audio_token"] = 99
    sources.models(**audio)
    flags = {merged.key: merged.flags for merged in sources.sync(path).plan.changed}
    assert flags == {
        "acme/talk": ["audio_input 100 is 2.5 times that of acme/talk-2024-12-17, or more"],
        "acme/hear": [],
    }


def test_a_model_may_be_dear(sources: Sources, path: Path) -> None:
    """150 and 600 are the prices of a real one: what is there is refreshed, and what is asked for is added."""
    write_models(path, a={"input": "150", "output": "600", "_source": "litellm"})
    sources.models(a={"input": 160, "output": 640}, b={"input": 150, "output": 600})
    done = sources.sync(path, wanted=["acme/b"])
    assert not done.plan.strictly_bad
    assert [entry_of(path, name)["rates"] for name in "ab"] == [
        {"input": "160", "output": "640"},
        {"input": "150", "output": "600"},
    ]


def test_many_models_gone_is_a_file_cut_off(sources: Sources, path: Path) -> None:
    """More than a tenth: nothing is written unless it is accepted. Those that are known to be gone do not count again."""
    write_models(path, **{f"m{n}": {"input": "1", "_source": "litellm"} for n in range(20)})
    before = path.read_bytes()
    sources.models(**{f"m{n}": {"input": 1.5} for n in range(17)})
    done = sources.sync(path)
    assert done.plan.refused
    assert done.bad
    assert path.read_bytes() == before
    sources.sync(path, accept=True)
    assert len(PriceFile.load(path).models) == 20
    assert not sources.sync(path, NOW + timedelta(hours=1)).plan.refused


def test_most_prices_moving_at_once_is_somebody_else_s_file(sources: Sources, path: Path) -> None:
    """More than half of many: refused until it is accepted."""
    write_models(path, **{f"m{n}": {"input": "1", "_source": "litellm"} for n in range(30)})
    sources.models(**{f"m{n}": {"input": 1.2 if n < 20 else 1} for n in range(30)})
    assert sources.sync(path).plan.refused == ["20 of 30 prices would change at once"]
    assert total_of(path, "m0") == Decimal(1)


def test_a_missing_cache_rate_is_filled_in_where_the_prices_agree(sources: Sources, path: Path) -> None:
    """OpenRouter fills what LiteLLM lacks, never a write of Gemini's, never a reseller's, and never over what is there."""
    entry = {"rates": {"input": "3", "output": "15"}, "_source": "litellm"}
    path.write_text(
        json.dumps(
            {
                "models": {
                    "anthropic/claude-9": entry,
                    "gemini/gemini-9": entry,
                    "openai/gpt-9": {**entry, "rates": {**entry["rates"], "cache_read": "0.4"}},
                    "mistral/mistral-9": entry,
                    "mistral/mistral-8": entry,
                    "openrouter/x/y": entry,
                }
            }
        )
    )
    prices = {
        "prompt": "0.000003",
        "completion": "0.000015",
        "input_cache_read": "0.0000003",
        "input_cache_write": "0.00000375",
    }
    dearer, hardly = {**prices, "prompt": "0.00000315"}, {**prices, "completion": "0.0000157"}
    sources.openrouter = {
        "anthropic/claude-9": prices,
        "google/gemini-9": prices,
        "openai/gpt-9": prices,
        "mistralai/mistral-9": dearer,
        "mistralai/mistral-8": hardly,
        "x/y": prices,
    }
    base = {"input_cost_per_token": 3e-06, "output_cost_per_token": 1.5e-05}
    sources.litellm = {
        "claude-9": {"litellm_provider": "anthropic", **base},
        "gemini/gemini-9": {"litellm_provider": "gemini", **base},
        "gpt-9": {"litellm_provider": "openai", **base, "cache_read_input_token_cost": 4e-07},
        "mistral/mistral-9": {"litellm_provider": "mistral", **base},
        "mistral/mistral-8": {"litellm_provider": "mistral", **base},
        "openrouter/x/y": {"litellm_provider": "openrouter", **base},
    }
    done = sources.sync(path)
    rates = {key: entry["rates"] for key, entry in PriceFile.load(path).models.items()}
    assert rates["anthropic/claude-9"] == {"input": "3", "cache_read": "0.3", "cache_write": "3.75", "output": "15"}
    assert rates["gemini/gemini-9"] == {"input": "3", "cache_read": "0.3", "output": "15"}
    assert rates["openai/gpt-9"] == {"input": "3", "cache_read": "0.4", "cache_write": "3.75", "output": "15"}
    assert rates["mistral/mistral-9"] == rates["mistral/mistral-8"] == {"input": "3", "output": "15"}
    assert rates["openrouter/x/y"]["cache_read"] == "0.3"
    assert done.plan.resellers == ["mistral/mistral-9: input 3 here, 3.15 at OpenRouter"]
    assert not sources.sync(path, NOW + timedelta(hours=1)).plan.drifts


def test_a_provider_s_own_price_is_not_added_from_a_reseller(sources: Sources, path: Path) -> None:
    """What OpenRouter takes for a model is a price of ``openrouter/``, not of who made it."""
    write_models(path)
    sources.openrouter = {"anthropic/claude-9": {"prompt": "0.000003", "completion": "0.000015"}}
    sources.models(a={"input": 1})
    key = "anthropic/claude-9"
    done = sources.sync(path, wanted=[key, f"openrouter/{key}"], unpriced=[key])
    assert set(done.plan.added) == {f"openrouter/{key}"}
    assert set(done.plan.unknown) == {key}


def test_a_model_that_only_openrouter_has_is_kept_up_to_date_from_there(sources: Sources, path: Path) -> None:
    """Added from there, refreshed from there, and no orphan of LiteLLM's."""
    path.write_text("{}")
    sources.models(a={"input": 1})
    sources.openrouter = {"x/new": {"prompt": "0.000001", "completion": "0.000002"}}
    assert set(sources.sync(path, wanted=["openrouter/x/new"]).plan.added) == {"openrouter/x/new"}
    sources.openrouter = {"x/new": {"prompt": "0.0000015", "completion": "0.000002"}}
    done = sources.sync(path, NOW + timedelta(hours=1))
    assert done.plan.orphans == []
    entry = PriceFile.load(path).models["openrouter/x/new"]
    assert (entry["rates"]["input"], entry["_source"]) == ("1.5", "openrouter")
    sources.openrouter = {}
    assert sources.sync(path, NOW + timedelta(hours=2)).plan.orphans == ["openrouter/x/new"]


def test_a_mirror_in_our_own_form_goes_before_the_book_s_verdicts(sources: Sources, path: Path) -> None:
    """What a company writes for all of its apps is its word."""
    _seeded(path)
    sources.server.say("/mirror", json.dumps({"models": {"mistral/mistral-large-4": {"rates": {"input": "0.65"}}}}).encode())
    url = sources.server.url("/mirror")
    fetch = functools.partial(upkeep.fetch, context=sources.server.context())
    feeds = (Feed("mirror", url, own_mirror(url)),)
    done = upkeep.synchronise(path, NOW, whole_book=False, feeds=feeds, fetch=fetch, accept=True)
    assert done.save(NOW, accept=True)
    assert PriceFile.load(path).models["mistral/mistral-large-4"]["rates"]["input"] == "0.65"


def test_a_source_that_fails_changes_nothing_of_its_own(sources: Sources, path: Path) -> None:
    """The other one is taken; with none the prices stay, and it says so."""
    write_models(path, a={"input": "1", "_source": "litellm"})
    sources.models(a={"input": 1.5})
    sources.broken = {"openrouter"}
    done = sources.sync(path)
    assert "answered 500" in said_of(done)
    assert not done.bad
    assert done.plan.strictly_bad
    assert total_of(path, "a") == Decimal("1.5")
    sources.broken = {"litellm", "openrouter"}
    before = path.read_bytes()
    done = sources.sync(path, save=False)
    assert done.bad
    assert path.read_bytes() == before


def test_what_has_not_changed_is_not_compared_again(sources: Sources, path: Path, server: PriceServer) -> None:
    """The tags of the last time are sent; a file that was edited since is compared with everything."""
    write_models(path, a={"input": "1", "_source": "litellm"})
    sources.models(a={"input": 1.5})
    sources.sync(path)
    sources.sync(path, NOW + timedelta(hours=1))
    tags = [headers.get("if-none-match") for _, headers in server.requests]
    assert tags[:2] == [None, None]
    assert None not in tags[2:]
    path.write_text(path.read_text().replace('"1.5"', '"1.7"'))
    assert sources.sync(path, NOW + timedelta(hours=2)).plan.drifts
    assert server.requests[-1][1].get("if-none-match") is None


def _seeded(path: Path) -> None:
    """A file of the bundled entries of those models that the excerpt has."""
    book = PriceBook.load()
    keys = [
        key
        for name in json.loads(EXCERPT.read_text())
        for key in (f"openai/{name}", f"anthropic/{name}", name)
        if key in book.keys
    ]
    old = {"rates": {"input": "1"}, "_source": "seed", "_source_version": "older"}
    path.write_text(json.dumps({"models": dict.fromkeys(keys, old)}))


def test_the_bundled_book_does_not_drift_from_what_it_was_made_from(sources: Sources, path: Path) -> None:
    """LiteLLM's own entries against the book built from them: no difference, whatever units, tiers and hours they have."""
    _seeded(path)
    sources.litellm = json.loads(EXCERPT.read_text())
    done = sources.sync(path)
    assert done.plan.compared >= 20
    assert not done.plan.drifts, said_of(done)
    assert not done.plan.rejected


def test_a_verdict_of_the_book_outlives_its_source(sources: Sources, path: Path) -> None:
    """Where the book's makers decided against LiteLLM, its number does not come back."""
    _seeded(path)
    sources.litellm = json.loads(EXCERPT.read_text())
    assert sources.litellm["mistral/mistral-large-4"]["input_cost_per_token"] == 1.36e-06
    sources.sync(path)
    assert PriceFile.load(path).models["mistral/mistral-large-4"]["rates"]["input"] == "0.7"


def test_a_newer_edition_of_the_book_renews_what_an_older_one_gave(sources: Sources, path: Path) -> None:
    """An upgrade of the package is not shadowed by the file that an older one started."""
    _seeded(path)
    sources.litellm = json.loads(EXCERPT.read_text())
    done = sources.sync(path)
    assert done.plan.seeded >= 20
    entry = PriceFile.load(path).models["openai/gpt-4o"]
    assert (entry["rates"]["input"], entry["_source"]) == ("2.5", "seed")


def test_a_file_that_was_started_from_the_whole_book_gets_what_a_newer_one_adds(sources: Sources, path: Path) -> None:
    """Else a dated model of the newer book would be priced by the undated one in the file."""
    upkeep.start(path, NOW)
    file = PriceFile.load(path)
    del file.models["openai/gpt-4o-2024-05-13"]
    file.save()
    sources.litellm = json.loads(EXCERPT.read_text())
    done = sources.sync(path, save=False)
    assert done.plan.seeded == 1
    assert "openai/gpt-4o-2024-05-13" in done.plan.models
