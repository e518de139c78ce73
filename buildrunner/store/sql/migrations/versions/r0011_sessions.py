"""Sessions of browsers, and the key of their forms."""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables what this revision has."""
    text = sa.String().with_variant(sa.String(collation="C"), "postgresql")
    op.create_table(
        "sessions",
        sa.Column("hash_hex", text, nullable=False),
        sa.Column("token_name", text, nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("ends_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("hash_hex"),
        sa.ForeignKeyConstraint(["token_name"], ["tokens.name"], ondelete="CASCADE"),
    )
    op.create_index("sessions_of_token", "sessions", ["token_name"])
    keys = sa.table("keys", sa.column("name", text), sa.column("value", sa.LargeBinary()))
    op.bulk_insert(keys, [{"name": "forms", "value": secrets.token_bytes(32)}])
