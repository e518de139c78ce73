"""Requests for the log of a build go to the server that has the log.

Servers of one database share everything but files. The log of a build, its events, attestations and
kept workspace are on the server that claimed the build, for its own worker or for a worker on
another host. Another server forwards a request for them, with the caller's own credentials, which
are valid on every server of the database. The answer is returned unchanged, and a stream while it
grows. Requests of workers about a log, and retries of the build, are forwarded, too.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress

import httpx
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from buildrunner.errors import StoreError
from buildrunner.server.context import ServerContext
from buildrunner.server.http.access import WorkerAccess
from buildrunner.server.http.bodies import body_pieces
from buildrunner.server.http.errors import ApiError, error_response, unavailable
from buildrunner.server.http.peers import Peers

PASSED_ON = "x-buildrunner-passed-on"
"""The header of a forwarded request, which is answered here and not forwarded again."""

_OF_BUILD = re.compile(
    r"/buildrunner/v1/projects/[^/]+/builds/(?P<api>[^/]+)/(?:log(?:/.*)?|events|provenance)"
    r"|/builds/[^/]+/(?P<page>[^/]+)(?:/log)?"
    r"|/(?:.+/)?log-(?P<object>[^/]+)\.txt"
)
_RETRY = re.compile(
    r"/v1/projects/[^/]+/(?:locations/[^/]+/)?builds/(?P<api>[^/:]+):retry"
    r"|/builds/[^/]+/(?P<page>[^/]+)/retry"
)
_FORWARDED = {"GET": _OF_BUILD, "HEAD": _OF_BUILD, "POST": _RETRY}
_OF_WORKER = re.compile(
    r"/worker/v1/builds/([^/:]+)(?::attest|:begin|:storeLog|/log|/events|/source|/workspace)"
)
# A quiet stream sends a comment every 15 s.
_TIMEOUT = httpx.Timeout(10.0, read=30.0)
# The upload of a log to a slow bucket takes minutes.
_WORKER_TIMEOUT = httpx.Timeout(10.0, read=300.0)
_MOST_BODY_BYTES = 16 << 20  # limit of a piece of a log
_CAME_FROM = "x-forwarded-for"
# These headers belong to one connection, not to the request.
_OF_CONNECTION = frozenset(
    (
        "connection",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)

_log = logging.getLogger("buildrunner.server")


class PassedOnStreams:
    """Ends forwarded answers when the server stops. Used only in the event loop of the server."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    def close(self) -> None:
        """End all forwarded answers, since the server stops. Viewers reconnect by themselves."""
        self.closed.set()


class CutShort(Exception):
    """The other server ended in the middle of its answer."""


class LogHome:
    """Forwards requests for logs to the servers that have them; an ASGI middleware.

    If the other server does not answer, the request is handled here. The routes of logs then report
    where the log is (`KeptLogs`), a page is rendered without it, and only a whole build is retried.
    A worker's request is refused, and so is a retry that the other server may have begun.

    Args:
        app: the next application.
        context: the server's context.
        streams: ends forwarded answers when the server stops.
        peers: the other servers.
    """

    def __init__(
        self, app: ASGIApp, context: ServerContext, streams: PassedOnStreams, peers: Peers
    ) -> None:
        self._app = app
        self._context = context
        self._streams = streams
        self._peers = peers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        url, of_worker = "", None
        if scope["type"] == "http" and PASSED_ON not in Headers(scope=scope):
            if of_worker := _OF_WORKER.fullmatch(scope["path"]):
                url = await run_in_threadpool(self._home, of_worker[1])
                if url and (refused := await self._refused(scope)):
                    await error_response(refused)(scope, receive, send)
                    return
            elif (paths := _FORWARDED.get(scope["method"])) and (
                found := paths.fullmatch(scope["path"])
            ):
                url = await run_in_threadpool(self._home, found[found.lastgroup or 0])
        if url and await self._passed_on(url, scope, receive, send):
            return
        if url and of_worker:  # a second copy of the log must not start here
            error = unavailable(f"the server {url}, which has the log, does not answer")
            await error_response(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _home(self, build_id: str) -> str:
        """Return the address of another server that has the log; empty for none."""
        try:
            if not (urls := self._peers.urls()):
                return ""  # with a single server, no lookup is needed
            return urls.get(self._context.store.servers.log_home(build_id), "")
        except StoreError:
            return ""  # the route reports the error

    async def _refused(self, scope: Scope) -> ApiError | None:
        """Return the error for a request without a valid worker token; None for a valid one."""
        try:
            await WorkerAccess(self._context)(Request(scope))
        except ApiError as refused:
            return refused
        return None

    async def _passed_on(self, url: str, scope: Scope, receive: Receive, send: Send) -> bool:
        request = Request(scope, receive)
        has_body = request.method in ("POST", "PUT")
        body = body_pieces(self._context, request, _MOST_BODY_BYTES) if has_body else None
        async with AsyncExitStack() as stack:
            try:
                client = await stack.enter_async_context(
                    self._client(url, of_worker=scope["path"].startswith("/worker/"))
                )
                target = httpx.URL(url).copy_with(raw_path=_target(scope))
                answer = await stack.enter_async_context(
                    client.stream(request.method, target, headers=_headers(request), content=body)
                )
            except ApiError as refused:
                await error_response(refused)(scope, receive, send)
                return True
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.InvalidURL):
                return False
            except httpx.HTTPError:
                if _RETRY.fullmatch(scope["path"]) is None:
                    return False
                text = f"the server {url} has not answered; look whether it has retried the build"
                await error_response(ApiError(504, text))(scope, receive, send)
                return True
            response = StreamingResponse(self._body(answer), answer.status_code)
            response.raw_headers = [
                (name.lower(), value)
                for name, value in answer.headers.raw
                if name.decode("latin-1").lower() not in _OF_CONNECTION
            ]
            # An incomplete answer is not ended: the server closes the connection, which the reader
            # notices.
            with suppress(CutShort):
                await response(scope, receive, send)
            return True

    def _client(self, url: str, *, of_worker: bool) -> httpx.AsyncClient:
        verify = self._peers.tls() if url.startswith("https:") else False
        timeout = _WORKER_TIMEOUT if of_worker else _TIMEOUT
        return httpx.AsyncClient(verify=verify, timeout=timeout, trust_env=False)

    async def _body(self, answer: httpx.Response) -> AsyncIterator[bytes]:
        """Yield an answer while it arrives.

        A stream of events may end early, any other answer may not.
        """
        is_stream = answer.headers.get("content-type", "").startswith("text/event-stream")
        pieces = answer.aiter_raw()
        closed = asyncio.ensure_future(self._streams.closed.wait())
        try:
            while True:
                piece = asyncio.ensure_future(anext(pieces, None))
                await asyncio.wait((piece, closed), return_when=asyncio.FIRST_COMPLETED)
                if closed.done():
                    piece.cancel()
                    break
                if (data := piece.result()) is None:
                    return
                yield data
        except httpx.HTTPError as error:
            _log.warning("an answer that is passed on breaks off: %s", error)
        finally:
            closed.cancel()
        if not is_stream:
            raise CutShort


def _target(scope: Scope) -> bytes:
    """Return path and query of a request, unchanged."""
    query: bytes = scope["query_string"]
    path: bytes = scope["raw_path"]
    return path + b"?" + query if query else path


def _headers(request: Request) -> list[tuple[bytes, bytes]]:
    """Return the headers to forward, unchanged, whatever their bytes."""
    left_out = {*_OF_CONNECTION, _CAME_FROM, "origin"}  # this server has checked the origin
    passed = [
        (name, value)
        for name, value in request.headers.raw
        if name.decode("latin-1").lower() not in left_out
    ]
    came_from = [value.encode("latin-1") for value in request.headers.getlist(_CAME_FROM)]
    if request.client:
        came_from.append(request.client.host.encode())
    own = ((_CAME_FROM, b", ".join(came_from)), (PASSED_ON, b"1"))
    return [*passed, *((name.encode(), value) for name, value in own)]
