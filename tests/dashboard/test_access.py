"""Fail closed: without a guard that says yes, and a scope that names somebody, not a byte is shown."""

from __future__ import annotations

import enum
import functools
import logging
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from html import unescape
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import pytest
from flask import Flask, Response, abort, redirect, request
from flask_login import login_required
from mounted_app import PREFIX, MountedApp

from flask_llm_cost.dashboard import Mount, dashboard_blueprint
from flask_llm_cost.ledger.models import PriceSnapshot

MARKERS = [f"planted{n:02d}" for n in range(20)]
QUERIES: list[dict[str, str]] = [
    {},
    {"format": "json"},
    {"format": "csv"},
    {"range": "90d"},
    {"by": "model"},
    {"rows": "tag:user_id", "cols": "model"},
    {"search": "planted"},
]
#: What has no figures in it. It stands behind the guard all the same.
ASSETS = ("app.css", "app.js", "icon.svg")


def plant(app: MountedApp, tags: dict[str, str] | None = None) -> UUID:
    """One call whose every string is a marker."""
    m = iter(MARKERS)
    price_id = uuid4()
    with app.app.app_context():
        price = PriceSnapshot(
            id=price_id, source=next(m), source_version=next(m), matched_key=next(m), match_kind=next(m), currency="USD",
            rates={}, pricing_mode=None, tier=next(m), multiplier=1, discount=0, created_at=datetime.now(UTC),
        )  # fmt: skip
        app.database.session.add(price)
        app.database.session.commit()
    columns = ("provider", "model", "requested_model", "host", "operation", "error_class", "pricing_mode", "flags")
    planted = {"feature": next(m), "tenant_id": next(m), "user_id": next(m), next(m): next(m), "job": next(m)}
    return app.add(
        "123.45",
        **{name: next(m) for name in columns},
        provider_response_id=next(m),
        tags={**planted, **(tags or {})},
        items=[("input", 7, "1", "0.000007")],
        price_id=price_id,
    )


def paths(app: MountedApp, call_id: UUID) -> Iterator[str]:
    """Every address of every dashboard on the app."""
    found = 0
    for rule in app.app.url_map.iter_rules():
        if rule.endpoint.partition(".")[0] in {mount.name for mount in app.app.extensions["llm_cost_dashboards"]}:
            found += 1
            yield rule.rule.replace("<uuid:call_id>", str(call_id)).replace("<key>", "feature")
    assert found >= 14


def seen(app: MountedApp, call_id: UUID, user: str | None) -> set[str]:
    """The markers that any address shows."""
    text = ""
    for path in paths(app, call_id):
        for query in QUERIES:
            text += app.get(path, user, **query).get_data(as_text=True)
    return {marker for marker in MARKERS if marker in text}


def test_anonymous_sees_nothing(make: Callable[..., MountedApp]) -> None:
    """Nobody who is not signed in gets any of 20 planted markers from any address; who is signed in finds them."""
    app = make().mount()
    call_id = plant(app)
    for path in paths(app, call_id):
        for query in QUERIES:
            response = app.get(path, None, **query)
            assert response.status_code == 401, path
            assert "Content-Security-Policy" not in response.headers
    assert seen(app, call_id, None) == set()
    # The response's id is masked to its last four, so one marker is never shown.
    assert len(seen(app, call_id, "ann")) >= 19


def _raising(view: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(**values: Any) -> Any:
        raise AttributeError("no login manager here")

    return wrapper


def _answering(answer: Callable[[], Any]) -> Callable[..., Any]:
    def guard(view: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(view)
        def wrapper(**values: Any) -> Any:
            return answer()

        return wrapper

    return guard


@pytest.mark.parametrize(
    ("guard", "status"),
    [
        (_raising, 403),
        (_answering(lambda: None), 403),
        (_answering(lambda: True), 403),
        (_answering(lambda: False), 403),
        (_answering(lambda: redirect("/sign-in")), 302),
        (_answering(lambda: Response("sign in first", 200)), 200),
        (_answering(lambda: abort(401)), 401),
    ],
)
def test_a_guard_that_does_not_say_yes(make: Callable[..., MountedApp], guard: Any, status: int) -> None:
    """A guard that raises, answers itself, or says yes without calling the view shows nothing of the data."""
    app = make().mount(guard=guard)
    call_id = plant(app)
    assert {app.get(path).status_code for path in paths(app, call_id)} == {status}
    assert seen(app, call_id, "ann") == set()


def test_a_missing_login_manager_shows_nothing(make: Callable[..., MountedApp], caplog: pytest.LogCaptureFixture) -> None:
    """``login_required`` without a LoginManager is a 403 and a line in the log, not an open door."""
    app = make().mount()
    call_id = plant(app)
    del app.app.login_manager  # type: ignore[attr-defined]
    assert {app.get(path, None).status_code for path in paths(app, call_id)} == {403}
    assert seen(app, call_id, None) == set()
    assert "the guard of dashboard 'llm_cost' failed" in caplog.text


def test_an_error_of_a_page_is_not_taken_for_the_guards(make: Callable[..., MountedApp]) -> None:
    """What fails behind the guard stays a failure: it is not a 403 that sends people to look at the guard."""
    app = make().mount()
    app.app.config["PROPAGATE_EXCEPTIONS"] = False
    state = app.app.extensions["llm_cost"]
    app.app.extensions["llm_cost"] = object()
    response = app.get()
    app.app.extensions["llm_cost"] = state
    assert response.status_code == 500


def test_what_is_no_guard_is_refused() -> None:
    """A guard that is no decorator stops start-up."""
    with pytest.raises(TypeError, match="no view decorator"):
        dashboard_blueprint(guard=lambda view: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(TypeError, match="function or None"):
        dashboard_blueprint(guard="login_required")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="guard"):
        dashboard_blueprint()  # type: ignore[call-arg]


def test_publishing_on_purpose_is_said_aloud(make: Callable[..., MountedApp], caplog: pytest.LogCaptureFixture) -> None:
    """``guard=None`` shows everything to everybody, and warns at every start."""
    with caplog.at_level(logging.WARNING, "flask_llm_cost"):
        app = make().mount(guard=None)
    assert "open to everybody" in caplog.text
    call_id = plant(app)
    assert MARKERS[8] in app.get(f"{PREFIX}/calls/{call_id}", None).get_data(as_text=True)


@pytest.mark.parametrize(
    "scope",
    [
        lambda: None,
        dict,
        lambda: {"tenant_id": None},
        lambda: {"tenant_id": ""},
        lambda: {"tenant_id": "  "},
        lambda: {"tenant_id": "x" * 257},
        lambda: {"tenant_id": True},
        lambda: {"tenant_id": ["a", "b"]},
        lambda: {"tenant_id": "planted06", "user_id": None},
        lambda: {"Tenant": "planted06"},
        lambda: [("tenant_id", "planted06")],
        lambda: 1 / 0,
    ],
)
def test_a_scope_that_names_nobody(make: Callable[..., MountedApp], scope: Any) -> None:
    """A scope that is empty, odd or fails shows nothing on any page, and none of it is a server error."""
    app = make().mount(scope=scope)
    call_id = plant(app)
    codes = {app.get(path).status_code for path in paths(app, call_id) if not path.endswith(ASSETS)}
    assert codes == {403}
    assert seen(app, call_id, "ann") == set()


def test_a_scope_holds_on_every_page(make: Callable[..., MountedApp]) -> None:
    """Inside a scope nothing of anybody else's is found by lists, filters, options, files, or ids."""
    app = make().mount(scope=lambda: {"tenant_id": request.headers["X-User"]})
    theirs = plant(app, {"tenant_id": "beta"})
    mine = app.add("1", tags={"tenant_id": "alpha", "feature": "own"})
    assert seen(app, theirs, "alpha") == set()
    assert app.get(f"{PREFIX}/calls/{theirs}", "alpha").status_code == 404
    assert app.get(f"{PREFIX}/calls/{theirs}", "alpha", format="json").status_code == 404
    assert app.get(f"{PREFIX}/calls/{theirs}", "beta").status_code == 200
    assert app.get(f"{PREFIX}/calls/{mine}", "alpha").status_code == 200
    for query in (
        {"tag.tenant_id": "beta"},
        {"untagged": "tenant_id"},
        {"by": "tag:tenant_id"},
        {"tag.tenant_id": "beta", "format": "json"},
        {"range": "90d", "format": "csv"},
    ):
        for page in ("/", "/calls"):
            if page == "/calls" and "by" in query:
                continue
            text = app.get(PREFIX + page, "alpha", **query).get_data(as_text=True)
            assert not any(marker in text for marker in MARKERS)
            assert "123.45" not in text
    for path in paths(app, mine):
        for query in (
            {"tag.tenant_id": "beta"},
            {"value": "beta"},
            {"provider": "planted09"},
            {"tag.user_id": "planted07", "range": "90d", "format": "json"},
            {"rows": "tag:tenant_id", "cols": "tag:user_id", "format": "csv"},
        ):
            text = app.get(path, "alpha", **query).get_data(as_text=True)
            # What is asked for is said again; nothing else of theirs is.
            assert not [marker for marker in MARKERS if marker in text and marker not in query.values()], (path, query)
            assert "123.45" not in text
    for form in ("html", "json", "csv"):
        assert app.get(f"{PREFIX}/calls/{theirs}", "alpha", format=form).status_code == 404
    assert app.get(f"{PREFIX}/calls", "alpha", after=str(theirs)).status_code == 400
    assert app.get(f"{PREFIX}/calls", "alpha", after=str(mine)).status_code == 200


def test_a_scope_by_number(make: Callable[..., MountedApp]) -> None:
    """A tenant's id may be a number, as it is in the app's own tables."""
    app = make().mount(scope=lambda: {"tenant_id": 42})
    app.add("7.31", tags={"tenant_id": "42"})
    app.add("5813", tags={"tenant_id": "421"})
    text = app.get().get_data(as_text=True)
    assert "$7.31" in text
    assert "5,813" not in text


class _Tenant(str, enum.Enum):  # noqa: UP042 - as apps wrote it before there was a StrEnum, which says its value
    ACME = "acme"


def test_a_scope_by_an_enum_of_strings(make: Callable[..., MountedApp]) -> None:
    """A tenant's id may be a member of an enum: it is what calls have of it, whatever str() says."""
    app = make().mount(scope=lambda: {"tenant_id": _Tenant.ACME})
    app.add("7.31", tags={"tenant_id": "acme"})
    assert "$7.31" in app.get().get_data(as_text=True)


def test_mounted_twice(make: Callable[..., MountedApp]) -> None:
    """Two mounts on one app keep their own guard and scope, and link within themselves; doctor can list them."""
    app = make().mount().mount("/mine", name="my_usage", scope=lambda: {"tenant_id": "a"}, guard=None)
    app.add("3", tags={"tenant_id": "a"})
    app.add("5", tags={"tenant_id": "b"})
    everything, mine = app.get().get_data(as_text=True), app.get("/mine/", None).get_data(as_text=True)
    assert "$8.00" in everything
    assert "$3.00" in mine
    assert "/mine/" not in everything
    assert PREFIX not in mine
    assert app.get(user=None).status_code == 401
    assert app.app.extensions["llm_cost_dashboards"] == [
        Mount("llm_cost", PREFIX, guarded=True, scoped=False, guard_name="login_required"),
        Mount("my_usage", "/mine", guarded=False, scoped=True),
    ]


def linked(app: MountedApp, start: str) -> set[str]:
    """The addresses that a page leads to, one after the other, the files included; all of them answer."""
    seen, waiting = {start}, [start]
    while waiting:
        response = app.get(waiting[0])
        assert response.status_code == 200, waiting[0]
        text = response.get_data(as_text=True) if response.mimetype == "text/html" else ""
        found = re.findall(r'(?:href|src|action)="([^"#][^"]*)"', text)
        new = {href for href in map(unescape, found) if urlsplit(href).path not in {urlsplit(url).path for url in seen}}
        seen |= new
        waiting = [*waiting[1:], *new]
    return seen


def test_a_prefix_with_a_variable(make: Callable[..., MountedApp]) -> None:
    """A prefix may name the tenant: pages, files and links are all there for each, and the scope can ask who it is."""
    scope: Any = lambda: {"tenant_id": request.view_args["tenant"]}  # type: ignore[index]  # noqa: E731
    app = make().mount("/of/<tenant>/costs", scope=scope)
    app.add("3", tags={"tenant_id": "a"})
    app.add("5", tags={"tenant_id": "b"})
    assert "$3.00" in app.get("/of/a/costs/").get_data(as_text=True)
    assert "$5.00" in app.get("/of/b/costs/").get_data(as_text=True)
    found = linked(app, "/of/a/costs/")
    assert {url.partition("?")[0] for url in found} > {f"/of/a/costs/{name}" for name in ("", "app.css", "calls", "models")}
    assert all(url.startswith("/of/a/costs/") for url in found)


def test_what_the_app_adds_to_addresses_is_no_parameter_of_ours(make: Callable[..., MountedApp]) -> None:
    """An app's ``url_defaults`` may put something behind every address; the dashboard's links lead on all the same."""
    app = make().mount()
    app.app.url_defaults(lambda _endpoint, values: values.setdefault("lang", "en"))
    app.add("3", tags={"tenant_id": "a"})
    assert not [url for url in linked(app, PREFIX + "/") if "lang" in url]


def test_files_are_sent_once(make: Callable[..., MountedApp]) -> None:
    """Who has the stylesheet, the script or the icon is told that it is still the same."""
    app = make().mount()
    for name in ("app.css", "app.js", "icon.svg"):
        mark = app.get(f"{PREFIX}/{name}").headers["ETag"]
        again = app.client.get(f"{PREFIX}/{name}", headers={"X-User": "ann", "If-None-Match": mark})
        assert (again.status_code, again.data) == (304, b"")
        assert again.headers["Content-Security-Policy"]


def test_two_apps_share_nothing(make: Callable[..., MountedApp]) -> None:
    """A guard of one app is none of another's."""
    first = make().mount()
    other = make().mount(guard=None)
    assert first.get(user=None).status_code == 401
    assert other.get(user=None).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_nothing_can_be_written(make: Callable[..., MountedApp], method: str) -> None:
    """No address answers anything that writes, with or without a user."""
    app = make().mount()
    call_id = plant(app)
    for path in paths(app, call_id):
        for user in (None, "ann"):
            assert app.get(path, user, method=method).status_code == 405, path


def test_head_is_a_page_without_its_text(make: Callable[..., MountedApp]) -> None:
    """HEAD of any address answers as GET does, and sends nothing."""
    app = make().mount()
    for path in paths(app, plant(app)):
        head = app.get(path, method="HEAD")
        assert (head.status_code, head.data) == (200, b""), path


def test_headers_are_on_our_responses_only(make: Callable[..., MountedApp]) -> None:
    """Pages of ours carry the strict headers; the host's own responses are as they were."""
    plain, app = make(), make()
    for made in (plain, app):
        made.app.add_url_rule("/host", "host", lambda: "host")
    app.mount()
    assert app.get("/host").headers == plain.get("/host").headers
    call_id = plant(app)
    for path in paths(app, call_id):
        response = app.get(path)
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Referrer-Policy"] == "no-referrer"
        assert "Cookie" in response.headers["Vary"]
        expected = "private, max-age=3600" if path.endswith(ASSETS) else "no-store, private"
        assert response.headers["Cache-Control"] == expected


def test_an_async_guard_is_waited_for(make: Callable[..., MountedApp]) -> None:
    """A guard that cannot be run as the app is set up shows nothing, rather than being skipped."""

    def guard(view: Callable[..., Any]) -> Callable[..., Any]:
        async def wrapper(**values: Any) -> Any:
            abort(401)

        return wrapper

    app = make().mount(guard=guard)
    assert app.get().status_code in (401, 403)


def test_login_required_as_it_is_used(make: Callable[..., MountedApp]) -> None:
    """A decorator may be stacked, as apps do: the inner one decides too."""

    def staff(view: Callable[..., Any]) -> Callable[..., Any]:
        @login_required
        @functools.wraps(view)
        def wrapper(**values: Any) -> Any:
            if request.headers["X-User"] != "staff":
                abort(403)
            return view(**values)

        return wrapper

    app = make().mount(guard=staff)
    call_id = plant(app)
    assert [app.get(user=user).status_code for user in (None, "ann", "staff")] == [401, 403, 200]
    assert app.get(f"{PREFIX}/calls/{call_id}", "staff").status_code == 200


def test_the_blueprint_is_new_each_time() -> None:
    """Every call of the factory makes a blueprint of its own."""
    app = Flask(__name__)
    first, second = dashboard_blueprint(guard=None), dashboard_blueprint(guard=None, name="other")
    assert first is not second
    app.register_blueprint(first, url_prefix="/a")
    app.register_blueprint(second, url_prefix="/b")
