"""One request to the dashboard: what a view is given, and what becomes of the errors it meets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import localcontext
from typing import Any, Final

from flask import Response, current_app, request
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from flask_llm_cost.dashboard.access import Mount, Scope, ScopeRefusedError, View, base_filter, secured
from flask_llm_cost.dashboard.export import json_response
from flask_llm_cost.dashboard.filters import LONGEST_QUERY, ParameterError, Selection, parse, understood
from flask_llm_cost.dashboard.formatting import full_day
from flask_llm_cost.dashboard.links import Links
from flask_llm_cost.dashboard.rendering import asset, render
from flask_llm_cost.errors import (
    DetailPrunedError,
    LedgerError,
    QueryError,
    SchemaMissingError,
    SetupError,
    TooLargeSumError,
)
from flask_llm_cost.extension import AppState, state_of
from flask_llm_cost.ledger import queries
from flask_llm_cost.ledger.columns import USUAL
from flask_llm_cost.ledger.filter import Filter
from flask_llm_cost.ledger.replica import lag
from flask_llm_cost.log import log
from flask_llm_cost.tags import repaired

#: So long a server works on one question of a page; a page that nobody waits for any more is not worth its load.
LONGEST_SECONDS: Final = 30
#: Pages in the order of the navigation: endpoint and name.
PAGES: Final = (
    ("overview", "Overview"),
    ("explore", "Explore"),
    ("models", "Models"),
    ("calls", "Calls"),
    ("tags", "Tags"),
    ("budgets", "Budgets"),
    ("quality", "Data quality"),
    ("pricing", "Pricing"),
)
#: Which of them a page belongs to, where it is none itself.
_PARENTS: Final = {"call": "calls", "tag": "tags"}


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
    values: Mapping[str, Any] = field(default_factory=dict)
    _names: dict[str, dict[str, str | None]] = field(default_factory=dict)
    _expected: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def here(self, params: Mapping[str, Any] = {}) -> str:
        """The address of this page with another query string."""
        return self.links(self.page, params, **self.values)

    @property
    def mounts(self) -> Sequence[Mount]:
        """The dashboards of this app."""
        return tuple(current_app.extensions.get("llm_cost_dashboards", ()))

    @property
    def report_tags(self) -> tuple[str, ...]:
        return tuple(self.state.config.report_tags)

    def selection(self) -> Selection:
        """The query string of this request, read.

        :raises QueryError: with a sentence for people
        """
        return parse(request.args, self._listed, self.base, zone=self.state.config.timezone, now=self.now)

    @property
    def _listed(self) -> str:
        """The page, or that of which this is the file."""
        return "calls" if self.page == "calls_csv" else self.page

    def without(self, error: QueryError) -> tuple[Selection, str | None]:
        """What of the query string is understood, and the address of the same page with that alone.

        No address where all of it is: then it is something else that makes no sense, and would again.
        """
        besides = error.parameter if isinstance(error, ParameterError) else None
        zone = self.state.config.timezone
        found, whole = understood(request.args, self._listed, self.base, zone=zone, now=self.now, besides=besides)
        return found, None if whole else self.links(self._listed, found.changed(), **self.values)

    def list_since(self, session: Session, selection: Selection) -> date | None:
        """The day from which single calls are known, where the range begins before it: earlier ones were pruned."""
        pruned, since = queries.pruned_before(session), selection.filter.since
        if pruned is None or (since is not None and since >= pruned):
            return None
        return pruned.astimezone(selection.period.zone).date()

    @contextmanager
    def session(self, *, snapshot: bool = True) -> Iterator[Session]:
        with self.state.ledger.session(longest=LONGEST_SECONDS, snapshot=snapshot) as session:
            yield session

    def labels(self, key: str) -> Callable[[Sequence[str]], Mapping[str, str]] | None:
        """What the app registered with ``tag_label`` for a key."""
        return self.state.tracker.tag_labels.get(key)

    def expect(self, values: Mapping[str, tuple[str, ...]]) -> None:
        """Values of tags whose names are wanted as well, so that one question for names brings them."""
        self._expected.update(values)

    def names(self, key: str, values: Sequence[str]) -> Mapping[str, str]:
        """Names for the values of a tag, from what the app registered with ``tag_label``; none where it has not or fails."""
        label = self.labels(key)
        if label is None:
            return {}
        known = self._names.setdefault(key, {})
        if asked := sorted({value for value in (*values, *self._expected.pop(key, ())) if value not in known}):
            known.update(dict.fromkeys(asked))
            try:
                known.update({str(value): repaired(str(name)) for value, name in label(asked).items() if name})
            except Exception:
                log.exception("the names for tag %r cannot be had, so its values are shown", key)
        return {value: name for value in values if (name := known.get(value))}

    @property
    def whose(self) -> str:
        """The name of whose view it is, where the app gave the tags of its scope one."""
        held = self.base.scope.items()
        return ", ".join(name for key, value in held if (name := self.names(key, [value]).get(value)))

    def _behind(self) -> timedelta | None:
        """How far the replica that pages read is behind the ledger; ``None`` where there is none, or the ledger is away."""
        if self.state.config.read_bind_key is None:
            return None
        try:
            return lag(self.state.ledger)
        except (DBAPIError, LedgerError):
            return None

    def html(self, template: str, status: int = 200, **values: Any) -> Response:
        """A page of ours."""
        sel = values.get("sel")
        carried = sel.carried if isinstance(sel, Selection) else {}
        values.setdefault("behind", self._behind())
        values.setdefault("whose", self.whose)
        page = _page(
            template, self.page, self.links, scoped=self.scoped, visit=self, here=self.here, carried=carried, **values
        )
        return Response(page, status)

    def refusal(self, sentence: str, title: str = "There is no such page") -> Response:
        """A 404 that says why."""
        if request.args.get("format") == "json":
            return json_response({"error": title, "message": sentence}, 404)
        return self.html("notice.html", 404, title=title, sentences=[sentence], commands=(), retry=True)


def respond(
    view: View, page: str, blueprint: str, scope: Scope | None, values: Mapping[str, Any], mount: Mapping[str, Any]
) -> Response:
    """What *view* answers, or the page that says why there is none. All of it carries our headers.

    :param values: what the page's own rule says
    :param mount: what the prefix says under which it is mounted
    """
    links = Links(request.blueprint or blueprint, mount)
    asked: Visit | None = None
    try:
        if len(request.query_string) > LONGEST_QUERY:
            raise QueryError(f"the query string is longer than the {LONGEST_QUERY} characters that are read")
        base = base_filter(scope, blueprint)
        state = state_of()
        if "sqlalchemy" not in current_app.extensions:
            return secured(_notice(page, links, 503, "There is no ledger", [_LOG_ONLY], scoped=scope is not None))
        asked = visit = Visit(page, base, scope is not None, state, links, datetime.now(UTC), values)
        with localcontext(USUAL):
            response: Response = view(visit, **values)
    except DetailPrunedError as error:
        response = _pruned(visit, error.before.date())
    except QueryError as error:
        found, again = asked.without(error) if asked else (None, None)
        response = _notice(
            page,
            links,
            400,
            "That is not understood",
            [_sentence(str(error))],
            scoped=scope is not None,
            later=("Show without it", again) if again else None,
            carried=found.carried if found else {},
        )
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
    except TooLargeSumError as error:
        response = _notice(
            page, links, 503, "That is more than SQLite can add up", [_sentence(str(error))], scoped=scope is not None
        )
    except (DBAPIError, LedgerError) as error:
        # The class only: the message would hold parameters, which are tag values.
        log.error("the dashboard cannot read the ledger: %s", type(error).__name__)
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
_PRUNED: Final = (
    "Of earlier calls sums by day, model, provider and the tags that have rollups are kept. They cannot answer this, and a "
    "smaller total would be wrong."
)
_LOG_ONLY: Final = 'LLM_COST_WRITE_MODE is "log": calls are in the log, and this app has no database set up.'


def _pruned(visit: Visit, before: date) -> Response:
    title = f"Detail pruned before {full_day(before)}"
    if request.args.get("format") == "json":
        return json_response({"error": title, "message": _PRUNED, "pruned_before": before}, 410)
    selection = visit.selection()
    later = None
    if before <= selection.period.last:
        days = {"from": before.isoformat(), "to": selection.period.last.isoformat()}
        later = (f"Show from {full_day(before)} on", visit.here(selection.changed(range="custom", **days)))
    return visit.html("notice.html", 410, title=title, sentences=[_PRUNED], commands=(), later=later, retry=True)


def _notice(
    page: str,
    links: Links,
    status: int,
    title: str,
    sentences: Sequence[str],
    commands: Iterable[tuple[str, str]] = (),
    *,
    scoped: bool,
    **values: Any,
) -> Response:
    if request.args.get("format") == "json":
        return json_response({"error": title, "message": " ".join(sentences)}, status)
    shown = () if scoped else tuple(commands)
    values.update(title=title, sentences=sentences, commands=shown, retry=status == 400)
    text = _page("notice.html", page, links, scoped=scoped, **values)
    return Response(text, status)


def _page(template: str, page: str, links: Links, **values: Any) -> str:
    values.setdefault("carried", {})
    values.setdefault("later", None)
    return render(
        template,
        page=page,
        current=_PARENTS.get(page, page),
        pages=PAGES,
        links=links,
        css=links("stylesheet", {"v": asset("app.css")[1]}),
        script=links("script", {"v": asset("app.js")[1]}),
        icon=links("icon", {"v": asset("icon.svg")[1]}),
        **values,
    )


def _sentence(text: str) -> str:
    # What begins with a name of ours, such as cost_status, keeps it as it is written.
    word = text.partition(" ")[0]
    return (text[:1].upper() + text[1:] if word.isalpha() else text) + ("" if text.endswith((".", "?")) else ".")
