"""The ledger: what was called, what it cost and whose it is, in the app's own database.

::

    from flask_llm_cost.ledger import Call, CallTag, LineItem, spend

    db.session.scalars(select(Call).where(Call.provider == "openai"))
    spend.this_month()
"""

from __future__ import annotations

import importlib
from typing import Any

from flask_llm_cost.ledger.models import Call, CallTag, LineItem

__all__ = ["Call", "CallTag", "LineItem", "spend"]


def __getattr__(name: str) -> Any:
    # Late, since the questions need the extension, which needs the ledger.
    if name == "spend":
        return importlib.import_module("flask_llm_cost.ledger.spend")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
