"""The app's extensions, made here and bound to an app by ``create_app``."""

from __future__ import annotations

from collections.abc import Collection

from flask_login import LoginManager, current_user
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase

from flask_llm_cost import LlmCostTracker


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base)
migrate = Migrate()
login_manager = LoginManager()
login_manager.login_view = "auth.login"
costs = LlmCostTracker()


@costs.request_tagger
def who() -> dict[str, str]:
    """Whose call it is. Asked once in a request that makes LLM calls, and in no other."""
    if not current_user.is_authenticated:
        return {}
    return {"user_id": current_user.get_id(), "tenant_id": current_user.tenant_id}


@costs.tag_label("user_id")
def user_names(ids: Collection[str]) -> dict[str, str]:
    """Names instead of numbers on the dashboard."""
    from example.models import User

    users = db.session.scalars(db.select(User).where(User.id.in_([int(id) for id in ids if id.isdecimal()])))
    return {str(user.id): user.name for user in users}


@costs.tag_label("tenant_id")
def tenant_names(ids: Collection[str]) -> dict[str, str]:
    from example.models import Tenant

    return {tenant.id: tenant.name for tenant in db.session.scalars(db.select(Tenant).where(Tenant.id.in_(ids)))}
