"""Store deliveries of webhooks, and the last seen commit of each ref."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables what this revision has."""
    rising = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "deliveries",
        sa.Column("number", rising, primary_key=True, autoincrement=True),
        sa.Column("hook", _text(), nullable=False),
        sa.Column("delivery_id", _text()),
        sa.Column("received_at", sa.BigInteger(), nullable=False),
        sa.Column("status", _text(), nullable=False),
        sa.Column("headers", sa.LargeBinary(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("address", _text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("replays", sa.Integer(), nullable=False),
        sa.Column("claimed_until", sa.BigInteger()),
        sa.Column("outcome", sa.LargeBinary(), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("deliveries_by_id", "deliveries", ["hook", "delivery_id"], unique=True)
    op.create_index("deliveries_by_status", "deliveries", ["status", "number"])
    op.create_table(
        "known_refs",
        sa.Column("repository", _text(), primary_key=True),
        sa.Column("ref", _text(), primary_key=True),
        sa.Column("commit_sha", _text(), nullable=False),
        sa.Column("seen_by", _text(), nullable=False),
    )


def _text() -> sa.types.TypeEngine[str]:
    return sa.String().with_variant(sa.String(collation="C"), "postgresql")
