"""The group that every command is in."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from decimal import localcontext
from typing import Any, TypeVar

import click
from flask.cli import AppGroup, ScriptInfo
from sqlalchemy.exc import DBAPIError

from flask_llm_cost.errors import LlmCostError
from flask_llm_cost.extension import state_of
from flask_llm_cost.ledger.columns import USUAL
from flask_llm_cost.ledger.faults import name_of
from flask_llm_cost.ledger.read_session import READ_BIND

_F = TypeVar("_F", bound=Callable[..., Any])


class _Commands(AppGroup):
    """Our errors say what to do: show them as they are, without a traceback. Of a database's own, only the kind."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with localcontext(USUAL):
                return super().invoke(ctx)
        except LlmCostError as error:
            raise click.ClickException(str(error)) from None
        except DBAPIError as error:
            raise click.ClickException(_unasked(ctx, error)) from None


def _unasked(ctx: click.Context, error: DBAPIError) -> str:
    """What a person is told whose command a database has ended: which one it was, and what to look at."""
    config = state_of(ctx.ensure_object(ScriptInfo).load_app()).config
    replica = config.read_bind_key if READ_BIND in getattr(error, "__notes__", ()) else None
    which = "the ledger's database" if replica is None else f"the database of LLM_COST_READ_BIND_KEY={replica!r}"
    bind = replica or config.bind_key
    key = "SQLALCHEMY_DATABASE_URI" if bind is None else f"SQLALCHEMY_BINDS[{bind!r}]"
    remedy = f"see that it is up, and that {key} leads to it, as a user who may use it"
    return f"{which} could not be asked ({name_of(error)}); {remedy}"


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
