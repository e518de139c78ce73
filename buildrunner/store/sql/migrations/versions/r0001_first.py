"""Builds, queue, plans, triggers, tokens, audit log."""

from __future__ import annotations

import secrets
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _text() -> sa.types.TypeEngine[str]:
    return sa.String().with_variant(sa.String(collation="C"), "postgresql")


def _only(phase: str) -> dict[str, Any]:
    where = sa.text(f"phase = '{phase}'")
    return {"sqlite_where": where, "postgresql_where": where}


def upgrade() -> None:
    """Make the tables what this revision has."""
    op.create_table(
        "audit_log",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("who", _text(), nullable=False),
        sa.Column("action", _text(), nullable=False),
        sa.Column("target", _text(), nullable=False),
        sa.Column("outcome", _text(), nullable=False),
        sa.Column("address", _text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "builds",
        sa.Column("id", _text(), nullable=False),
        sa.Column("project_id", _text(), nullable=False),
        sa.Column("location", _text(), nullable=False),
        sa.Column("request_id", _text(), nullable=True),
        sa.Column("status", _text(), nullable=False),
        sa.Column("phase", _text(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.Column("start_time", sa.BigInteger(), nullable=True),
        sa.Column("finish_time", sa.BigInteger(), nullable=True),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("trigger_id", _text(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("group_name", _text(), nullable=False),
        sa.Column("group_limit", sa.Integer(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("worker", _text(), nullable=False),
        sa.Column("process", _text(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("lease_until", sa.BigInteger(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("push", sa.Boolean(), nullable=False),
        sa.Column("untrusted", sa.Boolean(), nullable=False),
        sa.Column("labels", sa.LargeBinary(), nullable=False),
        sa.Column("document", sa.LargeBinary(), nullable=False),
        sa.Column("request", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("builds_by_request", "builds", ["project_id", "request_id"], unique=True)
    op.create_index(
        "builds_by_status", "builds", ["project_id", "status", sa.text("create_time DESC"), "id"]
    )
    op.create_index("builds_by_time", "builds", ["project_id", sa.text("create_time DESC"), "id"])
    op.create_index(
        "builds_by_trigger",
        "builds",
        ["project_id", "trigger_id", sa.text("create_time DESC"), "id"],
    )
    op.create_index(
        "builds_claimed", "builds", ["worker", "project_id", "group_name"], **_only("claimed")
    )
    op.create_index("builds_ended", "builds", ["ended_at", "id"], **_only("ended"))
    op.create_index("builds_expiring", "builds", ["expires_at"], **_only("waiting"))
    op.create_index(
        "builds_waiting",
        "builds",
        [sa.text("priority DESC"), "create_time", "id", "project_id", "group_name", "group_limit"],
        **_only("waiting"),
    )
    op.create_index(
        "builds_waiting_group", "builds", ["project_id", "group_name"], **_only("waiting")
    )
    counters = op.create_table(
        "counters",
        sa.Column("name", _text(), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    keys = op.create_table(
        "keys",
        sa.Column("name", _text(), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "tokens",
        sa.Column("name", _text(), nullable=False),
        sa.Column("hash_hex", _text(), nullable=False),
        sa.Column("scopes", sa.LargeBinary(), nullable=False),
        sa.Column("projects", sa.LargeBinary(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.Column("revoke_time", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("name"),
        sa.UniqueConstraint("hash_hex"),
    )
    op.create_table(
        "triggers",
        sa.Column("project_id", _text(), nullable=False),
        sa.Column("id", _text(), nullable=False),
        sa.Column("name", _text(), nullable=True),
        sa.Column("location", _text(), nullable=False),
        sa.Column("document", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("project_id", "id"),
    )
    op.create_index("triggers_by_name", "triggers", ["project_id", "name"], unique=True)
    op.create_table(
        "build_tags",
        sa.Column("build_id", _text(), nullable=False),
        sa.Column("tag", _text(), nullable=False),
        sa.ForeignKeyConstraint(["build_id"], ["builds.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("build_id", "tag"),
    )
    op.create_index("build_tags_by_tag", "build_tags", ["tag", "build_id"])
    op.create_table(
        "plans",
        sa.Column("build_id", _text(), nullable=False),
        sa.Column("plan", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["build_id"], ["builds.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("build_id"),
    )

    op.bulk_insert(counters, [{"name": "fence", "value": 0}])
    op.bulk_insert(keys, [{"name": "page_tokens", "value": secrets.token_bytes(32)}])
