"""Turns of projects in the queue, and an index of what waits in each project."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables what this revision has."""
    text = sa.String().with_variant(sa.String(collation="C"), "postgresql")
    op.create_table(
        "project_turns",
        sa.Column("project_id", text, nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("project_id"),
    )
    op.drop_index("builds_waiting", "builds")
    where = sa.text("phase = 'waiting'")
    queue_order: list[Any] = ["project_id", sa.text("priority DESC"), "create_time", "id"]
    also_read = ["group_name", "group_limit", "expires_at", "phase"]
    op.create_index(
        "builds_waiting",
        "builds",
        queue_order + also_read,
        sqlite_where=where,
        postgresql_where=where,
    )
