"""``flask llm-cost …``: thin commands over functions that can be called without them. One file a topic."""

from flask_llm_cost.cli import budgets, ledger, prices, reports, repricing, retention, setup, spool
from flask_llm_cost.cli.group import cli

__all__ = ["budgets", "cli", "ledger", "prices", "reports", "repricing", "retention", "setup", "spool"]
