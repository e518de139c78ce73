"""Remove the id of the build that a build resumes: each worker of the server can claim it now."""

from __future__ import annotations

from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables what this revision has."""
    op.drop_column("builds", "from_build")
