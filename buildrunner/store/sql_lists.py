"""Lists of builds in SQL: filtered, newest first, page by page."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from sqlalchemy import select

from buildrunner.store.sql_paging import PageTokens, bounded
from buildrunner.store.sql_part import SqlPart
from buildrunner.store.sql_rows import COLUMNS, stored_build
from buildrunner.store.sql_schema import build_tags, builds, is_ongoing
from buildrunner.store.stored_build import BuildPage

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Connection, Select

    from buildrunner.store.list_filter import Expression
    from buildrunner.store.sql_rows import AnyRow

_BATCH = 500
_LONGEST_S = 2.0
"""How long one page looks for builds that match; the next one goes on from there."""


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
        look_at: int = 5000,
    ) -> BuildPage:
        """See `ServerStore.list_builds`."""
        # Imported here: the process of a build lists nothing.
        from buildrunner.store.list_filter import parse_filter
        from buildrunner.store.sql_filter import condition_of, needed_tag, only_ongoing

        expression = parse_filter(filter)
        condition = condition_of(expression)
        size = bounded(page_size)
        parent = ("builds", project_id, location, filter)
        listing = _listing(project_id, needed_tag(expression))
        if location is not None:
            listing = listing.where(builds.c.location == location)
        if condition.sql is not None:
            listing = listing.where(condition.sql)
        if only_ongoing(expression):
            listing = listing.where(is_ongoing)  # there is an index of these few
        if page_token:
            listing = listing.behind(*self._page_tokens.read(page_token, parent, (int, str)))
        with self._database.read() as connection:
            if condition.exact:
                rows = list(connection.execute(listing.rows.limit(size + 1)))
                last = rows[size - 1] if len(rows) > size else None
            else:
                rows, last = _search(connection, listing, expression, size, look_at)
        token = "" if last is None else self._page_tokens.write(parent, (last.create_time, last.id))
        return BuildPage(tuple(stored_build(row) for row in rows[:size]), token)


class _Listing(NamedTuple):
    """Builds, newest first, and the columns that say so."""

    rows: Select[Any]
    create_time: ColumnElement[int]
    id: ColumnElement[str]

    def where(self, *conditions: ColumnElement[bool]) -> _Listing:
        return self._replace(rows=self.rows.where(*conditions))

    def behind(self, create_time: int, build_id: str) -> _Listing:
        """Those that follow one build."""
        older = self.create_time < create_time
        same = (self.create_time == create_time) & (self.id > build_id)
        # The first condition is implied by the second; it is the one that the index understands.
        return self.where(self.create_time <= create_time, older | same)


def _listing(project_id: str, tag: str | None) -> _Listing:
    """All of a project; of one tag when given, which has an index with the order in it."""
    found = select(builds.c.create_time, builds.c.id, *COLUMNS)
    table = builds if tag is None else build_tags
    build_id = builds.c.id if tag is None else build_tags.c.build_id
    if tag is not None:
        joined = build_tags.join(builds, builds.c.id == build_id)
        found = found.select_from(joined).where(build_tags.c.tag == tag)
    rows = found.where(table.c.project_id == project_id)
    ordered = rows.order_by(table.c.create_time.desc(), build_id)
    return _Listing(ordered, table.c.create_time, build_id)


def _search(
    connection: Connection,
    listing: _Listing,
    expression: Expression | None,
    size: int,
    look_at: int,
) -> tuple[list[AnyRow], AnyRow | None]:
    """Rows that match by their documents, and behind which one to go on; None at the end."""
    from buildrunner.store.list_filter_match import matches
    from buildrunner.store.sql_filter import needed_text

    needed = needed_text(expression)
    matching: list[AnyRow] = []
    until = time.monotonic() + _LONGEST_S
    read, rest, before = 0, listing, None
    while True:
        batch = list(connection.execute(rest.rows.limit(_BATCH)))
        for row in batch:
            if read and time.monotonic() > until:
                return matching, before
            read, before = read + 1, row
            if needed and needed not in row.document.decode().casefold():
                continue  # ten times as fast as to decode it
            if matches(expression, msgspec.json.decode(row.document)):
                if len(matching) == size:
                    return matching, matching[-1]
                matching.append(row)
        if len(batch) < _BATCH:
            return matching, None
        if read >= look_at:
            return matching, batch[-1]
        rest = listing.behind(batch[-1].create_time, batch[-1].id)
