"""A database on SQLite or PostgreSQL: connections, transactions, and readable errors.

This module converts errors of SQLAlchemy: they leave this package only as `StoreError`, never with
a password. Every transaction is either a read or a write. On SQLite a write takes the file's only
write lock at its beginning (``BEGIN IMMEDIATE``), so that its reads stay valid; on PostgreSQL the
statements lock the rows they are about to change.
"""

from __future__ import annotations

import os
import select as select_module
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Engine,
    Select,
    Table,
    create_engine,
    delete,
    event,
    select,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    IntegrityError,
    InvalidatePoolError,
    SQLAlchemyError,
    StatementError,
)

from buildrunner.errors import (
    Conflict,
    InvalidRecord,
    NotFound,
    StoreError,
    StoreUnavailable,
    UsageError,
)
from buildrunner.store.sql.schema import FENCE, counters

BUSY_TIMEOUT_S = 10.0
T = TypeVar("T")

_SQLITE = "sqlite:///"
_POSTGRES = ("postgresql", "postgres", "postgresql+psycopg")
_FORMS = "sqlite:////folder/server.db or postgresql://user:password@host/name"
_WRITE = "buildrunner_write"


def parse_url(address: str) -> URL:
    """Return the URL of a database, with the driver that buildrunner uses.

    Raises:
        UsageError: the address is not supported. The message omits it, since it may have a
            password.
    """
    if address.startswith(_SQLITE):
        # The path is not decoded, since versions of SQLAlchemy decode it differently.
        path = address.removeprefix(_SQLITE)
        if path in ("", ":memory:") or "?" in path:
            raise UsageError(
                "a SQLite database needs a file, and no options", hint=f"write {_FORMS}"
            )
        return URL.create("sqlite+pysqlite", database=os.path.abspath(path))
    try:
        url = make_url(address)
    except (ArgumentError, ValueError) as error:
        raise UsageError("this is no address of a database", hint=f"write {_FORMS}") from error
    if url.drivername in _POSTGRES:
        return url.set(drivername="postgresql+psycopg")
    raise UsageError(f'databases of kind "{url.drivername}" are not known', hint=f"write {_FORMS}")


class Database:
    """Connections to one database. Thread-safe; opened at the first use.

    Args:
        address: ``sqlite:////folder/server.db`` or ``postgresql://user:password@host/name``.
        busy_timeout_s: seconds that a write waits for another's lock.

    Attributes:
        name: the address for users, without the password.
        path: SQLite's file; empty on PostgreSQL.

    Raises:
        UsageError: the address has an unknown form.
    """

    def __init__(self, address: str, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        url = parse_url(address)
        self._password = str(url.password or "")
        self._busy_timeout_s = busy_timeout_s
        self._closed = False
        self.is_sqlite = url.drivername.startswith("sqlite")
        self.path = str(url.database) if self.is_sqlite else ""
        self.name = self.path or url.set(drivername="postgresql").render_as_string(
            hide_password=True
        )
        # SQLite's waiting writers sleep between tries; those of one process queue here instead.
        self._turn = threading.Lock()
        self._engine = self._sqlite(url) if self.is_sqlite else self._postgres(url)
        self._writing = self._engine.execution_options(**{_WRITE: True})
        # BEGIN and COMMIT would cost two more round trips, and isolate nothing (READ COMMITTED).
        single = {} if self.is_sqlite else {"isolation_level": "AUTOCOMMIT"}
        self._reading = self._engine.execution_options(**single)

    @contextmanager
    def read(self, *, streams: bool = False) -> Iterator[Connection]:
        """Yield a connection for reads.

        Args:
            streams: stream rows, which PostgreSQL does only in transactions.
        """
        engine = self._engine if streams else self._reading
        with self._translated(), engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Yield a write transaction, durable when the block ends without an error."""
        with self._translated():
            if not self.is_sqlite:
                with self._writing.begin() as connection:
                    yield connection
                return
            if not self._turn.acquire(timeout=self._busy_timeout_s):
                raise StoreUnavailable(f"the database {self.name} is too busy to write to")
            try:
                with self._writing.begin() as connection:
                    yield connection
            finally:
                self._turn.release()

    @property
    def driver_error(self) -> type[Exception]:
        """The base class of the driver's errors, which connections of `apart` raise."""
        found: type[Exception] = self._engine.dialect.loaded_dbapi.Error
        return found

    @contextmanager
    def apart(self) -> Iterator[Any]:
        """Open a connection of psycopg to PostgreSQL, outside of the pool and of transactions."""
        connection: Any = None
        with self._translated():
            try:
                pooled = self._engine.raw_connection()
                connection = pooled.driver_connection
                pooled.detach()
                connection.autocommit = True
                yield connection
            # SQLAlchemy passes on errors of the driver here.
            except self.driver_error as error:
                raise self.explained(error) from error
            finally:
                if connection is not None:
                    connection.close()

    @contextmanager
    def listening(self, channel: str) -> Iterator[Any]:
        """Open a connection outside of the pool that listens on a channel of PostgreSQL."""
        with self.apart() as connection:
            connection.execute(f"LISTEN {channel}")
            yield connection

    def use_write_ahead_log(self) -> None:
        """On SQLite: let readers and one writer work concurrently.

        A permanent setting of the file.
        """
        with self._translated(), self._engine.connect() as connection:
            connection.connection.cursor().execute("PRAGMA journal_mode = WAL").fetchone()

    def close(self) -> None:
        """Close all unused connections. Idempotent."""
        self._closed = True
        self._engine.dispose()

    def _sqlite(self, url: URL) -> Engine:
        engine = create_engine(
            url,
            connect_args={"check_same_thread": False, "timeout": self._busy_timeout_s},
            pool_size=5,
            max_overflow=45,
        )
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine

    def _postgres(self, url: URL) -> Engine:
        timeout = int(self._busy_timeout_s * 1000)
        arguments: dict[str, Any] = {
            "options": f"-c lock_timeout={timeout}",
            "client_encoding": "utf8",  # a database of encoding SQL_ASCII would answer with bytes
        }
        if "connect_timeout" not in url.query:
            arguments["connect_timeout"] = 10
        engine = create_engine(
            url,
            connect_args=arguments,
            pool_size=20,  # connections stay open, since opening one is slow
            max_overflow=0,
            pool_use_lifo=True,
            isolation_level="READ COMMITTED",
        )
        event.listen(engine, "checkout", partial(_check_is_open, engine.dialect))
        return engine

    @contextmanager
    def _translated(self) -> Iterator[None]:
        if self._closed:
            raise StoreError(f"the database {self.name} was closed")
        try:
            yield
        except (SQLAlchemyError, OverflowError) as error:
            raise self.explained(error) from error

    def explained(self, error: Exception) -> StoreError:
        """Explain a failure. The text holds neither the statement nor its values."""
        if isinstance(error, OverflowError):  # SQLite's driver: a number beyond 64 bits
            return _too_large()
        cause = error.orig if isinstance(error, StatementError) else error
        text = "; ".join(line.strip() for line in str(cause).splitlines() if line.strip())
        if self._password:
            text = text.replace(self._password, "***")
        if isinstance(error, IntegrityError) and "unique" in text.lower():
            return Conflict(f"the database {self.name} has something of that name already ({text})")
        if (refusal := _refusal_of_value(error, cause, text)) is not None:
            return refusal
        for sign, said, hint in _FAILURES:
            if sign in text.lower():
                return StoreError(f"the database {self.name} {said} ({text})", hint=hint)
        for sign, said, hint in _PASSING:
            if sign in text.lower():
                return StoreUnavailable(f"the database {self.name} {said} ({text})", hint=hint)
        return StoreError(f"the database {self.name} failed: {text}")


def _refusal_of_value(error: Exception, cause: Any, text: str) -> StoreError | None:
    """Return the refusal of a value that can't be stored or found; None for another failure."""
    if "cannot contain nul" in text.lower():
        statement = (error.statement or "") if isinstance(error, StatementError) else ""
        if statement.startswith(("INSERT", "UPDATE")):
            return InvalidRecord("text with a NUL character can't be kept")
        return NotFound("nothing is named with a NUL character")
    if isinstance(error, DataError) and "out of range" in text.lower():
        return _too_large()
    # PostgreSQL's class 54: a limit, such as that of an index, is exceeded.
    if isinstance(error, DataError) or str(getattr(cause, "sqlstate", "")).startswith("54"):
        return InvalidRecord(f"the database can't keep this: {text}")
    return None


def _too_large() -> NotFound:
    return NotFound("nothing has a number as large as that")


# A part of the driver's message -> our message and its hint; the first match counts.
_FAILURES = (
    ("authentication failed", "refuses our login", "look at user and password of its address"),
    ("does not exist", "is not there", "create it first, or look at its address"),
    ("malformed", "is damaged", "restore a backup"),
    ("not a database", "is not a database", "name another file, or restore a backup"),
    ("unable to open", "can't be opened", "look at its folder and the permissions there"),
    ("readonly", "can't be written to", "look at the permissions of the file and its folder"),
)
# The same for transient errors.
_PASSING = (
    ("disk is full", "has no space left", "make room on its disk"),
    ("no space left", "has no space left", "make room on its disk"),
    ("disk i/o error", "can't be written to or read", "look at its disk: it may be full or broken"),
    ("database is locked", "is locked by another process", "end the process that has it open"),
    ("lock timeout", "is locked by another process", "end the session that locks its rows"),
    ("queuepool limit", "has too many concurrent requests", "try again"),
    ("deadlock", "had two changes wait for each other", "try again"),
    ("connection", "does not answer", "look whether its server runs and lets us in"),
    ("starting up", "does not answer", "try again"),
    ("shutting down", "does not answer", "look whether its server runs"),
    ("ssl", "does not answer", "look whether its server runs and lets us in"),
)


def _configure_sqlite(connection: Any, _record: object) -> None:
    # `_begin_sqlite` begins transactions, not the driver.
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys = ON")
    # A commit is on the disk before it returns: leases must survive a power cut.
    connection.execute("PRAGMA synchronous = FULL")


def _check_is_open(dialect: Any, connection: Any, _record: object, _proxy: object) -> None:
    """Let the pool replace a connection that PostgreSQL has closed, as in a restart.

    A closed connection has something to read. For open ones, the check costs no round trip.
    """
    poll = select_module.poll()
    if not connection.closed:
        poll.register(connection.fileno(), select_module.POLLIN)
        if not poll.poll(0):
            return
    try:
        dialect.do_ping(connection)
    except dialect.loaded_dbapi.Error as error:
        raise InvalidatePoolError from error


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


class SqlPart:
    """A part of the store, on a database with up-to-date tables."""

    def __init__(self, database: Database) -> None:
        self._database = database


def lock_queue(connection: Connection) -> int:
    """Lock claims until the transaction ends. Returns the highest fence so far.

    Limits are counts over many rows: locking the rows alone would let two servers each take the
    last free place.
    """
    locked = select(counters.c.value).where(counters.c.name == FENCE).with_for_update()
    return int(connection.execute(locked).scalar_one())


def insert_new(connection: Connection, table: Table, row: dict[str, Any]) -> bool:
    """Insert a row unless its key, or another unique value, exists. Returns whether it was new."""
    made = _insert_if_new(connection, table).values(row)
    return connection.execute(made.returning(*table.primary_key)).first() is not None


def insert_all_new(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    """Insert the rows whose key and other unique values do not exist, in one statement."""
    if rows:
        connection.execute(_insert_if_new(connection, table), rows)


def insert_selected(
    connection: Connection, table: Table, names: Sequence[str], rows: Select[Any]
) -> None:
    """Insert selected rows whose key and other unique values do not exist."""
    connection.execute(_insert_if_new(connection, table).from_select(names, rows))


_LONGEST_S = 2.0


def within_time(items: Iterable[T]) -> Iterator[T]:
    """Yield items for two seconds, but at least one.

    For loops with one transaction for each item: other writers can write between them.
    """
    until = time.monotonic() + _LONGEST_S
    for item in items:
        yield item
        if time.monotonic() > until:
            return


def _insert_if_new(connection: Connection, table: Table) -> Any:
    # Only the used one, since the imports are slow.
    if connection.dialect.name == "sqlite":
        from sqlalchemy.dialects import sqlite

        return sqlite.insert(table).on_conflict_do_nothing()
    from sqlalchemy.dialects import postgresql

    return postgresql.insert(table).on_conflict_do_nothing()


def delete_some(
    connection: Connection, key: Column[int], which: ColumnElement[bool], limit: int
) -> int:
    """Delete selected rows, up to a limit. Returns their number.

    One large deletion would block all other writers.
    """
    some = select(key).where(which).limit(limit)
    return connection.execute(delete(key.table).where(key.in_(some))).rowcount
