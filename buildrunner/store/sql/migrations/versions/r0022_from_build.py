"""Add the id of the build whose kept workspace a build resumes from."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables what this revision has."""
    text = sa.String().with_variant(sa.String(collation="C"), "postgresql")
    op.add_column("builds", sa.Column("from_build", text, nullable=False, server_default=""))
    builds = sa.table(
        "builds",
        sa.column("id", text),
        sa.column("phase", text),
        sa.column("only_worker", text),
        sa.column("labels", sa.LargeBinary()),
        sa.column("from_build", text),
    )
    connection = op.get_bind()
    tied = sa.select(builds.c.id, builds.c.labels).where(
        builds.c.phase != "ended", builds.c.only_worker != ""
    )
    for row in connection.execute(tied).all():
        from_build = json.loads(row.labels).get("from_build", "")
        own = builds.c.id == row.id
        connection.execute(sa.update(builds).where(own).values(from_build=from_build))
