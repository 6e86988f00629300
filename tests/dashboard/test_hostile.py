"""Hostile data and hostile questions: nothing runs, nothing breaks, nothing is written."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable
from html.parser import HTMLParser
from urllib.parse import quote, urlencode

import pytest
import sqlalchemy as sa
from mounted_app import PREFIX, MountedApp

from flask_llm_cost.dashboard.export import cell
from flask_llm_cost.dashboard.rendering import breakable
from flask_llm_cost.ledger.models import Base

MARKUP = "\"'><script>alert(1)</script><img src=x onerror=alert(2)><svg onload=alert(3)>{{7*7}}javascript:alert(4)"
_ELEMENTS = {
    "html", "head", "meta", "title", "link", "body", "a", "header", "nav", "main", "div", "section", "form",
    "select", "option", "label", "input", "button", "p", "span", "b", "small", "br", "h1", "h2", "ul", "li", "dl",
    "dt", "dd", "details", "summary", "table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td", "data",
    "time", "code", "datalist", "pre", "em", "svg", "rect", "path", "line", "polyline", "text", "desc", "g",
    "wbr",
}  # fmt: skip


class _Checker(HTMLParser):
    """Notes every element, attribute and address that a page of ours may not have."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "script" and [name for name, _ in attrs] == ["src", "defer"]:
            tag, attrs = "link", [("href", attrs[0][1])]  # our own, held to the same addresses
        if tag not in _ELEMENTS:
            self.found.append(f"<{tag}>")
        for name, value in attrs:
            if name.startswith("on") or name in ("style", "src", "srcdoc", "formaction"):
                self.found.append(name)
            if name in ("href", "action") and not (value or "").startswith((PREFIX + "/", "#")):
                self.found.append(f"{name}={value}")


def _checked(html: str) -> list[str]:
    checker = _Checker()
    checker.feed(html)
    return checker.found


def test_markup_in_every_string_stays_text(make: Callable[..., MountedApp]) -> None:
    """Markup in models, tags, names, errors and the question itself is shown as text, in pages, charts and titles."""
    app = make().mount()
    app.costs.tag_label("tenant_id")(lambda ids: dict.fromkeys(ids, MARKUP + "name"))
    columns = ("provider", "operation", "model", "requested_model", "host", "error_class", "provider_response_id")
    strings = dict.fromkeys(columns, MARKUP[:64])
    tags = {"feature": MARKUP, "tenant_id": MARKUP, "user_id": MARKUP, "other": MARKUP}
    for cost in ("1.5", None):
        call_id = app.add(cost, tags=tags, flags=MARKUP[:100], pricing_mode=MARKUP[:60], **strings)
        app.add(cost, tags={"feature": "plain"})
    queries: list[dict[str, str]] = [
        {},
        {"by": "model"},
        {"tag.feature": MARKUP},
        {"model": MARKUP},
        {MARKUP: "1"},
        {"range": MARKUP},
    ]
    pages = ("/explore", "/explore?rows=tag:user_id&cols=tag:other", "/models", "/tags", "/tags/feature", "/data-quality")
    addresses = ["/", "/calls", f"/calls/{call_id}", "/budgets", "/pricing", *pages]
    for path in (PREFIX + address for address in addresses):
        for query in queries if "?" not in path else [{}]:
            response = app.get(path, **query)
            assert response.status_code in (200, 400), (path, query)
            text = response.get_data(as_text=True)
            assert _checked(text) == []
            assert text.count("<script") == 1
            assert "{{7*7}}" in text or ">49" not in text


@pytest.mark.parametrize("lead", [*"=+-@\t\r\n\x00＝＋－＠", " =", "  +", "\u00a0@", "\n ="])
def test_no_cell_is_a_formula(lead: str) -> None:
    """Text that a spreadsheet would run begins with an apostrophe, also after spaces and in full-width forms."""
    assert cell(f"{lead}HYPERLINK(1)").startswith("'")
    assert cell("plain") == "plain"


def test_csv_of_hostile_tags(make: Callable[..., MountedApp]) -> None:
    """Formulas in tags are defused in both files; numbers stay numbers, and the file opens as UTF-8."""
    app = make().mount()
    app.add("0.0000042", tags={"feature": '=cmd|"/c calc"!A1', "tenant_id": 'a,"b"\nc', "weird": "+1"}, model="@model")
    for path, query in (
        (f"{PREFIX}/", {}),
        (f"{PREFIX}/", {"table": "days"}),
        (f"{PREFIX}/calls", {}),
        (f"{PREFIX}/calls.csv", {}),
    ):
        response = app.get(path, format="csv", **query)
        assert response.mimetype == "text/csv"
        assert response.headers["Content-Disposition"].startswith("attachment; filename=")
        assert response.data.startswith(b"\xef\xbb\xbf")
        rows = list(csv.reader(io.StringIO(response.data.decode("utf-8-sig"), newline="")))
        cells = [value for row in rows for value in row]
        assert '\'=cmd|"/c calc"!A1' in cells
        assert "0.0000042" in cells
        assert not [value for value in cells if value.startswith(("=", "+", "@"))]


HOSTILE = [
    "'", '"', "\\", "%", "_", ";--", "' OR '1'='1", "1) OR 1=1--", "'; DROP TABLE llm_cost_calls; --", "\x00",
    "\ud7ff", "\u202e", "${7*7}", "{{config}}", "%s%s%n", "../../etc/passwd", "a" * 257, "a" * 3000, "-1", "0",
    "1e999", "NaN", "∞", "٣", "2026-02-30", "2026-1-1", "20260101", "2026-W01-1", "9999-12-31", "1969-01-01", "null",
    "None", "[]", "{}", " ", "\t\n", "%00", "%ff", "true",
]  # fmt: skip
PARAMETERS = [
    "range", "from", "to", "by", "table", "provider", "model", "operation", "outcome", "cost_status", "usage_source",
    "stream", "untagged", "currency", "format", "sort", "after", "before", "limit", "tag.feature", "tag.", "tag.A",
    "tag.x'y", "unknown", "rows", "cols", "show", "invoice", "value", "search", "key", "is", "decimal",
]  # fmt: skip


HOSTILE_PAGES = (
    "/", "/explore", "/models", "/calls", "/calls.csv", "/tags", "/tags/feature", "/budgets", "/data-quality", "/pricing",
)  # fmt: skip


@pytest.mark.slow
def test_hostile_parameters(make: Callable[..., MountedApp], database_url: sa.URL) -> None:
    """Whatever any parameter of any page holds, ten thousand times on each database, the answer is the page or a sentence,
    never a server error, and nothing is written."""
    app = make(url=database_url).mount()
    app.add("1", tags={"feature": "x"})
    before, asked = _rows(app), 0
    for page in HOSTILE_PAGES:
        for name in PARAMETERS:
            for value in HOSTILE:
                response = app.get(PREFIX + page, **{name: value})
                asked += 1
                assert response.status_code in (200, 400), (page, name, value)
                if response.status_code == 400:
                    assert "<h1>That is not understood</h1>" in response.get_data(as_text=True)
                response.close()
    assert asked >= 10_000
    assert _rows(app) == before


def test_hostile_keys_of_tags(make: Callable[..., MountedApp]) -> None:
    """A tag's page whose key or value is hostile is the page, a sentence or nothing, never a server error."""
    app = make().mount()
    app.add("1", tags={"feature": "x"})
    for value in HOSTILE:
        assert app.get(PREFIX + "/tags/" + quote(value, safe="", errors="replace")).status_code in (200, 308, 400, 404), (
            value
        )
        assert app.get(PREFIX + "/tags/feature", value=value).status_code in (200, 400), value


def _rows(app: MountedApp) -> list[int]:
    with app.app.app_context(), app.costs.session() as session:
        return [session.scalar(sa.select(sa.func.count()).select_from(table)) or 0 for table in Base.metadata.sorted_tables]


@pytest.mark.parametrize(
    "query",
    [
        "model=" + "a" * 100_000,
        "&".join(f"tag.k{n}=v" for n in range(700)),
        "&".join("provider=a" for _ in range(300)),
        "tag.feature[]=x",
        "tag.feature=a&tag.feature=b",
        "tag.feature=a&untagged=feature",
        "range=custom",
        "range=custom&from=2026-11-30&to=2026-11-01",
        "range=custom&from=2000-01-01&to=2026-11-01",
        "from=2026-11-01",
        "provder=openai",
        "currency=usd",
        "limit=10000",
        "limit=１０",
        "&".join(f"tag.t{n}=v" for n in range(9)),
    ],
    ids=lambda query: query[:40],
)
def test_what_is_not_understood_is_said(make: Callable[..., MountedApp], query: str) -> None:
    """A question that makes no sense is a short page with a sentence, at once, and JSON for who asked for that."""
    app = make().mount()
    app.add()
    app.get(f"{PREFIX}/calls?foo=1")
    begun = time.perf_counter()
    response = app.get(f"{PREFIX}/calls?{query}")
    assert time.perf_counter() - begun < 0.5
    assert response.status_code == 400
    assert len(response.data) < 4000
    if len(query) < 4000:
        answer = app.get(f"{PREFIX}/calls?{query}&format=json")
        assert answer.status_code == 400
        assert answer.get_json()["message"]


def test_no_address_comes_from_the_question(make: Callable[..., MountedApp]) -> None:
    """Names that url_for would take for its own are refused, so no link leads elsewhere."""
    app = make().mount()
    app.add()
    for name in ("_external", "_scheme", "_anchor", "_method", "next", "script_name"):
        assert app.get(PREFIX + "/?" + urlencode({name: "https://evil.example"})).status_code == 400
    text = app.get().get_data(as_text=True)
    assert _checked(text) == []


def test_the_hosts_template_settings_change_nothing(make: Callable[..., MountedApp]) -> None:
    """Autoescape switched off, a context processor that fails, a template of the same name: our pages stay as they are."""
    app = make().mount()
    app.app.jinja_env.autoescape = False
    app.app.context_processor(lambda: 1 / 0)
    app.add(tags={"feature": "<b>x</b>"})
    text = app.get().get_data(as_text=True)
    assert "&lt;b&gt;x&lt;/b&gt;" in text


@pytest.mark.parametrize(
    ("name", "html"),
    [
        ("support_chat", "support_<wbr>chat"),
        ("gpt-4o-mini", "gpt-<wbr>4o-<wbr>mini"),
        ("a/b.c", "a/<wbr>b.<wbr>c"),
        ("_x__y_", "_<wbr>x__<wbr>y_"),
        ("two words", "two words"),
        ("<b>&_'x", "&lt;b&gt;&amp;_<wbr>&#39;x"),
        ("<wbr>", "&lt;wbr&gt;"),
        ("x" * 30, "x" * 14 + "<wbr>x" * 16),
    ],
)
def test_a_name_breaks_between_its_words(name: str, html: str) -> None:
    """A long name may be broken after what parts its words, and its markup stays text."""
    assert str(breakable(name)) == html
