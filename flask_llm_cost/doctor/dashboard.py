"""Who may see the figures?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from flask_llm_cost.doctor.check import Check
from flask_llm_cost.extension import AppState

#: Decorators that ask whether somebody is signed in, and not who: Flask-Login's, and what others call theirs.
_SIGNED_IN: Final = frozenset(
    {
        "login_required",
        "auth_required",
        "authenticated",
        "fresh_login_required",
        "jwt_required",
        "require_login",
        "token_required",
    }
)


def dashboard(state: AppState) -> Iterator[Check]:
    mounts = state.app.extensions.get("llm_cost_dashboards", ())
    if not mounts:
        yield Check(
            "Dashboard",
            "mounted",
            "warning",
            "no dashboard; add app.register_blueprint(dashboard_blueprint(guard=staff_required), url_prefix='/llm-costs')",
        )
    for mount in mounts:
        where = f"{mount.name} at {mount.url_prefix or '/'}"
        if not mount.guarded:
            yield Check("Dashboard", mount.name, "error", f"{where} is open to everybody; give it a guard=")
        elif state.app.config.get("LOGIN_DISABLED"):
            yield Check("Dashboard", mount.name, "error", f"{where}: LOGIN_DISABLED opens every guard; take it away")
        elif not mount.scoped and mount.guard_name in _SIGNED_IN:
            message = (
                f"{where}: behind {mount.guard_name} alone every signed-in user sees all tenants; "
                "let a guard look at the role, or give it a scope="
            )
            yield Check("Dashboard", mount.name, "warning", message)
        else:
            scoped = "scoped" if mount.scoped else "shows all tenants to whoever its guard lets in"
            yield Check("Dashboard", mount.name, "ok", f"{where} is guarded, and {scoped}")
