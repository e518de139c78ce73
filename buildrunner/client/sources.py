"""The part of the client that uploads a source: what the server lacks of it, then a manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO

from buildrunner.client.http import Document, ServerConnection
from buildrunner.errors import ServerError, ServerUnavailable, UsageError

_PACK_S = 1800.0  # a server reads and writes all of a large source before it answers
_HASHES_AT_ONCE = 10_000


class MissingBlobs(ServerError):
    """Contents of a manifest that the server lacks; ``sha256s`` are their sums."""

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
        """Which of these contents the server lacks."""
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
        """Upload one content; ``on_bytes`` is told of each piece (less than zero: taken back).

        Raises:
            UsageError: it is not of that size, or has another sum.
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
        """The ``source`` for a Build, from a manifest of uploaded contents.

        Raises:
            MissingBlobs: the server has lost some of them since it was asked.
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
