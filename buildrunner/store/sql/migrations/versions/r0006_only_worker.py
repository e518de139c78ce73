"""A build whose source lies in one server's folder is for that server's worker."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables what this revision has."""
    text = sa.String().with_variant(sa.String(collation="C"), "postgresql")
    op.add_column("builds", sa.Column("only_worker", text, nullable=False, server_default=""))
