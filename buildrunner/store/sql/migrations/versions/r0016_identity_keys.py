"""The public keys that verify identity tokens."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables what this revision has."""
    text = sa.String().with_variant(sa.String(collation="C"), "postgresql")
    op.create_table(
        "identity_keys",
        sa.Column("id", text, nullable=False),
        sa.Column("owner", text, nullable=False),
        sa.Column("jwk", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("published_until", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
