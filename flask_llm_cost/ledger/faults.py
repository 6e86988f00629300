"""What a database error means for the records that met it."""

from __future__ import annotations

import enum
from typing import Any

from sqlalchemy import exc

from flask_llm_cost.errors import LlmCostError

_RETRY_STATES = frozenset({"40001", "40P01", "55P03"})
_RETRY_CODES = frozenset({1205, 1213, 1020})
#: A statement of MariaDB or MySQL that took longer than it was given.
_GIVEN_UP_CODES = frozenset({1969, 3024})
_MISSING_STATES = frozenset({"42P01", "42S02", "3F000"})
_MISSING_CODE = 1146
#: A server that only reads: after a failover, whoever stays connected to it never finds the one that writes.
_READ_ONLY_STATES = frozenset({"25006"})
_READ_ONLY_CODES = frozenset({1290, 1836})
#: Values that MariaDB and MySQL refuse, whatever class the driver gives them: out of range, too long, no such character.
_DATA_CODES = frozenset({1048, 1264, 1265, 1292, 1300, 1366, 1367, 1406, 1411, 1690, 3140, 4025})


class Fault(enum.Enum):
    """What to do about it."""

    #: Somebody else was in the way: roll back and try the batch again.
    RETRY = "retry"
    #: The tables are not there: wait, and say which command makes them.
    SCHEMA = "schema"
    #: The data itself is refused: find the record and set it aside.
    DATA = "data"
    #: The data may be refused, or the tables may have changed: one record alone cannot tell.
    DOUBT = "doubt"
    #: The database is away, full, read-only or out of reach: wait.
    AWAY = "away"


def fault_of(error: BaseException) -> Fault:
    """The kind of *error*, from its class and SQLSTATE, never from its text where that may hold data."""
    if isinstance(error, LlmCostError):
        return Fault.AWAY  # the app is gone, or was never set up for a database
    if not isinstance(error, exc.SQLAlchemyError):
        return Fault.DATA if isinstance(error, ArithmeticError | TypeError | ValueError) else Fault.AWAY
    original = getattr(error, "orig", None)
    state, code = _state(original), _code(original)
    if state in _RETRY_STATES or code in _RETRY_CODES or _busy(original):
        return Fault.RETRY
    if state in _MISSING_STATES or code == _MISSING_CODE or _no_sqlite_table(original):
        return Fault.SCHEMA
    # SQLSTATE class 22 is "data exception"; drivers wrap some of it in operational errors.
    if isinstance(error, exc.DataError) or code in _DATA_CODES or (state or "").startswith("22"):
        return Fault.DATA
    if isinstance(error, exc.IntegrityError):
        return Fault.DOUBT
    if isinstance(error, exc.DBAPIError):
        if isinstance(original, ArithmeticError | TypeError | ValueError):
            return Fault.DATA
        return Fault.AWAY
    if isinstance(error, exc.StatementError):
        return Fault.DATA
    return Fault.AWAY


def is_given_up(error: BaseException) -> bool:
    """Whether MariaDB or MySQL gave a statement up: for a lock as well, as they wait for that by whole seconds."""
    return _code(getattr(error, "orig", None)) in _GIVEN_UP_CODES


def is_read_only(error: BaseException) -> bool:
    """Whether the server takes no writes, so that the next try should connect anew."""
    original = getattr(error, "orig", None)
    return _state(original) in _READ_ONLY_STATES or _code(original) in _READ_ONLY_CODES


def name_of(error: BaseException) -> str:
    """Class and SQLSTATE (or the driver's number), which is all that may be logged: messages carry data."""
    original = getattr(error, "orig", None) or error
    mark = _state(original) or getattr(original, "sqlite_errorname", None) or _code(original)
    name = type(original).__name__
    return f"{name} {mark}" if mark else name


def _state(original: Any) -> str | None:
    state = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    return state if isinstance(state, str) else None


def _code(original: Any) -> int | None:
    if type(original).__module__.startswith("sqlite3"):
        return None
    arguments = getattr(original, "args", ())
    return arguments[0] if arguments and type(arguments[0]) is int else None


def _busy(original: Any) -> bool:
    name = getattr(original, "sqlite_errorname", None)
    return isinstance(name, str) and name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))


def _no_sqlite_table(original: Any) -> bool:
    # SQLite has one error code for all of SQL; the text of this one holds a table's name only.
    return getattr(original, "sqlite_errorname", None) == "SQLITE_ERROR" and str(original).startswith(
        "no such table: llm_cost_"
    )
