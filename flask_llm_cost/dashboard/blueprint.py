"""The blueprint factory: a new blueprint each call, so that mounts share neither guard nor scope."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Blueprint, Response
from flask.blueprints import BlueprintSetupState

from flask_llm_cost.dashboard import views
from flask_llm_cost.dashboard.access import Guard, Mount, Scope, View, guarded
from flask_llm_cost.dashboard.budgets_page import budgets
from flask_llm_cost.dashboard.explore import explore
from flask_llm_cost.dashboard.models_page import models
from flask_llm_cost.dashboard.pricing_page import pricing
from flask_llm_cost.dashboard.quality import quality
from flask_llm_cost.dashboard.tags_pages import tag, tags
from flask_llm_cost.dashboard.visit import respond
from flask_llm_cost.log import log

_EXTENSION = "llm_cost_dashboards"


def dashboard_blueprint(*, guard: Guard | None, scope: Scope | None = None, name: str = "llm_cost") -> Blueprint:
    """A dashboard for ``app.register_blueprint(dashboard_blueprint(guard=...), url_prefix="/llm-costs")``.

    :param guard: any view decorator, such as Flask-Login's ``login_required`` or one of your own. It stands before every
        endpoint, the stylesheet included; where it does not call the view, nothing is shown. ``None`` publishes on purpose
    :param scope: a function that returns the tags whose calls may be seen, asked on every request: ``lambda: {"tenant_id":
        current_user.tenant_id}``. Where it returns ``None``, nothing or an empty value, or raises, nothing is shown
    :param name: the blueprint's name; a second mount needs another

    :raises TypeError: *guard* or *scope* cannot be called
    """
    for role, function in (("guard", guard), ("scope", scope)):
        if function is not None and not callable(function):
            raise TypeError(f"{role} is a function or None, not {type(function).__name__}")
    blueprint = Blueprint(name, __name__)

    def page(rule: str, endpoint: str, view: View, *own: str) -> None:
        def show(**mount: Any) -> Response:
            values = {name: mount.pop(name) for name in own}
            return respond(view, endpoint, name, scope, values, mount)

        add(rule, endpoint, show)

    def file(rule: str, endpoint: str, view: Callable[[], Response]) -> None:
        add(rule, endpoint, lambda **_: view())

    def add(rule: str, endpoint: str, show: Callable[..., Response]) -> None:
        show.__name__ = show.__qualname__ = endpoint
        # No automatic OPTIONS: it would answer before the guard. HEAD comes with GET.
        blueprint.add_url_rule(rule, endpoint, guarded(show, guard, name), methods=["GET"], provide_automatic_options=False)

    page("/", "overview", views.overview)
    page("/calls", "calls", views.calls)
    page("/calls.csv", "calls_csv", views.calls_csv)
    page("/calls/<uuid:call_id>", "call", views.call, "call_id")
    page("/explore", "explore", explore)
    page("/models", "models", models)
    page("/tags", "tags", tags)
    page("/tags/<key>", "tag", tag, "key")
    page("/budgets", "budgets", budgets)
    page("/data-quality", "quality", quality)
    page("/pricing", "pricing", pricing)
    file("/app.css", "stylesheet", views.stylesheet)
    file("/app.js", "script", views.script)
    file("/icon.svg", "icon", views.icon)

    def registered(state: BlueprintSetupState) -> None:
        prefix = state.url_prefix or "/"
        mounted = ".".join(part for part in (state.name_prefix, state.name) if part)
        # Flask-HTTPAuth's is called login_required as well, and asks for a password that few have.
        few = getattr(guard, "__module__", "").startswith("flask_httpauth")
        guard_name = "" if few else getattr(guard, "__name__", "")
        mount = Mount(mounted, prefix, guard is not None, scope is not None, guard_name)
        state.app.extensions.setdefault(_EXTENSION, []).append(mount)
        if guard is None:
            log.warning("the dashboard %r at %s is open to everybody: it is registered with guard=None", mounted, prefix)

    blueprint.record(registered)
    return blueprint
