"""Every error that flask-llm-cost raises.

::

    LlmCostError
    ├── ConfigError (ValueError)        a configuration value that cannot be used
    │   └── SetupError (RuntimeError)   the extension was set up twice, or before what it needs
    ├── IntegrationError (RuntimeError) a library named in LLM_COST_INSTRUMENT that cannot be watched
    ├── UsageError (ValueError)         what was handed to track(), track_stream() or quote() makes no sense
    ├── PriceBookError (ValueError)     a price file or override that cannot be read
    ├── PriceSourceError (ValueError)   where prices are synchronised from: it cannot be had, or must not be believed
    ├── UnknownPriceError (LookupError) no price, and LLM_COST_UNKNOWN_PRICE is "raise"
    ├── QueryError (ValueError)         a question about spend that makes no sense
    │   └── DetailPrunedError           a question that only pruned calls could answer
    ├── BudgetExceededError             a budget set to block or raise said no
    └── LedgerError (RuntimeError)      the ledger could not be written or read
        ├── SchemaMissingError          its tables are not there yet
        └── TooLargeSumError            a sum is larger than SQLite can hold

Each carries its facts as attributes and its remedy in the message.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal


class LlmCostError(Exception):
    """Base of all errors of this package."""


class ConfigError(LlmCostError, ValueError):
    """A configuration value that cannot be used.

    :param key: the configuration key, ``LLM_COST_...``
    :param value: what was found there
    :param problem: what is wrong with it, and what would be right
    """

    def __init__(self, key: str, value: object, problem: str) -> None:
        self.key = key
        self.value = value
        super().__init__(f"{key}={value!r}: {problem}")


class SetupError(ConfigError, RuntimeError):
    """The extension was set up twice on one app, before Flask-SQLAlchemy, or is used on an app that it is not set up on."""

    def __init__(self, problem: str) -> None:
        self.key = "LlmCostTracker"
        self.value = None
        Exception.__init__(self, problem)


class IntegrationError(LlmCostError, RuntimeError):
    """A library named explicitly in ``LLM_COST_INSTRUMENT`` cannot be watched."""

    def __init__(self, library: str, problem: str) -> None:
        self.library = library
        super().__init__(f"cannot watch {library!r}: {problem}")


class UsageError(LlmCostError, ValueError):
    """Usage that makes no sense, an unknown component or a quantity that is no count; or no such mode, or no time."""

    def __init__(self, problem: str, *, name: str | None = None, choices: Iterable[str] = ()) -> None:
        self.name = name
        self.choices = tuple(choices)
        known = f"; known are: {', '.join(self.choices)}" if self.choices else ""
        super().__init__(problem + known)


class PriceBookError(LlmCostError, ValueError):
    """A price file or price override that cannot be read as one.

    :param source: the file, or the configuration key
    :param problem: where in it, what is wrong, and what would be right
    """

    def __init__(self, source: str, problem: str) -> None:
        self.source = source
        super().__init__(f"{source}: {problem}")


class PriceSourceError(LlmCostError, ValueError):
    """A source of prices that cannot be had, or that must not be believed.

    :param source: its address without anything secret in it, or the file
    :param problem: what is wrong, and what to do
    """

    def __init__(self, source: str, problem: str) -> None:
        self.source = source
        super().__init__(f"{source}: {problem}")


class UnknownPriceError(LlmCostError, LookupError):
    """A call had no price and ``LLM_COST_UNKNOWN_PRICE`` is ``"raise"``. The call is recorded all the same."""

    def __init__(self, provider: str, model: str | None) -> None:
        self.provider = provider
        self.model = model
        super().__init__(
            f"no price for {provider}/{model}; 'flask llm-cost prices explain {provider} {model}' says why, "
            "LLM_COST_PRICE_OVERRIDES sets one"
        )


class QueryError(LlmCostError, ValueError):
    """A question about spend that makes no sense: an unknown dimension, a value that no call has, a time without a zone."""

    def __init__(self, problem: str, *, choices: Iterable[str] = ()) -> None:
        self.choices = tuple(choices)
        known = f"; known are: {', '.join(self.choices)}" if self.choices else ""
        super().__init__(problem + known)


class DetailPrunedError(QueryError):
    """A question that only calls could answer of which some were pruned: a smaller total would be wrong.

    :param before: calls from before it are gone; their rollups are not
    """

    def __init__(self, before: datetime) -> None:
        self.before = before
        super().__init__(
            f"detail pruned before {before:%Y-%m-%d}: what is kept of earlier calls cannot answer this; "
            "ask for a later range, or by day, model, provider or a tag that has rollups"
        )


class BudgetExceededError(LlmCostError):
    """A budget said no. Its text is a sentence for a person.

    Amounts are in the budget's unit: dollars, calls or tokens.

    :param budget: its name
    :param scope: whose limit it is, ``tenant_id=42``, or ``all``
    :param limit: ``None`` where it is not known
    :param spent: by calls whose cost is known; ``None`` where the budget could not be asked
    :param held: by calls that are under way or unresolved
    :param estimate: what the call that was refused may cost
    :param period_ends: when there is room again, in ``LLM_COST_TIMEZONE``; ``None`` where that is never
    :param stage: ``admit`` (before a byte was sent), ``record`` (after the call was recorded), ``check``; or why the budget
        could not be asked, before a byte was sent: ``unpriced``, ``busy``, ``schema``, ``limit`` (the app's function did not
        say it) or ``unavailable``
    """

    def __init__(
        self,
        *,
        budget: str,
        scope: str,
        limit: Decimal | None,
        spent: Decimal | None,
        held: Decimal | None,
        estimate: Decimal | None,
        period_ends: datetime | None,
        stage: str,
        unit: str = "cost",
        period: str = "",
        problem: str | None = None,
        symbol: str = "$",
    ) -> None:
        self.budget = budget
        self.scope = scope
        self.limit = limit
        self.spent = spent
        self.held = held
        self.estimate = estimate
        self.period_ends = period_ends
        self.stage = stage
        whose = f"budget {budget!r}" + (f" of {scope}" if scope != "all" else "")
        if problem is not None or limit is None or spent is None or held is None:
            super().__init__(f"{whose} blocks the call: {problem or 'it could not be asked'}")
            return
        unit = symbol if unit == "cost" else f" {unit}"
        until = f"; there is room again from {period_ends:%Y-%m-%d %H:%M %Z}" if period_ends else ""
        if period == "call":
            used, until = "" if stage == "admit" else f", and this call took {_shown(spent, unit)}", ""
        else:
            used = f", of which {_shown(spent, unit)} are spent" + (f" and {_shown(held, unit)} held" if held else "")
        every = {"": "", "call": " a call", "total": " in all"}.get(period, f" a {period}")
        asked = f", and this call may take {_shown(estimate, unit)}" if stage == "admit" and estimate else ""
        after = "is passed" if period == "call" else "is used up"
        verb = "has no room for this call" if stage == "admit" else after
        super().__init__(f"{whose} {verb}: its limit is {_shown(limit, unit)}{every}{used}{asked}{until}")

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuilt, (type(self), self.args, self.__dict__)


def _rebuilt(kind: type[BudgetExceededError], args: tuple[object, ...], facts: dict[str, object]) -> BudgetExceededError:
    """For pickling, as a job queue does it: the constructor takes keywords only."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(facts)
    return error


def _shown(amount: Decimal, unit: str) -> str:
    """An amount as a person writes it: dollars with two places, or with as many as it takes to see it.

    :param unit: the symbol of a currency, or the word for what is counted, after a blank
    """
    if unit.startswith(" "):
        return f"{amount.normalize():f}{unit}"
    places = 2 if not amount or abs(amount) >= 1 else min(12, 2 - amount.adjusted())
    return f"{unit}{amount:.{places}f}"


class LedgerError(LlmCostError, RuntimeError):
    """The ledger could not be written or read. Says the kind of failure, never the data that failed."""


class TooLargeSumError(LedgerError):
    """A sum is larger than SQLite can hold to the last digit."""

    def __init__(self) -> None:
        super().__init__(
            "amounts add up to more than 9,223,372 of their currency, which is as much as SQLite holds to the last digit; "
            "ask for fewer days, or keep the ledger in PostgreSQL, MariaDB or MySQL"
        )


class SchemaMissingError(LedgerError):
    """The ledger's tables are not in the database yet."""

    def __init__(self) -> None:
        super().__init__(
            "the llm_cost_ tables are missing; create them with 'flask db upgrade' (Flask-Migrate) "
            "or 'flask llm-cost install'"
        )
