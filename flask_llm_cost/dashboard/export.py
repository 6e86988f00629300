"""Pages as JSON and tables as CSV. Money is text in JSON, so that no reader makes a float of it."""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from itertools import chain
from typing import Any, Final
from uuid import UUID

from flask import Response, request

from flask_llm_cost.dashboard.breakdown import dimension_name
from flask_llm_cost.dashboard.filters import CHOICES, Selection
from flask_llm_cost.dashboard.formatting import plain
from flask_llm_cost.spreadsheets import defused

_ROWS_A_CHUNK: Final = 200
_LONGEST_NAME: Final = 100
_NO_WORD: Final = re.compile(r"[^A-Za-z0-9]+", re.ASCII)


def json_response(content: Mapping[str, Any], status: int = 200) -> Response:
    text = json.dumps(jsonable(content), ensure_ascii=False, indent=1, allow_nan=False)
    return Response(text + "\n", status, mimetype="application/json")


def jsonable(value: Any) -> Any:
    """*value* in JSON's types: amounts as text without exponent, times in ISO 8601."""
    if isinstance(value, Decimal):
        return plain(value)
    if isinstance(value, date | datetime):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return value


def filename(what: str, selection: Selection, *by: str) -> str:
    """``llm-spend-by-feature-2026-11-01-to-2026-11-30-tenant-42.csv``: other files have other names. ASCII, and bounded.

    :param by: the dimensions of the table
    """
    table = "".join(f"-{word}-{_slug(dimension_name(name))}" for word, name in zip(("by", "and", "and"), by, strict=False))
    days = f"{selection.period.first}-to-{selection.period.last}"
    held = [(name, str(value)) for name in (*CHOICES, "currency") if (value := selection.params.get(name))]
    for key, tag in selection.filter.tags.items():
        name = dimension_name(f"tag:{key}")
        held.append(("no", name) if tag is None else (name, tag))
    filters = "".join(f"-{_slug(name)}-{_slug(text)}" for name, text in held)
    return f"llm-{what}{table}-{days}{filters[:_LONGEST_NAME]}.csv"


def _slug(text: str) -> str:
    """*text* as part of a file's name: what is no letter or digit of ASCII is a dash, and what has none is a number."""
    plain_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return _NO_WORD.sub("-", plain_text).strip("-").lower()[:40] or f"{zlib.crc32(text.encode()):08x}"


def csv_response(filename: str, header: Sequence[str], rows: Iterable[Sequence[Any]], *, decimal: str = "point") -> Response:
    """A table as a download: UTF-8 with a byte order mark, RFC 4180, sent as it is read, however long it is.

    With *decimal* ``comma`` numbers have a decimal comma, and cells are separated by semicolons, as spreadsheets of such
    countries read them. The first rows are read before the response begins, so that a database that does not answer is an
    error page.
    """
    iterator = iter(rows)
    if request.method == "HEAD":
        iterator = iter(())
    first = next(iterator, None)
    body = chain([first] if first is not None else [], iterator)
    response = Response(csv_lines(header, body, decimal), mimetype="text/csv")
    response.call_on_close(getattr(rows, "close", lambda: None))
    response.headers["Content-Disposition"] = f'attachment; filename="{filename}"'
    return response


def csv_lines(header: Sequence[str], rows: Iterable[Sequence[Any]], decimal: str = "point") -> Iterator[str]:
    """The table in pieces of some hundred rows, the first with the byte order mark and the header."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=";" if decimal == "comma" else ",")
    mark = "," if decimal == "comma" else "."
    buffer.write("\ufeff")
    writer.writerow([cell(name) for name in header])
    for number, row in enumerate(rows, start=1):
        writer.writerow([cell(value, mark) for value in row])
        if number % _ROWS_A_CHUNK == 0:
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue()


def cell(value: Any, mark: str = ".") -> str:
    """One cell. Numbers stay numbers; text that a spreadsheet would run gets an apostrophe in front; unknown is empty.

    :param mark: the decimal mark
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | Decimal):
        return plain(value).replace(".", mark)
    if isinstance(value, float):
        return plain(Decimal(str(value))).replace(".", mark)
    if isinstance(value, date | datetime):
        return value.isoformat()
    return defused(str(value))
