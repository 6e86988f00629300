"""Every page, its JSON and its CSV: the same figures in all, within the scope in all, in a bounded number of questions."""

from __future__ import annotations

import csv
import functools
import io
import json
import re
import sqlite3
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal, localcontext
from html import unescape
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from addresses import FORMATS, PAGES, in_format
from mounted_app import BUDGETS, PREFIX, MountedApp, said, statements
from sqlalchemy import URL

from flask_llm_cost import track
from flask_llm_cost.ledger.models import Adjustment, BudgetHold, BudgetPeriod, Call
from flask_llm_cost.ledger.sample_queries import latest
from flask_llm_cost.records import new_call_id

Make = Callable[..., MountedApp]


def table(response: Any) -> list[dict[str, str]]:
    assert response.status_code == 200, response.get_data(as_text=True)
    return list(csv.DictReader(io.StringIO(response.data.decode("utf-8-sig"), newline="")))


@pytest.mark.parametrize("address", PAGES.values(), ids=PAGES)
def test_every_page_has_its_twins(full: MountedApp, address: str) -> None:
    """Each page is there as HTML, as JSON that says what was asked, and as a CSV file with a header and rows."""
    html = full.get(PREFIX + address)
    assert html.status_code == 200
    assert b"<h1>" in html.data
    assert full.get(PREFIX + in_format(address, "json")).get_json()
    file = full.get(PREFIX + in_format(address, "csv"))
    assert file.data.startswith(b"\xef\xbb\xbf")
    assert file.headers["Content-Disposition"].startswith('attachment; filename="llm-')
    assert len(table(file)) > 0


def test_the_overviews_json_is_the_whole_page(make: Make) -> None:
    """What today came to, the odd days, the forecast by day and the budgets are in the JSON as they are on the page."""
    app = make(LLM_COST_BUDGETS=BUDGETS).mount()
    now = datetime.now(UTC)
    for days in range(1, 29):
        app.add("60" if days == 3 else "10", at=now - timedelta(days=days), tags={"feature": "chat"})
    app.add("2.5", at=now - timedelta(seconds=1))
    month = app.get(PREFIX + "/?format=json").get_json()
    assert month["today"]["cost"] == "2.5"
    assert [item["name"] for item in month["budgets"]] == ["everything"]
    ahead = month["forecast"]["days"]
    left = (now.replace(day=28) + timedelta(days=4)).replace(day=1).date() - now.date()
    assert len(ahead) == left.days - 1
    assert all(Decimal(day["low"]) <= Decimal(day["middle"]) <= Decimal(day["high"]) for day in ahead)
    found = app.get(PREFIX + "/?range=30d&format=json").get_json()
    (odd,) = found["odd_days"]
    assert (odd["day"], odd["cost"], odd["usual"]) == ((now - timedelta(days=3)).date().isoformat(), "60", "10")
    assert "median absolute deviation" in odd["rule"]
    then = app.get(PREFIX + "/?from=2020-01-01&to=2020-01-31&format=json").get_json()
    assert (then["today"], then["odd_days"], then["forecast"], then["budgets"]) == (None, [], None, [])


def test_every_table_has_its_file(make: Make) -> None:
    """Beside each table that is not its page's first stands a link to it as CSV, with all rows; other tables are none."""
    app = make(LLM_COST_BUDGETS=[{"name": "each", "limit": "10", "period": "day", "per": "tenant_id", "action": "block"}])
    app.mount().mount("/mine", name="mine", guard=None, scope=lambda: {"tenant_id": "t1"})
    app.add_all(("1", {"stream": True, "provider": name, "tags": {"tenant_id": "t1"}}) for name in ("openai", "acme"))
    with app.app.app_context():
        track("openai", model="gpt-4o", usage={"input": 1000}, tags={"tenant_id": "t1"})
        assert app.costs.flush(20)
        session = app.database.session
        period = session.scalars(sa.select(BudgetPeriod)).one()
        made = datetime.now(UTC) - timedelta(minutes=1)
        session.add_all(
            BudgetHold(
                call_id=uuid4(), period_id=period.id, amount=1500, state="open", created_at=made,
                expires_at=made + timedelta(hours=1),
            )
            for _ in range(230)
        )  # fmt: skip
        session.commit()
    for address, rows in (("data-quality?table=streams", 2), ("budgets?table=holds", 230)):
        page, _, name = address.partition("?")
        hrefs = re.findall(r'href="([^"]*format=csv[^"]*)"', app.get(f"{PREFIX}/{page}").get_data(as_text=True))
        (href,) = [unescape(href) for href in hrefs if name in href and "decimal" not in href]
        assert len(table(app.get(href))) == rows, address
        assert len(table(app.get(f"/mine/{address}&format=csv"))) == rows
    assert {(row["amount"], row["currency"]) for row in table(app.get(f"{PREFIX}/budgets?table=holds&format=csv"))} == {
        ("1500", "USD")
    }
    assert table(app.get("/mine/data-quality?table=changes&format=csv")) == []
    (stream, _) = table(app.get(f"{PREFIX}/data-quality?table=streams&format=csv"))
    assert stream == {"provider": "acme", "streams": "1", "without_usage": "0", "cut_short": "0"}
    for wrong in ("data-quality?table=days", "budgets?table=streams", "models?table=by", "?table=streams"):
        assert app.get(f"{PREFIX}/{wrong}&format=csv").status_code == 400, wrong


def test_files_of_budgets_have_every_scope(make: Make) -> None:
    """A budget per tenant has a row for each of them in its file and its JSON; the page says that it shows the most used."""
    app = make(LLM_COST_BUDGETS=[{"name": "each", "limit": "10", "period": "day", "per": "tenant_id"}]).mount()
    with app.app.app_context():
        for number in range(210):
            track("openai", model="gpt-4o", billed="1", tags={"tenant_id": f"t{number}"})
        assert app.costs.flush(20)
    assert len(table(app.get(f"{PREFIX}/budgets?format=csv"))) == 210
    assert len(app.get(f"{PREFIX}/budgets?format=json").get_json()["budgets"]) == 210
    assert "Of each budget the 200 most used are shown; the CSV has all." in said(app.get(f"{PREFIX}/budgets"))


def test_the_file_of_tags_has_every_key(make: Make) -> None:
    """Keys beyond those that are added up on the page are in its file all the same, without sums."""
    app = make().mount()
    app.add("2", tags={f"key{n:02}": "v" for n in range(12)})
    rows = table(app.get(PREFIX + "/tags?range=7d&format=csv"))
    assert [row["key"] for row in rows] == [f"key{n:02}" for n in range(12)]
    assert [row["tagged_share"] for row in rows] == ["1"] * 8 + [""] * 4


@pytest.mark.parametrize("address", PAGES.values(), ids=PAGES)
def test_every_page_is_there_before_the_first_call(empty: MountedApp, address: str) -> None:
    """Without a call no page fails, and those that would be empty say what to do and how the app is wired."""
    text = empty.get(PREFIX + address).get_data(as_text=True)
    assert "<h1>" in text
    if address.startswith(("/budgets", "/pricing")):
        return
    assert "No calls yet" in text
    assert "How it is wired" in text
    assert empty.get(PREFIX + in_format(address, "json")).status_code == 200
    assert empty.get(PREFIX + in_format(address, "csv")).status_code == 200


def test_a_pivot_adds_up_to_the_overview(full: MountedApp) -> None:
    """Whatever stands against whatever: the rows, the columns and the totals row come to the overview's total."""
    total = Decimal(full.get(PREFIX + "/?range=30d&format=json").get_json()["total"]["cost"])
    assert total > 0
    dimensions = ("model", "provider", "operation", "tag:feature", "tag:tenant_id", "tag:user_id", "tag:a.dotted-key")
    for rows in dimensions:
        for cols in ("none", "time", *dimensions[:5]):
            found = full.get(PREFIX + f"/explore?range=30d&rows={rows}&cols={cols}&format=json").get_json()
            parts = [*found["rows"], *([found["rest"]] if found["rest"] else [])]
            assert sum(Decimal(row["total"]["cost"] or 0) for row in parts) == total, (rows, cols)
            assert Decimal(found["total"]["total"]["cost"]) == total
            if cols != "none":
                assert sum(Decimal(cell["cost"] or 0) for cell in found["total"]["cells"]) == total, (rows, cols)
                for row in parts:
                    assert sum(Decimal(cell["cost"] or 0) for cell in row["cells"]) == Decimal(row["total"]["cost"] or 0)
            file = table(full.get(PREFIX + f"/explore?range=30d&rows={rows}&cols={cols}&format=csv"))
            column = "cost" if cols == "none" else "total"
            assert sum(Decimal(row[column] or 0) for row in file) == total, (rows, cols)


def test_a_pivot_larger_than_the_page(make: Make) -> None:
    """More values than fit are one row that makes the sums right, and the file has each of them."""
    app = make().mount()
    app.add_all((f"{n + 1}", {"tags": {"user_id": f"u{n}", "team": f"x{n % 12}"}}) for n in range(60))
    for cols in ("time", "tag:team"):
        found = app.get(PREFIX + f"/explore?range=7d&rows=tag:user_id&cols={cols}&format=json").get_json()
        assert len(found["rows"]) == 50
        assert Decimal(found["rest"]["total"]["cost"]) == sum(range(1, 11))
        assert sum(Decimal(cell["cost"] or 0) for cell in found["rest"]["cells"]) == sum(range(1, 11))
        file = table(app.get(PREFIX + f"/explore?range=7d&rows=tag:user_id&cols={cols}&format=csv"))
        assert len(file) == 60
        assert sum(Decimal(row["total"]) for row in file) == sum(range(1, 61))


def test_a_column_for_one_value_is_that_value(make: Make) -> None:
    """Nine columns have their names, ten are eight and one for the rest; with either the sums are right."""
    app = make().mount()
    for more, last in ((9, "m0"), (1, "other")):
        app.add_all((f"{n + 1}", {"model": f"m{n if more == 9 else 'new'}"}) for n in range(more))
        found = app.get(PREFIX + "/explore?range=7d&rows=provider&cols=model&format=json").get_json()
        assert len(found["columns"]) == 9
        assert found["columns"][-1]["label"] == last
        assert sum(Decimal(cell["cost"]) for cell in found["rows"][0]["cells"]) == Decimal(found["total"]["total"]["cost"])


def test_explore_is_tinted_and_headed_by_what_it_shows(make: Make) -> None:
    """The cell with the largest figure is the darkest, whatever is shown, and the headline is that figure's total."""
    app = make().mount()
    app.add_all(("0.01", {"model": "busy", "tags": {"feature": "a"}, "total_tokens": 10}) for _ in range(30))
    app.add_all(("9", {"model": "dear", "tags": {"feature": "a"}, "total_tokens": 70_000}) for _ in range(2))
    darker = {
        "cost": ("dear", "$18.30"),
        "calls": ("busy", "32 calls"),
        "tokens": ("dear", "140k tokens"),
        "each": ("dear", "$0.5719 a call"),
    }
    for show, (model, headline) in darker.items():
        response = app.get(PREFIX + f"/explore?range=7d&rows=model&cols=tag:feature&show={show}")
        text = response.get_data(as_text=True)
        tints = {name: int(tint) for name, tint in re.findall(r'>(busy|dear)</a>.*?<td class="t(\d)">', text)}
        assert max(tints, key=lambda name: tints[name]) == model, show
        assert tints[model] == 5
        assert headline in said(response), show


def test_columns_of_weeks_are_named_for_their_days(make: Make) -> None:
    """Explore names each week by its first and last day, whole or not, and a week of one day by that day."""
    app = make().mount()
    app.add("1", at=datetime(2026, 3, 1, 12, tzinfo=UTC))
    found = app.get(PREFIX + "/explore?from=2026-03-01&to=2026-04-07&format=json").get_json()
    labels = ["1 Mar", "2–8 Mar", "9–15 Mar", "16–22 Mar", "23–29 Mar", "30 Mar–5 Apr", "6–7 Apr"]
    assert [column["label"] for column in found["columns"]] == labels
    assert [column["value"] for column in found["columns"]][:2] == ["2026-03-01", "2026-03-02 to 2026-03-08"]


def test_columns_that_share_a_name_are_told_apart(make: Make) -> None:
    """Two tenants of one name, and one that is called like a column of ours, have columns of their own in every file."""
    app = make().mount()
    app.costs.tag_label("tenant_id")(lambda ids: {one: "total" if one == "t2" else "Acme" for one in ids})
    app.add_all((cost, {"tags": {"tenant_id": f"t{n}", "feature": "a"}}) for n, cost in enumerate(("1", "2", "4")))
    address = PREFIX + "/explore?range=7d&rows=tag:feature&cols=tag:tenant_id&format="
    (row,) = table(app.get(address + "csv"))
    assert [row[name] for name in ("Acme (t0)", "Acme (t1)", "total (t2)", "total")] == ["1", "2", "4", "7"]
    found = app.get(address + "json").get_json()
    assert [(column["value"], column["label"]) for column in found["columns"]] == [
        ("t2", "total"), ("t1", "Acme"), ("t0", "Acme"),
    ]  # fmt: skip


@pytest.mark.parametrize("address", ["/models", "/tags/feature", "/explore?rows=tag:feature&cols=none"])
def test_the_total_row_says_how_it_changed(make: Make, address: str) -> None:
    """Under the rows' changes stands the total's, with values that are gone now in it; none where nothing was before."""
    app = make().mount()
    app.add("3", tags={"feature": "a"}, model="m")
    asked = address + ("&" if "?" in address else "?") + "range=7d"
    foot = re.compile(r'<tfoot>.*?<td class="(?:n )?change">(.*?)</td></tr></tfoot>', re.DOTALL)
    assert foot.findall(app.get(PREFIX + asked).get_data(as_text=True)) == [""]
    app.add("1", ago=timedelta(days=8), tags={"feature": "a"}, model="m")
    app.add("1", ago=timedelta(days=8), tags={"feature": "gone"}, model="gone")
    (change,) = foot.findall(app.get(PREFIX + asked).get_data(as_text=True))
    assert "+50%" in change


def test_calls_without_the_tag_are_a_row(full: MountedApp) -> None:
    """(untagged) is a row with a link to its calls, in the page and in the file."""
    text = full.get(PREFIX + "/explore?range=30d&rows=tag:feature").get_data(as_text=True)
    assert "(untagged)</a>" in text
    assert "untagged=feature" in text
    assert "(untagged)" in {row["tag:feature"] for row in table(full.get(PREFIX + "/explore?range=30d&format=csv"))}


@pytest.mark.parametrize("values", [50, 51, 60, 120])
def test_calls_without_the_tag_are_never_lost(make: Make, values: int) -> None:
    """However many values are dearer, a tag's page and Explore have a row for the calls without it, and it adds up."""
    app = make().mount()
    app.add_all((f"1.{n:03}", {"tags": {"category": f"c{n}"}}) for n in range(values))
    app.add("0.9", tags={"user_id": "u1"})
    address = PREFIX + "/tags/category?range=7d"
    text = app.get(address).get_data(as_text=True)
    assert re.search(r"untagged=category[^>]*>\(untagged\)</a>", text)
    assert "of it tagged" in text
    found = app.get(address + "&format=json").get_json()
    shown = found["values"]["rows"]
    assert [row["cost"] for row in shown if row["value"] is None] == ["0.9"]
    total = Decimal(found["total"]["cost"])
    assert Decimal(found["tagged_share"]) == 1 - Decimal("0.9") / total
    others = found["values"]["others"]
    assert sum(Decimal(row["cost"]) for row in shown) + Decimal(others["cost"] if others else 0) == total
    assert others is None or others["values"] > 1
    for columns in ("none", "time", "model"):
        explored = app.get(f"{PREFIX}/explore?range=7d&rows=tag:category&cols={columns}&format=json").get_json()
        assert [row["total"]["cost"] for row in explored["rows"] if row["value"] is None] == ["0.9"]
        rest = explored["rest"]["total"]["cost"] if explored["rest"] else 0
        assert sum(Decimal(row["total"]["cost"]) for row in explored["rows"]) + Decimal(rest) == total
    if values <= 100:
        keys = app.get(PREFIX + "/tags?range=7d&format=json").get_json()["keys"]
        assert {key["key"]: key["tagged_share"] for key in keys}["category"][:20] == found["tagged_share"][:20]


def test_an_invoice_beside_the_ledger(make: Make) -> None:
    """The invoice's amount, the ledger's, and the difference, exact; a bad one is refused; nothing is stored."""
    app = make().mount()
    app.add("10", provider="openai")
    app.add("4", provider="anthropic")
    found = app.get(PREFIX + "/explore?range=7d&invoice=openai:12.50&format=json").get_json()["invoice"]
    assert (found["provider"], found["amount"], found["ledger"]["cost"], found["difference"]) == (
        "openai",
        "12.5",
        "10",
        "2.5",
    )
    assert "80%" in app.get(PREFIX + "/explore?range=7d&invoice=openai:12.50").get_data(as_text=True)
    for bad in ("openai", "openai:", ":5", "openai:-5", "openai:1e9", "openai:NaN", "openai:1,5"):
        assert app.get(PREFIX + "/explore", invoice=bad).status_code == 400, bad


def test_a_decimal_comma(make: Make) -> None:
    """``decimal=comma`` writes 1,5 and separates by semicolons; text stays as it is."""
    app = make().mount()
    app.add("1.5", tags={"feature": "a.b"})
    text = app.get(PREFIX + "/?range=7d&format=csv&decimal=comma").data.decode("utf-8-sig")
    assert "a.b;1;0;1,5;" in text
    assert ";1,5;" in app.get(PREFIX + "/calls.csv?range=7d&decimal=comma").data.decode("utf-8-sig")
    assert app.get(PREFIX + "/?decimal=both").status_code == 400


def test_a_month_that_was_moved_says_so(make: Make) -> None:
    """A range that had ended and was priced anew since says by how much; one that is running does not."""
    app = make().mount()
    now = datetime.now(UTC)
    first = now.replace(day=1, hour=12, minute=0, second=0, microsecond=0)
    last_month = first - timedelta(days=3)
    moved = app.add("3", at=last_month)
    app.add("1", at=now - timedelta(minutes=1))
    with app.app.app_context():
        for call_id, occurred in ((moved, last_month), (uuid4(), now - timedelta(minutes=1))):
            app.database.session.add(
                Adjustment(
                    id=uuid4(), made_at=now, kind="backfill", call_id=call_id, occurred_at=occurred, old_cost=None,
                    new_cost=Decimal(3), currency="USD",
                )
            )  # fmt: skip
        app.database.session.commit()
    text = app.get(PREFIX + "/?range=last_month").get_data(as_text=True)
    assert "moved the number by" in text
    assert "+$3.00" in text
    assert "moved the number by" not in app.get(PREFIX + "/").get_data(as_text=True)
    assert "moved the number by" not in app.get(PREFIX + "/?range=last_month&model=other").get_data(as_text=True)
    quality = app.get(PREFIX + "/data-quality?format=json").get_json()
    assert [change["booked"] for change in quality["changes"]] == [False, True]
    days = f"from={last_month:%Y-%m}-01&amp;to={first - timedelta(days=1):%Y-%m-%d}"
    assert f'<a href="{PREFIX}/?{days}">' in app.get(PREFIX + "/data-quality").get_data(as_text=True)

    rows = table(app.get(PREFIX + "/data-quality?format=csv&table=changes"))
    assert [row["after_it_had_ended"] for row in rows] == ["no", "yes"]
    assert [row["amount"] for row in rows] == [change["amount"] for change in quality["changes"]]


def test_what_providers_billed_stands_beside_the_book(make: Make) -> None:
    """Data quality names each model whose bill is off the book's figure by 1% or more, both figures, and where to look."""
    app = make().mount()
    for _ in range(2):
        app.add("1.00", provider="openrouter", model="far", computed_cost=Decimal("0.90"))
    app.add("1.000", provider="openrouter", model="near", computed_cost=Decimal("1.001"))
    app.add("3.00", provider="openrouter", model="book only")
    text = said(app.get(PREFIX + "/data-quality"))
    assert "2 calls: billed 2 USD, the book says 1.8 USD, 10.0% less" in text
    assert "1 call: billed 1 USD, the book says 1.001 USD, 0.1% more" in text
    assert "flask llm-cost prices explain openrouter far" in text
    issues = {issue["name"]: issue for issue in app.get(PREFIX + "/data-quality?format=json").get_json()["issues"]}
    told = {name: (issue["level"], issue["calls"]) for name, issue in issues.items() if "billed and computed" in name}
    assert told == {
        "openrouter/far: billed and computed": ("warning", 2),
        "openrouter/near: billed and computed": ("ok", 1),
    }
    other = app.get(PREFIX + "/data-quality?model=near&format=json").get_json()["issues"]
    assert [issue["name"] for issue in other if "billed and computed" in issue["name"]] == [
        "openrouter/near: billed and computed"
    ]


def test_what_changed_shows_its_arithmetic(make: Make) -> None:
    """New, volume and model mix are told apart, and the parts of each come to its change."""
    app = make().mount()
    before, now = timedelta(days=8), timedelta(days=1)
    for feature, calls_before, each_before, calls, each in (
        ("fresh", 0, "0", 3, "2"),
        ("busier", 2, "1", 6, "1"),
        ("dearer", 4, "1", 4, "2"),
        ("gone", 5, "1", 0, "0"),
    ):
        for _ in range(calls_before):
            app.add(each_before, ago=before, tags={"feature": feature}, model="m")
        for _ in range(calls):
            app.add(each, ago=now, tags={"feature": feature}, model="m")
    found = app.get(PREFIX + "/?range=7d&format=json").get_json()["changed"]
    told = {item["value"]: (item["kind"], item["delta"]) for item in found if item["dimension"] == "tag:feature"}
    assert told == {"fresh": ("new", "6"), "busier": ("volume", "4"), "dearer": ("mix", "4"), "gone": ("volume", "-5")}
    why = {item["value"]: item["why"] for item in found}
    assert why["busier"].startswith("4 more calls × $1.00 = +$4.00")
    assert why["dearer"].startswith("4 calls × $1.00 more each = +$4.00")


def test_a_rest_without_a_price_is_unknown(make: Make) -> None:
    """What is left over of a breakdown and could not be priced is unknown, not $0."""
    app = make().mount()
    for n in range(7):
        app.add("1", tags={"feature": f"f{n}"})
    for n in range(2):
        app.add(None, tags={"feature": f"unpriced{n}"})
    found = app.get(PREFIX + "/?range=7d&format=json").get_json()["breakdowns"]
    features = next(item for item in found if item["dimension"] == "tag:feature")
    assert features["others"]["cost"] is None


def test_a_rest_of_one_is_shown_as_itself(make: Make) -> None:
    """No page says "1 more" where the one has room; of two more it says so."""
    app = make().mount()
    for n in range(8):
        app.add(f"{n + 1}", tags={"feature": f"f{n}"})
    text = app.get(PREFIX + "/?range=7d").get_data(as_text=True)
    assert "1 more" not in text
    assert text.count(">f0<") >= 2  # the legend and the panel
    app.add("9", tags={"feature": "f8"})
    assert "2 more" in app.get(PREFIX + "/?range=7d").get_data(as_text=True)


def test_what_is_held_to_one_value_is_not_broken_down_by_it(make: Make) -> None:
    """The page of one tenant says nothing by tenant, and what of one feature nothing by feature, unless asked."""
    app = make().mount()
    for n in range(4):
        app.add(f"{n + 1}", tags={"feature": f"f{n % 2}", "tenant_id": "t1", "user_id": f"u{n}"})
    for address, pinned, next_one in (
        ("/tags/feature?range=7d&value=f1", "feature", "tag:tenant_id"),
        ("/?range=7d&tag.feature=f1", "feature", "tag:tenant_id"),
        ("/?range=7d&tag.tenant_id=t1", "tenant", "tag:feature"),
    ):
        text = app.get(PREFIX + address).get_data(as_text=True)
        assert f">By {pinned}" not in text, address
        assert ">By user" in text, address
        assert app.get(PREFIX + address + "&format=json").get_json()["by"] == next_one, address
    assert app.get(PREFIX + "/?range=7d&tag.feature=f1&by=tag:feature&format=json").get_json()["by"] == "tag:feature"


def test_a_cell_leads_to_its_calls(make: Make) -> None:
    """Each cell of a pivot is a link to the calls of its row and column, with the filters that are set; so is (untagged)."""
    app = make().mount()
    now = datetime.now(UTC)
    app.add("1", at=now - timedelta(days=40), tags={"feature": "a", "team": "x"})
    app.add("2", at=now - timedelta(minutes=1), tags={"feature": "a", "team": "x"})
    app.add("4", at=now - timedelta(minutes=1), tags={"feature": "a"})
    app.add("8", at=now - timedelta(minutes=1), tags={"team": "x"})
    app.add("16", at=now - timedelta(minutes=1))
    for query in ("cols=tag:team", "cols=time", "cols=model&untagged=team"):
        text = app.get(PREFIX + f"/explore?range=90d&rows=tag:feature&{query}").get_data(as_text=True)
        cells = re.findall(r'<td(?: class="t\d")?><a href="([^"]+)"><span title="([\d.]+) USD">', text)
        assert len(cells) >= 2, query
        for href, amount in cells:
            found = app.get(unescape(href) + "&format=json").get_json()["calls"]
            assert sum(Decimal(call["total_cost"]) for call in found) == Decimal(amount), (query, href)


def test_what_is_free_hides_nothing(make: Make) -> None:
    """Calls that an alias makes free count and cost nothing; what else their provider did stays unknown, and says so."""
    app = make(LLM_COST_MODEL_ALIASES={"ollama/llama4": "free"}).mount()
    with app.app.app_context():
        for model, usage, times in (("llama4", {"input": 1000, "output": 50}, 3), ("mystery", {"input": 1000}, 2)):
            for _ in range(times):
                track("ollama", model=model, usage=usage, tags={"feature": "local"})
        track("ollama", model="llama4", usage={}, tags={"feature": "local"})
        assert app.costs.flush(20)
    found = app.get(format="json").get_json()
    # A free call is known to cost nothing. One that said nothing of its usage is not.
    assert (found["total"]["cost"], found["total"]["calls"], found["total"]["unpriced_calls"]) == ("0", 6, 3)
    assert {key: found["completeness"][key] for key in ("priced", "unpriced", "uncounted")} == {
        "priced": 3, "unpriced": 2, "uncounted": 1,
    }  # fmt: skip
    text = app.get().get_data(as_text=True)
    assert "2 calls without a price" in text
    assert "Every call is priced" not in text
    assert "3 unpriced" in app.get(PREFIX + "/explore?rows=provider&cols=none").get_data(as_text=True)
    models = {row["model"]: row["cost"] for row in app.get(PREFIX + "/models?format=json").get_json()["models"]}
    assert models == {"llama4": "0", "mystery": None}
    assert "ollama · free" in app.get(PREFIX + "/models").get_data(as_text=True)
    issues = {issue["name"]: issue for issue in app.get(PREFIX + "/data-quality?format=json").get_json()["issues"]}
    assert issues["ollama/mystery has no price"]["calls"] == 2
    assert issues["No usage reported"]["calls"] == 1


def test_calls_outside_every_app_show_on_data_quality(make: Callable[..., MountedApp]) -> None:
    """What passed unrecorded, as several apps could have made it, is counted where people look whether a number is whole."""
    app = make().mount()
    app.add("1")

    def issue() -> dict[str, str]:
        issues = app.get(PREFIX + "/data-quality?format=json").get_json()["issues"]
        return next(issue for issue in issues if issue["name"] == "Made outside every app")

    assert (issue()["level"], issue()["found"]) == ("ok", "none")
    app.app.extensions["llm_cost"].ledger.note_unattributed()
    with app.app.app_context():
        track(provider="openai", model="gpt-4o", usage={"prompt_tokens": 1, "completion_tokens": 1})
        assert app.costs.flush(20)
    assert issue()["level"] == "warning"
    assert issue()["found"].startswith("1, last on ")


def test_a_form_names_a_tag_by_key_and_value(full: MountedApp) -> None:
    """``key`` and ``is`` of the form become the filter that a link would have; half of it is refused."""
    by_form = full.get(PREFIX + "/calls?range=30d&key=a.dotted-key&is=v1&format=json").get_json()
    by_link = full.get(PREFIX + "/calls?range=30d&tag.a.dotted-key=v1&format=json").get_json()
    assert by_form["calls"] == by_link["calls"] != []
    assert full.get(PREFIX + "/calls?is=v1").status_code == 400
    assert full.get(PREFIX + "/calls?key=Bad+Key&is=v1").status_code == 400


def test_a_key_with_dots_has_a_page(full: MountedApp) -> None:
    """Any key that a tag can have is a page, with its values and theirs."""
    assert "v1" in full.get(PREFIX + "/tags/a.dotted-key?range=30d").get_data(as_text=True)
    one = full.get(PREFIX + "/tags/a.dotted-key?range=30d&value=v1")
    assert one.status_code == 200
    data = full.get(PREFIX + "/tags/a.dotted-key?range=30d&value=v1&format=json").get_json()
    assert data["filters"]["tags"] == {"a.dotted-key": "v1"}
    assert full.get(PREFIX + "/tags/Not-a-key").status_code == 400


SECRETS = (
    "other-tenant",
    "other-feature",
    "other-user",
    "other-model",
    "other-provider",
    "other-key",
    "987.65",
    "budget-of-all",
)


@pytest.mark.parametrize("fmt", FORMATS)
def test_nothing_of_anybody_else_on_any_page(make: Make, fmt: str) -> None:
    """Within a scope no page, file or option list has a byte of others: values, keys, models, amounts, counts, budgets."""
    app = make(LLM_COST_BUDGETS=[{"name": "budget-of-all", "limit": "5", "period": "day"}])
    app.mount(guard=None, scope=lambda: {"tenant_id": "mine"})
    theirs = {"tenant_id": "other-tenant", "feature": "other-feature", "user_id": "other-user", "other-key": "x"}
    planted = app.add("987.65", tags=theirs, model="other-model", provider="other-provider")
    app.add(None, tags=theirs, model="other-model", provider="other-provider", usage_source="unknown", outcome="error")
    mine = app.add("1", tags={"tenant_id": "mine", "feature": "chat", "user_id": "u"})
    questions = ("", "tag.tenant_id=other-tenant", "untagged=tenant_id", "range=90d", "model=other-model", "tag.other-key=x")
    for address in (
        *PAGES.values(),
        f"/calls/{mine}",
        f"/calls/{planted}",
        "/calls.csv",
        "/tags/other-key",
        "/tags/tenant_id",
    ):
        if "search" in address:
            continue  # every key of the book is everybody's
        for question in questions:
            if ("range=" in address and question.startswith("range")) or (
                "tag.other-key" in question and "other-key" in address
            ):
                continue
            asked = in_format(address, fmt) + (f"&{question}" if question else "")
            response = app.get(PREFIX + asked)
            assert response.status_code in (200, 400, 404), asked
            text = response.get_data(as_text=True)
            for secret in SECRETS:
                # What was asked for may be said again, in the filter that it became.
                assert text.count(secret) == 0 or secret in asked, (asked, secret)
            assert "987.65" not in text
            assert "flask llm-cost" not in said(response), asked
            response.close()


def test_budgets_within_a_scope_of_two_tags(make: Make) -> None:
    """A budget that counts calls beyond one tag of the scope is not shown, nor its holds; one that counts no others is."""
    per_user = {"limit": "100", "period": "day", "per": "user_id"}
    scope = {"tenant_id": "t1", "user_id": "u7"}
    declared = [
        {"name": "tenants", "limit": "100", "period": "day", "per": "tenant_id"},
        {"name": "users", **per_user},
        {"name": "elsewhere", **per_user, "where": {"tenant_id": "t2"}},
        {"name": "several", **per_user, "where": {"tenant_id": ["t1", "t2"]}},
        {"name": "patterns", **per_user, "where": {"tenant_id": "t*"}},
        {"name": "own", **per_user, "where": {"tenant_id": "t1"}},
        {"name": "narrow", **per_user, "where": {"tag:tenant_id": "t1", "model": "gpt*"}},
    ]
    app = make(LLM_COST_BUDGETS=declared).mount(guard=None, scope=lambda: scope)
    with app.app.app_context():
        for cost, tenant, user in (("1", "t1", "u7"), ("20", "t1", "u8"), ("40", "t2", "u7")):
            track("openai", model="gpt-4o", billed=cost, tags={"tenant_id": tenant, "user_id": user})
        assert app.costs.flush(20)
        now = datetime.now(UTC)
        for period in app.database.session.scalars(sa.select(BudgetPeriod)):
            app.database.session.add(
                BudgetHold(
                    call_id=uuid4(), period_id=period.id, amount=1, state="open", created_at=now,
                    expires_at=now + timedelta(minutes=15),
                )
            )  # fmt: skip
        app.database.session.commit()
    found = app.get(PREFIX + "/budgets?format=json").get_json()
    assert {(row["budget"], row["scope"], row["spent"]) for row in found["budgets"]} == {
        ("own", "user_id=u7", "1"),
        ("narrow", "user_id=u7", "1"),
    }
    assert sorted(hold["budget"] for hold in found["open_holds"]) == ["narrow", "own"]
    listed = table(app.get(PREFIX + "/budgets?format=csv&table=holds"))
    assert sorted(hold["budget"] for hold in listed) == ["narrow", "own"]
    for page in ("/", "/budgets"):
        text = said(app.get(PREFIX + page))
        assert "own" in text
        for other in ("tenants", "users", "elsewhere", "several", "patterns"):
            assert f"{other}," not in text, (page, other)
    scope.pop("tenant_id")
    found = app.get(PREFIX + "/budgets?format=json").get_json()
    assert {row["budget"] for row in found["budgets"]} == {row["name"] for row in declared} - {"tenants"}


def test_a_scoped_pivot_counts_its_own_calls(make: Make) -> None:
    """Sums of every page within a scope are those of its own calls, whatever is asked for."""
    app = make().mount(guard=None, scope=lambda: {"tenant_id": "mine"})
    for tenant, cost in (("mine", "1"), ("other", "100")):
        app.add_all((cost, {"tags": {"tenant_id": tenant, "feature": f"f{n}"}}) for n in range(5))
    for address in ("/", "/explore?cols=model", "/explore?rows=tag:tenant_id", "/models", "/tags"):
        found = app.get(PREFIX + in_format(address, "json")).get_json()
        total = found["total"].get("total", found["total"])
        assert total["cost"] == "5", address


#: The most questions that a page may ask of a ledger with rollups, four budgets and as many report tags.
MOST = {
    "overview": 38, "overview by tenant": 38, "explore": 21, "explore by user and model": 21, "explore without columns": 10,
    "models": 12, "calls": 7, "tags": 10, "values of a tag": 12, "a value of a tag": 8, "budgets": 6, "quality": 12,
    "pricing": 4, "pricing searched": 4,
}  # fmt: skip


def test_a_page_asks_a_bounded_number_of_questions(make: Make) -> None:
    """No page asks more for 120 values of everything than for ten, and none more than its bound."""
    app = make(LLM_COST_BUDGETS=BUDGETS).mount()
    found: list[dict[str, int]] = []
    for start, end in ((0, 10), (10, 130)):
        app.add_all(
            ("1", {"ago": timedelta(hours=n), "model": f"m{n}", "tags": {key: f"{key}{n}" for key in keys}})
            for n in range(start, end)
            for keys in (("feature", "tenant_id", "user_id"), ("tenant_id",))
        )
        app.roll_up()
        asked = {}
        for name, address in PAGES.items():
            with statements() as sent:
                assert app.get(PREFIX + address).status_code in (200, 404)
            asked[name] = len(sent)
        found.append(asked)
    few, many = found
    # Beyond the hundred values that are told apart, up to two more for each breakdown.
    assert {name: n for name, n in many.items() if n > few[name] + 8} == {}
    assert {name: n for name, n in many.items() if n > MOST[name]} == {}


def test_names_are_asked_once_a_page(make: Make) -> None:
    """Whatever a page has of a key, in panels, options, chips, budgets and single calls, it asks for names once."""
    app = make().mount().fill(24)
    asked: list[tuple[str, ...]] = []
    for key in ("tenant_id", "user_id", "feature"):

        @app.costs.tag_label(key)
        def names(ids: list[str], key: str = key) -> dict[str, str]:
            asked.append((key, *ids))
            return {value: f"Name of {value}" for value in ids}

    for name, address in PAGES.items():
        asked.clear()
        app.get(PREFIX + address)
        keys = [item[0] for item in asked]
        assert sorted(keys) == sorted(set(keys)), name


def test_a_name_that_is_no_text_for_a_page(make: Make) -> None:
    """A name with half a character in it, as broken files have, costs no page and no file."""
    app = make().mount().fill(24)
    for key in ("tenant_id", "user_id", "feature"):
        app.costs.tag_label(key)(lambda ids: dict.fromkeys(ids, "Ac\udce9me"))
    for address in PAGES.values():
        for fmt in FORMATS:
            assert app.get(PREFIX + in_format(address, fmt)).status_code == 200, (address, fmt)


@pytest.mark.parametrize("kind", ["calls", "days", "one day"])
def test_what_sqlite_cannot_add_up_is_said(make: Make, kind: str) -> None:
    """Beyond the integers of SQLite no page shows a rounded total: it says so, and what to do; calls are exact as ever."""
    app = make().mount()
    cost = "2000000.000000000001" if kind == "one day" else "4200000.000000000001"
    app.add_all((cost, {"ago": timedelta(days=n), "currency": "IDR"}) for n in range(4))
    if kind != "calls":
        app.roll_up()
    if kind == "one day":
        # As a batch adds its own to what is there: SQLite makes a float of it, and rounds.
        grown = sa.text("UPDATE llm_cost_tag_rollups SET cost = cost + 5000000000000000000 + 5000000000000000000")
        with app.app.app_context():
            app.database.session.execute(grown)
            app.database.session.commit()
    response = app.get(range="7d", currency="IDR", format="json")
    assert response.status_code == 503
    assert "9,223,372" in response.get_json()["message"]
    assert "PostgreSQL" in said(app.get(range="7d", currency="IDR"))
    rows = table(app.get(PREFIX + "/calls.csv", range="7d", currency="IDR"))
    assert [row["total_cost"] for row in rows] == [cost] * 4


def test_a_file_is_exact_whatever_the_apps_decimals_are(make: Make) -> None:
    """Where the app computes with three digits while a file is sent, its sums are those of the page."""
    app = make().mount()
    app.add_all((f"{n + 1}.654321", {"model": f"m{n}", "tags": {"feature": f"f{n % 2}"}}) for n in range(24))
    address = PREFIX + "/explore?range=7d&rows=tag:feature&cols=model&format=csv"
    exact = app.get(address).data
    assert b"other" in exact
    with localcontext(prec=3):
        assert app.get(address).data == exact


def test_a_database_that_is_locked_is_said(make: Make, tmp_path: Path) -> None:
    """Where somebody else keeps a SQLite file locked, the page says that it cannot be read, as with any other database."""
    file = tmp_path / "locked.db"
    app = make(url=f"sqlite:///{file}?timeout=0.2").mount(guard=None)
    app.add("1")
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert app.get(format="json").status_code == 503
        other.execute("ROLLBACK")
    assert app.get(format="json").get_json()["total"]["cost"] == "1"


def test_the_longest_values_have_links_that_lead(make: Make) -> None:
    """Where two tags cross that are as long as tags get, in any script, each link of the table opens its calls."""
    app = make().mount()
    app.add(tags={"feature": "\u8a9e" * 256, "tenant_id": "\u5ba2" * 256})
    text = app.get(PREFIX + "/explore?range=7d&rows=tag:feature&cols=tag:tenant_id").get_data(as_text=True)
    links = sorted(map(unescape, re.findall(r'href="([^"#]+)"', text)), key=len)
    assert len(links[-1]) > 4096
    assert app.get(links[-1]).status_code == 200


@pytest.mark.parametrize(
    "database_server",
    ["postgresql", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sqlite", "mariadb"))],
    indirect=True,
)
def test_every_page_on_every_database(make: Make, database_url: URL) -> None:
    """Every page, twin, dimension and order answers on SQLite, PostgreSQL and MariaDB, with the same total."""
    app = make(url=database_url, LLM_COST_BUDGETS=BUDGETS).mount().fill(24).roll_up()
    for address in PAGES.values():
        for fmt in FORMATS:
            assert app.get(PREFIX + in_format(address, fmt)).status_code == 200, (address, fmt)
    for by in ("provider", "operation", "tag:a.dotted-key", "tag:unused"):
        assert app.get(by=by, range="90d").status_code == 200
    for sort in ("newest", "oldest", "dearest", "slowest"):
        following = app.get(PREFIX + "/calls", range="30d", sort=sort, limit="7", format="json").get_json()["after"]
        assert app.get(PREFIX + "/calls", range="30d", sort=sort, limit="7", after=following).status_code == 200
    for value in ("\x00", "\ud7ff", "'", "\\", "%", "😀"):
        assert app.get(model=value).status_code in (200, 400)
    assert "a.dotted-key" in app.get(PREFIX + "/tags?range=30d").get_data(as_text=True)
    for page, *path in (("/", "total"), ("/explore", "total", "total")):
        found = app.get(PREFIX + page, range="30d", format="json").get_json()
        for name in path:
            found = found[name]
        assert Decimal(found["cost"]) == sum(Decimal(f"0.{n + 10}") for n in range(24) if n % 11)


def test_pages_on_a_database_in_memory(make: Make) -> None:
    """Every page answers on the in-memory SQLite that tests use."""
    app = make(url="sqlite://").mount().fill(24)
    for address in (*PAGES.values(), "/calls.csv"):
        assert app.get(PREFIX + address).status_code == 200, address


def test_json_is_json(full: MountedApp) -> None:
    """Amounts are text without an exponent, and nothing in a twin is NaN or infinite."""
    told = ""
    for address in PAGES.values():
        text = full.get(PREFIX + in_format(address, "json")).get_data(as_text=True)
        json.loads(text, parse_constant=pytest.fail)
        assert "E-" not in text
        told += text
    assert '"0.000000000007"' in told


def test_nothing_is_remembered_of_an_empty_ledger(make: Make) -> None:
    """The pages of before the tables and before the first call are gone as soon as there are tables and a call."""
    app = make(tables=False).mount()
    assert app.get().status_code == 503
    with app.app.app_context():
        app.database.create_all()
    assert "No calls yet" in app.get().get_data(as_text=True)
    app.add("7.31")
    for address in ("/", "/explore", "/models", "/tags", "/data-quality", "/pricing"):
        assert "No calls yet" not in app.get(PREFIX + address).get_data(as_text=True)


@pytest.mark.slow
def test_a_file_of_calls_needs_no_more_memory_for_more_calls(make: Make) -> None:
    """The CSV of four times as many calls is sent in about the same memory, each call once, without a cap."""
    app = make().mount()
    peaks = []
    for start, end in ((0, 3000), (3000, 12_000)):
        _plant_many(app, start, end)
        tracemalloc.start()
        response = app.client.get(PREFIX + "/calls.csv?range=30d", headers={"X-User": "ann"}, buffered=False)
        lines = sum(piece.count(b"\n") for piece in response.response)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        response.close()
        assert lines == end + 1
    assert peaks[1] < peaks[0] * 1.5


def _plant_many(app: MountedApp, start: int, end: int) -> None:
    now = datetime.now(UTC)
    rows = []
    for n in range(start, end):
        at = now - timedelta(seconds=n + 1)
        rows.append(
            {
                "id": new_call_id(int(at.timestamp() * 1e9)), "occurred_at": at, "recorded_at": at, "provider": "openai",
                "model": "gpt-4o", "requested_model": "gpt-4o", "host": "h", "operation": "chat", "stream": False,
                "attempt": 1, "outcome": "ok", "usage_source": "response", "cost_status": "priced",
                "total_cost": Decimal("0.01"), "currency": "USD",
            }
        )  # fmt: skip
    with app.app.app_context():
        app.database.session.execute(sa.insert(Call), rows)
        app.database.session.commit()


def test_what_would_take_reading_every_call_has_a_page_of_its_own(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """With many calls, a tag without rollups is no panel and no card, and is added up where one asks for it; the dearest
    calls are those of the latest ones, and say so."""
    monkeypatch.setattr("flask_llm_cost.ledger.tag_queries.MANY_CALLS", 3)
    monkeypatch.setattr("flask_llm_cost.dashboard.overview.latest", functools.partial(latest, size=3))
    app = make(LLM_COST_ROLLUP_TAGS=["feature"]).mount()
    now = datetime.now(UTC)
    with app.app.app_context():
        for n in range(8):
            usage, tags = {"input": 1_000_000 * (n + 1)}, {"feature": "chat", "user_id": f"u{n}"}
            track("openai", model="gpt-4o", usage=usage, tags=tags, occurred_at=now - timedelta(days=n))
        assert app.costs.flush(20)
    text = app.get(PREFIX + "/?range=30d").get_data(as_text=True)
    assert "There are no sums of these calls by" in text
    assert f"{PREFIX}/tags/user_id?range=30d" in text
    found = app.get(PREFIX + "/?range=30d&format=json").get_json()
    assert found["not_broken_down_by"] == ["user_id"]
    assert [call["tags"]["user_id"] for call in found["dearest_calls"]] == ["u2", "u1", "u0"]
    assert found["dearest_calls_of_latest"] == 3
    assert "of the latest 3</small>" in text
    assert "add them up" in app.get(PREFIX + "/tags?range=30d").get_data(as_text=True)
    values = app.get(PREFIX + "/tags/user_id?range=30d&format=json").get_json()["values"]
    assert {row["value"] for row in values["rows"]} == {f"u{n}" for n in range(8)}
    by = app.get(PREFIX + "/?range=30d&by=tag:user_id&format=json").get_json()
    assert by["not_broken_down_by"] == []


@pytest.mark.parametrize("values", [5, 130])
def test_few_calls_are_read_once_for_a_panel(make: Make, monkeypatch: pytest.MonkeyPatch, values: int) -> None:
    """A tag without rollups is read once for each range for a panel of few calls, and once for what is shown; it says what
    many reads say."""
    app = make(
        LLM_COST_ROLLUP_TAGS=["feature"], LLM_COST_REPORT_TAGS=["user_id"], LLM_COST_TIMEZONE="Asia/Kathmandu"
    ).mount()
    app.add_all(
        (None if n % 9 == 0 else f"0.{n % 50 + 10}", {"ago": timedelta(minutes=n * 50), "tags": tags})
        for n in range(400)
        for tags in [{"user_id": f"u{n * 7 % values}"} if n % 4 else {}]
    )
    app.roll_up()

    def ask(**query: str) -> tuple[Any, int]:
        with statements() as sent:
            found = app.get(PREFIX + "/", format="json", range="7d", by="tag:user_id", **query).get_json()
        del found["compared"]["until"]
        said = {name: found[name] for name in ("days", "changed", "total", "compared", "breakdowns")}
        return said, sum("llm_cost_call_tags" in one and "GROUP BY" in one for one in sent)

    filters: tuple[dict[str, str], ...] = ({}, {"outcome": "ok"})
    once = [ask(**query) for query in filters]
    monkeypatch.setattr("flask_llm_cost.ledger.tag_queries.MANY_CALLS", 0)
    often = [ask(**query) for query in filters]
    assert max(reads for _, reads in once) <= 4
    assert max(reads for _, reads in often) > 4 or values < 100
    assert {row["value"] is None for row in once[0][0]["breakdowns"][0]["rows"]} == {True, False}
    assert [found for found, _ in once] == [found for found, _ in often]


def test_what_nobody_asked_for_reads_no_call_after_call(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """With many calls, pages are broken down by something of which there are sums unless one says otherwise, whatever is
    filtered; what one asks for is answered, and with few calls the report tags lead."""
    app = make(LLM_COST_ROLLUP_TAGS=["feature", "team"], LLM_COST_REPORT_TAGS=["user_id", "feature", "team"]).mount()
    with app.app.app_context():
        for n in range(8):
            tags = {"feature": "chat", "user_id": f"u{n}", "team": "one"}
            track("openai", model="gpt-4o", usage={"input": 1_000_000 * (n + 1)}, tags=tags)
        assert app.costs.flush(20)

    def leads(**query: str) -> tuple[str, str]:
        found = [app.get(f"{PREFIX}/{page}", format="json", range="7d", **query).get_json() for page in ("", "explore")]
        return found[0]["by"], found[1]["rows_by"]

    assert leads() == ("tag:user_id", "tag:user_id")
    monkeypatch.setattr("flask_llm_cost.ledger.tag_queries.MANY_CALLS", 3)
    assert leads() == ("tag:feature", "tag:feature")
    assert leads(**{"tag.feature": "chat"}) == ("tag:team", "tag:team")
    assert leads(outcome="ok") == ("tag:feature", "tag:feature")
    assert leads(operation="manual", **{"tag.team": "one"}) == ("model", "model")
    within = {"outcome": "ok", "tag.feature": "chat"}
    asked = app.get(f"{PREFIX}/", by="tag:user_id", range="7d", format="json", **within).get_json()
    assert asked["by"] == "tag:user_id"
    assert asked["not_broken_down_by"] == ["team"]
    assert "they are read one by one" in app.get(f"{PREFIX}/", range="7d", **within).get_data(as_text=True)
    assert "they are read one by one" in app.get(f"{PREFIX}/tags", **within).get_data(as_text=True)
    # Few calls that failed are found by reading the many that did not.
    assert leads(**{**within, "outcome": "error"}) == ("model", "model")
