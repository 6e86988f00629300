"""Sphinx: ``.. help-texts::`` puts what ``--help`` prints for every command on the page, from the commands themselves."""

from __future__ import annotations

from typing import Any

import click
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from flask_llm_cost.cli import cli

#: Columns of a terminal for which the texts are wrapped.
WIDTH = 88


def help_texts(group: click.Group = cli, name: str = "flask llm-cost") -> dict[str, str]:
    """What a person types, to what ``--help`` then prints."""
    found: dict[str, str] = {}
    for part, command in group.commands.items():
        typed = f"{name} {part}"
        if isinstance(command, click.Group):
            found |= help_texts(command, typed)
        if not isinstance(command, click.Group) or command.invoke_without_command:
            context = click.Context(command, info_name=typed, terminal_width=WIDTH, max_content_width=WIDTH)
            found[typed] = command.get_help(context)
    return dict(sorted(found.items()))


class HelpTexts(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        shown: list[nodes.Node] = []
        for typed, text in help_texts().items():
            command = f"$ {typed} --help\n{text}"
            block = nodes.literal_block(command, command)
            block["language"] = "text"
            shown.append(block)
        return shown


def setup(app: Any) -> dict[str, Any]:
    app.add_directive("help-texts", HelpTexts)
    return {"version": "1", "parallel_read_safe": True}
