"""The CSV files: each of a table and a selection has a name of its own, and says by itself what it holds."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any

import pytest
from addresses import PAGES
from mounted_app import PREFIX, MountedApp

Make = Callable[..., MountedApp]


def name_of(response: Any) -> str:
    found = re.fullmatch(r'attachment; filename="([A-Za-z0-9._-]+)"', response.headers["Content-Disposition"])
    assert found, response.headers["Content-Disposition"]
    assert len(found[1]) < 250
    return found[1]


def test_files_do_not_collide(full: MountedApp) -> None:
    """Files of another table, breakdown, range or filter have other names, in ASCII and bounded, whatever is filtered by."""
    asked = [
        "/?by=tag:feature", "/?by=model", "/?by=model&table=days", "/?by=model&range=7d",
        "/?by=model&provider=openai", "/?by=model&tag.tenant_id=t1", "/?by=model&tag.user_id=t1",
        "/?by=model&untagged=tenant_id", "/?by=model&currency=EUR", "/?by=model&tag.team=Vertrieb+Köln",
        "/?by=model&tag.team=営業", "/?by=model&tag.team=開発", "/?by=model&outcome=error", "/explore?rows=model",
        "/explore?rows=model&cols=tag:feature", "/explore?rows=model&cols=none",
        "/explore?rows=model&show=calls", "/tags/feature", "/tags/tenant_id", "/models", "/calls", "/tags",
        "/data-quality", "/calls?tag.team=" + "x%22%0D%0A" * 40,
    ]  # fmt: skip
    names = [name_of(full.get(PREFIX + address + ("&" if "?" in address else "?") + "format=csv")) for address in asked]
    assert len(set(names)) == len(asked), sorted(names)
    today = datetime.now(UTC).date()
    first = today.replace(day=1).isoformat()
    assert names[0].startswith(f"llm-spend-by-feature-{first}-to-")
    assert names[2].startswith("llm-spend-by-day-and-model-")
    assert names[5].endswith("-tenant-t1.csv")
    assert names[9].endswith("-team-vertrieb-koln.csv")


def test_explore_says_what_its_file_holds(make: Make) -> None:
    """Explore's file says the figure and the currency in each row, and its days with their year."""
    app = make().mount()
    app.add("1.5", ago=timedelta(minutes=1), tags={"feature": "chat"})
    for show, figure in (("cost", "cost"), ("each", "cost a call"), ("tokens", "tokens")):
        text = app.get(PREFIX + f"/explore?range=7d&show={show}&format=csv").data.decode("utf-8-sig")
        (row,) = csv.DictReader(io.StringIO(text, newline=""))
        assert (row["figure"], row["currency"]) == (figure, "USD")
        assert datetime.now(UTC).date().isoformat() in row
    weeks = app.get(PREFIX + "/explore?range=30d&format=csv").data.decode("utf-8-sig").splitlines()[0]
    assert re.search(r",20\d\d-\d\d-\d\d( to 20\d\d-\d\d-\d\d)?,total,figure,currency$", weeks)
    plain = app.get(PREFIX + "/explore?range=7d&cols=none&format=csv").data.decode("utf-8-sig").splitlines()
    assert plain[0].endswith(",currency")
    assert plain[1].endswith(",USD")


@pytest.mark.parametrize("address", PAGES.values(), ids=PAGES)
def test_each_file_is_there_with_a_decimal_comma(full: MountedApp, address: str) -> None:
    """Beside every link to a CSV stands one to the same file for spreadsheets that read 1,5."""
    text = full.get(PREFIX + address).get_data(as_text=True)
    files = [unescape(href) for href in re.findall(r'href="([^"]*format=csv[^"]*)"', text)]
    assert files
    plain = [href for href in files if "decimal=comma" not in href]
    assert len(files) == 2 * len(plain)
    for href in files:
        header = full.get(href).data.decode("utf-8-sig").splitlines()[0]
        assert (";" in header) == ("decimal=comma" in href), href
