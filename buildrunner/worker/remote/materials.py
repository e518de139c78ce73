"""The parts of a build that are on its server: the uploaded source, and values of secrets."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx
import msgspec
from msgspec.structs import replace

from buildrunner.client.http import ServerConnection
from buildrunner.errors import (
    BuildrunnerError,
    Conflict,
    LeaseLost,
    SecretError,
    ServerUnavailable,
    StorageError,
    StoreError,
)
from buildrunner.plan.build_plan import BuildPlan, SecretReference
from buildrunner.sources.uploads import SourceUpload, sum_in_name
from buildrunner.spec.model.build import Build
from buildrunner.spec.model.results import Priority, Warning_
from buildrunner.spec.model.source import StorageSource
from buildrunner.spec.reading.decode import decode_message
from buildrunner.spec.writing import encode_message
from buildrunner.storage.object_store import Retried, StoredObject
from buildrunner.store.model.builds import Lease, StoredBuild
from buildrunner.store.model.remote import RemoteSecret
from buildrunner.worker.leases import until_available
from buildrunner.worker.remote.queue import RemoteQueue, decoded, until_answered

_PIECE_BYTES = 1 << 20
_STORE_S = 180.0


class RemoteUpload(SourceUpload):
    """Implements `ObjectStore` for the uploaded archive that a build names as its source.

    Args:
        server: the connection to the server. Not closed.
        lease: the lease of the build.
        project: the project of the build.
        source: the source that the build names.
    """

    def __init__(
        self, server: ServerConnection, lease: Lease, project: str, source: StorageSource
    ) -> None:
        super().__init__(project, source)
        self._server = server
        self._path = f"/worker/v1/builds/{lease.build_id}/source"
        self._query = {"fence": lease.fence}
        self._digest = hashlib.sha256()
        self._summed = 0

    def find(
        self,
        bucket: str,
        name: str,
        generation: int = 0,
        *,
        retried: Retried | None = None,  # noqa: ARG002
    ) -> StoredObject:
        """See `ObjectStore.find`."""
        if not self._is_own(bucket, name):
            raise self._not_own(bucket, name)
        url = self.url_of(bucket, name)
        try:
            with self._server.http.stream("GET", self._path, params=self._query) as answer:
                self._server.check(answer)
                size = int(answer.headers["content-length"])
        except (BuildrunnerError, httpx.TransportError) as error:
            raise self._failed(url, error) from error
        return StoredObject(
            bucket=bucket, name=name, generation=generation, url=url, size_bytes=size
        )

    def read(self, found: StoredObject, offset: int, cancel: threading.Event) -> Iterator[bytes]:
        """See `ObjectStore.read`. The digest of the whole archive must match its name.

        A read from a later offset continues the digest of the earlier reads.
        """
        if not offset:
            self._digest, self._summed = hashlib.sha256(), 0
        elif offset != self._summed:
            raise StorageError(f"{found.url} was read up to byte {self._summed}, not {offset}")
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        try:
            with self._server.http.stream(
                "GET", self._path, params=self._query, headers=headers
            ) as answer:
                self._server.check(answer)
                _check_range(answer, found, offset)
                for piece in answer.iter_bytes(_PIECE_BYTES):
                    if cancel.is_set():
                        raise StorageError(f"the fetch of {found.url} was cancelled")
                    self._digest.update(piece)
                    self._summed += len(piece)
                    yield piece
        except (BuildrunnerError, httpx.TransportError) as error:
            raise self._failed(found.url, error) from error
        if self._summed < found.size_bytes:
            return  # the reader notices, and retries
        if self._digest.hexdigest() != sum_in_name(found.name):
            raise self._damaged(found, self._digest.hexdigest())

    def _failed(self, url: str, error: Exception) -> StorageError:
        if isinstance(error, StorageError):
            return error
        transient = isinstance(error, httpx.TransportError | ServerUnavailable)
        message = f"{url} can't be fetched from {self._server.url}: {error}"
        return StorageError(message, transient=transient)


def _check_range(answer: httpx.Response, found: StoredObject, offset: int) -> None:
    if not offset:
        return
    expected = f"bytes {offset}-{found.size_bytes - 1}/{found.size_bytes}"
    range_ = answer.headers.get("content-range", "")
    if answer.status_code != 206 or range_ != expected:
        raise StorageError(f"{found.url} begins at another byte than requested: {range_ or 'all'}")


class RemoteSecrets:
    """Implements `SecretResolver`: the values come from the server, once for each build.

    Args:
        queue: the queue of the server.
        lease: the lease of the build.
    """

    def __init__(self, queue: RemoteQueue, lease: Lease) -> None:
        self._queue = queue
        self._lease = lease
        self._lock = threading.Lock()
        self._found: Mapping[SecretReference, RemoteSecret] | None = None

    def resolve(self, reference: SecretReference, plan: BuildPlan | None = None) -> str:  # noqa: ARG002
        """See `SecretResolver.resolve`."""
        with self._lock:
            if self._found is None:
                self._found = self._fetched()
        secret = self._found.get(reference)
        if secret is None:
            raise SecretError(f"the server has no secret {reference.name} for this build")
        if secret.error:
            raise SecretError(secret.error, hint=secret.hint)
        return secret.value

    def _fetched(self) -> Mapping[SecretReference, RemoteSecret]:
        try:
            answer = until_available(lambda: self._queue.call("GET", self._lease, "/secrets"))
        except StoreError as error:
            raise SecretError(f"the server gives no secrets: {error}") from error
        found = decoded(answer, dict[str, list[RemoteSecret]])["secrets"]
        return {one.reference: one for one in found}


def event_payload(queue: RemoteQueue, lease: Lease) -> Mapping[str, Any]:
    """Return the payload of the event that fired a build's trigger, by root name.

    Raises:
        StoreError: the server does not answer.
    """
    answer = until_available(lambda: queue.call("GET", lease, "/payload"))
    payload: Mapping[str, Any] = decoded(answer, dict[str, dict[str, Any]])["payload"]
    return payload


def store_log(
    queue: RemoteQueue,
    lease: Lease,
    send_rest: Callable[[], None],
    stored: StoredBuild,  # noqa: ARG001  (the server has the build)
    build: Build,
) -> Build:
    """Request that the server store the log of a finished build in the build's bucket.

    Returns:
        The Build, with a warning if that failed: then the server did not answer for some minutes,
        or refused.

    Raises:
        LeaseLost: another worker has the lease.
        Conflict: the build has ended already.
    """
    until_answered(send_rest)
    content = msgspec.json.encode(encode_message(build))
    try:
        answer = until_available(
            lambda: queue.call("POST", lease, ":storeLog", content=content, answer_s=_STORE_S),
            wait_limit_s=_STORE_S,
        )
        return decode_message(Build, decoded(answer, dict[str, Any])).value
    except (LeaseLost, Conflict):
        raise
    except StoreError as error:
        text = f"the log is not stored in its bucket: {error}"
        warning = Warning_(text=text, priority=Priority.WARNING)
        return replace(build, warnings=(*build.warnings, warning))
