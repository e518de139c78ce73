"""Claim deliveries by an index only: rows have large bodies before the columns in question."""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables what this revision has."""
    op.drop_index("deliveries_by_status", "deliveries")
    columns = ["status", "number", "claimed_until", "lane"]
    op.create_index("deliveries_by_status", "deliveries", columns)
    op.create_index("deliveries_by_hook", "deliveries", ["hook", "number"])
