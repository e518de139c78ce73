"""A registry of one repository, through which a build's own engine pulls an image without a login.

See `push_gateway`: the build's steps control the engine of a Pod, too.
"""

from __future__ import annotations

import re
import socket

import httpx

from buildrunner.registries.push_gateway import PushGateway, Refused, RegistryClient

_DIGEST = r"[a-z0-9+._-]+:[0-9a-fA-F]{32,}"
_CONTENT = re.compile(rf"(?:blobs|manifests)/{_DIGEST}")


class PullGateway(PushGateway):
    """Serves a pull until it is closed. A context manager.

    Args:
        listener: accepts the connections of the build's engine. Closed with the gateway.
        client: the registry. Not closed.
        repository: the only repository that is read.
        reference: the tag or digest of the image.
    """

    sent = ("Accept", "Range")
    returned = (*PushGateway.returned, "Accept-Ranges", "Content-Range")
    sends_blobs = True

    def __init__(
        self, listener: socket.socket, client: RegistryClient, repository: str, reference: str
    ) -> None:
        super().__init__(listener, client, repository, reference)

    def target(self, method: str, path: str, query: str) -> str:  # noqa: ARG002
        """See `PushGateway.target`: the image's manifests, and blobs of its repository.

        Raises:
            Refused: the request does not belong to the pull.
        """
        inner = path.removeprefix(f"/v2/{self.repository}/")
        is_content = inner == f"manifests/{self.tag}" or _CONTENT.fullmatch(inner)
        if inner != path and method in ("GET", "HEAD") and is_content:
            return path
        raise Refused(403, "DENIED", "this is not part of the pull of the build's image")

    def note(self, method: str, path: str, answer: httpx.Response, digest: str) -> None:
        """See `PushGateway.note`: the digest is that of the image's manifest."""
        is_whole = answer.status_code == httpx.codes.OK
        if not path.endswith(f"/manifests/{self.tag}") or not is_whole:
            return
        if method == "GET":
            self.digest = digest
        elif not self.digest:  # the engine then requests the manifest by this digest
            self.digest = answer.headers.get("Docker-Content-Digest", "")
