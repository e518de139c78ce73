"""The servers of a database, and which of them has the log of a build, in SQL."""

from __future__ import annotations

from sqlalchemy import Connection, delete, insert, select

from buildrunner.errors import NotFound
from buildrunner.store.model.servers import KnownServer
from buildrunner.store.records import instant_of, microseconds
from buildrunner.store.sql.database import SqlPart, insert_new
from buildrunner.store.sql.schema import log_homes, servers


class SqlServers(SqlPart):
    """The servers that use the database, with the addresses at which they reach each other."""

    def put(self, server: KnownServer) -> None:
        """Store a server, in place of one of that name."""
        row = {
            "name": server.name,
            "url": server.url,
            "started_at": microseconds(server.started_at),
        }
        with self._database.write() as connection:
            connection.execute(delete(servers).where(servers.c.name == server.name))
            connection.execute(insert(servers).values(row))

    def all(self) -> list[KnownServer]:
        """Return all servers by name, also those that don't run now."""
        with self._database.read() as connection:
            found = connection.execute(select(servers).order_by(servers.c.name))
            return [
                KnownServer(name=row.name, url=row.url, started_at=instant_of(row.started_at))
                for row in found
            ]

    def forget(self, name: str) -> None:
        """Delete a server that will not come back. Its logs can't be read any more.

        Raises:
            NotFound: there is no server of that name.
        """
        with self._database.write() as connection:
            gone = delete(servers).where(servers.c.name == name)
            if not connection.execute(gone).rowcount:
                raise NotFound(f"there is no server {name}")

    def log_home(self, build_id: str) -> str:
        """Return the name of the server that has a build's log; empty while no process ran it."""
        found = select(log_homes.c.server).where(log_homes.c.build_id == build_id)
        with self._database.read() as connection:
            return connection.execute(found).scalar() or ""


def note_log_home(connection: Connection, build_id: str, server: str) -> None:
    """Note which server takes the log of a build. The first one keeps it."""
    insert_new(connection, log_homes, {"build_id": build_id, "server": server})


def forget_log_home(connection: Connection, build_id: str) -> None:
    """Let the next server that a build is claimed from take its log, from the beginning."""
    connection.execute(delete(log_homes).where(log_homes.c.build_id == build_id))
