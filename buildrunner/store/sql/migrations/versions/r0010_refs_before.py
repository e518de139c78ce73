"""The commit of a ref before the known one: pushes may be reported in the wrong order."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables what this revision has."""
    text = sa.String().with_variant(sa.String(collation="C"), "postgresql")
    column = sa.Column("before_sha", text, nullable=False, server_default="")
    op.add_column("known_refs", column)
