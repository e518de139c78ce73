"""Replace the build in messages of notifiers by the id of the change that they report.

Builds get a series, by which the previous build is found.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables what this revision has."""
    text = sa.String().with_variant(sa.String(collation="C"), "postgresql")
    op.add_column("builds", sa.Column("series", text, nullable=False, server_default=""))
    op.create_index(
        "builds_by_series",
        "builds",
        [
            "project_id",
            "trigger_id",
            "series",
            sa.text("create_time DESC"),
            "id",
            "status",
            "finish_time",
        ],
    )
    op.add_column(
        "build_changes",
        sa.Column("announced", sa.Boolean(), nullable=False, server_default=sa.text("false")),
    )
    op.create_index(
        "build_changes_new",
        "build_changes",
        ["project_id", "id", "build_id", "status"],
        sqlite_where=sa.text("announced = 0"),
        postgresql_where=sa.text("NOT announced"),
    )
    op.add_column("outbox", sa.Column("change_id", sa.BigInteger()))
    op.create_index("outbox_of_change", "outbox", ["change_id", "state"])
    connection = op.get_bind()
    _fill_series(connection)
    _shorten_messages(connection)


def _fill_series(connection: sa.Connection) -> None:
    of_triggers = sa.text("SELECT id FROM builds WHERE trigger_id <> ''")
    for (build_id,) in connection.execute(of_triggers).all():
        found = connection.execute(
            sa.text("SELECT document FROM builds WHERE id = :id"), {"id": build_id}
        )
        values = json.loads(bytes(found.scalar_one())).get("substitutions", {})
        names = [values.get("BRANCH_NAME", ""), values.get("_PR_NUMBER", "")]
        series = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:32]
        connection.execute(
            sa.text("UPDATE builds SET series = :series WHERE id = :id"),
            {"series": series, "id": build_id},
        )


def _shorten_messages(connection: sa.Connection) -> None:
    """Keep the build of each waiting message once for all notifiers, as a change."""
    held = sa.text("SELECT id FROM outbox WHERE kind = 'notify' AND state <> 'delivered'")
    for (message_id,) in connection.execute(held).all():
        row = connection.execute(
            sa.text("SELECT key, project_id, build_id, message FROM outbox WHERE id = :id"),
            {"id": message_id},
        ).one()
        change_id, _, notifier = row.key.removeprefix("notify/").partition("/")
        build: dict[str, Any] = json.loads(bytes(row.message)).get("facts", {}).get("build", {})
        if not change_id.isdecimal():
            continue
        key = {"id": int(change_id)}
        known = connection.execute(sa.text("SELECT id FROM build_changes WHERE id = :id"), key)
        if known.first() is None:
            connection.execute(
                sa.text(
                    "INSERT INTO build_changes"
                    " (id, build_id, project_id, status, announced, document)"
                    " VALUES (:id, :build, :project, :status, true, :document)"
                ),
                {
                    **key,
                    "build": row.build_id,
                    "project": row.project_id,
                    "status": build.get("status", ""),
                    "document": json.dumps(build).encode(),
                },
            )
        connection.execute(
            sa.text("UPDATE outbox SET change_id = :change, message = :message WHERE id = :id"),
            {
                "change": key["id"],
                "message": json.dumps({"notifier": notifier, "receiver": ""}).encode(),
                "id": message_id,
            },
        )
