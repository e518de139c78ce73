"""Add versions, sources and schedules of triggers, outside of their documents.

`store.sql.triggers.index_triggers` fills them in after the upgrade.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables what this revision has."""
    text = sa.String().with_variant(sa.String(collation="C"), "postgresql")
    op.add_column(
        "triggers", sa.Column("version", sa.BigInteger(), nullable=False, server_default="0")
    )
    op.add_column(
        "triggers",
        sa.Column("disabled", sa.Boolean(), nullable=False, server_default=sa.text("false")),
    )
    op.add_column("triggers", sa.Column("cron", sa.LargeBinary()))
    op.create_table(
        "trigger_sources",
        sa.Column("source", text, nullable=False),
        sa.Column("project_id", text, nullable=False),
        sa.Column("trigger_id", text, nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id", "trigger_id"], ["triggers.project_id", "triggers.id"], ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("source", "project_id", "trigger_id"),
    )
    op.create_index("trigger_sources_of_trigger", "trigger_sources", ["project_id", "trigger_id"])
