"""Notifiers; messages of the outbox are kept for a while after they arrived."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables what this revision has."""
    text = sa.String().with_variant(sa.String(collation="C"), "postgresql")
    op.create_table(
        "notifiers",
        sa.Column("project_id", text, nullable=False),
        sa.Column("name", text, nullable=False),
        sa.Column("document", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("project_id", "name"),
    )
    op.add_column("outbox", sa.Column("done_at", sa.BigInteger()))
    op.create_index("outbox_given_up", "outbox", ["lane"], **_in_state("given_up"))
    op.create_index("outbox_done", "outbox", ["done_at"])
    op.create_index("outbox_of_project", "outbox", ["project_id", "id"])
    op.create_index("outbox_of_build", "outbox", ["build_id", "id"])


def _in_state(state: str) -> dict[str, Any]:
    where = sa.text(f"state = '{state}'")
    return {"sqlite_where": where, "postgresql_where": where}
