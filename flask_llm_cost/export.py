"""Calls as a file: what ``/calls.csv`` of the dashboard sends, written by a command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import sqlalchemy as sa

from flask_llm_cost.dashboard.calls_table import call_cells, call_header
from flask_llm_cost.dashboard.export import csv_lines
from flask_llm_cost.extension import AppState
from flask_llm_cost.ledger import call_queries
from flask_llm_cost.ledger.filter import Filter
from flask_llm_cost.ledger.models import Call
from flask_llm_cost.ledger.rollup_answers import check_detail
from flask_llm_cost.ledger.rollup_state import read_state, state_of


def export_calls(state: AppState, flt: Filter, path: str) -> int:
    """Write the calls to the file *path*, or to standard output for ``-``. Returns how many there are.

    They are read a page at a time, so memory does not grow with them. The file appears when it is complete.

    :raises DetailPrunedError: some of them were pruned, so that the file would add up to less
    """
    if path == "-":
        # UTF-8 whatever the terminal's encoding, and line ends as they are.
        return _write(state, flt, lambda text: sys.stdout.buffer.write(text.encode("utf-8")))
    part = Path(f"{path}.part")
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            written = _write(state, flt, file.write)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return written


def _write(state: AppState, flt: Filter, write: Callable[[str], object]) -> int:
    keys = state.config.report_tags
    counted = 0
    with state.ledger.session() as session:
        check_detail(flt, state_of(session))
        expected = session.scalar(sa.select(sa.func.count()).select_from(Call).where(*flt.conditions())) or 0

        def rows(calls: Iterable[call_queries.CallRow]) -> Iterator[list[Any]]:
            nonlocal counted
            for call in calls:
                counted += 1
                yield call_cells(call, keys)

        with click.progressbar(
            call_queries.all_calls(session, flt),
            length=expected,
            label="Calls",
            file=sys.stderr,
            hidden=not sys.stderr.isatty(),
        ) as calls:
            for text in csv_lines(call_header(keys), rows(calls)):
                write(text)
        check_detail(flt, read_state(session.connection()))  # a prune may have begun meanwhile
    return counted
