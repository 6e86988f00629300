"""Hostile data and hostile questions: nothing runs, nothing breaks, nothing is written."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from datetime import UTC, datetime
from html.parser import HTMLParser
from urllib.parse import quote, urlencode
from uuid import uuid4

import pytest
import sqlalchemy as sa
from addresses import PAGES
from mounted_app import BUDGETS, PREFIX, MountedApp, statements
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from flask_llm_cost import track
from flask_llm_cost.dashboard.export import cell
from flask_llm_cost.dashboard.rendering import breakable
from flask_llm_cost.ledger.models import Base, Call, LineItem, PriceSnapshot

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


def _markup(table: type[Base], *columns: str) -> dict[str, str]:
    """As much markup as each column takes."""
    return {name: MARKUP[: table.__table__.c[name].type.length] for name in columns}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "database_server",
    ["sqlite", *(pytest.param(name, marks=pytest.mark.slow) for name in ("postgresql", "mariadb"))],
    indirect=True,
)
def test_markup_in_every_string_stays_text(make: Callable[..., MountedApp], database_url: sa.URL) -> None:
    """Markup in models, tags, names, errors, prices, budgets and the question itself is shown as text, on every page, in
    charts and titles, on every database; in CSV and JSON it is what it was."""
    app = make(url=database_url, LLM_COST_BUDGETS=BUDGETS).mount()
    app.costs.tag_label("tenant_id")(lambda ids: dict.fromkeys(ids, MARKUP + "name"))
    tags = {"feature": MARKUP, "tenant_id": MARKUP, "user_id": MARKUP, "other": MARKUP}
    with app.app.app_context():
        track("openai", model=MARKUP, usage={"input": 7}, tags=tags)
        assert app.costs.flush(20)
        price = PriceSnapshot(
            id=uuid4(), currency="USD", rates={}, multiplier=1, discount=0, created_at=datetime.now(UTC),
            **_markup(PriceSnapshot, "source", "source_version", "matched_key", "match_kind", "pricing_mode", "tier"),
        )  # fmt: skip
        app.database.session.add(price)
        app.database.session.commit()
        price_id = price.id
    columns = ("provider", "operation", "model", "requested_model", "host", "error_class", "provider_response_id")
    strings = _markup(Call, *columns, "flags", "pricing_mode")
    component = _markup(LineItem, "component")["component"]
    for cost in ("1.5", None):
        told = {"items": [(component, 7, "1", "0.000007")], "price_id": price_id}
        call_id = app.add(cost, tags=tags, **told, **strings)
        app.add(cost, tags={"feature": "plain"})
    app.roll_up()
    queries: list[dict[str, str]] = [
        {},
        {"by": "model"},
        {"tag.feature": MARKUP},
        {"model": MARKUP},
        {"search": MARKUP},
        {MARKUP: "1"},
        {"range": MARKUP},
    ]
    plain = [address for address in PAGES.values() if "?" not in address]
    addresses = [*plain, "/calls", "/models", "/tags", "/tags/feature", "/data-quality", f"/calls/{call_id}"]
    asked = [(address, query) for address in dict.fromkeys(addresses) for query in queries]
    asked += [(address, {}) for address in PAGES.values() if "?" in address]
    asked += [("/tags/feature", {"value": MARKUP}), ("/explore?rows=tag:user_id&cols=tag:other", {})]
    found = 0
    for address, query in asked:
        response = app.get(PREFIX + address, **query)
        assert response.status_code in (200, 400), (address, query)
        text = response.get_data(as_text=True)
        assert _checked(text) == [], (address, query)
        assert text.count("<script") == 1
        assert "{{7*7}}" in text or ">49" not in text
        found += "&lt;script&gt;" in text
    assert found > len(asked) / 2
    assert MARKUP in {call["tags"].get("feature") for call in app.get(format="json").get_json()["dearest_calls"]}


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


def test_a_search_is_text(make: Callable[..., MountedApp]) -> None:
    """What a database takes for a wildcard is looked for as it is written."""
    app = make().mount()
    assert "gpt-4o" in app.get(PREFIX + "/pricing", search="gpt-4o").get_data(as_text=True)
    for wildcard in ("%", "gpt_4o", "*", "gpt.4o", "[a-z]"):
        assert "No model has" in app.get(PREFIX + "/pricing", search=wildcard).get_data(as_text=True), wildcard


class _Form(HTMLParser):
    """What a browser would send of the first form, nothing changed."""

    def __init__(self) -> None:
        super().__init__()
        self.fields: list[tuple[str, str]] = []
        self._select: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "input" and given.get("name"):
            self.fields.append((given["name"] or "", given.get("value") or ""))
        if tag == "select":
            self._select = given["name"]
        if tag == "option" and "selected" in given and self._select:
            self.fields.append((self._select, given["value"] or ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == "select":
            self._select = None


@pytest.mark.parametrize("page", ["/", "/explore", "/models", "/calls", "/tags", "/data-quality"])
def test_a_form_drops_no_filter(full: MountedApp, page: str) -> None:
    """Sending a page's form with another provider keeps every filter that was set, of tags without a field too."""
    asked = {"range": "30d", "model": "model-1", "tag.a.dotted-key": "v1", "tag.tenant_id": "t1", "untagged": "team"}
    form = _Form()
    form.feed(full.get(PREFIX + page, **asked).get_data(as_text=True))
    sent = {name: value for name, value in form.fields if value} | {"provider": "openai", "format": "json"}
    found = full.get(PREFIX + page, **{**sent, "range": "30d"}).get_json()
    assert found["filters"]["tags"] == {"a.dotted-key": "v1", "tenant_id": "t1", "team": None}
    assert (found["filters"]["model"], found["filters"]["provider"]) == ("model-1", "openai")
    assert found["range"]["name"] == "30d"


@pytest.mark.parametrize("database_server", ["postgresql", pytest.param("mariadb", marks=pytest.mark.slow)], indirect=True)
def test_a_question_is_given_up(make: Callable[..., MountedApp], database_url: sa.URL) -> None:
    """A server works on a question of a page for half a minute at most, and only a page's; the page says that it cannot.

    PostgreSQL neither compiles a page's small questions nor starts processes for them, and nothing of that outlasts it.
    """
    app = make(url=database_url).mount()
    wait = "pg_sleep({})" if database_url.get_backend_name() == "postgresql" else "sleep({})"
    ledger = app.app.extensions["llm_cost"].ledger
    with ledger.session(longest=0.1) as session:
        known = session.connection().info
        during = _settings(session)
        with pytest.raises(sa.exc.OperationalError):
            session.execute(sa.text(f"SELECT {wait.format(20)} FROM (SELECT 1) AS one"))
    with ledger.session() as session:
        assert session.connection().info is known
        after = _settings(session)
        assert not during or (during["jit"], during["parallel_setup_cost"]) == ("off", "20000")
        assert not after or after["statement_timeout"] == "0"
        assert not after or int(after["parallel_setup_cost"]) < 20_000
        session.execute(sa.text(f"SELECT {wait.format(0.3)}"))
    limits = []
    event.listen(Engine, "before_cursor_execute", listener := lambda *given: limits.append(given[2]))
    try:
        assert app.get().status_code == 200
    finally:
        event.remove(Engine, "before_cursor_execute", listener)
    assert [text for text in limits if "30" in text and ("statement_timeo" in text or "max_statement_time" in text)]


def _settings(session: Session) -> dict[str, str]:
    """How PostgreSQL works for a session."""
    if session.get_bind().dialect.name != "postgresql":
        return {}
    names = ("jit", "parallel_setup_cost", "statement_timeout")
    return {name: str(session.scalar(sa.text(f"SHOW {name}"))) for name in names}


def _rows(app: MountedApp) -> list[int]:
    with app.app.app_context(), app.costs.session() as session:
        return [session.scalar(sa.select(sa.func.count()).select_from(table)) or 0 for table in Base.metadata.sorted_tables]


@pytest.mark.parametrize(
    "query",
    [
        "model=" + "a" * 100_000,
        "&".join(f"tag.k{n}=v" for n in range(700)),
        "&".join("provider=a" for _ in range(10_000)),
        "provider=" + "a" * 10_000_000,
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
        "limit=501",
        "limit=１０",
        "&".join(f"tag.t{n}=v" for n in range(9)),
    ],
    ids=lambda query: query[:40],
)
def test_what_is_not_understood_is_said(make: Callable[..., MountedApp], query: str) -> None:
    """A question that makes no sense is a short page with a sentence before the ledger is asked anything, and JSON for who
    asked for that."""
    app = make().mount()
    with statements() as asked:
        response = app.get(f"{PREFIX}/calls?{query}")
    assert asked == []
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
        ("gemini-2.5-pro", "gemini-<wbr>2.5-<wbr>pro"),
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
