"""The group that every command is in."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from typing import Any, TypeVar

import click
from flask.cli import AppGroup

from flask_llm_cost.errors import LlmCostError

_F = TypeVar("_F", bound=Callable[..., Any])


class _Commands(AppGroup):
    """Our errors say what to do: show them as they are, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except LlmCostError as error:
            raise click.ClickException(str(error)) from None


def actor() -> str:
    """Who runs a command, for the record."""
    try:
        return getpass.getuser()[:128]
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"


def format_option(*formats: str) -> Callable[[_F], _F]:
    """``--format``, the first of *formats* unless something else is asked for."""
    return click.option(
        "--format", "form", type=click.Choice(formats), default=formats[0], show_default=True, help="For people or programs."
    )


cli = _Commands("llm-cost", help="What the LLM calls of this app cost, and for whom.")
