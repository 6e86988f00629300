"""A call as a row of a file: what the dashboard's CSV and ``flask llm-cost export`` write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from flask_llm_cost.ledger.call_queries import CallRow

_CALL: Final = (
    "occurred_at", "id", "provider", "model", "requested_model", "operation", "stream", "attempt", "outcome", "http_status",
    "usage_source", "cost_status", "total_cost", "currency", "pricing_mode", "input_tokens", "cache_read_tokens",
    "cache_write_tokens", "output_tokens", "reasoning_tokens", "total_tokens", "latency_ms", "first_token_ms",
)  # fmt: skip


def call_header(keys: Sequence[str]) -> list[str]:
    """The names of the columns. *keys* are the tags that have a column of their own."""
    return [*_CALL, *(f"tag:{key}" for key in keys), "other_tags"]


def call_cells(row: CallRow, keys: Sequence[str]) -> list[Any]:
    """The cells of one call, under the same columns."""
    others: Mapping[str, str] = {key: value for key, value in row.tags.items() if key not in keys}
    return [
        *(getattr(row, name) for name in _CALL),
        *(row.tags.get(key) for key in keys),
        "; ".join(f"{key}={value}" for key, value in others.items()),
    ]
