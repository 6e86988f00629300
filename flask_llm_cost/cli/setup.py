"""``install`` and ``doctor``: make it work, and see whether it does."""

from __future__ import annotations

import json
from dataclasses import asdict

import click
from flask import current_app

from flask_llm_cost import doctor as checks
from flask_llm_cost.cli.group import cli, format_option
from flask_llm_cost.extension import state_of
from flask_llm_cost.installation import install_ledger


@cli.command()
def install() -> None:
    """Make the ledger's tables: by a migration where the app uses Flask-Migrate, directly otherwise."""
    for line in install_ledger(current_app._get_current_object()):  # type: ignore[attr-defined]  # a proxy
        click.echo(line)


@cli.command()
@click.option(
    "--capture",
    "try_calls",
    is_flag=True,
    help="Also make a call through each client library, to a provider played on this machine, and see that it arrives.",
)
@format_option("text", "json")
def doctor(try_calls: bool, form: str) -> None:
    """Look whether everything is in order, and say what to do where it is not. Exits 1 on errors."""
    found = checks.examine(state_of(), try_calls=try_calls)
    if form == "json":
        click.echo(json.dumps([asdict(check) for check in found], indent=2))
    else:
        marks = {"ok": ("ok     ", "green"), "warning": ("warning", "yellow"), "error": ("error  ", "red")}
        group = None
        for check in found:
            if check.group != group:
                group = check.group
                click.echo(f"\n{group}" if check is not found[0] else group)
            mark, colour = marks[check.status]
            click.echo(f"  {click.style(mark, fg=colour)}  {check.name}: {check.message}")
    if any(check.status == "error" for check in found):
        raise SystemExit(1)
