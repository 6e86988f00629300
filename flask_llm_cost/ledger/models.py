"""The ledger's schema, the only one.

Ordinary SQLAlchemy models on a base of our own. :func:`copy_tables` puts their tables into the host's metadata, with stock
types only, so that ``db.create_all()`` and Flask-Migrate see them as if they were the host's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Final, cast
from uuid import UUID

import sqlalchemy as sa
from flask import current_app
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from flask_llm_cost.ledger.columns import TIME_DDL, ExactDecimal, Money, Quantity, UtcDateTime

#: Every table is byte-exact in its strings, so that ``acme``, ``Acme`` and ``acmé`` are three tenants on MySQL too.
_EXACT_STRINGS: Final = {
    "mysql_charset": "utf8mb4",
    "mysql_collate": "utf8mb4_bin",
    "mariadb_charset": "utf8mb4",
    "mariadb_collate": "utf8mb4_bin",
}


class _BindKey(Mapping[str, Any]):
    """``info`` of the models' metadata: Flask-SQLAlchemy asks it for the bind, and each app has its own answer."""

    def __getitem__(self, name: str) -> str | None:
        if name != "bind_key" or not current_app or "llm_cost" not in current_app.extensions:
            raise KeyError(name)
        key: str | None = current_app.extensions["llm_cost"].config.bind_key
        return key

    def __iter__(self) -> Iterator[str]:
        return iter(("bind_key",))

    def __len__(self) -> int:
        return 1


class Base(DeclarativeBase):
    """Base of the ledger's models. Whatever bind the current app keeps its ledger on, ``db.session`` finds it there."""

    # SQLAlchemy takes any truthy mapping, and types it as a dict.
    metadata = sa.MetaData(info=cast("dict[Any, Any]", _BindKey()))

    type_annotation_map = {  # noqa: RUF012 - read once by SQLAlchemy
        datetime: UtcDateTime(),
        UUID: sa.Uuid(),
        dict[str, Any]: sa.JSON(none_as_null=True),
    }


class Call(Base):
    """One billed exchange with a provider.

    What has a width of its own comes first, the widest before the others: PostgreSQL pads nothing then.
    """

    __tablename__ = "llm_cost_calls"

    #: Time-ordered (UUID version 7), made where the call was made: a replay of the same record changes nothing.
    id: Mapped[UUID] = mapped_column(primary_key=True)
    #: Start of the call, UTC.
    occurred_at: Mapped[datetime]
    recorded_at: Mapped[datetime]
    #: All input, cached included.
    input_tokens: Mapped[int | None] = mapped_column(sa.BigInteger)
    cache_read_tokens: Mapped[int | None] = mapped_column(sa.BigInteger)
    cache_write_tokens: Mapped[int | None] = mapped_column(sa.BigInteger)
    #: Reasoning included.
    output_tokens: Mapped[int | None] = mapped_column(sa.BigInteger)
    reasoning_tokens: Mapped[int | None] = mapped_column(sa.BigInteger)
    total_tokens: Mapped[int | None] = mapped_column(sa.BigInteger)
    latency_ms: Mapped[int | None] = mapped_column(sa.Integer)
    first_token_ms: Mapped[int | None] = mapped_column(sa.Integer)
    stream: Mapped[bool]
    attempt: Mapped[int] = mapped_column(sa.SmallInteger)
    http_status: Mapped[int | None] = mapped_column(sa.SmallInteger)
    provider: Mapped[str] = mapped_column(sa.String(64))
    #: As billed, from the reply.
    model: Mapped[str | None] = mapped_column(sa.String(256))
    requested_model: Mapped[str | None] = mapped_column(sa.String(256))
    host: Mapped[str] = mapped_column(sa.String(255))
    operation: Mapped[str] = mapped_column(sa.String(64))
    outcome: Mapped[str] = mapped_column(sa.String(16))
    error_class: Mapped[str | None] = mapped_column(sa.String(128))
    usage_source: Mapped[str] = mapped_column(sa.String(16))
    cost_status: Mapped[str] = mapped_column(sa.String(16))
    #: ``None`` when nothing could be priced, never 0 for that.
    total_cost: Mapped[Decimal | None] = mapped_column(Money)
    #: The price book's figure, where the provider's own billed amount won.
    computed_cost: Mapped[Decimal | None] = mapped_column(Money)
    currency: Mapped[str] = mapped_column(sa.String(3))
    pricing_mode: Mapped[str | None] = mapped_column(sa.String(64))
    price_id: Mapped[UUID | None] = mapped_column(sa.ForeignKey("llm_cost_prices.id"))
    provider_response_id: Mapped[str | None] = mapped_column(sa.String(128))
    #: Comma-separated: ``usage_inconsistent``, …
    flags: Mapped[str | None] = mapped_column(sa.String(128))
    #: The usage block as received, numbers and enum words only, so that prices can be redone.
    raw_usage: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON(none_as_null=True))

    line_items: Mapped[list[LineItem]] = relationship(back_populates="call", order_by="LineItem.position", viewonly=True)
    tags: Mapped[list[CallTag]] = relationship(back_populates="call", order_by="CallTag.key", viewonly=True)
    price: Mapped[PriceSnapshot | None] = relationship(viewonly=True)

    __table_args__ = (
        # Days, months and the latest calls.
        sa.Index("ix_llm_cost_calls_occurred_at", "occurred_at", "id"),
        # A provider's or a model's calls in a range.
        sa.Index("ix_llm_cost_calls_model", "provider", "model", "occurred_at"),
        _EXACT_STRINGS,
    )


class LineItem(Base):
    """One disjoint component of a call's bill. Their costs add up to the call's."""

    __tablename__ = "llm_cost_line_items"

    call_id: Mapped[UUID] = mapped_column(sa.ForeignKey("llm_cost_calls.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(sa.SmallInteger, primary_key=True, autoincrement=False)
    component: Mapped[str] = mapped_column(sa.String(32))
    unit: Mapped[str] = mapped_column(sa.String(16))
    quantity: Mapped[Decimal] = mapped_column(Quantity)
    #: Per ``rate_per`` units, every multiplier and discount included.
    rate: Mapped[Decimal | None] = mapped_column(Money)
    rate_per: Mapped[Decimal | None] = mapped_column(Quantity)
    cost: Mapped[Decimal | None] = mapped_column(Money)
    cost_status: Mapped[str] = mapped_column(sa.String(16))

    call: Mapped[Call] = relationship(back_populates="line_items", viewonly=True)

    __table_args__ = (_EXACT_STRINGS,)


class CallTag(Base):
    """One tag of a call, with its time, so that the index finds a value's calls of a range."""

    __tablename__ = "llm_cost_call_tags"

    call_id: Mapped[UUID] = mapped_column(sa.ForeignKey("llm_cost_calls.id", ondelete="CASCADE"), primary_key=True)
    occurred_at: Mapped[datetime]
    key: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    value: Mapped[str] = mapped_column(sa.String(256))

    call: Mapped[Call] = relationship(back_populates="tags", viewonly=True)

    __table_args__ = (
        # Spend of one value, or of all values of a key, in a range.
        sa.Index("ix_llm_cost_call_tags_key", "key", "value", "occurred_at"),
        _EXACT_STRINGS,
    )


class PriceSnapshot(Base):
    """A price as it was applied: immutable, its id made from its content."""

    __tablename__ = "llm_cost_prices"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    source: Mapped[str] = mapped_column(sa.String(32))
    source_version: Mapped[str] = mapped_column(sa.String(64))
    matched_key: Mapped[str] = mapped_column(sa.String(320))
    match_kind: Mapped[str] = mapped_column(sa.String(32))
    currency: Mapped[str] = mapped_column(sa.String(3))
    #: Component to ``[rate, per]``, decimals as strings.
    rates: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    pricing_mode: Mapped[str | None] = mapped_column(sa.String(64))
    tier: Mapped[str | None] = mapped_column(sa.String(64))
    multiplier: Mapped[Decimal] = mapped_column(Money)
    discount: Mapped[Decimal] = mapped_column(Money)
    effective_from: Mapped[datetime | None]
    created_at: Mapped[datetime]

    __table_args__ = (_EXACT_STRINGS,)


class _Sums:
    """What the calls of one rollup come to. All of it adds up, and nothing of it is ever computed again by readers.

    What is 0 in most rows may be ``None`` for it, which PostgreSQL keeps for nothing.
    """

    calls: Mapped[int] = mapped_column(sa.BigInteger)
    input_tokens: Mapped[int] = mapped_column(sa.BigInteger)
    cache_read_tokens: Mapped[int] = mapped_column(sa.BigInteger)
    cache_write_tokens: Mapped[int | None] = mapped_column(sa.BigInteger)
    output_tokens: Mapped[int] = mapped_column(sa.BigInteger)
    total_tokens: Mapped[int] = mapped_column(sa.BigInteger)
    cost: Mapped[Decimal] = mapped_column(Money)
    #: Calls whose cost is in ``cost``. Where there are none, ``cost`` is unknown and not 0.
    priced_calls: Mapped[int] = mapped_column(sa.BigInteger)
    #: Calls whose cost is missing, and of those the ones of which nothing was counted.
    unpriced_calls: Mapped[int | None] = mapped_column(sa.BigInteger)
    uncounted_calls: Mapped[int | None] = mapped_column(sa.BigInteger)
    partial_calls: Mapped[int | None] = mapped_column(sa.BigInteger)
    #: Refused or failed calls that reported nothing: nothing is missing for them.
    failed_calls: Mapped[int | None] = mapped_column(sa.BigInteger)
    estimated_calls: Mapped[int | None] = mapped_column(sa.BigInteger)
    #: Interrupted and failed calls, those of them whose cost is known, and that cost.
    wasted_calls: Mapped[int | None] = mapped_column(sa.BigInteger)
    wasted_priced_calls: Mapped[int | None] = mapped_column(sa.BigInteger)
    wasted_cost: Mapped[Decimal | None] = mapped_column(Money)
    latency_ms: Mapped[int] = mapped_column(sa.BigInteger)
    latency_calls: Mapped[int] = mapped_column(sa.BigInteger)


class UsageRollup(_Sums, Base):
    """Spend per 15-minute UTC bucket, provider, model, component and currency. The empty component counts the calls.

    ``*`` counts them over all models, whose provider and model are empty. Rows of a component have ``calls``, ``quantity``,
    ``cost``, ``priced_calls`` and ``unpriced_calls``; the rest is 0 there.
    """

    __tablename__ = "llm_cost_usage_rollups"

    #: A hash of the dimensions: the plain key would be too long for MySQL.
    id: Mapped[UUID] = mapped_column(primary_key=True)
    bucket: Mapped[datetime]
    provider: Mapped[str] = mapped_column(sa.String(64))
    #: As priced: what the reply names, else what was asked for, empty where neither is known.
    model: Mapped[str] = mapped_column(sa.String(256))
    component: Mapped[str] = mapped_column(sa.String(32))
    currency: Mapped[str] = mapped_column(sa.String(3))
    quantity: Mapped[Decimal] = mapped_column(Quantity)
    #: No call of it cost, or took, more; only where it counts calls. What is taken off later does not lower it.
    most_cost: Mapped[Decimal | None] = mapped_column(Money)
    most_latency_ms: Mapped[int | None] = mapped_column(sa.BigInteger)

    __table_args__ = (sa.Index("ix_llm_cost_usage_rollups_bucket", "component", "bucket"), _EXACT_STRINGS)


class TagRollup(_Sums, Base):
    """Spend per reporting day, tag key, value, provider, model and currency.

    The empty key counts all calls of the day. ``feature,tenant_id`` keeps two report tags together, the second's value in
    ``second_value``. ``feature*`` is ``feature`` over all models, whose provider and model are empty. ``feature?`` has the
    calls that have the tag, whatever its value, of tags that are nearly unique too. ``feature@`` is ``feature*`` by parts of
    the day, whose number is the ``second_value``, and ``feature~`` and ``feature~*`` are ``feature`` and ``feature*`` by how
    calls ended, which is in the ``second_value``. ``@`` and ``~`` alone are that of all calls.
    """

    __tablename__ = "llm_cost_tag_rollups"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    day: Mapped[date] = mapped_column(sa.Date)
    key: Mapped[str] = mapped_column(sa.String(160))
    value: Mapped[str] = mapped_column(sa.String(256))
    second_value: Mapped[str] = mapped_column(sa.String(256))
    provider: Mapped[str] = mapped_column(sa.String(64))
    model: Mapped[str] = mapped_column(sa.String(256))
    currency: Mapped[str] = mapped_column(sa.String(3))

    __table_args__ = (
        # A range of days of all values, of one value, and of one value of the second key of a pair.
        sa.Index("ix_llm_cost_tag_rollups_key", "key", "day"),
        sa.Index("ix_llm_cost_tag_rollups_value", "key", "value", "day"),
        sa.Index("ix_llm_cost_tag_rollups_second", "key", "second_value", "day"),
        _EXACT_STRINGS,
    )


class BudgetPeriod(Base):
    """What one budget has spent and holds, for one scope and one period. Calls and tokens are in millions."""

    __tablename__ = "llm_cost_budget_periods"

    #: A hash of budget, scope, period, unit and currency.
    id: Mapped[UUID] = mapped_column(primary_key=True)
    budget: Mapped[str] = mapped_column(sa.String(128))
    scope: Mapped[str] = mapped_column(sa.String(512))
    period: Mapped[str] = mapped_column(sa.String(16))
    starts_at: Mapped[datetime]
    ends_at: Mapped[datetime | None]
    unit: Mapped[str] = mapped_column(sa.String(16))
    currency: Mapped[str] = mapped_column(sa.String(3))
    limit_amount: Mapped[Decimal | None] = mapped_column(Money)
    spent: Mapped[Decimal] = mapped_column(Money)
    held: Mapped[Decimal] = mapped_column(Money)
    unresolved: Mapped[Decimal] = mapped_column(Money)
    blocked_calls: Mapped[int] = mapped_column(sa.BigInteger)
    #: Calls that were recorded before are not counted in it.
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]

    __table_args__ = (sa.Index("ix_llm_cost_budget_periods_budget", "budget", "starts_at"), _EXACT_STRINGS)


class BudgetHold(Base):
    """What one call holds of one budget period until it is settled or expires."""

    __tablename__ = "llm_cost_budget_holds"

    call_id: Mapped[UUID] = mapped_column(primary_key=True)
    period_id: Mapped[UUID] = mapped_column(sa.ForeignKey("llm_cost_budget_periods.id"), primary_key=True)
    #: What it stands for: less than it was taken for where a part of what the call cost is known.
    amount: Mapped[Decimal] = mapped_column(Money)
    #: What of the cost is known, and counted as spent.
    actual: Mapped[Decimal | None] = mapped_column(Money)
    #: ``open``, ``settled``, ``unresolved`` (its cost is not known, or nobody has heard of the call) or ``released``.
    state: Mapped[str] = mapped_column(sa.String(16))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    settled_at: Mapped[datetime | None]

    __table_args__ = (sa.Index("ix_llm_cost_budget_holds_expiry", "state", "expires_at"), _EXACT_STRINGS)


class Alert(Base):
    """A threshold that was crossed. The unique row decides which process tells."""

    __tablename__ = "llm_cost_alerts"

    period_id: Mapped[UUID] = mapped_column(sa.ForeignKey("llm_cost_budget_periods.id"), primary_key=True)
    threshold: Mapped[Decimal] = mapped_column(Quantity, primary_key=True)
    crossed_at: Mapped[datetime]
    total: Mapped[Decimal] = mapped_column(Money)

    __table_args__ = (_EXACT_STRINGS,)


class Adjustment(Base):
    """What was changed after the fact, by backfill, reprice, lift, release or erasure: when, why, from what to what."""

    __tablename__ = "llm_cost_adjustments"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    made_at: Mapped[datetime]
    kind: Mapped[str] = mapped_column(sa.String(16))
    call_id: Mapped[UUID | None]
    #: When the call was made, so that a booked month can say that it moved.
    occurred_at: Mapped[datetime | None]
    old_cost: Mapped[Decimal | None] = mapped_column(Money)
    new_cost: Mapped[Decimal | None] = mapped_column(Money)
    currency: Mapped[str | None] = mapped_column(sa.String(3))
    old_price_id: Mapped[UUID | None]
    new_price_id: Mapped[UUID | None]
    budget: Mapped[str | None] = mapped_column(sa.String(128))
    scope: Mapped[str | None] = mapped_column(sa.String(512))
    amount: Mapped[Decimal | None] = mapped_column(Money)
    until: Mapped[datetime | None]
    actor: Mapped[str | None] = mapped_column(sa.String(128))
    reason: Mapped[str | None] = mapped_column(sa.String(256))

    __table_args__ = (
        sa.Index("ix_llm_cost_adjustments_occurred_at", "occurred_at"),
        sa.Index("ix_llm_cost_adjustments_made_at", "kind", "made_at"),
        _EXACT_STRINGS,
    )


class Counter(Base):
    """Counts and marks that outlive a process: heartbeat, duplicates suppressed, lost, quarantined, the reporting zone."""

    __tablename__ = "llm_cost_counters"

    name: Mapped[str] = mapped_column(sa.String(192), primary_key=True)
    value: Mapped[int] = mapped_column(sa.BigInteger)
    text: Mapped[str | None] = mapped_column(sa.String(256))
    updated_at: Mapped[datetime]

    __table_args__ = (_EXACT_STRINGS,)


def copy_tables(metadata: sa.MetaData) -> None:
    """Put the ledger's tables into *metadata*, the host's, with stock column types that Alembic can render.

    They live in the default schema of their database whatever schema the host's metadata names, and take its naming
    convention. Tables that are there already stay as they are.
    """
    target = metadata
    if metadata.schema is not None:
        # Alembic puts the metadata's schema before every foreign key that names none, so these tables get metadata without.
        target = sa.MetaData(naming_convention=metadata.naming_convention, info=metadata.info)
    for table in Base.metadata.sorted_tables:
        if table.name in metadata.tables:
            continue
        copy = table.to_metadata(target)
        for column in copy.columns:
            if isinstance(column.type, ExactDecimal):
                column.type = column.type.ddl
            elif isinstance(column.type, UtcDateTime):
                column.type = TIME_DDL
        if target is not metadata:
            metadata._add_table(copy.name, None, copy)
