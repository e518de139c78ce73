"""Builds that have not ended have an index of their own: lists of them ask for nothing else."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables what this revision has."""
    ongoing = sa.text("phase <> 'ended'")
    op.create_index(
        "builds_ongoing",
        "builds",
        ["project_id", sa.text("create_time DESC"), "id", "status"],
        sqlite_where=ongoing,
        postgresql_where=ongoing,
    )
