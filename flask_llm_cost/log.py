"""The log, as our own lines go to it: a filter or a handler of the app's that fails makes no call of the app's fail."""

from __future__ import annotations

import contextlib
import logging
from typing import Final

_LOGGER: Final = logging.getLogger("flask_llm_cost")


class _Log:
    """``logging.getLogger("flask_llm_cost")``, of which nothing is ever raised. What the app does to it holds."""

    __slots__ = ()

    def info(self, message: str, *args: object) -> None:
        self._write(logging.INFO, message, args)

    def warning(self, message: str, *args: object) -> None:
        self._write(logging.WARNING, message, args)

    def error(self, message: str, *args: object) -> None:
        self._write(logging.ERROR, message, args)

    def exception(self, message: str, *args: object) -> None:
        """An error, and where it happened."""
        self._write(logging.ERROR, message, args, traceback=True)

    def _write(self, level: int, message: str, args: tuple[object, ...], *, traceback: bool = False) -> None:
        with contextlib.suppress(Exception):
            _LOGGER.log(level, message, *args, exc_info=traceback, stacklevel=3)


log: Final = _Log()
