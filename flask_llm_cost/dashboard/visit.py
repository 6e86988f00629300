"""One request to the dashboard: what a view is given, and what becomes of the errors it meets."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from flask import Response, current_app, request
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from flask_llm_cost.dashboard.access import Scope, ScopeRefusedError, View, base_filter, secured
from flask_llm_cost.dashboard.export import json_response
from flask_llm_cost.dashboard.filters import LONGEST_QUERY, Selection, parse
from flask_llm_cost.dashboard.links import Links
from flask_llm_cost.dashboard.rendering import render, stylesheet
from flask_llm_cost.errors import LedgerError, QueryError, SchemaMissingError, SetupError
from flask_llm_cost.extension import AppState, state_of
from flask_llm_cost.ledger.filter import Filter

logger = logging.getLogger("flask_llm_cost")

#: Pages in the order of the navigation: endpoint and name.
PAGES: Final = (("overview", "Overview"), ("calls", "Calls"))


@dataclass(frozen=True, slots=True)
class Visit:
    """What a view is given.

    :param base: the mount's scope, from which every filter is made
    :param scoped: whether this is somebody's own view: then nothing is said of commands and of the ledger's insides
    """

    page: str
    base: Filter
    scoped: bool
    state: AppState
    links: Links
    now: datetime

    def selection(self) -> Selection:
        """The query string of this request, read.

        :raises QueryError: with a sentence for people
        """
        config = self.state.config
        page = "calls" if self.page == "calls_csv" else self.page
        return parse(
            request.args, page, self.base, zone=config.timezone, now=self.now, report_tags=tuple(config.report_tags)
        )

    @contextmanager
    def session(self) -> Iterator[Session]:
        with self.state.ledger.session() as session:
            yield session

    def names(self, key: str, values: Sequence[str]) -> Mapping[str, str]:
        """Names for the values of a tag, from what the app registered with ``tag_label``; none where it has not or fails."""
        label = self.state.tracker.tag_labels.get(key)
        if label is None:
            return {}
        try:
            return {str(value): str(name) for value, name in label(list(values)).items() if name}
        except Exception:
            logger.exception("the names for tag %r cannot be had, so its values are shown", key)
            return {}

    def html(self, template: str, status: int = 200, **values: Any) -> Response:
        """A page of ours."""
        return Response(_page(template, self.page, self.links, scoped=self.scoped, visit=self, **values), status)


def respond(view: View, page: str, blueprint: str, scope: Scope | None, values: Mapping[str, Any]) -> Response:
    """What *view* answers, or the page that says why there is none. All of it carries our headers."""
    links = Links(request.blueprint or blueprint)
    try:
        if len(request.query_string) > LONGEST_QUERY:
            raise QueryError(f"the query string is longer than the {LONGEST_QUERY} characters that are read")
        base = base_filter(scope, blueprint)
        state = state_of()
        if "sqlalchemy" not in current_app.extensions:
            return secured(_notice(page, links, 503, "There is no ledger", [_LOG_ONLY], scoped=scope is not None))
        visit = Visit(page, base, scope is not None, state, links, datetime.now(UTC))
        response: Response = view(visit, **values)
    except QueryError as error:
        response = _notice(page, links, 400, "That is not understood", [_sentence(str(error))], scoped=scope is not None)
    except ScopeRefusedError:
        response = _notice(page, links, 403, "Nothing to show", [_NOBODY], scoped=True)
    except SchemaMissingError:
        response = _notice(
            page, links, 503, "The ledger has no tables yet", [_NO_TABLES], _INSTALL, scoped=scope is not None
        )
    except SetupError as error:
        response = _notice(
            page, links, 503, "flask-llm-cost is not set up", [_sentence(str(error))], scoped=scope is not None
        )
    except (DBAPIError, LedgerError) as error:
        # The class only: the message would hold parameters, which are tag values.
        logger.error("the dashboard cannot read the ledger: %s", type(error).__name__)
        response = _notice(
            page,
            links,
            503,
            "The ledger cannot be read",
            [_NO_ANSWER],
            (("what is wrong", _DOCTOR),),
            scoped=scope is not None,
        )
    return secured(response)


_DOCTOR: Final = "flask llm-cost doctor"
_INSTALL: Final = (
    ("with Flask-Migrate", "flask db migrate -m 'LLM costs' && flask db upgrade"),
    ("without it", "flask llm-cost install"),
)
_NO_TABLES: Final = "Calls are recorded and wait. As soon as the tables are there, they are written."
_NO_ANSWER: Final = "The database does not answer as it should. Calls are still recorded, and wait until it does."
_NOBODY: Final = (
    "This view is held to one customer or user, and yours is not known. Sign in with another account, or ask who runs it."
)
_LOG_ONLY: Final = 'LLM_COST_WRITE_MODE is "log": calls are in the log, and this app has no database set up.'


def _notice(
    page: str,
    links: Links,
    status: int,
    title: str,
    sentences: Sequence[str],
    commands: Iterable[tuple[str, str]] = (),
    *,
    scoped: bool,
) -> Response:
    if request.args.get("format") == "json":
        return json_response({"error": title, "message": " ".join(sentences)}, status)
    shown = () if scoped else tuple(commands)
    text = _page(
        "notice.html", page, links, scoped=scoped, title=title, sentences=sentences, commands=shown, retry=status == 400
    )
    return Response(text, status)


def _page(template: str, page: str, links: Links, **values: Any) -> str:
    return render(template, page=page, pages=PAGES, links=links, css=links("stylesheet", v=stylesheet()[1]), **values)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
