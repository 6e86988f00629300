"""Lets one step of ours fail: the nth of our functions that one of ours calls in a block raises.

The functions are the real ones, but for a word at their beginning that asks whether this is the one. Neither a
tracer nor a profiler does that: CPython 3.11 crashes where one of them raises while generators run.
"""

from __future__ import annotations

import ast
import builtins
import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FunctionType

import flask_llm_cost
from flask_llm_cost.capture import guard

OURS = str(Path(flask_llm_cost.__file__).parent)
PLAYED = str(Path(OURS, "testing"))

#: Where the app's call itself is made, and where an error goes out to the app because it asked for that. Neither does
#: anything else that could fail.
WALL = ("capture/requests.py:_send", "capture/sdk.py:raise_out")
WORD = "__llm_cost_step__"


class StepError(Exception):
    """One step of ours went wrong."""


class _Asking(ast.NodeTransformer):
    """Puts the word into every function."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._asked(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._asked(node)

    def _asked(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        self.generic_visit(node)
        at = 1 if ast.get_docstring(node, clean=False) is not None else 0
        first = node.body[at] if len(node.body) > at else None
        word = ast.Expr(ast.Call(ast.Name(WORD, ast.Load()), [], []))
        if isinstance(first, ast.Try):  # what is one ``try`` from its first line on fails within it
            first.body.insert(0, word)
        else:
            node.body.insert(at, word)
        return node


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _is_ours(name: str) -> bool:
    return name.startswith(OURS) and not name.startswith(PLAYED)


def _asking_codes(name: str) -> dict[tuple[str, int], CodeType]:
    tree = ast.fix_missing_locations(_Asking().visit(ast.parse(Path(name).read_text())))
    flags = 0x1000000  # the annotations of the future, which every file of ours has
    module = compile(tree, name, "exec", flags=flags, dont_inherit=True)
    return {(code.co_qualname, code.co_firstlineno): code for code in _codes(module)}


class Steps:
    """What one thread takes."""

    def __init__(self) -> None:
        self.names: list[str] = []
        #: The one that raised.
        self.failed: str | None = None
        self._nth = 0
        self._thread: int | None = None

    def ask(self) -> None:
        """Called by every function of ours."""
        if threading.get_ident() != self._thread:
            return
        frame = sys._getframe(1)
        caller = frame.f_back
        if caller is None or not _is_ours(caller.f_code.co_filename):
            return
        name = f"{Path(frame.f_code.co_filename).relative_to(OURS)}:{frame.f_code.co_qualname}"
        if name in WALL:
            return
        self.names.append(name)
        if len(self.names) == self._nth:
            self.failed = name
            raise StepError(name)

    @contextmanager
    def failing(self, nth: int) -> Iterator[None]:
        """Let the *nth* step that this thread takes in the block raise, from 1; none for 0."""
        self.names, self.failed, self._nth = [], None, nth
        self._thread = threading.get_ident()
        try:
            yield
        finally:
            self._thread = None


@contextmanager
def asked_steps() -> Iterator[Steps]:
    """Put the word into every function of ours that there is now, and take it out again."""
    steps = Steps()
    codes: dict[str, dict[tuple[str, int], CodeType]] = {}
    changed: list[tuple[FunctionType, CodeType]] = []
    setattr(builtins, WORD, steps.ask)
    gc.unfreeze()  # what is frozen is not among the objects
    functions = [found for found in gc.get_objects() if isinstance(found, FunctionType)]
    gc.freeze()
    for function in functions:
        code = function.__code__
        # A template of the dashboard is a function in a file of ours, too.
        if not _is_ours(code.co_filename) or code.co_filename == guard.__file__ or not code.co_filename.endswith(".py"):
            continue
        if code.co_filename not in codes:
            codes[code.co_filename] = _asking_codes(code.co_filename)
        asking = codes[code.co_filename].get((code.co_qualname, code.co_firstlineno))
        if asking is not None and asking.co_freevars == code.co_freevars:
            changed.append((function, code))
            function.__code__ = asking
    assert len(changed) > 500
    try:
        yield steps
    finally:
        for function, code in changed:
            function.__code__ = code
        # It stays a word: what was made meanwhile, such as a class in a cache, still says it.
