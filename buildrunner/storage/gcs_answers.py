"""What servers of Cloud Storage's API may answer, and Google's client takes amiss.

The client expects the answers that Cloud Storage mostly gives. Others are as legal, and servers
other than Google's give them: less kept of a piece than was sent, or nothing of it, all of an
object where its end was asked for, an address without a host. And it sends a piece anew as a whole
when the connection broke on the way: Cloud Storage leaves out what it has, others refuse it.
"""

from __future__ import annotations

import re
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urljoin, urlsplit

from buildrunner.storage.gcs_errors import OUT_OF_STEP

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildrunner.storage.object_store import Content

_OK, _GO_ON, _BROKEN = 200, 308, 500
_KEPT = re.compile(r"bytes=0-(\d+)")
_ASKED = re.compile(r"bytes=(\d+)-")


class Skipping(Protocol):
    """What an object is read into."""

    def skip(self, count: int) -> None:
        """Leave out so many bytes of what comes."""
        ...


class AnswerReader:
    """Looks at each answer before the client does. Transfers are bound to their threads."""

    def __init__(self) -> None:
        self._transfer = threading.local()
        self._send: Any = None

    def watch(self, session: Any) -> None:
        """Look at all answers of a session (of ``requests``) from now on."""
        session.hooks["response"].append(self._look)
        self._send = session.send
        session.send = self._sent

    @contextmanager
    def uploading(self, content: Content) -> Iterator[None]:
        """What this thread sends until the end of the block comes from ``content``."""
        self._transfer.content = content
        self._transfer.in_doubt = False
        try:
            yield
        finally:
            self._transfer.content = None

    @contextmanager
    def downloading(self, into: Skipping) -> Iterator[None]:
        """What this thread is sent until the end of the block goes to ``into``."""
        self._transfer.into = into
        try:
            yield
        finally:
            self._transfer.into = None

    def _sent(self, request: Any, **options: Any) -> Any:
        """Send a request; ask how to go on where a piece that may have arrived is refused."""
        if getattr(self._transfer, "content", None) is None or request.method != "PUT":
            return self._send(request, **options)
        again, self._transfer.in_doubt = self._transfer.in_doubt, True
        answer = self._send(request, **options)
        if again and answer.status_code in OUT_OF_STEP:
            kept = self._send(_question_about(request), **options)
            answer = kept if kept.status_code in (_OK, _GO_ON) else answer
        self._transfer.in_doubt = answer.status_code >= _BROKEN
        return answer

    def _look(self, response: Any, *_: Any, **__: Any) -> None:
        location = response.headers.get("Location")
        if location:
            response.headers["Location"] = _place(response.url, location)
        content = getattr(self._transfer, "content", None)
        if content is not None and response.status_code == _GO_ON:
            _go_on_with(content, response)
        into = getattr(self._transfer, "into", None)
        asked = _ASKED.match(response.request.headers.get("Range") or "")
        if into is not None and response.status_code == _OK and asked:
            into.skip(int(asked[1]))


def _place(asked: str, location: str) -> str:
    """Where an answer sends us; a server behind a proxy may not know that we speak TLS to it."""
    place, base = urlsplit(urljoin(asked, location)), urlsplit(asked)
    if place.netloc == base.netloc and base.scheme == "https":
        place = place._replace(scheme="https")
    return place.geturl()


def _question_about(piece: Any) -> Any:
    """How much of an upload is kept, asked instead of a piece of it.

    Source: Cloud Storage's resumable uploads: an empty PUT with ``Content-Range: bytes */SIZE``.
    """
    question = piece.copy()
    question.body = None
    question.headers["Content-Length"] = "0"
    size = piece.headers["Content-Range"].rpartition("/")[2]
    question.headers["Content-Range"] = f"bytes */{size}"
    return question


def _go_on_with(content: Content, response: Any) -> None:
    """The next piece begins behind what was kept, wherever this one ended.

    Source: Cloud Storage names no range when it has kept nothing yet.

    Raises:
        requests.ConnectionError: nothing was kept of the first piece: it is to be sent once more.
    """
    kept = _KEPT.fullmatch(response.headers.get("Range", ""))
    sent = response.request.headers.get("Content-Range") or ""
    if kept:
        content.seek(int(kept[1]) + 1)
    elif "Range" not in response.headers and sent.startswith("bytes 0-"):
        import requests

        response.close()
        raise requests.ConnectionError("the server has kept nothing of what it was sent")
