"""The builds that spare Pods on Kubernetes have claimed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables what this revision has."""
    text = sa.String().with_variant(sa.String(collation="C"), "postgresql")
    op.create_table(
        "spare_claims",
        sa.Column("job", text, nullable=False),
        sa.Column("build_id", text, nullable=False),
        sa.ForeignKeyConstraint(["build_id"], ["builds.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job"),
    )
    op.create_index("spare_claims_by_build", "spare_claims", ["build_id"])
