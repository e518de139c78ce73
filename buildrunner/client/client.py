"""A client of `buildrunner serve`: builds and logs, in Python's own types; sources beside it.

Every failure is a `BuildrunnerError`. Idempotent calls are retried when the network or the server
fails for a moment: five tries in some six seconds. Log streams reconnect by themselves for as long
as the caller allows.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, BinaryIO

import msgspec

from buildrunner.client.http import Document, ServerConnection, checked_url
from buildrunner.client.stream import StreamItem
from buildrunner.errors import Conflict, NotFound, ServerError, ServerUnavailable, UsageError

__all__ = ["Document", "ServerClient", "checked_url"]

_OURS = "/buildrunner/v1"


class QueueOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options for the queue and the run of a build on a server. They are not part of the Build.

    Attributes:
        push: push images at the end.
        priority: higher runs earlier.
        group: builds that belong together.
        supersede: ``cancel_queued`` or ``cancel_all`` older builds of the group.
    """

    push: bool = True
    priority: int = 0
    group: str = ""
    supersede: str = ""


class ServerClient:
    """Talks to one server, about one project. Thread-safe.

    Args:
        url: ``http://HOST:PORT`` or ``https://...``, with a path when a proxy puts it below one.
        token: the access token; empty for a server without authentication.
        project: project of the builds.
        ca_file: certificates to trust, PEM; empty for those of the system.
        pause: waits between two tries.

    Raises:
        UsageError: ``url`` is invalid, or ``ca_file`` can't be read.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str = "",
        project: str = "local-project",
        ca_file: str = "",
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self.project = project
        self._server = ServerConnection(url, token, ca_file, pause)
        self.sources = SourceClient(self._server, self._parent)
        """Uploads sources."""

    @property
    def url(self) -> str:
        """Address of the server, without a slash at the end."""
        return self._server.url

    def close(self) -> None:
        """Close all connections. Idempotent."""
        self._server.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Document | None = None,
        once: bool = False,
    ) -> Document:
        """Send any request of the API; see `client.http.ServerConnection.json`.

        Args:
            method: of HTTP.
            path: below the server's address, ``{parent}`` standing for ``projects/PROJECT``.
            query: parameters.
            body: JSON to send; None for no body.
            once: never retry, since the request must not be done twice.
        """
        path = path.replace("{parent}", self._parent)
        return self._server.json(
            method, path, query=query, body=body, **({"tries": 1} if once else {})
        )

    # Builds

    def create_build(
        self,
        body: Document,
        *,
        request_id: str,
        location: str = "",
        options: QueueOptions | None = None,
    ) -> Document:
        """Queue a build. Returns the Build resource as it was created.

        Args:
            body: a Build as Cloud Build takes it.
            request_id: unique for this build, so that a retry makes no second build.
            location: region; empty for ``global``.
            options: how the server queues and runs it.

        Raises:
            UsageError: the server refuses the build; the message has all problems.
        """
        options = options or QueueOptions()
        facts = {
            "priority": options.priority,
            "group": options.group,
            "supersede": options.supersede,
        }
        query: dict[str, Any] = {"requestId": request_id}
        query |= {name: value for name, value in facts.items() if value}
        if not options.push:
            query["push"] = "false"
        path = f"/v1/{self._place(location)}/builds"
        operation = self._server.json("POST", path, query=query, body=body)
        return _member(operation, "metadata", "build")

    def get_build(self, build_id: str) -> Document:
        """Return one build by its full id. Raises `NotFound`."""
        return self._server.json("GET", self._build(build_id))

    def find_build(self, build_id: str) -> Document:
        """Return the build of that id, or the only recent build whose id begins with it.

        Raises:
            NotFound: none of the newest thousand builds matches.
            Conflict: several ids begin with these characters.
        """
        if len(build_id) >= 36:
            return self.get_build(build_id)
        found = [one for one in self.list_builds(limit=1000) if one["id"].startswith(build_id)]
        if not found or not build_id:
            raise NotFound(
                f'there is no build "{build_id}" on {self.url}',
                hint="`buildrunner builds list` shows all",
            )
        if len(found) > 1:
            raise Conflict(
                f'several builds begin with "{build_id}"', hint="give more characters of the id"
            )
        return found[0]

    def list_builds(
        self, *, filter: str = "", limit: int = 50, location: str = "", page_size: int = 500
    ) -> Iterator[Document]:
        """Return up to ``limit`` builds, newest first; with a ``location``, only those there.

        Each request fetches up to ``page_size`` builds.

        Raises:
            FilterError: the filter has a syntax error, or names an unknown field.
        """
        path = f"/v1/{self._place(location)}/builds"
        query = {"pageSize": min(limit, page_size), "filter": filter}
        return islice(self._server.entries(path, "builds", query), max(limit, 0))

    def list_triggers(self) -> Iterator[Document]:
        """Return the triggers of the project, by name."""
        path = f"/v1/{self._place('')}/triggers"
        return self._server.entries(path, "triggers", {"pageSize": 500})

    def cancel_build(self, build_id: str) -> Document:
        """Request the cancellation of a build. Returns the build's present state.

        Raises:
            NotFound: no such build.
            Conflict: the build has ended.
        """
        return self._server.json("POST", f"{self._build(build_id)}:cancel", body={})

    def delete_build(self, build_id: str) -> None:
        """Delete a build that has ended, with its log and all its records.

        Raises:
            NotFound: no such build.
            Conflict: the build has not ended.
        """
        self._server.json("DELETE", f"/buildrunner/v1/projects/{self.project}/builds/{build_id}")

    def retry_build(self, build_id: str, *, from_step: str = "", deployment: str = "") -> Document:
        """Queue the same build again, whole or in part. Returns the new build.

        Args:
            build_id: the build.
            from_step: resume from this step; empty for the whole build.
            deployment: id of a deployment of the build to roll back to; empty for no rollback.

        Raises:
            NotFound: no such build.
            Conflict: the build waits for its approval, or its workspace is not kept.
        """
        given = {"fromStep": from_step, "deployment": deployment}
        query = {name: value for name, value in given.items() if value}
        path = f"{self._build(build_id)}:retry"
        operation = self._server.json("POST", path, query=query, body={}, tries=1)
        return _member(operation, "metadata", "build")

    def decide_build(
        self, build_id: str, *, approved: bool, comment: str = "", url: str = ""
    ) -> Document:
        """Approve or reject a build that waits for approval. Returns the build's present state.

        Raises:
            NotFound: no such build.
            Conflict: the build does not wait for an approval.
        """
        result = {"decision": "APPROVED" if approved else "REJECTED"}
        result.update({k: v for k, v in (("comment", comment), ("url", url)) if v})
        path = f"{self._build(build_id)}:approve"
        operation = self._server.json("POST", path, body={"approvalResult": result}, tries=1)
        return _member(operation, "metadata", "build")

    def why_waiting(self, build_id: str) -> Document:
        """Return the `WaitReason` of a build (camelCase keys); empty if the build has begun."""
        return self._server.json("GET", f"{self._ours(build_id)}/waiting")

    def approval_of(self, build_id: str) -> Document:
        """Return the author, rights and approval of a build: `ApprovalFacts` in camelCase."""
        return self._server.json("GET", f"{self._ours(build_id)}/approval")

    def read_plan(self, build_id: str) -> bytes:
        """Return the compiled plan as JSON. Raises `NotFound` before the build is planned."""
        return json.dumps(self._server.json("GET", f"{self._ours(build_id)}/plan")).encode()

    def read_provenance(self, build_id: str) -> bytes:
        """Return the provenance of a build: DSSE envelopes, one a line.

        Raises:
            NotFound: the build does not exist, or has no provenance.
        """
        return self._server.document(f"{self._ours(build_id)}/provenance")

    def provenance_key(self) -> bytes:
        """Return the public key of the server's provenance, as PEM."""
        return self._server.document(f"{_OURS}/provenance-key")

    def build_url(self, build_id: str, location: str = "") -> str:
        """Return the address of a build in the API."""
        return f"{self.url}/v1/{self._parent}/locations/{location or 'global'}/builds/{build_id}"

    def log_url(self, build_id: str) -> str:
        """Return the address of a build's log."""
        return f"{self.url}{self._ours(build_id)}/log"

    def whoami(self) -> Document:
        """Return the owner of the token: ``name``, ``scopes``, ``projects``, ``server``."""
        return self._server.json("GET", f"{_OURS}/whoami")

    # Logs

    def read_log(self, build_id: str, offset: int = 0) -> Iterator[bytes]:
        """Return the log so far, from a byte offset. The iterator resumes after a failure.

        Raises:
            NotFound: the build does not exist, or its log is not stored or has expired.
        """
        return self._server.download(f"{self._ours(build_id)}/log", offset)

    def follow(
        self,
        build_id: str,
        *,
        offset: int = 0,
        events: int | None = None,
        chunks: bool = False,
        stop: threading.Event | None = None,
        on_lost: Callable[[ServerError], object] = lambda _: None,
        wait_limit_s: float = 600.0,
    ) -> Iterator[StreamItem]:
        """Follow a build to its end; see `buildrunner.client.stream`.

        Args:
            build_id: the build.
            offset: bytes of the log that the caller has.
            events: number of the last event that the caller has; None leaves events out.
            chunks: include the time and the step of each part of the log.
            stop: ends the stream early, within a second.
            on_lost: called when the connection is lost. The stream then reconnects and resumes.
            wait_limit_s: how long the server may be away.

        Raises:
            NotFound: the build does not exist, or its log was deleted.
            ServerUnavailable: the server was away for longer than ``wait_limit_s``.
        """
        from buildrunner.client.stream import BuildStream

        stream = BuildStream(
            self._server.http,
            f"{self._ours(build_id)}/log/stream",
            check=self._server.check,
            unreachable=self._server.unreachable,
        )
        return stream.items(
            offset=offset,
            sequence=events,
            chunks=chunks,
            stop=stop or threading.Event(),
            on_lost=on_lost,
            wait_limit_s=wait_limit_s,
        )

    @property
    def _parent(self) -> str:
        return f"projects/{self.project}"

    def _place(self, location: str) -> str:
        return f"{self._parent}/locations/{_segment(location)}" if location else self._parent

    def _build(self, build_id: str) -> str:
        return f"/v1/{self._parent}/builds/{_segment(build_id)}"

    def _ours(self, build_id: str) -> str:
        return f"{_OURS}/{self._parent}/builds/{_segment(build_id)}"


def _member(document: Document, *keys: str) -> Document:
    for key in keys:
        document = document.get(key) or {}
    return document


def _segment(text: str) -> str:
    from urllib.parse import quote

    return quote(text, safe="")


_PACK_S = 1800.0  # a server stores all of a large source before it answers
_HASHES_AT_ONCE = 10_000


class MissingBlobs(ServerError):
    """The server lacks contents of a manifest; ``sha256s`` are their digests."""

    def __init__(self, sha256s: Sequence[str]) -> None:
        super().__init__(f"the server lacks {len(sha256s)} files of the source", code=400)
        self.sha256s = tuple(sha256s)


class SourceClient:
    """Uploads sources to one project of a server. Thread-safe.

    Args:
        server: the connections.
        project: ``projects/PROJECT``.
    """

    def __init__(self, server: ServerConnection, project: str) -> None:
        self._server = server
        self._sources = f"/buildrunner/v1/{project}/sources"

    def missing_blobs(self, sha256s: Iterable[str]) -> set[str]:
        """Return those of these contents that the server lacks."""
        wanted = list(dict.fromkeys(sha256s))
        missing: set[str] = set()
        for start in range(0, len(wanted), _HASHES_AT_ONCE):
            body = {"sha256": wanted[start : start + _HASHES_AT_ONCE]}
            answer = self._server.json("POST", f"{self._sources}:missing", body=body)
            missing.update(answer["missing"])
        return missing

    def upload_blob(
        self, sha256: str, content: BinaryIO, size_bytes: int, on_bytes: Callable[[int], object]
    ) -> None:
        """Upload one content.

        Args:
            sha256: its digest.
            content: seekable.
            size_bytes: its size.
            on_bytes: called with the size of each piece; after a failure, with minus their sum.

        Raises:
            UsageError: the content has another size or digest.
        """
        import httpx

        tries = self._server.tries()
        while True:
            sent = 0

            def pieces() -> Iterator[bytes]:
                nonlocal sent
                content.seek(0)
                while piece := content.read(1 << 18):
                    sent += len(piece)
                    on_bytes(len(piece))
                    if sent > size_bytes:
                        break
                    yield piece
                if sent != size_bytes:
                    raise UsageError(f"what is uploaded has not {size_bytes} bytes any more")

            headers = {
                "Content-Length": str(size_bytes),
                "Content-Type": "application/octet-stream",
            }
            path = f"{self._sources}/blobs/{sha256}"
            try:
                self._server.check(self._server.http.put(path, content=pieces(), headers=headers))
            except httpx.TransportError as error:
                on_bytes(-sent)
                tries.failed(self._server.unreachable(error), error)
            except ServerUnavailable as error:
                on_bytes(-sent)
                tries.failed(error, error)
            else:
                return

    def make_source(self, body: Document) -> Document:
        """Return the ``source`` for a Build, from a manifest of uploaded contents.

        Raises:
            MissingBlobs: the server has deleted some contents meanwhile.
        """
        path = f"{self._sources}/manifests"
        try:
            source: Document = self._server.json("POST", path, body=body, answer_s=_PACK_S)[
                "source"
            ]
        except ServerError as error:
            for detail in error.details:
                if isinstance(detail, dict) and "missing" in detail:
                    raise MissingBlobs(detail["missing"]) from error
            raise
        return source
