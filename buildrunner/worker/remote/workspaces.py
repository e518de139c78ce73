"""The kept workspaces of a worker's builds, which are on its server."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import httpx

from buildrunner.client.http import ServerConnection
from buildrunner.errors import (
    BuildrunnerError,
    NotFound,
    ServerUnavailable,
    SourceError,
    StoreError,
)
from buildrunner.file_trees import remove_tree
from buildrunner.retry import backoff
from buildrunner.store.model.builds import Lease
from buildrunner.worker.leases import until_available
from buildrunner.worker.remote.queue import RemoteQueue, decoded
from buildrunner.workspace.carried import Packer, unpack
from buildrunner.workspace.kept import KeptFolder, no_longer_kept

_PIECE_BYTES = 1 << 20
_WAIT_LIMIT_S = 20.0
_ANSWER_S = 60.0
_TRIES = 4
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 10.0


class RemoteKeeping:
    """Implements `WorkspaceStore` with the server of a worker.

    A workspace is sent while it is copied from the engine, so it needs no space on this machine.
    One that is fetched is in a folder until the build has its files.

    Args:
        server: the connection to the server. Not closed.
        queue: the queue of the server.
        lease: the lease of the build.
        folder: folder for a fetched workspace.
        most_bytes: the largest workspace that the server keeps.
        disk_bytes: disk limit of a build; 0 sets no limit.

    Attributes:
        problem: why the server does not keep the workspace; empty for no reason.
    """

    def __init__(
        self,
        server: ServerConnection,
        queue: RemoteQueue,
        lease: Lease,
        folder: str,
        *,
        most_bytes: int,
        disk_bytes: int,
    ) -> None:
        self._server = server
        self._queue = queue
        self._lease = lease
        self._folder = folder
        self._disk_bytes = disk_bytes or sys.maxsize
        self._most_bytes = min(most_bytes, self._disk_bytes)
        self._sent = 0
        self.problem = ""

    @property
    def most_of_one(self) -> int:
        """See `WorkspaceStore.most_of_one`."""
        return self._most_bytes

    def of(self, build_id: str) -> str:
        """See `WorkspaceStore.of`."""
        return os.path.join(self._folder, build_id)

    @contextmanager
    def fetched(self, build_id: str, cancel: threading.Event) -> Iterator[None]:
        """See `WorkspaceStore.fetched`. The server gives the workspace that this build needs."""
        try:
            self._fetch(build_id, cancel)
            yield
        finally:
            remove_tree(self.of(build_id))

    def _fetch(self, build_id: str, cancel: threading.Event) -> None:
        for failures in range(1, _TRIES + 1):
            try:
                self._fetch_once(build_id)
            except NotFound as error:
                raise no_longer_kept(build_id) from error
            except (BuildrunnerError, httpx.TransportError) as error:
                again = isinstance(error, httpx.TransportError | ServerUnavailable)
                if not again or failures == _TRIES:
                    raise SourceError(
                        f"the workspace of build {build_id} can't be fetched from"
                        f" {self._server.url}: {error}",
                        hint="retry the build from its step later, or run the whole build again",
                    ) from error
            else:
                return
            if cancel.wait(backoff(failures, _FIRST_PAUSE_S, _LONGEST_PAUSE_S)):
                raise SourceError("fetching the workspace was stopped")

    def _fetch_once(self, build_id: str) -> None:
        folder = self.of(build_id)
        remove_tree(folder)
        os.makedirs(folder, mode=0o700)
        path = f"/worker/v1/builds/{self._lease.build_id}/workspace"
        query = {"fence": self._lease.fence}
        with self._server.http.stream("GET", path, params=query) as answer:
            self._server.check(answer)
            unpack(answer.iter_bytes(_PIECE_BYTES), KeptFolder(folder), self._disk_bytes)

    @contextmanager
    def filled(self, build_id: str) -> Iterator[Packer]:  # noqa: ARG002  (the lease names it)
        """See `WorkspaceStore.filled`."""
        self._sent = 0
        packer = Packer(self._send)
        try:
            yield packer
            packer.close()
        except StoreError as error:
            self.problem = str(error)
            raise

    def _send(self, piece: bytes, last: bool) -> None:
        put = partial(
            self._queue.call,
            "PUT",
            self._lease,
            "/workspace",
            query={"offset": self._sent, "last": last},
            content=piece,
            answer_s=_ANSWER_S,
        )
        answer = until_available(put, wait_limit_s=_WAIT_LIMIT_S)
        self._sent += len(piece)
        if decoded(answer, dict[str, int]).get("offset") != self._sent:
            raise StoreError("the server lost what it had of the workspace")
