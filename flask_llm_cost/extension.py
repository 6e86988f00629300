"""The front hall: wires the rooms for one app."""

from __future__ import annotations

import copy
import functools
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from blinker import Signal
from flask import Flask, current_app, has_app_context
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from flask_llm_cost import signals
from flask_llm_cost.budgets.accounts import Subject
from flask_llm_cost.budgets.enforcement import Budgets
from flask_llm_cost.budgets.settling import Crossing
from flask_llm_cost.capture import attribution, patching, propagation
from flask_llm_cost.config import Config, unknown_keys
from flask_llm_cost.errors import ConfigError, LedgerError, SetupError
from flask_llm_cost.ledger.models import copy_tables
from flask_llm_cost.ledger.store import Ledger
from flask_llm_cost.log import log
from flask_llm_cost.pricing import PriceBook
from flask_llm_cost.pricing.modes import asked_mode
from flask_llm_cost.pricing.pricefile import DEFAULT_NAME
from flask_llm_cost.pricing.shelf import Shelf
from flask_llm_cost.receivers import Receivers
from flask_llm_cost.recorder import Recorder
from flask_llm_cost.records import CallRecord, Cost
from flask_llm_cost.tags import TagRules
from flask_llm_cost.usage import Format, HostMap
from flask_llm_cost.usage.manual import readings_from, time_from

if TYPE_CHECKING:
    from celery import Celery
    from flask_sqlalchemy import SQLAlchemy


_F = TypeVar("_F", bound=Callable[..., Any])


class AppState:
    """What one app has of us: ``app.extensions["llm_cost"]``. Made in ``init_app``; opens no file, thread or connection."""

    def __init__(self, app: Flask, config: Config, tracker: LlmCostTracker) -> None:
        self._app = weakref.ref(app)
        self.receivers = Receivers(app)
        self.config = config
        self.tracker = tracker
        self.libraries = patching.libraries(config.instrument)
        self.hosts = HostMap(config.hosts, config.stream_usage, tracker.formats)
        self.tag_rules = TagRules(config.redacted_tags)
        #: ``None`` for an app that has declared none.
        self.budgets: Budgets | None = self._make_budgets() if config.budgets else None
        self.ledger = Ledger(
            config,
            app_name=app.name,
            testing=app.testing,
            instance_path=app.instance_path,
            engine=functools.partial(self._engine, config.bind_key),
            read_engine=functools.partial(self._engine, config.read_bind_key or config.bind_key),
            price=lambda record: self.recorder.price(record),
            committed=self._committed,
            write_failed=self._write_failed,
            within=(self.budgets.settling,) if self.budgets is not None else (),
        )
        self.recorder = Recorder(config, lambda: self.book, self.ledger, self._send)
        self.prices = Shelf(
            overrides=config.price_overrides,
            aliases=config.model_aliases,
            discounts=config.discounts,
            file=config.prices_file,
            default=Path(app.instance_path) / DEFAULT_NAME,
        )
        if config.price_overrides or config.prices_file or config.model_aliases or self.prices.has_file:
            _ = self.book  # a mistake in them stops start-up, not the first call
        elif any(budget.blocks for budget in config.budgets):
            _ = self.book  # the first call has half a second, and loading takes some of that

    @property
    def app(self) -> Flask:
        """The app, which is held weakly: a test suite makes hundreds."""
        app = self._app()
        if app is None:
            raise SetupError("the app of this flask-llm-cost state is gone")
        return app

    @property
    def book(self) -> PriceBook:
        """The price book of this moment: loaded at its first use, and again when its file has changed."""
        return self.prices.book()

    def _engine(self, bind_key: str | None) -> Engine:
        app = self.app
        with app.app_context():
            database: SQLAlchemy | None = app.extensions.get("sqlalchemy")
            if database is None:
                raise LedgerError("this app has no Flask-SQLAlchemy, so there is no ledger; call db.init_app(app) first")
            return database.engines[bind_key]

    def _make_budgets(self) -> Budgets:
        return Budgets(
            self.config.budgets,
            zone=self.config.timezone,
            default_output=self.config.default_max_output,
            engine=functools.partial(self._engine, self.config.bind_key),
            read_engine=functools.partial(self._engine, self.config.read_bind_key or self.config.bind_key),
            book=lambda: self.book,
            functions=self.tracker.budget_limits,
            context=self._context_of_limits,
            flush=lambda seconds: self.ledger.flush(seconds),
            crossed=self._crossed,
        )

    @contextmanager
    def _context_of_limits(self) -> Iterator[None]:
        """An app context for the app's own functions: a new one, unless the database is in memory, and so shared."""
        if has_app_context() and self.ledger.mode == "memory":
            yield
        else:
            with self.app.app_context():
                yield

    def _crossed(self, crossing: Crossing) -> None:
        with self.app.app_context():
            self._send_all(
                signals.budget_exceeded,
                budget=crossing.account.budget.name,
                scope=crossing.account.scope,
                threshold=crossing.threshold,
                spent=crossing.spent,
                limit=crossing.limit,
            )

    def _committed(self, records: Sequence[CallRecord]) -> None:
        with self.app.app_context():
            self.recorder.committed(records)

    def _write_failed(self, error_class: str, waiting: int) -> None:
        self._send_all(signals.write_failed, error_class=error_class, waiting=waiting)

    def _send(self, signal: Signal, record: CallRecord) -> None:
        self._send_all(signal, call=record)

    def _send_all(self, signal: Signal, **facts: Any) -> None:
        if self.ledger.mode == "memory":
            self.receivers.tell_here(signal, facts)
        else:
            self.receivers.tell(signal, facts)


class LlmCostTracker:
    """Records what the LLM calls of an app cost, and for whom.

    ``LlmCostTracker(app)``, or ``costs = LlmCostTracker()`` and ``costs.init_app(app)`` in a factory, after
    ``db.init_app(app)``. One object serves many apps: it keeps only what the code registers with its decorators.
    """

    def __init__(self, app: Flask | None = None) -> None:
        #: What :meth:`request_tagger` registered.
        self.request_tagger_function: Callable[[], Mapping[str, Any]] | None = None
        #: What :meth:`tag_label` registered: tag key to a function from ids to names.
        self.tag_labels: dict[str, Callable[[Sequence[str]], Mapping[str, str]]] = {}
        #: What :meth:`budget_limit` registered: name of a budget to a function from a scope to its limit.
        self.budget_limits: dict[str, Callable[[Mapping[str, str]], Any]] = {}
        #: What :meth:`register_format` registered, the latest first.
        self.formats: list[Format] = []
        self._states: weakref.WeakSet[AppState] = weakref.WeakSet()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Set the extension up on *app*. Its ``LLM_COST_*`` keys are read now; later changes have no effect.

        :raises ConfigError: a key has a value that cannot be used
        :raises SetupError: ``db.init_app(app)`` was not called before, or the app has the extension already
        :raises IntegrationError: a library named in ``LLM_COST_INSTRUMENT`` cannot be watched
        """
        if attribution.EXTENSION in app.extensions:
            raise SetupError(
                f"app {app.name!r} has flask-llm-cost already; call init_app once an app, "
                "and use that LlmCostTracker object everywhere"
            )
        config = Config.from_mapping(app.config)
        for key, value in Config.defaults().items():
            app.config.setdefault(key, copy.copy(value))
        for key, meant in unknown_keys(app.config):
            log.warning("%s is no key of flask-llm-cost%s", key, f"; did you mean {meant}?" if meant else "")
        if config.write_mode != "log" or "sqlalchemy" in app.extensions:
            _add_tables(app, config)
        app.extensions[attribution.EXTENSION] = state = AppState(app, config, self)
        self._states.add(state)
        from flask_llm_cost.cli import cli

        app.cli.add_command(cli)
        if config.enabled:
            attribution.follow_requests(app)
            attribution.register_app(app)
            patching.install(config.instrument)
            if config.propagate_tags:
                patching.install_propagation()

    def init_celery(self, celery: Celery) -> None:
        """Give the tasks of *celery* the tags of the request that enqueued them, and the tag ``job`` with their name.

        At the end of a task its records are written: a worker's processes end without running any exit handler.
        """
        propagation.follow_tasks(celery, lambda timeout: state_of().ledger.flush(timeout))

    def request_tagger(self, function: _F) -> _F:
        """Register what tags every LLM call of a request: a function without arguments that returns a dict.

        It is asked once a request, at its first LLM call, in the request's context.
        """
        self.request_tagger_function = function
        return function

    def tag_label(self, key: str) -> Callable[[_F], _F]:
        """Register names for the values of a tag on the dashboard: a function from a list of ids to a dict of names."""

        def register(function: _F) -> _F:
            self.tag_labels[key] = function
            return function

        return register

    def budget_limit(self, name: str) -> Callable[[_F], _F]:
        """Let a function say the limit of the budget *name* for each scope, from a tenant's plan for instance.

        It gets the tag of the scope, ``{"tenant_id": "42"}``, in an app context, and returns an amount, or ``None`` for the
        declared limit. It is asked in a thread of ours, before a call or once calls are in the ledger, while no write of
        ours is open, and by the dashboard and the commands in theirs. Its answer is used for five seconds.
        """

        def register(function: _F) -> _F:
            self.budget_limits[name] = function
            return function

        return register

    def check_budget(
        self, provider: str | None = None, model: str | None = None, *, tags: Mapping[str, Any] | None = None
    ) -> None:
        """Raise where a budget that blocks or raises is used up for a call made here. Nothing is held.

        A budget for certain providers or models is asked only where *provider* and *model* say that it applies. In a
        coroutine, call it in a thread: it waits for the database, half a second at most.

        :param tags: win over the tags that a call made here would have
        :raises BudgetExceededError: with ``stage="check"``, or why the budget could not be asked
        """
        state = state_of()
        if state.budgets is None or not state.config.enabled:
            return
        subject = Subject(
            provider, (model,) if model else (), attribution.collect_tags(state, explicit=tags), datetime.now(UTC)
        )
        if (error := state.budgets.used_up(subject, "check")) is not None:
            raise error

    def register_format(self, wire: Format) -> None:
        """Teach a wire shape of your own, for every app of this object. It is asked before those that are built in.

        :raises ValueError: it has no name, or neither paths nor hosts by which its calls are recognised
        """
        for hosts in (HostMap({}, False), *(state.hosts for state in self._states)):
            hosts.register(wire)
        self.formats.insert(0, wire)

    def quote(
        self,
        provider: str,
        model: str,
        *,
        usage: Mapping[str, Any],
        mode: str | None = None,
        at: datetime | None = None,
    ) -> Cost:
        """What a call would cost. Nothing is sent or stored.

        :param usage: component to quantity, where ``input`` is the uncached input; or the provider's own usage block, of
            which the part of the model that answered counts
        :param mode: ``batch``, ``flex``, ``priority``, … or ``standard``; where it is left out, what the provider's block
            says
        :param at: the time whose prices count; now when it is left out
        :raises UsageError: *usage* names an unknown component, or something that is no quantity; no such mode, or no time
        """
        reading = readings_from(provider, usage)[0]
        served = reading.mode if mode is None else asked_mode(mode)
        return state_of().book.price(provider, model, reading.usage, served, time_from("at", at))

    def flush(self, timeout: float = 10) -> bool:
        """Wait until every record so far is in the database. ``False`` when *timeout* seconds were not enough.

        What is left of them is given to the receivers of signals, which are told of those records in a thread of their own.
        """
        state = state_of()
        deadline = time.monotonic() + timeout
        written = state.ledger.flush(timeout)
        if state.budgets is not None:
            written = state.budgets.keeper.flush(deadline - time.monotonic()) and written
        state.receivers.settle(deadline - time.monotonic())
        return written

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A read-only session where the ledger is, on ``LLM_COST_READ_BIND_KEY`` where that is set."""
        with state_of().ledger.session(snapshot=False) as session:
            yield session


def state_of(app: Flask | None = None) -> AppState:
    """What *app*, or the current app, has of us.

    :raises SetupError: when there is no app here, or it does not have the extension
    """
    if app is None:
        if not has_app_context():
            found = attribution.owner()
            if found is None:
                raise SetupError("there is no app here; work inside 'with app.app_context():'")
            return found
        app = current_app._get_current_object()  # type: ignore[attr-defined]  # a proxy
    state: AppState | None = app.extensions.get(attribution.EXTENSION)
    if state is None:
        raise SetupError(f"app {app.name!r} does not have flask-llm-cost; call LlmCostTracker(app)")
    return state


def _add_tables(app: Flask, config: Config) -> None:
    database: SQLAlchemy | None = app.extensions.get("sqlalchemy")
    if database is None:
        raise SetupError(
            "Flask-SQLAlchemy is not set up on this app yet; the order is:\n    db.init_app(app)\n    costs.init_app(app)"
        )
    for key in ("bind_key", "read_bind_key"):
        bind = getattr(config, key)
        if bind is not None and bind not in database.metadatas:
            known = ", ".join(repr(name) for name in database.metadatas if name) or "none"
            raise ConfigError(f"LLM_COST_{key.upper()}", bind, f"is no key of SQLALCHEMY_BINDS; there are: {known}")
    copy_tables(database.metadatas[config.bind_key])
