"""Add an index of the builds that have not ended, for lists of these builds."""

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
