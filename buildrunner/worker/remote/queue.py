"""The queue of a server on another host, and the connection to that server."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

import httpx
import msgspec

from buildrunner.client.http import ServerConnection
from buildrunner.errors import (
    AuthError,
    Conflict,
    InvalidRecord,
    LeaseLost,
    NotFound,
    ServerError,
    ServerUnavailable,
    StoreError,
    StoreUnavailable,
    UsageError,
)
from buildrunner.retry import backoff
from buildrunner.spec.model.build import FINAL_STATUSES
from buildrunner.store.build_store import Document
from buildrunner.store.model.builds import (
    WITHOUT_POOL,
    BuildQueue,
    ClaimedBuild,
    ClaimScope,
    Lease,
    StoredBuild,
)
from buildrunner.store.model.deployments import RecordedDeployment
from buildrunner.store.model.remote import BegunBuild, ClaimRequest, WorkerDeployment
from buildrunner.store.records import steps_ran

_TRIES = 3
_WAIT_S = 25.0
_ANSWER_S = 40.0
_LOOK_S = 15.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 2.0

Answer = TypeVar("Answer")

_log = logging.getLogger(__name__)


class RemoteQueue(BuildQueue):
    """Implements `BuildQueue` over the worker protocol. Thread-safe.

    Until the server knows that steps of a build have begun, `record` waits for the server's answer.
    So a server that runs the build of a lost worker again knows that none of its steps began.

    Args:
        server: the connection to the server. Not closed.
        send_log: sends the rest of the log of a build whose end is about to be recorded.
        claims: claims builds for `claim`; None in the process of a build, which claims none.
    """

    def __init__(
        self,
        server: ServerConnection,
        *,
        send_log: Callable[[Lease, BegunBuild], None],
        claims: Claims | None = None,
    ) -> None:
        self._server = server
        self._send_log = send_log
        self._claims = claims
        self._begun: dict[Lease, BegunBuild] = {}
        self._knows_steps = False
        self._looked_at = float("-inf")

    def claim(
        self,
        worker_name: str,
        *,
        now: datetime,  # noqa: ARG002  (the server's clock counts)
        lease_s: float,  # noqa: ARG002
        limit: int,
        scope: ClaimScope = WITHOUT_POOL,  # noqa: ARG002  (the server decides by the token)
    ) -> tuple[StoredBuild, Lease] | None:
        """See `BuildQueue.claim`. Returns a build that arrived since the last call, if any."""
        stored = self._claims.take(worker_name, limit) if self._claims else None
        return None if stored is None else (stored, Lease(stored.id, stored.fence))

    def claim_again(
        self,
        build_id: str,
        worker_name: str,
        *,
        now: datetime,  # noqa: ARG002
        lease_s: float,  # noqa: ARG002
        instead_of: int = 0,
    ) -> tuple[StoredBuild, Lease]:
        """See `BuildQueue.claim_again`. Raises `LeaseLost` for every build that is not held."""
        lease = Lease(build_id, instead_of)
        answer = self.call("POST", lease, ":takeOver", query={"worker": worker_name})
        stored = decoded(answer, StoredBuild)
        return stored, Lease(stored.id, stored.fence)

    def set_process(self, lease: Lease, process: str) -> None:
        """See `BuildQueue.set_process`."""
        answer = self.call("POST", lease, ":begin", query={"incarnation": process})
        self._begun[lease] = decoded(answer, BegunBuild)

    def begun(self, lease: Lease) -> BegunBuild:
        """Return the server's answer to the begin of a build.

        If no process has begun the build, begin it without one: the supervisor is about to end it.
        """
        if lease not in self._begun:
            self.set_process(lease, _NO_PROCESS)
        return self._begun[lease]

    def renew(self, lease: Lease, *, now: datetime, lease_s: float) -> str:  # noqa: ARG002
        """See `BuildQueue.renew`."""
        answer = self.call("POST", lease, ":renew")
        return str(decoded(answer, dict[str, str]).get("cancel", ""))

    def record(self, lease: Lease, document: Document) -> None:
        """See `BuildQueue.record`. Before a final status, the rest of the log is sent.

        If the server refuses the log, the build ends with a warning.
        """
        if document.get("status") in FINAL_STATUSES:
            document = self._with_log_sent(lease, document)
        if self._knows_steps:
            self._put_document(lease, document)
        else:
            until_answered(lambda: self._put_document(lease, document))
            self._knows_steps = steps_ran(document)

    def _with_log_sent(self, lease: Lease, document: Document) -> Document:
        try:
            self._send_log(lease, self.begun(lease))
        except InvalidRecord as error:
            _log.error("the end of the log of %s can't be sent: %s", lease.build_id, error)
            text = f"the server does not have the end of the log: {error}"
            warning = {"text": text, "priority": "WARNING"}
            return {**document, "warnings": [*document.get("warnings", ()), warning]}
        return document

    def _put_document(self, lease: Lease, document: Document) -> None:
        self.call("PUT", lease, "/document", content=msgspec.json.encode(document))

    def record_plan(self, lease: Lease, plan: bytes) -> None:
        """See `BuildQueue.record_plan`. Waits for the server, which needs it to give secrets."""
        until_answered(lambda: self.call("PUT", lease, "/plan", content=plan))

    def record_deployments(self, lease: Lease, made: Sequence[RecordedDeployment]) -> None:
        """See `BuildQueue.record_deployments`."""
        sent = [
            WorkerDeployment(step=one.step, time=one.time, deployment=one.deployment())
            for one in made
        ]
        self.call("PUT", lease, "/deployments", content=msgspec.json.encode(sent))

    def claimed(self, worker_name: str | None = None) -> list[ClaimedBuild]:
        """See `BuildQueue.claimed`: of this worker alone.

        Without a name, this method sends a request at most every 15 seconds. Other calls return
        no builds: the process of a build learns of a cancel request by itself.
        """
        name = worker_name or (self._claims.worker_name if self._claims else "")
        if worker_name is None and (not name or time.monotonic() - self._looked_at < _LOOK_S):
            return []
        self._looked_at = time.monotonic()
        answer = self.ask("GET", "/worker/v1/builds", query={"worker": name})
        return decoded(answer, dict[str, list[ClaimedBuild]])["builds"]

    def expire(self, *, now: datetime) -> list[str]:  # noqa: ARG002
        """See `BuildQueue.expire`: the server does that."""
        return []

    def find(self, build_id: str) -> StoredBuild:
        """Return a build that this worker holds. Raises `NotFound` for others."""
        return decoded(self.ask("GET", f"/worker/v1/builds/{build_id}"), StoredBuild)

    def call(
        self,
        method: str,
        lease: Lease,
        operation: str,
        *,
        query: Mapping[str, Any] | None = None,
        content: bytes | None = None,
        answer_s: float = _ANSWER_S,
    ) -> httpx.Response:
        """Send a request about the build of a lease.

        Raises:
            LeaseLost: another worker has the lease.
            Conflict: the build has ended.
            OffsetRefused: a piece does not continue the copy on the server.
            StoreUnavailable: the server does not answer now, or refuses the token.
            InvalidRecord: the server refuses the data, or has no such operation.
        """
        path = f"/worker/v1/builds/{lease.build_id}{operation}"
        requested = {"fence": lease.fence, **(query or {})}
        try:
            return self.ask(method, path, query=requested, content=content, answer_s=answer_s)
        # For a build that is not held, the server answers as for a lost lease.
        except NotFound as error:
            raise InvalidRecord(f"{method} {path}: {error}", hint=_SAME_VERSION) from error

    def ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        content: bytes | None = None,
        answer_s: float = _ANSWER_S,
    ) -> httpx.Response:
        """Send a request; translate its failures to those of a store. See `call`."""
        try:
            return self._server.answer(
                method, path, query=query, content=content, tries=_TRIES, answer_s=answer_s
            )
        except (ServerUnavailable, AuthError) as error:
            raise StoreUnavailable(str(error), hint=error.hint) from error
        except ServerError as error:
            offsets = [one["offset"] for one in error.details if isinstance(one, dict)]
            if error.code == 409 and offsets:
                raise OffsetRefused(str(error), int(offsets[0])) from error
            raise InvalidRecord(str(error), hint=_SAME_VERSION) from error
        except UsageError as error:
            raise InvalidRecord(f"the server refuses what this worker sends: {error}") from error


_SAME_VERSION = "run the same version of buildrunner on the server and on the worker"
_NO_PROCESS = "0:"
"""The incarnation under which no process runs (see `containers.process_owner`)."""


class OffsetRefused(InvalidRecord):
    """A piece of a log does not continue its copy on the server, which has ``size`` bytes."""

    def __init__(self, message: str, size: int) -> None:
        super().__init__(message)
        self.size = size


def decoded(answer: httpx.Response, kind: type[Answer]) -> Answer:
    """Return the body of an answer.

    Raises:
        StoreError: another version of buildrunner answers, or no buildrunner.
    """
    try:
        return msgspec.json.decode(answer.content, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise StoreError(
            f"{answer.url} does not answer as the server of a worker does: {error}",
            hint=_SAME_VERSION,
        ) from error


def until_answered(call: Callable[[], Answer]) -> Answer:
    """Return the result of a call, repeated while the server does not answer."""
    failures = 0
    while True:
        try:
            return call()
        except StoreUnavailable as error:
            failures += 1
            if failures == 1:
                _log.warning("%s; it is asked again", error)
            time.sleep(backoff(failures, _FIRST_PAUSE_S, _LONGEST_PAUSE_S))


class Claims:
    """Claims builds from a server: one request at a time waits for the next build. Thread-safe.

    Args:
        server: the connection to the server.
        request: the request, without the number of builds.
        isolation: how builds are isolated here.
        arrived: called, from any thread, when `take` should be called again.
        refused: called once with the reason if the server will not give this worker a build.
        most: maximum number of builds to claim; 0 sets no limit.
    """

    def __init__(
        self,
        server: ServerConnection,
        request: ClaimRequest,
        *,
        isolation: Callable[[], str],
        arrived: Callable[[], None],
        refused: Callable[[str], None],
        most: int = 0,
    ) -> None:
        self._server = server
        self._request = request
        self._isolation = isolation
        self._arrived = arrived
        self._refused = refused
        self._left = most or None
        self._lock = threading.Lock()
        self._found: StoredBuild | None = None
        self._is_asking = False
        self._failures = 0
        self._closed = threading.Event()

    @property
    def worker_name(self) -> str:
        """The name under which builds are claimed."""
        return self._request.worker

    def take(self, worker_name: str, limit: int) -> StoredBuild | None:
        """Return a build that has arrived; if there is none, request one."""
        with self._lock:
            found, self._found = self._found, None
            if found is not None:
                return found
            if self._is_asking or self._closed.is_set() or self._left == 0:
                return None
            self._is_asking = True
        request = msgspec.structs.replace(
            self._request, worker=worker_name, limit=limit, isolation=self._isolation()
        )
        threading.Thread(target=self._ask, args=(request,), name="claims", daemon=True).start()
        return None

    def close(self) -> None:
        """Claim no more builds."""
        self._closed.set()

    def _ask(self, request: ClaimRequest) -> None:
        found, refusal = None, ""
        try:
            found = self._answer(request)
            self._failures = 0
        except (Conflict, NotFound, AuthError, UsageError) as error:
            refusal = str(error)
        except (ServerError, StoreError) as error:
            self._failures += 1
            if self._failures == 1:
                _log.warning("no build can be claimed now: %s", error)
            self._closed.wait(backoff(self._failures, _FIRST_PAUSE_S, _LONGEST_PAUSE_S))
        with self._lock:
            self._found = found
            self._is_asking = False
            if found is not None and self._left is not None:
                self._left -= 1
            if refusal:
                self._left = 0
        if refusal:
            self._refused(refusal)
        self._arrived()

    def _answer(self, request: ClaimRequest) -> StoredBuild | None:
        body = msgspec.to_builtins(msgspec.structs.replace(request, wait_s=_WAIT_S))
        answer = self._server.answer(
            "POST", "/worker/v1/builds:claim", body=body, tries=1, answer_s=_ANSWER_S
        )
        return None if answer.status_code == 204 else decoded(answer, StoredBuild)


class CancelSignals:
    """Waits in a thread for a request to cancel a build, which the server reports at once.

    Args:
        queue: the queue of the server.
        lease: the lease of the build.
        look: called if a user cancels the build, or its lease is lost.
    """

    def __init__(self, queue: RemoteQueue, lease: Lease, look: Callable[[], None]) -> None:
        self._queue = queue
        self._lease = lease
        self._look = look
        threading.Thread(target=self._run, name="signals", daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                answer = until_answered(
                    lambda: self._queue.call(
                        "GET", self._lease, "/signals", query={"wait": _WAIT_S}
                    )
                )
                wanted = decoded(answer, dict[str, bool]).get("cancel", False)
            except (LeaseLost, Conflict):
                wanted = True
            except StoreError as error:
                _log.warning("the server tells nothing of cancelled builds: %s", error)
                return
            if wanted:
                with suppress(OSError):  # the build has ended
                    self._look()
                return


def connect(url: str, token_file: str, ca_file: str) -> ServerConnection:
    """Return a connection to the server of a worker.

    Args:
        url: address of the server.
        token_file: file with the worker's token. It is read for each request, since some
            platforms rotate their tokens.
        ca_file: certificates to trust; empty for those of the system.

    Raises:
        UsageError: the URL is invalid, or a file can't be read.
    """
    token_in(token_file)
    return ServerConnection(url, partial(token_in, token_file), ca_file, time.sleep)


def token_in(path: str) -> str:
    """Return the token in a file.

    Raises:
        UsageError: the file can't be read, or is empty.
    """
    try:
        with open(path, encoding="ascii") as file:
            token = file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        text = error.strerror if isinstance(error, OSError) else "it holds no token"
        raise UsageError(f"the token file {path} can't be read: {text}") from error
    if not token:
        raise UsageError(
            f"the token file {path} is empty",
            hint="write the output of `buildrunner tokens create NAME --worker` to it",
        )
    return token
