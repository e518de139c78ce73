"""Deployments in SQL."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Select, exists, not_, select

from buildrunner.errors import NotFound
from buildrunner.store.model.deployments import DeploymentPage, RecordedDeployment
from buildrunner.store.records import microseconds
from buildrunner.store.sql.database import Database, SqlPart, insert_new
from buildrunner.store.sql.filter import PageTokens, Parent, bounded
from buildrunner.store.sql.rows import page_of
from buildrunner.store.sql.schema import deployments

_newest_first = (deployments.c.at.desc(), deployments.c.id)
_listing = select(deployments.c.at, deployments.c.id, deployments.c.document)


class SqlDeployments(SqlPart):
    """The deployments of builds. `SqlQueue.record_deployments` writes them."""

    def __init__(self, database: Database, page_tokens: PageTokens) -> None:
        super().__init__(database)
        self._page_tokens = page_tokens

    def get(self, project_id: str, deployment_id: str) -> RecordedDeployment:
        """Return one deployment of a project. Raises `NotFound`."""
        found = select(deployments.c.document).where(
            deployments.c.id == deployment_id, deployments.c.project_id == project_id
        )
        with self._database.read() as connection:
            document = connection.execute(found).scalar()
        if document is None:
            raise NotFound(f"there is no deployment {deployment_id} here")
        return _read(document)

    def of_build(
        self, build_id: str, *, page_size: int = 50, page_token: str = ""
    ) -> DeploymentPage:
        """Return deployments of a build, oldest first.

        Args:
            build_id: the build.
            page_size: maximum number of deployments, up to 1000. Large deployments end a page
                earlier.
            page_token: token of the page; empty for the first.

        Raises:
            PageTokenError: the token is invalid, or belongs to another list.
        """
        parent = ("deployments of", build_id)
        found = _listing.where(deployments.c.build_id == build_id)
        if page_token:
            at, deployment_id = self._page_tokens.read(page_token, parent, (int, str))
            found = found.where(_behind(deployments.c.at > at, at, deployment_id))
        return self._page(parent, found.order_by(deployments.c.at, deployments.c.id), page_size)

    def page(
        self,
        project_id: str,
        *,
        target: str = "",
        latest: bool = False,
        page_size: int = 50,
        page_token: str = "",
    ) -> DeploymentPage:
        """Return deployments of a project, newest first.

        Args:
            project_id: the project.
            target: only of this target; empty for all.
            latest: only the latest of each target.
            page_size: maximum number of deployments, up to 1000. Large deployments end a page
                earlier.
            page_token: token of the page; empty for the first.

        Raises:
            PageTokenError: the token is invalid, or belongs to another list.
        """
        parent = ("deployments", project_id, target, str(latest))
        found = _listing.where(deployments.c.project_id == project_id)
        if target:
            found = found.where(deployments.c.target == target)
        if latest:
            found = _latest(found)
        if page_token:
            at, deployment_id = self._page_tokens.read(page_token, parent, (int, str))
            found = found.where(_behind(deployments.c.at < at, at, deployment_id))
        return self._page(parent, found.order_by(*_newest_first), page_size)

    def _page(self, parent: Parent, found: Select[Any], page_size: int) -> DeploymentPage:
        with self._database.read(streams=True) as connection:
            rows, goes_on = page_of(connection, found, bounded(page_size))
        token = self._page_tokens.write(parent, (rows[-1].at, rows[-1].id)) if goes_on else ""
        return DeploymentPage(tuple(_read(row.document) for row in rows), token)


def ids_of_build(connection: Connection, build_id: str) -> set[str]:
    """Return the ids of the recorded deployments of a build."""
    found = select(deployments.c.id).where(deployments.c.build_id == build_id)
    return set(connection.execute(found).scalars())


def record(connection: Connection, made: RecordedDeployment) -> None:
    """Record a deployment, completed from the previous record of its target. Idempotent."""
    before = (
        select(deployments.c.document)
        .where(
            deployments.c.project_id == made.project_id,
            deployments.c.target == made.target,
            deployments.c.id != made.id,
        )
        .order_by(*_newest_first)
        .limit(1)
    )
    document = connection.execute(before).scalar()
    made = made.after(None if document is None else _read(document))
    insert_new(
        connection,
        deployments,
        {
            "id": made.id,
            "project_id": made.project_id,
            "target": made.target,
            "build_id": made.build_id,
            "at": microseconds(made.time),
            "document": msgspec.json.encode(made),
        },
    )


def _behind(passed: ColumnElement[bool], at: int, deployment_id: str) -> ColumnElement[bool]:
    return passed | ((deployments.c.at == at) & (deployments.c.id > deployment_id))


def _latest(found: Select[Any]) -> Select[Any]:
    newer = deployments.alias()
    is_newer = (newer.c.at > deployments.c.at) | (
        (newer.c.at == deployments.c.at) & (newer.c.id < deployments.c.id)
    )
    return found.where(
        not_(
            exists().where(
                newer.c.project_id == deployments.c.project_id,
                newer.c.target == deployments.c.target,
                is_newer,
            )
        )
    )


def _read(document: bytes) -> RecordedDeployment:
    return msgspec.json.decode(document, type=RecordedDeployment)
