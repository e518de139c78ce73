"""The deployments of builds."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables what this revision has."""
    text = sa.String().with_variant(sa.String(collation="C"), "postgresql")
    op.create_table(
        "deployments",
        sa.Column("id", text, nullable=False),
        sa.Column("project_id", text, nullable=False),
        sa.Column("target", text, nullable=False),
        sa.Column("build_id", text, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("document", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.ForeignKeyConstraint(["build_id"], ["builds.id"], ondelete="CASCADE"),
    )
    newest = sa.text("at DESC")
    op.create_index("deployments_by_time", "deployments", ["project_id", newest, "id"])
    op.create_index("deployments_by_target", "deployments", ["project_id", "target", newest, "id"])
    op.create_index("deployments_of_build", "deployments", ["build_id"])
