"""Lists of builds in SQL: filtered, newest first, page by page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import and_, or_, select

from buildrunner.store.list_filter import parse_filter
from buildrunner.store.list_filter_match import matches
from buildrunner.store.server_store import BuildPage
from buildrunner.store.sql_filter import condition_of
from buildrunner.store.sql_paging import PageTokens, bounded
from buildrunner.store.sql_part import SqlPart
from buildrunner.store.sql_rows import COLUMNS, stored_build
from buildrunner.store.sql_schema import builds

if TYPE_CHECKING:
    from sqlalchemy import Connection, Select

    from buildrunner.store.list_filter import Expression
    from buildrunner.store.sql_rows import AnyRow

# A filter that no index helps with reads this many builds a call (some tenths of a second).
_MAX_READ = 5_000
_BATCH = 500

_ORDER = (builds.c.create_time.desc(), builds.c.id)


class SqlLists(SqlPart):
    """The part of `ServerStore` that lists builds."""

    _page_tokens: PageTokens

    def list_builds(
        self,
        project_id: str,
        *,
        location: str | None = None,
        filter: str = "",
        page_size: int = 50,
        page_token: str = "",
    ) -> BuildPage:
        """See `ServerStore.list_builds`."""
        expression = parse_filter(filter)
        condition = condition_of(expression)
        size = bounded(page_size)
        parent = ("builds", project_id, location, filter)
        found = (
            select(builds.c.create_time, builds.c.id, *COLUMNS)
            .where(builds.c.project_id == project_id)
            .order_by(*_ORDER)
        )
        if location is not None:
            found = found.where(builds.c.location == location)
        if condition.sql is not None:
            found = found.where(condition.sql)
        if page_token:
            found = _behind(found, self._page_tokens.read(page_token, parent, (int, str)))
        with self._database.read() as connection:
            if condition.exact:
                rows = list(connection.execute(found.limit(size + 1)))
                last = rows[size - 1] if len(rows) > size else None
            else:
                rows, last = _search(connection, found, expression, size)
        token = "" if last is None else self._page_tokens.write(parent, (last.create_time, last.id))
        return BuildPage(tuple(stored_build(row) for row in rows[:size]), token)


def _behind(found: Select[Any], last: tuple[Any, ...]) -> Select[Any]:
    create_time, build_id = last
    # The first condition is implied by the second; it is the one that the index understands.
    return found.where(
        builds.c.create_time <= create_time,
        or_(
            builds.c.create_time < create_time,
            and_(builds.c.create_time == create_time, builds.c.id > build_id),
        ),
    )


def _search(
    connection: Connection, found: Select[Any], expression: Expression | None, size: int
) -> tuple[list[AnyRow], AnyRow | None]:
    """Rows that match by their documents, and behind which one to go on; None at the end."""
    matching: list[AnyRow] = []
    read, rest = 0, found
    while True:
        batch = list(connection.execute(rest.limit(_BATCH)))
        for row in batch:
            if matches(expression, msgspec.json.decode(row.document)):
                if len(matching) == size:
                    return matching, matching[-1]
                matching.append(row)
        read += len(batch)
        if len(batch) < _BATCH:
            return matching, None
        if read >= _MAX_READ:
            return matching, batch[-1]
        rest = _behind(found, (batch[-1].create_time, batch[-1].id))
