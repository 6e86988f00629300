"""The group that every command is in."""

from __future__ import annotations

from typing import Any

import click
from flask.cli import AppGroup

from flask_llm_cost.errors import LlmCostError


class _Commands(AppGroup):
    """Our errors say what to do: show them as they are, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except LlmCostError as error:
            raise click.ClickException(str(error)) from None


cli = _Commands("llm-cost", help="What the LLM calls of this app cost, and for whom.")
