"""What servers of Cloud Storage's API may answer, and Google's client takes amiss.

The client expects the answers that Cloud Storage mostly gives. Others are as legal, and servers
other than Google's give them: less kept of a piece than was sent, all of an object where its end
was asked for, an address without a host.
"""

from __future__ import annotations

import re
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urljoin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildrunner.storage.object_store import Content

_OK, _GO_ON = 200, 308
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

    def watch(self, session: Any) -> None:
        """Look at all answers of a session (of ``requests``) from now on."""
        session.hooks["response"].append(self._look)

    @contextmanager
    def uploading(self, content: Content) -> Iterator[None]:
        """What this thread sends until the end of the block comes from ``content``."""
        self._transfer.content = content
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

    def _look(self, response: Any, *_: Any, **__: Any) -> None:
        location = response.headers.get("Location")
        if location:
            response.headers["Location"] = urljoin(response.url, location)
        content = getattr(self._transfer, "content", None)
        kept = _KEPT.fullmatch(response.headers.get("Range", ""))
        if content is not None and response.status_code == _GO_ON and kept:
            content.seek(int(kept[1]) + 1)  # there the next piece begins, wherever this one ended
        into = getattr(self._transfer, "into", None)
        asked = _ASKED.match(response.request.headers.get("Range") or "")
        if into is not None and response.status_code == _OK and asked:
            into.skip(int(asked[1]))
