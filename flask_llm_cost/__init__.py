"""Who is burning $X a month on LLM calls, and on what: a cost ledger inside your Flask app."""

from flask_llm_cost.capture.manual import track, track_stream
from flask_llm_cost.capture.propagation import carry_tags
from flask_llm_cost.dashboard import dashboard_blueprint
from flask_llm_cost.errors import (
    BudgetExceededError,
    ConfigError,
    IntegrationError,
    LedgerError,
    LlmCostError,
    PriceBookError,
    QueryError,
    SchemaMissingError,
    SetupError,
    UnknownPriceError,
    UsageError,
)
from flask_llm_cost.extension import LlmCostTracker
from flask_llm_cost.signals import budget_exceeded, call_recorded, unknown_price, write_failed
from flask_llm_cost.tags import current_tags, tags
from flask_llm_cost.version import __version__

__all__ = [
    "BudgetExceededError",
    "ConfigError",
    "IntegrationError",
    "LedgerError",
    "LlmCostError",
    "LlmCostTracker",
    "PriceBookError",
    "QueryError",
    "SchemaMissingError",
    "SetupError",
    "UnknownPriceError",
    "UsageError",
    "__version__",
    "budget_exceeded",
    "call_recorded",
    "carry_tags",
    "current_tags",
    "dashboard_blueprint",
    "tags",
    "track",
    "track_stream",
    "unknown_price",
    "write_failed",
]
