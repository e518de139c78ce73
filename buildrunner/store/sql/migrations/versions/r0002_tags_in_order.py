"""Add the columns that lists and the queue filter by to indexes; add project and time to tags."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables what this revision has."""
    _replace_tags()
    newest_first: list[Any] = [sa.text("create_time DESC"), "id"]
    op.drop_index("builds_by_time", "builds")
    op.create_index(
        "builds_by_time",
        "builds",
        ["project_id", *newest_first, "status", "trigger_id", "location"],
    )
    op.drop_index("builds_by_status", "builds")
    op.create_index(
        "builds_by_status", "builds", ["project_id", "status", *newest_first, "trigger_id"]
    )
    op.drop_index("builds_by_trigger", "builds")
    op.create_index(
        "builds_by_trigger", "builds", ["project_id", "trigger_id", *newest_first, "status"]
    )
    op.create_index(
        "builds_claimed_group", "builds", ["project_id", "group_name"], **_only("claimed")
    )
    op.drop_index("builds_expiring", "builds")
    op.drop_index("builds_waiting", "builds")
    queue_order: list[Any] = [sa.text("priority DESC"), "create_time", "id"]
    asked_for = ["project_id", "group_name", "group_limit", "expires_at", "phase"]
    op.create_index("builds_waiting", "builds", queue_order + asked_for, **_only("waiting"))


def _only(phase: str) -> dict[str, Any]:
    where = sa.text(f"phase = '{phase}'")
    return {"sqlite_where": where, "postgresql_where": where}


def _replace_tags() -> None:
    def text() -> sa.types.TypeEngine[str]:
        return sa.String().with_variant(sa.String(collation="C"), "postgresql")

    op.create_table(
        "build_tags_0002",
        sa.Column("build_id", text(), nullable=False),
        sa.Column("tag", text(), nullable=False),
        sa.Column("project_id", text(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["build_id"], ["builds.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("build_id", "tag"),
    )
    op.execute(
        "INSERT INTO build_tags_0002 (build_id, tag, project_id, create_time)"
        " SELECT build_id, tag, project_id, create_time"
        " FROM build_tags JOIN builds ON builds.id = build_tags.build_id"
    )
    op.drop_table("build_tags")
    op.rename_table("build_tags_0002", "build_tags")
    op.create_index(
        "build_tags_by_tag",
        "build_tags",
        ["project_id", "tag", sa.text("create_time DESC"), "build_id"],
    )
