"""The dashboard: who is burning $X, on what, and is the number complete. Server-rendered, without JavaScript."""

from flask_llm_cost.dashboard.access import Mount
from flask_llm_cost.dashboard.blueprint import dashboard_blueprint

__all__ = ["Mount", "dashboard_blueprint"]
