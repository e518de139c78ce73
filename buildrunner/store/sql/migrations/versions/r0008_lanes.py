"""Deliveries of one repository are handled one after the other, whichever server handles them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables what this revision has."""
    text = sa.String().with_variant(sa.String(collation="C"), "postgresql")
    op.add_column("deliveries", sa.Column("lane", text, nullable=False, server_default=""))
    op.create_index("deliveries_claimed", "deliveries", ["claimed_until", "lane"], **_claimed())
    counters = sa.table("counters", sa.column("name", text), sa.column("value", sa.BigInteger()))
    op.bulk_insert(counters, [{"name": "delivery_claims", "value": 0}])


def _claimed() -> dict[str, Any]:
    where = sa.text("claimed_until IS NOT NULL")
    return {"sqlite_where": where, "postgresql_where": where}
