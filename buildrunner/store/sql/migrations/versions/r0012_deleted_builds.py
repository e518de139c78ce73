"""Ids of deleted builds, whose files the servers of the database delete."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables what this revision has."""
    text = sa.String().with_variant(sa.String(collation="C"), "postgresql")
    op.create_table(
        "deleted_builds",
        sa.Column("build_id", text, nullable=False),
        sa.Column("deleted_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("build_id"),
    )
    op.create_index("deleted_builds_by_time", "deleted_builds", ["deleted_at"])
    op.create_index("audit_log_by_time", "audit_log", ["at"])
