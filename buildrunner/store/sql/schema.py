"""The server's tables, as of the newest migration.

A build's resource is one document (JSON bytes); further columns exist only for queue, lists and
filters in SQL. They are derived from the document in one place, `rows`. Instants are microseconds
since 1970. Text compares by code point on both databases.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Dialect,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    TypeDecorator,
    literal_column,
    text,
)
from sqlalchemy.types import TypeEngine


class _Text(TypeDecorator[str]):
    """Text without NUL, which PostgreSQL can't keep: SQLite refuses it here, too."""

    impl = String
    cache_ok = True

    @property
    def python_type(self) -> type[str]:
        """See `TypeEngine`; a decorator does not answer for what it decorates."""
        return str

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[str]:
        """See `TypeDecorator`."""
        collation = "C" if dialect.name == "postgresql" else None
        return dialect.type_descriptor(String(collation=collation))

    def process_bind_param(
        self,
        value: str | None,
        dialect: Dialect,  # noqa: ARG002  (the signature is SQLAlchemy's)
    ) -> str | None:
        """See `TypeDecorator`. Raises ValueError, as the driver of PostgreSQL does."""
        if value is not None and "\0" in value:
            raise ValueError("text cannot contain NUL")
        return value


Text = _Text()
Rising = BigInteger().with_variant(Integer, "sqlite")

# The stage of a build, beyond its status.
PENDING = "pending"  # waits for an approval
WAITING = "waiting"  # waits for its turn in the queue
CLAIMED = "claimed"  # claimed by a worker
ENDED = "ended"

metadata = MetaData()

builds = Table(
    "builds",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project_id", Text, nullable=False),
    Column("location", Text, nullable=False),
    Column("request_id", Text),  # NULL for none
    Column("status", Text, nullable=False),
    Column("phase", Text, nullable=False),
    Column("create_time", BigInteger, nullable=False),
    Column("start_time", BigInteger),
    Column("finish_time", BigInteger),
    Column("ended_at", BigInteger),  # for retention; never NULL once it has ended
    Column("trigger_id", Text, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("group_name", Text, nullable=False),
    Column("group_limit", Integer, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("worker", Text, nullable=False),
    Column("process", Text, nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("lease_until", BigInteger),
    Column("attempts", Integer, nullable=False),
    Column("cancel_requested", Boolean, nullable=False),
    Column("push", Boolean, nullable=False),
    Column("untrusted", Boolean, nullable=False),
    Column("labels", LargeBinary, nullable=False),
    Column("only_worker", Text, nullable=False, server_default=""),
    Column("pool", Text, nullable=False, server_default=""),
    Column("series", Text, nullable=False, server_default=""),  # see `rows.series_of`
    Column("document", LargeBinary, nullable=False),
    Column("request", LargeBinary, nullable=False),
)

_newest_first = (builds.c.create_time.desc(), builds.c.id)


def in_phase(phase: str) -> ColumnElement[bool]:
    """Return the condition that a build is in a phase.

    Literal text, because SQLite uses a partial index only if the query implies its condition.
    """
    return builds.c.phase == literal_column(f"'{phase}'")


is_waiting, is_claimed, is_ended = in_phase(WAITING), in_phase(CLAIMED), in_phase(ENDED)
is_ongoing = builds.c.phase != literal_column(f"'{ENDED}'")


def _only(phase: str) -> dict[str, Any]:
    where = text(f"phase = '{phase}'")
    return {"sqlite_where": where, "postgresql_where": where}


# The columns after the order let a query filter without reading rows.
Index(
    "builds_by_time",
    builds.c.project_id,
    *_newest_first,
    builds.c.status,
    builds.c.trigger_id,
    builds.c.location,
)
Index("builds_by_status", builds.c.project_id, builds.c.status, *_newest_first, builds.c.trigger_id)
Index(
    "builds_by_trigger", builds.c.project_id, builds.c.trigger_id, *_newest_first, builds.c.status
)
Index(
    "builds_by_series",
    builds.c.project_id,
    builds.c.trigger_id,
    builds.c.series,
    *_newest_first,
    builds.c.status,
    builds.c.finish_time,
)
Index("builds_by_request", builds.c.project_id, builds.c.request_id, unique=True)
Index(
    "builds_ongoing",
    builds.c.project_id,
    *_newest_first,
    builds.c.status,
    sqlite_where=text("phase <> 'ended'"),
    postgresql_where=text("phase <> 'ended'"),
)
# Small partial indexes of the few builds in a phase, however many builds have ended. The first also
# has the columns by which waiting builds are ordered, counted and expired: these queries read few
# rows.
Index(
    "builds_waiting",
    builds.c.project_id,
    builds.c.priority.desc(),
    builds.c.create_time,
    builds.c.id,
    builds.c.group_name,
    builds.c.group_limit,
    builds.c.expires_at,
    builds.c.phase,
    **_only(WAITING),
)
Index("builds_waiting_group", builds.c.project_id, builds.c.group_name, **_only(WAITING))
Index("builds_claimed", builds.c.worker, builds.c.project_id, builds.c.group_name, **_only(CLAIMED))
Index("builds_claimed_group", builds.c.project_id, builds.c.group_name, **_only(CLAIMED))
Index("builds_ended", builds.c.ended_at, builds.c.id, **_only(ENDED))

# The tags of builds, with project and time, so that a tag's builds are listed in index order.
build_tags = Table(
    "build_tags",
    metadata,
    Column("build_id", Text, ForeignKey("builds.id", ondelete="CASCADE"), primary_key=True),
    Column("tag", Text, primary_key=True),
    Column("project_id", Text, nullable=False),
    Column("create_time", BigInteger, nullable=False),
)
Index(
    "build_tags_by_tag",
    build_tags.c.project_id,
    build_tags.c.tag,
    build_tags.c.create_time.desc(),
    build_tags.c.build_id,
)

# The fence of the last claim of each project, for turns of projects.
project_turns = Table(
    "project_turns",
    metadata,
    Column("project_id", Text, primary_key=True),
    Column("fence", BigInteger, nullable=False),
)

# Waiting builds that a newer build replaces: they are not claimed, and end one by one.
superseded = Table(
    "superseded",
    metadata,
    Column("build_id", Text, ForeignKey("builds.id", ondelete="CASCADE"), primary_key=True),
    Column("by_build", Text, nullable=False),
)

# The ids of deleted builds, so that each server can delete their files.
deleted_builds = Table(
    "deleted_builds",
    metadata,
    Column("build_id", Text, primary_key=True),
    Column("deleted_at", BigInteger, nullable=False),
)
Index("deleted_builds_by_time", deleted_builds.c.deleted_at)

plans = Table(
    "plans",
    metadata,
    Column("build_id", Text, ForeignKey("builds.id", ondelete="CASCADE"), primary_key=True),
    Column("plan", LargeBinary, nullable=False),
)

# The deployments of builds; see `store.model.deployments`.
deployments = Table(
    "deployments",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project_id", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("build_id", Text, ForeignKey("builds.id", ondelete="CASCADE"), nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("document", LargeBinary, nullable=False),
)
_last_first = (deployments.c.at.desc(), deployments.c.id)
Index("deployments_by_time", deployments.c.project_id, *_last_first)
Index("deployments_by_target", deployments.c.project_id, deployments.c.target, *_last_first)
Index("deployments_of_build", deployments.c.build_id)

triggers = Table(
    "triggers",
    metadata,
    Column("project_id", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("name", Text),  # NULL for none
    Column("location", Text, nullable=False),
    # A random number, changed with each change of the trigger or its settings.
    Column("version", BigInteger, nullable=False, server_default="0"),
    Column("disabled", Boolean, nullable=False, server_default=text("false")),
    Column("cron", LargeBinary),  # JSON of the field; NULL for none
    Column("document", LargeBinary, nullable=False),
)
Index("triggers_by_name", triggers.c.project_id, triggers.c.name, unique=True)

tokens = Table(
    "tokens",
    metadata,
    Column("name", Text, primary_key=True),
    Column("hash_hex", Text, nullable=False, unique=True),
    Column("scopes", LargeBinary, nullable=False),
    Column("projects", LargeBinary, nullable=False),
    Column("pool", Text, nullable=False, server_default=""),
    Column("create_time", BigInteger, nullable=False),
    Column("revoke_time", BigInteger),
)

sessions = Table(
    "sessions",
    metadata,
    Column("hash_hex", Text, primary_key=True),
    Column("token_name", Text, ForeignKey("tokens.name", ondelete="CASCADE"), nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("ends_at", BigInteger, nullable=False),
)
Index("sessions_of_token", sessions.c.token_name)

audit_log = Table(
    "audit_log",
    metadata,
    Column("id", Rising, primary_key=True, autoincrement=True),
    Column("at", BigInteger, nullable=False),
    Column("who", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("address", Text, nullable=False),
    sqlite_autoincrement=True,  # ids are never reused, even after old entries are deleted
)
Index("audit_log_by_time", audit_log.c.at)


def _of_trigger() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(
        ["project_id", "trigger_id"], ["triggers.project_id", "triggers.id"], ondelete="CASCADE"
    )


# The sources of triggers: see `triggers.repository.source_keys`.
trigger_sources = Table(
    "trigger_sources",
    metadata,
    Column("source", Text, primary_key=True),
    Column("project_id", Text, primary_key=True),
    Column("trigger_id", Text, primary_key=True),
    _of_trigger(),
)
Index("trigger_sources_of_trigger", trigger_sources.c.project_id, trigger_sources.c.trigger_id)

# Settings of triggers for which Cloud Build's resource has no fields.
trigger_settings = Table(
    "trigger_settings",
    metadata,
    Column("project_id", Text, primary_key=True),
    Column("trigger_id", Text, primary_key=True),
    Column("settings", LargeBinary, nullable=False),
    _of_trigger(),
)

# The time up to which the fire times of a trigger are handled.
schedules = Table(
    "schedules",
    metadata,
    Column("project_id", Text, primary_key=True),
    Column("trigger_id", Text, primary_key=True),
    Column("spec", Text, nullable=False),
    Column("since", BigInteger, nullable=False),
    _of_trigger(),
)

# One row for each fire time, whose key makes it fire only once.
fires = Table(
    "fires",
    metadata,
    Column("project_id", Text, primary_key=True),
    Column("trigger_id", Text, primary_key=True),
    Column("fire_at", BigInteger, primary_key=True),
    Column("run_at", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("build_id", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("claimed_until", BigInteger, nullable=False),  # 0 if no server has claimed it
    _of_trigger(),
)
Index(
    "fires_waiting",
    fires.c.run_at,
    sqlite_where=text("state = 'waiting'"),
    postgresql_where=text("state = 'waiting'"),
)

# Changes of builds: new ones, and those whose messages have not all arrived.
build_changes = Table(
    "build_changes",
    metadata,
    Column("id", Rising, primary_key=True, autoincrement=True),
    Column("build_id", Text, nullable=False),
    Column("project_id", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("announced", Boolean, nullable=False, server_default=text("false")),
    Column("document", LargeBinary, nullable=False),
    sqlite_autoincrement=True,  # an id is part of the messages' keys, and is never reused
)
Index(
    "build_changes_new",
    build_changes.c.project_id,
    build_changes.c.id,
    build_changes.c.build_id,
    build_changes.c.status,
    sqlite_where=text("announced = 0"),
    postgresql_where=text("NOT announced"),
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", Rising, primary_key=True, autoincrement=True),
    Column("key", Text, nullable=False, unique=True),
    Column("lane", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("project_id", Text, nullable=False),
    Column("build_id", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("change_id", BigInteger),  # the change of the message; NULL for none
    Column("message", LargeBinary, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("next_try", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("last_error", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("claim", BigInteger, nullable=False),  # counts the claims; older ones are void
    Column("claimed_until", BigInteger, nullable=False),  # 0 if no server has claimed it
    Column("done_at", BigInteger),
    sqlite_autoincrement=True,
)
Index("outbox_of_change", outbox.c.change_id, outbox.c.state)
Index("outbox_done", outbox.c.done_at)
Index("outbox_of_project", outbox.c.project_id, outbox.c.id)
Index("outbox_of_build", outbox.c.build_id, outbox.c.id)
Index(
    "outbox_given_up",
    outbox.c.lane,
    sqlite_where=text("state = 'given_up'"),
    postgresql_where=text("state = 'given_up'"),
)
Index(
    "outbox_lane",
    outbox.c.lane,
    outbox.c.id,
    sqlite_where=text("state = 'waiting'"),
    postgresql_where=text("state = 'waiting'"),
)
Index(
    "outbox_due",
    outbox.c.next_try,
    outbox.c.id,
    sqlite_where=text("state = 'waiting'"),
    postgresql_where=text("state = 'waiting'"),
)

# The notifiers: configs of messages about builds.
notifiers = Table(
    "notifiers",
    metadata,
    Column("project_id", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("document", LargeBinary, nullable=False),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("number", Rising, primary_key=True, autoincrement=True),
    Column("hook", Text, nullable=False),
    Column("delivery_id", Text),  # NULL for a refused one, which must not take an id
    Column("received_at", BigInteger, nullable=False),
    Column("status", Text, nullable=False),
    Column("headers", LargeBinary, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("address", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("replays", Integer, nullable=False),
    Column("claimed_until", BigInteger),
    Column("outcome", LargeBinary, nullable=False),
    Column("lane", Text, nullable=False, server_default=""),
    sqlite_autoincrement=True,
)
Index("deliveries_by_id", deliveries.c.hook, deliveries.c.delivery_id, unique=True)
Index("deliveries_by_hook", deliveries.c.hook, deliveries.c.number)
# With all columns that claims need: in the rows, these columns follow large bodies.
Index(
    "deliveries_by_status",
    deliveries.c.status,
    deliveries.c.number,
    deliveries.c.claimed_until,
    deliveries.c.lane,
)
Index(
    "deliveries_claimed",
    deliveries.c.claimed_until,
    deliveries.c.lane,
    sqlite_where=deliveries.c.claimed_until.is_not(None),
    postgresql_where=deliveries.c.claimed_until.is_not(None),
)

# The bindings of hooks: see `triggers.hook_binding`.
hooks = Table(
    "hooks",
    metadata,
    Column("name", Text, primary_key=True),
    Column("binding", LargeBinary, nullable=False),
)

known_refs = Table(
    "known_refs",
    metadata,
    Column("project", Text, primary_key=True),
    Column("repository", Text, primary_key=True),
    Column("ref", Text, primary_key=True),
    Column("commit_sha", Text, nullable=False),
    Column("seen_by", Text, nullable=False),
    Column("before_sha", Text, nullable=False, server_default=""),
)

# The public halves of the keys that sign identity tokens, of all servers of the database.
identity_keys = Table(
    "identity_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("owner", Text, nullable=False),  # empty for a key of a KMS
    Column("jwk", LargeBinary, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("published_until", BigInteger, nullable=False),
)

# The servers of the database, and the server that has the log of a build.
servers = Table(
    "servers",
    metadata,
    Column("name", Text, primary_key=True),
    Column("url", Text, nullable=False),
    Column("started_at", BigInteger, nullable=False),
)
log_homes = Table(
    "log_homes",
    metadata,
    Column("build_id", Text, ForeignKey("builds.id", ondelete="CASCADE"), primary_key=True),
    Column("server", Text, nullable=False),
)

# The build that a spare Job on Kubernetes has claimed. The row outlives the build, since the token
# of a Pod is valid for a while after that.
spare_claims = Table(
    "spare_claims",
    metadata,
    Column("job", Text, primary_key=True),
    Column("build_id", Text, nullable=False),
)
Index("spare_claims_by_build", spare_claims.c.build_id)

# One row for each name: the highest fence so far, and the row that claims of deliveries lock; the
# keys that sign page tokens and forms.
counters = Table(
    "counters",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", BigInteger, nullable=False),
)
keys = Table(
    "keys",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", LargeBinary, nullable=False),
)
FENCE = "fence"
DELIVERY_CLAIMS = "delivery_claims"
PAGE_TOKENS = "page_tokens"
FORMS = "forms"
