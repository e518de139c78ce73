"""Routes of the provenance of builds, and of the public key that verifies it."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable

from fastapi import APIRouter, Depends, Request, Response

from buildrunner.errors import AttestationError
from buildrunner.logs.files.log_file import log_folder
from buildrunner.provenance.stored import read_attestations
from buildrunner.server.context import ServerContext
from buildrunner.server.http.access import Access
from buildrunner.server.http.bodies import READ_SLOT
from buildrunner.server.http.errors import unavailable
from buildrunner.server.http.requests import address_of
from buildrunner.server.http.tokens import Caller
from buildrunner.server.openapi import PARENT, documented
from buildrunner.server.services.builds import Builds

_ENVELOPES = "application/jsonl"
_PEM = "application/x-pem-file"
_NO_KEY = "the key of provenance can't be had now: the server's log says why"
_RETRY_S = 60.0

_log = logging.getLogger("buildrunner.server")


class _PublicKey:
    """The public key, read once. Thread-safe.

    Everyone can request the key. If it can't be read, it is not read again for a minute. The reason
    goes only to the log, since it names files of the server.

    Args:
        read: reads the key.
        now: a monotonic clock, in seconds.
    """

    def __init__(self, read: Callable[[], str], now: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._now = now
        self._lock = threading.Lock()
        self._pem = ""
        self._failed_at = -math.inf

    def pem(self) -> str:
        """Return the key as PEM text. Raises `ApiError`."""
        if self._pem:
            return self._pem
        if not self._lock.acquire(blocking=False):
            raise unavailable(_NO_KEY)
        try:
            if self._now() - self._failed_at < _RETRY_S:
                raise unavailable(_NO_KEY)
            self._pem = self._read()
        except AttestationError as error:
            self._failed_at = self._now()
            _log.error("the key of provenance can't be used: %s; %s", error, error.hint)
            raise unavailable(_NO_KEY) from None
        finally:
            self._lock.release()
        return self._pem


def router(context: ServerContext) -> APIRouter:
    """Return the routes. The public key needs no token, since a verifier of images has none."""
    access = Access(context)
    builds = Builds(context)
    key = _PublicKey(context.provenance_key)
    routes = APIRouter(tags=["more about builds"])

    def provenance(
        request: Request,
        build: str,
        _: Caller = Depends(access.may("read")),
        _slot: None = READ_SLOT,
    ) -> Response:
        """Return the signed provenance of the build's artifacts: DSSE envelopes, one per line."""
        stored = builds.find(address_of(context, request), build)
        folder = log_folder(context.data_folder, stored.id)
        return Response(read_attestations(folder, stored.id), media_type=_ENVELOPES)

    def public_key() -> Response:
        """Return the public key that verifies the provenance of this server's builds, as PEM."""
        return Response(key.pem(), media_type=_PEM)

    routes.add_api_route(
        "/buildrunner/v1/projects/{project}/builds/{build}/provenance",
        provenance,
        methods=["GET"],
        openapi_extra=documented(query=(PARENT,)),
    )
    routes.add_api_route("/buildrunner/v1/provenance-key", public_key, methods=["GET"])
    return routes
