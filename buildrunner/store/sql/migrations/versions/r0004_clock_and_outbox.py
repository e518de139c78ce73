"""Schedules and settings of triggers, changes of builds, and the outbox."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables what this revision has."""
    op.create_table(
        "trigger_settings",
        sa.Column("project_id", _text(), nullable=False),
        sa.Column("trigger_id", _text(), nullable=False),
        sa.Column("settings", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("project_id", "trigger_id"),
        _of_trigger(),
    )
    op.create_table(
        "schedules",
        sa.Column("project_id", _text(), nullable=False),
        sa.Column("trigger_id", _text(), nullable=False),
        sa.Column("spec", _text(), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("project_id", "trigger_id"),
        _of_trigger(),
    )
    op.create_table(
        "fires",
        sa.Column("project_id", _text(), nullable=False),
        sa.Column("trigger_id", _text(), nullable=False),
        sa.Column("fire_at", sa.BigInteger(), nullable=False),
        sa.Column("run_at", sa.BigInteger(), nullable=False),
        sa.Column("state", _text(), nullable=False),
        sa.Column("build_id", _text(), nullable=False),
        sa.Column("detail", _text(), nullable=False),
        sa.Column("claimed_until", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("project_id", "trigger_id", "fire_at"),
        _of_trigger(),
    )
    op.create_index("fires_waiting", "fires", ["run_at"], **_waiting())
    op.create_table(
        "build_changes",
        _rising(),
        sa.Column("build_id", _text(), nullable=False),
        sa.Column("project_id", _text(), nullable=False),
        sa.Column("status", _text(), nullable=False),
        sa.Column("document", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "outbox",
        _rising(),
        sa.Column("key", _text(), nullable=False),
        sa.Column("lane", _text(), nullable=False),
        sa.Column("kind", _text(), nullable=False),
        sa.Column("project_id", _text(), nullable=False),
        sa.Column("build_id", _text(), nullable=False),
        sa.Column("target", _text(), nullable=False),
        sa.Column("message", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("next_try", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("last_error", _text(), nullable=False),
        sa.Column("state", _text(), nullable=False),
        sa.Column("claim", sa.BigInteger(), nullable=False),
        sa.Column("claimed_until", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("key"),
        sqlite_autoincrement=True,
    )
    op.create_index("outbox_lane", "outbox", ["lane", "id"], **_waiting())
    op.create_index("outbox_due", "outbox", ["next_try", "id"], **_waiting())


def _text() -> sa.types.TypeEngine[str]:
    return sa.String().with_variant(sa.String(collation="C"), "postgresql")


def _rising() -> sa.Column[int]:
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    return sa.Column("id", kind, autoincrement=True, nullable=False)


def _of_trigger() -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["project_id", "trigger_id"], ["triggers.project_id", "triggers.id"], ondelete="CASCADE"
    )


def _waiting() -> dict[str, Any]:
    where = sa.text("state = 'waiting'")
    return {"sqlite_where": where, "postgresql_where": where}
