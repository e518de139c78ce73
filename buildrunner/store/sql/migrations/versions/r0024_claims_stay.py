"""Keep the claim of a spare Job when its build is deleted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables what this revision has."""
    text = sa.String().with_variant(sa.String(collation="C"), "postgresql")
    claims = sa.table("spare_claims", sa.column("job", text), sa.column("build_id", text))
    connection = op.get_bind()
    rows = [row._asdict() for row in connection.execute(sa.select(claims)).all()]
    op.drop_table("spare_claims")  # SQLite can't remove a foreign key
    op.create_table(
        "spare_claims",
        sa.Column("job", text, nullable=False),
        sa.Column("build_id", text, nullable=False),
        sa.PrimaryKeyConstraint("job"),
    )
    op.create_index("spare_claims_by_build", "spare_claims", ["build_id"])
    if rows:
        op.bulk_insert(claims, rows)
