"""Conversions of rows to values of the store. Only this module derives columns from documents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from buildrunner.errors import InvalidRecord, StoreError
from buildrunner.spec.model.build import FINAL_STATUSES
from buildrunner.spec.model.git_address import masked_build
from buildrunner.store.build_store import Document
from buildrunner.store.model.builds import (
    ClaimedBuild,
    Lease,
    ListedBuild,
    NewBuild,
    StoredBuild,
)
from buildrunner.store.records import instant_of, microseconds, parse_instant
from buildrunner.store.sql.schema import ENDED, PENDING, WAITING, builds
from buildrunner.triggers.labels import BUILT_REF

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row, Select

AnyRow: TypeAlias = "Row[*tuple[Any, ...]]"

# The columns that `stored_build` reads.
COLUMNS = (
    builds.c.document,
    builds.c.request,
    builds.c.location,
    builds.c.worker,
    builds.c.process,
    builds.c.fence,
    builds.c.lease_until,
    builds.c.attempts,
    builds.c.cancel_requested,
    builds.c.push,
    builds.c.untrusted,
    builds.c.priority,
    builds.c.group_name,
    builds.c.group_limit,
    builds.c.only_worker,
    builds.c.pool,
    builds.c.labels,
)

# The columns that `listed_build` reads.
LISTED_COLUMNS = (
    builds.c.id,
    builds.c.project_id,
    builds.c.status,
    builds.c.trigger_id,
    builds.c.create_time,
)

# The columns that `claimed_build` reads.
CLAIMED_COLUMNS = (
    builds.c.id,
    builds.c.project_id,
    builds.c.status,
    builds.c.start_time,
    builds.c.worker,
    builds.c.process,
    builds.c.fence,
    builds.c.lease_until,
    builds.c.cancel_requested,
    builds.c.labels,
    builds.c.pool,
    builds.c.group_name,
)


def instant_text(instant: datetime) -> str:
    """Return a time in the form that documents have (RFC 3339)."""
    from buildrunner.spec.writing import encode_instant

    return encode_instant(instant)


def phase_of(status: str) -> str:
    """Return the phase of an unclaimed build of that status."""
    if status in FINAL_STATUSES:
        return ENDED
    return PENDING if status == "PENDING" else WAITING


def document_columns(document: Document) -> dict[str, Any]:
    """Return the columns derived from a build's document.

    Raises:
        StoreError: the document lacks a required field.
    """
    try:
        status = document["status"]
        create = parse_instant(document["createTime"])
        times = [document.get(name) for name in ("startTime", "finishTime")]
        start, finish = (parse_instant(text) if text else None for text in times)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"this is not the document of a build: {error!r}") from error
    return {
        "status": status,
        "create_time": create,
        "start_time": start,
        "finish_time": finish,
        "ended_at": (finish or start or create) if status in FINAL_STATUSES else None,
        "trigger_id": document.get("buildTriggerId", ""),
        "document": _encoded(masked_build(document)),
    }


def series_of(document: Document, labels: Mapping[str, str]) -> str:
    """Return the series of a trigger's build: one for each branch and pull request; else empty.

    A hash, since a branch's name may be too long for an index. The caller of a run chooses its
    substitutions, so only labels count.
    """
    if not document.get("buildTriggerId"):
        return ""
    ref = labels.get(BUILT_REF, "")
    branch = labels.get("branch", "") or ref.removeprefix("refs/heads/")
    names = ["" if branch.startswith("refs/") else branch, labels.get("pull_request", "")]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()[:32]


def shown_document(document: bytes) -> Document:
    """Return a build's stored document. Masks passwords, which earlier versions stored."""
    found: Document = msgspec.json.decode(document)
    return masked_build(found) if b"@" in document else found


def _encoded(value: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError as error:
        raise InvalidRecord(
            "text with half a character (a lone surrogate) can't be kept"
        ) from error


def new_row(new: NewBuild) -> dict[str, Any]:
    """Return the row of a new build."""
    columns = document_columns(new.document)
    return {
        **columns,
        "series": series_of(new.document, new.labels),
        "id": new.document["id"],
        "project_id": new.document["projectId"],
        "location": new.location,
        "request_id": new.request_id or None,
        "phase": phase_of(columns["status"]),
        "priority": new.priority,
        "group_name": new.group,
        "group_limit": new.group_limit,
        "expires_at": microseconds(new.expires_at),
        "worker": "",
        "process": "",
        "fence": 0,
        "lease_until": None,
        "attempts": 0,
        "cancel_requested": False,
        "push": new.push,
        "untrusted": new.untrusted,
        "only_worker": new.only_worker,
        "pool": new.pool,
        "labels": _encoded(new.labels),
        "request": _encoded(new.request),
    }


def tags_of(document: Document) -> list[str]:
    """Return the build's tags, each once."""
    return sorted(set(document.get("tags", ())))


def stored_build(row: AnyRow) -> StoredBuild:
    """Return the build in a row of `COLUMNS`."""
    return StoredBuild(
        document=shown_document(row.document),
        request=msgspec.json.decode(row.request),
        location=row.location,
        worker=row.worker,
        process=row.process,
        fence=row.fence,
        lease_until=_instant(row.lease_until),
        attempts=row.attempts,
        cancel_requested=row.cancel_requested,
        push=row.push,
        untrusted=row.untrusted,
        priority=row.priority,
        group=row.group_name,
        group_limit=row.group_limit,
        only_worker=row.only_worker,
        pool=row.pool,
        labels=msgspec.json.decode(row.labels),
    )


def listed_build(row: AnyRow) -> ListedBuild:
    """Return the build in a row of `LISTED_COLUMNS`."""
    return ListedBuild(
        id=row.id,
        project=row.project_id,
        status=row.status,
        trigger_id=row.trigger_id,
        create_time=instant_of(row.create_time),
    )


def claimed_build(row: AnyRow) -> ClaimedBuild:
    """Return the build in a row of `CLAIMED_COLUMNS`."""
    return ClaimedBuild(
        id=row.id,
        project=row.project_id,
        status=row.status,
        start_time=_instant(row.start_time),
        worker=row.worker,
        process=row.process,
        fence=row.fence,
        lease_until=_instant(row.lease_until),
        cancel_requested=row.cancel_requested,
        labels=msgspec.json.decode(row.labels),
        pool=row.pool,
        group=row.group_name,
    )


def _instant(moment: int | None) -> datetime | None:
    return None if moment is None else instant_of(moment)


def lease_of(build: StoredBuild) -> Lease:
    """Return the lease of a claimed build."""
    return Lease(build.id, build.fence)


def ended_columns(document: Document, status: str, now: datetime, detail: str) -> dict[str, Any]:
    """Return the columns of a build that ends before it began."""
    ended = {
        **document,
        "status": status,
        "statusDetail": detail,
        "finishTime": instant_text(now),
    }
    approval = document.get("approval")
    if approval and approval.get("state") == "PENDING":
        ended["approval"] = {**approval, "state": "CANCELLED"}  # no decision is possible any more
    return {**document_columns(ended), "phase": ENDED}


MOST_PAGE_BYTES: Final = 16 << 20
"""Maximum size of the documents of one page; a page has at least one row."""

_ROWS_AT_ONCE: Final = 16


def streamed(connection: Connection, rows: Select[Any]) -> Iterator[AnyRow]:
    """Yield rows while they are read, a few at a time, to save memory."""
    with connection.execute(rows.execution_options(yield_per=_ROWS_AT_ONCE)) as result:
        yield from result


def page_of(connection: Connection, rows: Select[Any], size: int) -> tuple[list[AnyRow], bool]:
    """Read one page.

    Args:
        connection: the connection.
        rows: the ordered query, starting with the page's first row.
        size: maximum number of rows; fewer if they exceed `MOST_PAGE_BYTES`.

    Returns:
        The rows, and whether more follow.
    """
    page: list[AnyRow] = []
    room = MOST_PAGE_BYTES
    for row in streamed(connection, rows.limit(size + 1)):
        room -= bytes_of(row)
        if len(page) == size or (page and room < 0):
            return page, True
        page.append(row)
    return page, False


def bytes_of(row: AnyRow) -> int:
    """Return the size of the documents in a row."""
    return sum(len(value) for value in row if isinstance(value, bytes))
