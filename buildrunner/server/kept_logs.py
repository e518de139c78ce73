"""The logs that lie on this server: whose log is here, and why another's is not."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from buildrunner.errors import NotFound
from buildrunner.logs.log_file import log_folder
from buildrunner.logs.log_reader import LogFileReader
from buildrunner.logs.retention import check_not_removed
from buildrunner.server.errors import ApiError
from buildrunner.store.build_store import FINAL_STATUSES

if TYPE_CHECKING:
    from buildrunner.server.context import ServerContext
    from buildrunner.store.stored_build import StoredBuild


class KeptLogs:
    """Finds them.

    Args:
        context: the server's.
    """

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    def folder(self, build: str) -> str:
        """Where the log of a build lies, if it is here."""
        return log_folder(self._context.data_folder, build)

    def reader(self, project: str, build: str) -> LogFileReader:
        """Reads the log of a build.

        Raises:
            NotFound: no such build.
            ApiError: its log is not here; why.
        """
        return self.reader_of(self._context.store.get_build(project, build))

    def reader_of(self, stored: StoredBuild) -> LogFileReader:
        """The same for a build that was found.

        Raises:
            ApiError: its log is not here; why.
        """
        self._check_kept(stored)
        logging = stored.document.get("options", {}).get("logging")
        if logging == "NONE" and stored.status in FINAL_STATUSES:
            raise ApiError(404, f"build {stored.id} has no log: its options say logging: NONE")
        self._check_here(stored)
        return LogFileReader(self.folder(stored.id))

    def check(self, project: str, build: str) -> None:
        """Refuse a build that is not there, or whose log was removed.

        Raises:
            NotFound: no such build.
            ApiError: its log was removed.
        """
        self._check_kept(self._context.store.get_build(project, build))

    def _check_here(self, stored: StoredBuild) -> None:
        """Servers may share a database; a log lies where its build ran.

        Raises:
            ApiError: it ran, and not here.
        """
        ran = stored.status in FINAL_STATUSES and "startTime" in stored.document
        if ran and not os.path.isdir(self.folder(stored.id)):
            raise ApiError(
                404, f"the log of build {stored.id} is not on this server: it ran on another one"
            )

    def _check_kept(self, stored: StoredBuild) -> None:
        try:
            check_not_removed(self.folder(stored.id), stored.id)
        except NotFound as error:
            raise ApiError(404, str(error)) from None
