"""The ledger's tables as they were before there were rollups: what every later version has to be able to upgrade."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

# revision identifiers, used by Alembic.
revision = "1cb8fa206b54"
down_revision = None
branch_labels = None
depends_on = None


def upgrade():
    op.create_table(
        "llm_cost_adjustments",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column(
            "made_at",
            sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mariadb").with_variant(mysql.DATETIME(fsp=6), "mysql"),
            nullable=False,
        ),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("call_id", sa.Uuid(), nullable=True),
        sa.Column(
            "occurred_at",
            sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mariadb").with_variant(mysql.DATETIME(fsp=6), "mysql"),
            nullable=True,
        ),
        sa.Column("old_cost", sa.Numeric(precision=28, scale=12).with_variant(sa.BigInteger(), "sqlite"), nullable=True),
        sa.Column("new_cost", sa.Numeric(precision=28, scale=12).with_variant(sa.BigInteger(), "sqlite"), nullable=True),
        sa.Column("currency", sa.String(length=3), nullable=True),
        sa.Column("old_price_id", sa.Uuid(), nullable=True),
        sa.Column("new_price_id", sa.Uuid(), nullable=True),
        sa.Column("budget", sa.String(length=128), nullable=True),
        sa.Column("scope", sa.String(length=512), nullable=True),
        sa.Column("amount", sa.Numeric(precision=28, scale=12).with_variant(sa.BigInteger(), "sqlite"), nullable=True),
        sa.Column(
            "until",
            sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mariadb").with_variant(mysql.DATETIME(fsp=6), "mysql"),
            nullable=True,
        ),
        sa.Column("actor", sa.String(length=128), nullable=True),
        sa.Column("reason", sa.String(length=256), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    with op.batch_alter_table("llm_cost_adjustments", schema=None) as batch_op:
        batch_op.create_index("ix_llm_cost_adjustments_made_at", ["kind", "made_at"], unique=False)
        batch_op.create_index("ix_llm_cost_adjustments_occurred_at", ["occurred_at"], unique=False)

    op.create_table(
        "llm_cost_budget_periods",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("budget", sa.String(length=128), nullable=False),
        sa.Column("scope", sa.String(length=512), nullable=False),
        sa.Column("period", sa.String(length=16), nullable=False),
        sa.Column(
            "starts_at",
            sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mariadb").with_variant(mysql.DATETIME(fsp=6), "mysql"),
            nullable=False,
        ),
        sa.Column(
            "ends_at",
            sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mariadb").with_variant(mysql.DATETIME(fsp=6), "mysql"),
            nullable=True,
        ),
        sa.Column("unit", sa.String(length=16), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("limit_amount", sa.Numeric(precision=28, scale=12).with_variant(sa.BigInteger(), "sqlite"), nullable=True),
        sa.Column("spent", sa.Numeric(precision=28, scale=12).with_variant(sa.BigInteger(), "sqlite"), nullable=False),
        sa.Column("held", sa.Numeric(precision=28, scale=12).with_variant(sa.BigInteger(), "sqlite"), nullable=False),
        sa.Column("unresolved", sa.Numeric(precision=28, scale=12).with_variant(sa.BigInteger(), "sqlite"), nullable=False),
        sa.Column("blocked_calls", sa.BigInteger(), nullable=False),
        sa.Column(
            "updated_at",
            sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mariadb").with_variant(mysql.DATETIME(fsp=6), "mysql"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id"),
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    with op.batch_alter_table("llm_cost_budget_periods", schema=None) as batch_op:
        batch_op.create_index("ix_llm_cost_budget_periods_budget", ["budget", "starts_at"], unique=False)

    op.create_table(
        "llm_cost_counters",
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.Column("text", sa.String(length=256), nullable=True),
        sa.Column(
            "updated_at",
            sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mariadb").with_variant(mysql.DATETIME(fsp=6), "mysql"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("name"),
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_table(
        "llm_cost_prices",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("source", sa.String(length=32), nullable=False),
        sa.Column("source_version", sa.String(length=64), nullable=False),
        sa.Column("matched_key", sa.String(length=320), nullable=False),
        sa.Column("match_kind", sa.String(length=32), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("rates", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("pricing_mode", sa.String(length=64), nullable=True),
        sa.Column("tier", sa.String(length=64), nullable=True),
        sa.Column("multiplier", sa.Numeric(precision=28, scale=12).with_variant(sa.BigInteger(), "sqlite"), nullable=False),
        sa.Column("discount", sa.Numeric(precision=28, scale=12).with_variant(sa.BigInteger(), "sqlite"), nullable=False),
        sa.Column(
            "effective_from",
            sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mariadb").with_variant(mysql.DATETIME(fsp=6), "mysql"),
            nullable=True,
        ),
        sa.Column(
            "created_at",
            sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mariadb").with_variant(mysql.DATETIME(fsp=6), "mysql"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id"),
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_table(
        "llm_cost_tag_rollups",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("key", sa.String(length=256), nullable=False),
        sa.Column("value", sa.String(length=1024), nullable=False),
        sa.Column("provider", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=256), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("calls", sa.BigInteger(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cache_read_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cache_write_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("total_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cost", sa.Numeric(precision=28, scale=12).with_variant(sa.BigInteger(), "sqlite"), nullable=False),
        sa.Column("unpriced_calls", sa.BigInteger(), nullable=False),
        sa.Column("partial_calls", sa.BigInteger(), nullable=False),
        sa.Column("latency_ms", sa.BigInteger(), nullable=False),
        sa.Column("latency_calls", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    with op.batch_alter_table("llm_cost_tag_rollups", schema=None) as batch_op:
        batch_op.create_index("ix_llm_cost_tag_rollups_key", ["key", "day"], unique=False)

    op.create_table(
        "llm_cost_usage_rollups",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column(
            "bucket",
            sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mariadb").with_variant(mysql.DATETIME(fsp=6), "mysql"),
            nullable=False,
        ),
        sa.Column("provider", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=256), nullable=False),
        sa.Column("component", sa.String(length=32), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("calls", sa.BigInteger(), nullable=False),
        sa.Column("quantity", sa.Numeric(precision=28, scale=6).with_variant(sa.BigInteger(), "sqlite"), nullable=False),
        sa.Column("cost", sa.Numeric(precision=28, scale=12).with_variant(sa.BigInteger(), "sqlite"), nullable=False),
        sa.Column("unpriced_calls", sa.BigInteger(), nullable=False),
        sa.Column("partial_calls", sa.BigInteger(), nullable=False),
        sa.Column("latency_ms", sa.BigInteger(), nullable=False),
        sa.Column("latency_calls", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    with op.batch_alter_table("llm_cost_usage_rollups", schema=None) as batch_op:
        batch_op.create_index("ix_llm_cost_usage_rollups_bucket", ["bucket"], unique=False)

    op.create_table(
        "llm_cost_alerts",
        sa.Column("period_id", sa.Uuid(), nullable=False),
        sa.Column("threshold", sa.Numeric(precision=28, scale=6).with_variant(sa.BigInteger(), "sqlite"), nullable=False),
        sa.Column(
            "crossed_at",
            sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mariadb").with_variant(mysql.DATETIME(fsp=6), "mysql"),
            nullable=False,
        ),
        sa.Column("total", sa.Numeric(precision=28, scale=12).with_variant(sa.BigInteger(), "sqlite"), nullable=False),
        sa.ForeignKeyConstraint(
            ["period_id"],
            ["llm_cost_budget_periods.id"],
        ),
        sa.PrimaryKeyConstraint("period_id", "threshold"),
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_table(
        "llm_cost_budget_holds",
        sa.Column("call_id", sa.Uuid(), nullable=False),
        sa.Column("period_id", sa.Uuid(), nullable=False),
        sa.Column("amount", sa.Numeric(precision=28, scale=12).with_variant(sa.BigInteger(), "sqlite"), nullable=False),
        sa.Column("actual", sa.Numeric(precision=28, scale=12).with_variant(sa.BigInteger(), "sqlite"), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mariadb").with_variant(mysql.DATETIME(fsp=6), "mysql"),
            nullable=False,
        ),
        sa.Column(
            "expires_at",
            sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mariadb").with_variant(mysql.DATETIME(fsp=6), "mysql"),
            nullable=False,
        ),
        sa.Column(
            "settled_at",
            sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mariadb").with_variant(mysql.DATETIME(fsp=6), "mysql"),
            nullable=True,
        ),
        sa.ForeignKeyConstraint(
            ["period_id"],
            ["llm_cost_budget_periods.id"],
        ),
        sa.PrimaryKeyConstraint("call_id", "period_id"),
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    with op.batch_alter_table("llm_cost_budget_holds", schema=None) as batch_op:
        batch_op.create_index("ix_llm_cost_budget_holds_expiry", ["state", "expires_at"], unique=False)

    op.create_table(
        "llm_cost_calls",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column(
            "occurred_at",
            sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mariadb").with_variant(mysql.DATETIME(fsp=6), "mysql"),
            nullable=False,
        ),
        sa.Column(
            "recorded_at",
            sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mariadb").with_variant(mysql.DATETIME(fsp=6), "mysql"),
            nullable=False,
        ),
        sa.Column("input_tokens", sa.BigInteger(), nullable=True),
        sa.Column("cache_read_tokens", sa.BigInteger(), nullable=True),
        sa.Column("cache_write_tokens", sa.BigInteger(), nullable=True),
        sa.Column("output_tokens", sa.BigInteger(), nullable=True),
        sa.Column("reasoning_tokens", sa.BigInteger(), nullable=True),
        sa.Column("total_tokens", sa.BigInteger(), nullable=True),
        sa.Column("latency_ms", sa.Integer(), nullable=True),
        sa.Column("first_token_ms", sa.Integer(), nullable=True),
        sa.Column("stream", sa.Boolean(), nullable=False),
        sa.Column("attempt", sa.SmallInteger(), nullable=False),
        sa.Column("http_status", sa.SmallInteger(), nullable=True),
        sa.Column("provider", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=256), nullable=True),
        sa.Column("requested_model", sa.String(length=256), nullable=True),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("operation", sa.String(length=64), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("error_class", sa.String(length=128), nullable=True),
        sa.Column("usage_source", sa.String(length=16), nullable=False),
        sa.Column("cost_status", sa.String(length=16), nullable=False),
        sa.Column("total_cost", sa.Numeric(precision=28, scale=12).with_variant(sa.BigInteger(), "sqlite"), nullable=True),
        sa.Column(
            "computed_cost", sa.Numeric(precision=28, scale=12).with_variant(sa.BigInteger(), "sqlite"), nullable=True
        ),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("pricing_mode", sa.String(length=64), nullable=True),
        sa.Column("price_id", sa.Uuid(), nullable=True),
        sa.Column("provider_response_id", sa.String(length=128), nullable=True),
        sa.Column("flags", sa.String(length=128), nullable=True),
        sa.Column("raw_usage", sa.JSON(none_as_null=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["price_id"],
            ["llm_cost_prices.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    with op.batch_alter_table("llm_cost_calls", schema=None) as batch_op:
        batch_op.create_index("ix_llm_cost_calls_model", ["provider", "model", "occurred_at"], unique=False)
        batch_op.create_index("ix_llm_cost_calls_occurred_at", ["occurred_at", "id"], unique=False)

    op.create_table(
        "llm_cost_call_tags",
        sa.Column("call_id", sa.Uuid(), nullable=False),
        sa.Column(
            "occurred_at",
            sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mariadb").with_variant(mysql.DATETIME(fsp=6), "mysql"),
            nullable=False,
        ),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("value", sa.String(length=256), nullable=False),
        sa.ForeignKeyConstraint(["call_id"], ["llm_cost_calls.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("call_id", "key"),
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    with op.batch_alter_table("llm_cost_call_tags", schema=None) as batch_op:
        batch_op.create_index("ix_llm_cost_call_tags_key", ["key", "value", "occurred_at"], unique=False)

    op.create_table(
        "llm_cost_line_items",
        sa.Column("call_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("component", sa.String(length=32), nullable=False),
        sa.Column("unit", sa.String(length=16), nullable=False),
        sa.Column("quantity", sa.Numeric(precision=28, scale=6).with_variant(sa.BigInteger(), "sqlite"), nullable=False),
        sa.Column("rate", sa.Numeric(precision=28, scale=12).with_variant(sa.BigInteger(), "sqlite"), nullable=True),
        sa.Column("rate_per", sa.Numeric(precision=28, scale=6).with_variant(sa.BigInteger(), "sqlite"), nullable=True),
        sa.Column("cost", sa.Numeric(precision=28, scale=12).with_variant(sa.BigInteger(), "sqlite"), nullable=True),
        sa.Column("cost_status", sa.String(length=16), nullable=False),
        sa.ForeignKeyConstraint(["call_id"], ["llm_cost_calls.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("call_id", "position"),
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )


def downgrade():
    raise NotImplementedError
