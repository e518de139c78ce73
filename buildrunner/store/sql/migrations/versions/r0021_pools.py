"""Builds are for the workers of a pool, and so are the tokens of workers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables what this revision has."""
    text = sa.String().with_variant(sa.String(collation="C"), "postgresql")
    op.add_column("builds", sa.Column("pool", text, nullable=False, server_default=""))
    op.add_column("tokens", sa.Column("pool", text, nullable=False, server_default=""))
