"""Give each project its own history of refs.

The earlier history was shared by all hooks and projects, so that it may contain reports of senders
that a project does not trust. It is deleted: the next check of each repository records its refs.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables what this revision has."""
    text = sa.String().with_variant(sa.String(collation="C"), "postgresql")
    op.drop_table("known_refs")
    op.create_table(
        "known_refs",
        sa.Column("project", text, nullable=False),
        sa.Column("repository", text, nullable=False),
        sa.Column("ref", text, nullable=False),
        sa.Column("commit_sha", text, nullable=False),
        sa.Column("seen_by", text, nullable=False),
        sa.Column("before_sha", text, nullable=False, server_default=""),
        sa.PrimaryKeyConstraint("project", "repository", "ref"),
    )
