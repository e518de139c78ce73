"""Triggers, their settings and schedules, and the bindings of hooks, in SQL."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
from msgspec.structs import replace
from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    delete,
    func,
    insert,
    select,
    tuple_,
    update,
)

from buildrunner.errors import Conflict, NotFound, QuotaExceeded
from buildrunner.store.build_store import Document
from buildrunner.store.model.deliveries import REFUSED
from buildrunner.store.model.triggers import (
    FIRED,
    SKIPPED,
    WAITING,
    Fire,
    ScheduledTrigger,
    StoredTrigger,
    TriggerVersion,
)
from buildrunner.store.records import instant_of, microseconds
from buildrunner.store.sql.claims import claim
from buildrunner.store.sql.database import (
    Database,
    SqlPart,
    insert_new,
)
from buildrunner.store.sql.filter import PageTokens, bounded
from buildrunner.store.sql.rows import AnyRow, bytes_of, page_of, streamed
from buildrunner.store.sql.schema import (
    deliveries,
    hooks,
    schedules,
    trigger_settings,
    trigger_sources,
    triggers,
)
from buildrunner.store.sql.schema import fires as _fires
from buildrunner.triggers.repository import source_keys

MOST_TRIGGERS: Final = 1000
"""The maximum number of triggers of a project."""
MOST_TRIGGER_BYTES: Final = 16 << 20
"""The maximum size of all triggers of a project as JSON, in bytes."""
MOST_WAITING_FIRES: Final = 100
"""The maximum number of fires of a trigger that wait for their builds."""

_name = func.coalesce(triggers.c.name, "")


class SqlTriggers(SqlPart):
    """Triggers and their settings."""

    def __init__(self, database: Database, page_tokens: PageTokens) -> None:
        super().__init__(database)
        self._page_tokens = page_tokens

    def create(
        self,
        project_id: str,
        location: str,
        document: Document,
        settings: Document | None = None,
    ) -> Document:
        """Store a trigger with its settings. ``document`` must have ``id`` and ``createTime``.

        Raises `Conflict` for a duplicate name, and `QuotaExceeded`.
        """
        row = {
            "project_id": project_id,
            "id": document["id"],
            "location": location,
            **_columns(document),
        }
        with self._database.write() as connection:
            if not insert_new(connection, triggers, row):
                raise _name_taken(document)
            _put_sources(connection, project_id, document)
            _check_quota(connection, project_id)
            if settings:
                beside = {
                    "project_id": project_id,
                    "trigger_id": document["id"],
                    "settings": msgspec.json.encode(settings),
                }
                connection.execute(insert(trigger_settings).values(beside))
        return document

    def get(self, project_id: str, id_or_name: str) -> Document:
        """Return one trigger. Raises `NotFound`."""
        with self._database.read() as connection:
            return _document(_find(connection, project_id, id_or_name))

    def page(
        self, project_id: str, *, page_size: int = 50, page_token: str = ""
    ) -> tuple[list[Document], str]:
        """Return triggers by name, and the next page's token. Raises `PageTokenError`."""
        size, parent = bounded(page_size), ("triggers", project_id)
        found = (
            select(_name.label("name"), triggers.c.id, triggers.c.document)
            .where(triggers.c.project_id == project_id)
            .order_by(_name, triggers.c.id)
        )
        if page_token:
            after = self._page_tokens.read(page_token, parent, (str, str))
            found = found.where(tuple_(_name, triggers.c.id) > after)
        with self._database.read(streams=True) as connection:
            rows, goes_on = page_of(connection, found, size)
        token = self._page_tokens.write(parent, tuple(rows[-1][:2])) if goes_on else ""
        return [_document(row) for row in rows], token

    def replace(
        self,
        project_id: str,
        trigger_id: str,
        document: Document,
        *,
        was: Document | None = None,
    ) -> Document | None:
        """Replace a trigger's document, and return the new one.

        Returns None and changes nothing if the document is not ``was`` any more. Raises `NotFound`,
        `Conflict` for a duplicate name, and `QuotaExceeded`.
        """
        with self._database.write() as connection:
            found = _find(connection, project_id, trigger_id, lock=True)
            before = _document(found)
            if was is not None and before != was:
                return None
            kept = [name for name in ("id", "createTime") if name in before]
            after: Document = {**document, **{name: before[name] for name in kept}}
            name = after.get("name") or None
            taken = select(triggers.c.id).where(
                triggers.c.project_id == project_id,
                triggers.c.name == name,
                triggers.c.id != found.id,
            )
            if name and connection.execute(taken).first():
                raise _name_taken(document)
            connection.execute(
                update(triggers)
                .where(triggers.c.project_id == project_id, triggers.c.id == found.id)
                .values(_columns(after))
            )
            _put_sources(connection, project_id, after)
            # A trigger that does not grow is always allowed.
            if len(msgspec.json.encode(after)) > len(found.document):
                _check_quota(connection, project_id)
        return after

    def delete(self, project_id: str, id_or_name: str) -> None:
        """Delete a trigger; its builds remain. Raises `NotFound`."""
        with self._database.write() as connection:
            found = _find(connection, project_id, id_or_name, lock=True)
            connection.execute(
                delete(triggers).where(
                    triggers.c.project_id == project_id, triggers.c.id == found.id
                )
            )

    def every(self, project_id: str = "") -> Iterator[StoredTrigger]:
        """Yield the triggers of a project, or of all, while they are read, unordered."""
        found = _with_settings
        if project_id:
            found = found.where(triggers.c.project_id == project_id)
        with self._database.read(streams=True) as connection:
            for row in streamed(connection, found):
                yield _stored(row)

    def versions(self, sources: Collection[str] | None = None) -> list[TriggerVersion]:
        """Return the versions of triggers with one of these sources, of all projects.

        Args:
            sources: see `triggers.repository.event_keys`; None: all triggers with a source.
        """
        listening = trigger_sources.select().with_only_columns(
            trigger_sources.c.project_id, trigger_sources.c.trigger_id
        )
        if sources is not None:
            listening = listening.where(trigger_sources.c.source.in_(sources))
        which = tuple_(triggers.c.project_id, triggers.c.id).in_(listening)
        found = (
            select(triggers.c.project_id, triggers.c.id, triggers.c.version)
            .where(which)
            .order_by(triggers.c.project_id, triggers.c.name, triggers.c.id)
        )
        with self._database.read() as connection:
            return [TriggerVersion(*row) for row in connection.execute(found)]

    def stored(self, project_id: str, trigger_id: str) -> StoredTrigger | None:
        """Return a trigger with its settings, by its id; None if it does not exist."""
        found = _with_settings.where(
            triggers.c.project_id == project_id, triggers.c.id == trigger_id
        )
        with self._database.read() as connection:
            row = connection.execute(found).first()
        return None if row is None else _stored(row)

    def settings(self, project_id: str, trigger_id: str) -> Document:
        """Return a trigger's own settings; empty for none, also if the trigger does not exist."""
        found = select(trigger_settings.c.settings).where(
            trigger_settings.c.project_id == project_id,
            trigger_settings.c.trigger_id == trigger_id,
        )
        with self._database.read() as connection:
            return decoded_settings(connection.execute(found).scalar())

    def set_settings(self, project_id: str, trigger_id: str, settings: Document) -> None:
        """Replace a trigger's settings; empty removes them. Raises `NotFound`."""
        key = {"project_id": project_id, "trigger_id": trigger_id}
        same = and_(
            trigger_settings.c.project_id == project_id,
            trigger_settings.c.trigger_id == trigger_id,
        )
        with self._database.write() as connection:
            lock_trigger(connection, project_id, trigger_id)
            connection.execute(
                update(triggers)
                .where(triggers.c.project_id == project_id, triggers.c.id == trigger_id)
                .values(version=_new_version())
            )
            connection.execute(delete(trigger_settings).where(same))
            if settings:
                row = {**key, "settings": msgspec.json.encode(settings)}
                insert_new(connection, trigger_settings, row)


_with_settings = select(
    triggers.c.project_id, triggers.c.version, triggers.c.document, trigger_settings.c.settings
).select_from(
    triggers.outerjoin(
        trigger_settings,
        and_(
            trigger_settings.c.project_id == triggers.c.project_id,
            trigger_settings.c.trigger_id == triggers.c.id,
        ),
    )
)


def _stored(row: AnyRow) -> StoredTrigger:
    return StoredTrigger(
        project=row.project_id,
        version=row.version,
        document=_document(row),
        settings=decoded_settings(row.settings),
        size=bytes_of(row),
    )


def _columns(document: Document) -> dict[str, Any]:
    """Return the columns derived from a trigger's document, and a new version."""
    cron = document.get("cron")
    return {
        "name": document.get("name") or None,
        "version": _new_version(),
        "disabled": bool(document.get("disabled")),
        "cron": msgspec.json.encode(cron) if cron else None,
        "document": msgspec.json.encode(document),
    }


def _new_version() -> int:
    # Random, so that a trigger that is deleted and created again has another version.
    return secrets.randbits(62) + 1


def _put_sources(connection: Connection, project_id: str, document: Document) -> None:
    """Replace the sources of a trigger."""
    key = {"project_id": project_id, "trigger_id": document["id"]}
    connection.execute(
        delete(trigger_sources).where(
            trigger_sources.c.project_id == project_id,
            trigger_sources.c.trigger_id == document["id"],
        )
    )
    rows = [{**key, "source": source} for source in sorted(source_keys(project_id, document))]
    if rows:
        connection.execute(insert(trigger_sources), rows)


def _check_quota(connection: Connection, project_id: str) -> None:
    """Refuse a change beyond a project's limits of triggers and their size."""
    found = select(func.count(), func.sum(func.length(triggers.c.document)))
    number, size = connection.execute(found.where(triggers.c.project_id == project_id)).one()
    if number > MOST_TRIGGERS:
        raise QuotaExceeded(
            f"project {project_id} has {MOST_TRIGGERS} triggers, as many as a project may have",
            hint="delete triggers that you do not need, or use another project",
        )
    if size > MOST_TRIGGER_BYTES:
        raise QuotaExceeded(
            f"the triggers of project {project_id} have {MOST_TRIGGER_BYTES >> 20} MiB together, as"
            " much as a project may have",
            hint="keep their builds in files of the repository (filename) instead of in triggers",
        )


def index_triggers(connection: Connection) -> None:
    """Fill in the columns and sources of triggers that an older version stored."""
    old = select(triggers.c.project_id, triggers.c.id).where(triggers.c.version == 0)
    for row in connection.execute(old).all():
        which = and_(triggers.c.project_id == row.project_id, triggers.c.id == row.id)
        document = _document(connection.execute(select(triggers.c.document).where(which)).one())
        connection.execute(update(triggers).where(which).values(_columns(document)))
        _put_sources(connection, row.project_id, document)


def _document(row: AnyRow) -> Document:
    document: Document = msgspec.json.decode(row.document)
    return document


def _find(
    connection: Connection, project_id: str, id_or_name: str, *, lock: bool = False
) -> AnyRow:
    """Return the trigger of that id or else of that name."""
    ways: tuple[ColumnElement[bool], ...] = (
        triggers.c.id == id_or_name,
        triggers.c.name == id_or_name,
    )
    for way in ways:
        found = select(triggers).where(triggers.c.project_id == project_id, way)
        row = connection.execute(found.with_for_update() if lock else found).first()
        if row is not None:
            return row
    raise NotFound(f'there is no trigger "{id_or_name}" in project {project_id}')


def _name_taken(document: Document) -> Conflict:
    return Conflict(f'a trigger "{document.get("name") or document["id"]}" exists already')


def lock_trigger(connection: Connection, project_id: str, trigger_id: str) -> None:
    """Lock a trigger until the transaction ends. Raises `NotFound`."""
    found = (
        select(triggers.c.id)
        .where(triggers.c.project_id == project_id, triggers.c.id == trigger_id)
        .with_for_update()
    )
    if connection.execute(found).first() is None:
        raise NotFound(f'there is no trigger "{trigger_id}" in project {project_id}')


def decoded_settings(settings: bytes | None) -> Document:
    """Decode a trigger's settings; empty for none."""
    return {} if settings is None else msgspec.json.decode(settings)


class SqlHooks(SqlPart):
    """The bindings of webhooks."""

    def add(self, name: str, binding: Document) -> Document:
        """Bind a hook unless it is bound already. Returns its binding."""
        with self._database.write() as connection:
            insert_new(connection, hooks, _row(name, binding))
        return self.get(name)

    def put(self, name: str, binding: Document) -> None:
        """Bind a hook, replacing its binding."""
        with self._database.write() as connection:
            connection.execute(delete(hooks).where(hooks.c.name == name))
            connection.execute(insert(hooks).values(_row(name, binding)))

    def get(self, name: str) -> Document:
        """Return the binding of a hook. Raises `NotFound`."""
        with self._database.read() as connection:
            found = select(hooks.c.binding).where(hooks.c.name == name)
            binding = connection.execute(found).scalar()
        if binding is None:
            raise _unknown(name)
        return _decoded(binding)

    def all(self) -> dict[str, Document]:
        """Return the bindings of all hooks, by their names."""
        with self._database.read() as connection:
            found = connection.execute(select(hooks).order_by(hooks.c.name))
            return {row.name: _decoded(row.binding) for row in found}

    def delete(self, name: str) -> None:
        """Delete the binding of a hook. Raises `NotFound`."""
        with self._database.write() as connection:
            if not connection.execute(delete(hooks).where(hooks.c.name == name)).rowcount:
                raise _unknown(name)

    def heard(self) -> dict[str, datetime]:
        """Return the time of the newest genuine delivery of each hook."""
        found = (
            select(deliveries.c.hook, func.max(deliveries.c.received_at).label("at"))
            .where(deliveries.c.status != REFUSED)
            .group_by(deliveries.c.hook)
        )
        with self._database.read() as connection:
            return {row.hook: instant_of(row.at) for row in connection.execute(found)}


def _row(name: str, binding: Document) -> Document:
    return {"name": name, "binding": msgspec.json.encode(binding)}


def _decoded(binding: bytes) -> Document:
    found: Document = msgspec.json.decode(binding)
    return found


def _unknown(name: str) -> NotFound:
    return NotFound(f"the hook {name} is bound to nothing", hint="`buildrunner hooks list`")


_TOO_MANY_WAIT: Final = f"{MOST_WAITING_FIRES} other times of the trigger wait for their builds"
_KEPT = timedelta(days=90)  # how long past fires are kept


class SqlSchedules(SqlPart):
    """The fires of schedules."""

    def triggers(self) -> list[ScheduledTrigger]:
        """Return all triggers with a ``cron``, of all projects."""
        found = (
            select(
                triggers.c.project_id,
                triggers.c.id,
                triggers.c.name,
                triggers.c.disabled,
                triggers.c.cron,
                trigger_settings.c.settings,
            )
            .select_from(
                triggers.outerjoin(
                    trigger_settings,
                    (trigger_settings.c.project_id == triggers.c.project_id)
                    & (trigger_settings.c.trigger_id == triggers.c.id),
                )
            )
            .where(triggers.c.cron.is_not(None))
        )
        with self._database.read() as connection:
            return [
                ScheduledTrigger(
                    project_id=row.project_id,
                    id=row.id,
                    name=row.name or "",
                    disabled=row.disabled,
                    cron=msgspec.json.decode(row.cron),
                    settings=decoded_settings(row.settings),
                )
                for row in connection.execute(found)
            ]

    def since(self, project_id: str, trigger_id: str, spec: str, *, now: datetime) -> datetime:
        """Return the time up to which the fire times of a schedule are handled.

        Args:
            project_id: the trigger's project.
            trigger_id: the trigger.
            spec: text of its schedule. With a new text, the schedule starts at ``now``.
            now: the time.

        Raises:
            NotFound: no such trigger.
        """
        same = _schedule_of(project_id, trigger_id)
        found = select(schedules.c.spec, schedules.c.since).where(same)
        with self._database.read() as connection:
            row = connection.execute(found).first()
        if row is not None and row.spec == spec:
            return instant_of(row.since)
        with self._database.write() as connection:
            lock_trigger(connection, project_id, trigger_id)
            row = connection.execute(found.with_for_update()).first()
            if row is not None and row.spec == spec:  # another server was first
                return instant_of(row.since)
            connection.execute(delete(schedules).where(same))
            values = {
                "project_id": project_id,
                "trigger_id": trigger_id,
                "spec": spec,
                "since": microseconds(now),
            }
            insert_new(connection, schedules, values)
        return instant_of(microseconds(now))

    def note_fires(
        self, project_id: str, trigger_id: str, fires: Sequence[Fire], *, until: datetime
    ) -> None:
        """Store due fire times, each once; all up to ``until`` count as handled.

        A fire that would wait behind `MOST_WAITING_FIRES` others is stored as skipped.
        """
        with self._database.write() as connection:
            try:
                lock_trigger(connection, project_id, trigger_id)
            except NotFound:  # deleted meanwhile
                return
            waiting = connection.execute(
                select(func.count()).where(_waiting_of(project_id, trigger_id))
            ).scalar_one()
            for fire in fires:
                is_beyond = fire.state == WAITING and waiting >= MOST_WAITING_FIRES
                noted = replace(fire, state=SKIPPED, detail=_TOO_MANY_WAIT) if is_beyond else fire
                is_new = insert_new(connection, _fires, _fire_row(noted))
                waiting += is_new and noted.state == WAITING
            _forget_old(connection, project_id, trigger_id, until)
            same = _schedule_of(project_id, trigger_id)
            connection.execute(
                update(schedules)
                .where(same, schedules.c.since < microseconds(until))
                .values(since=microseconds(until))
            )

    def stop(self, project_id: str, trigger_id: str, detail: str) -> None:
        """Delete the schedule of a trigger, and skip its waiting fires. Idempotent."""
        same = _schedule_of(project_id, trigger_id)
        with self._database.read() as connection:  # most calls find nothing, and must not lock
            if connection.execute(select(schedules.c.since).where(same)).first() is None:
                return
        waiting = _waiting_of(project_id, trigger_id)
        with self._database.write() as connection:
            connection.execute(delete(schedules).where(same))
            connection.execute(update(_fires).where(waiting).values(state=SKIPPED, detail=detail))

    def claim_fires(self, *, now: datetime, lease_s: float, limit: int) -> list[Fire]:
        """Claim due waiting fires: the oldest of each project, then the second oldest of each.

        A fire that is not settled within the lease is claimed again.
        """
        moment = microseconds(now)
        due = and_(
            _fires.c.state == WAITING, _fires.c.run_at <= moment, _fires.c.claimed_until <= moment
        )
        age = (_fires.c.run_at, _fires.c.fire_at)
        of_project = func.row_number().over(partition_by=_fires.c.project_id, order_by=age)
        turns = select(*_fires.primary_key.columns, _fires.c.run_at, of_project.label("turn"))
        found = turns.where(due).subquery()
        oldest = (
            select(*(found.c[column.name] for column in _fires.primary_key.columns))
            .order_by(found.c.turn, found.c.run_at, found.c.fire_at)
            .limit(limit)
        )
        until = now + timedelta(seconds=lease_s)
        rows = claim(self._database, _fires, oldest, free=due, until=until)
        fires = sorted(map(_fire, rows), key=lambda fire: (fire.run_at, fire.fire_at))
        of_project_so_far: Counter[str] = Counter()
        turned = []
        for fire in fires:
            of_project_so_far[fire.project_id] += 1
            turned.append((of_project_so_far[fire.project_id], fire))
        return [fire for _, fire in sorted(turned, key=lambda one: one[0])]

    def settle_fire(self, fire: Fire) -> None:
        """Store the state, build and detail of a fire. Final states stay."""
        values = {"state": fire.state, "build_id": fire.build_id, "detail": fire.detail}
        with self._database.write() as connection:
            still = _is(fire) & (_fires.c.state == WAITING)
            connection.execute(update(_fires).where(still).values(values))

    def next_run_at(self) -> datetime | None:
        """Return the time of the earliest waiting fire; None if no fire waits."""
        found = select(func.min(_fires.c.run_at)).where(_fires.c.state == WAITING)
        with self._database.read() as connection:
            first = connection.execute(found).scalar()
        return None if first is None else instant_of(first)

    def fires(
        self, project_id: str, trigger_id: str, *, limit: int = 50, only_fired: bool = False
    ) -> list[Fire]:
        """Return the fires of a trigger, newest first; ``only_fired``: only those with builds."""
        found = (
            select(_fires)
            .where(_fires.c.project_id == project_id, _fires.c.trigger_id == trigger_id)
            .order_by(_fires.c.fire_at.desc())
            .limit(limit)
        )
        if only_fired:
            found = found.where(_fires.c.state == FIRED)
        with self._database.read() as connection:
            return [_fire(row) for row in connection.execute(found)]

    def all(self) -> list[tuple[str, str]]:
        """Return project and id of all triggers with a stored schedule."""
        found = select(schedules.c.project_id, schedules.c.trigger_id)
        with self._database.read() as connection:
            return [(row.project_id, row.trigger_id) for row in connection.execute(found)]


def _schedule_of(project_id: str, trigger_id: str) -> ColumnElement[bool]:
    return and_(schedules.c.project_id == project_id, schedules.c.trigger_id == trigger_id)


def _waiting_of(project_id: str, trigger_id: str) -> ColumnElement[bool]:
    return and_(
        _fires.c.project_id == project_id,
        _fires.c.trigger_id == trigger_id,
        _fires.c.state == WAITING,
    )


def _forget_old(connection: Connection, project_id: str, trigger_id: str, now: datetime) -> None:
    connection.execute(
        delete(_fires).where(
            _fires.c.project_id == project_id,
            _fires.c.trigger_id == trigger_id,
            _fires.c.state != WAITING,
            _fires.c.fire_at < microseconds(now - _KEPT),
        )
    )


def _is(fire: Fire) -> ColumnElement[bool]:
    return and_(
        _fires.c.project_id == fire.project_id,
        _fires.c.trigger_id == fire.trigger_id,
        _fires.c.fire_at == microseconds(fire.fire_at),
    )


def _fire_row(fire: Fire) -> dict[str, object]:
    return {
        "project_id": fire.project_id,
        "trigger_id": fire.trigger_id,
        "fire_at": microseconds(fire.fire_at),
        "run_at": microseconds(fire.run_at),
        "state": fire.state,
        "build_id": fire.build_id,
        "detail": fire.detail,
        "claimed_until": 0,
    }


def _fire(row: AnyRow) -> Fire:
    return Fire(
        project_id=row.project_id,
        trigger_id=row.trigger_id,
        fire_at=instant_of(row.fire_at),
        run_at=instant_of(row.run_at),
        state=row.state,
        build_id=row.build_id,
        detail=row.detail,
    )
