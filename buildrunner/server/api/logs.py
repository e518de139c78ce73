"""Logs and events of builds: bytes, lines, search, streams.

Cloud Build has no method for logs (its clients read an object of ``logsBucket``); that object is
here too, for pollers that know Cloud Storage: ``GET /BUCKET/log-ID.txt`` with ``Range``.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from buildrunner.addresses import network_of
from buildrunner.errors import BuildrunnerError, NotFound, StoreUnavailable, UsageError
from buildrunner.logs.files.events import EventLogReader
from buildrunner.logs.files.reader import (
    LogFileReader,
    LogQuery,
    SearchResult,
    search_log,
    wants_more,
)
from buildrunner.server.context import ServerContext
from buildrunner.server.http.access import Access
from buildrunner.server.http.bodies import READ_SLOT, SEARCH_SLOT, read_slot, search_slot
from buildrunner.server.http.errors import ApiError, invalid_argument
from buildrunner.server.http.requests import ByteRange, client_address, parse_range, project_of
from buildrunner.server.http.tokens import PUBLIC_NAME
from buildrunner.server.logs.live import BuildWatches, StreamPosition, build_stream
from buildrunner.server.logs.view import LONGEST_LINE, KeptLogs, lines_answer, step_runs

DEFAULT_BUCKET = "buildrunner-logs"

STREAMS_OF_SOURCE = 50
STREAMS_OF_STRANGERS = 500
"""The most concurrent streams of callers without a token: per network, and in total."""
STREAMS_OF_TOKEN = 500
"""The most concurrent streams of one token."""

CHECKED_EVERY_S = 5.0
"""A stream sends nothing for longer than this unless its caller may still read."""

_BLOCK_BYTES = 1 << 18
_SEARCH_S = 2.0
_PREFIX = "/buildrunner/v1/projects/{project}/builds/{build}"
_TEXT = "text/plain; charset=utf-8"
_EVENT_STREAM = "text/event-stream"
_NDJSON = "application/x-ndjson"
# Proxies must not buffer streams.
_STREAM_HEADERS = {"X-Accel-Buffering": "no"}


def router(context: ServerContext, watches: BuildWatches | None = None) -> APIRouter:
    """Return the routes of this module.

    Args:
        context: the server's context.
        watches: the watches of streams. Close them to stop the server, since open streams delay
            its end. None creates them here.
    """
    routes = APIRouter(tags=["logs"])
    reading = [Depends(Access(context).may("read"))]
    logs = _Logs(context, watches or BuildWatches(context))
    paths: dict[str, Callable[..., Any]] = {
        "/log": logs.bytes,
        "/log/lines": logs.lines,
        "/log/steps": logs.steps,
        "/log/search": logs.search,
        "/log/stream": logs.stream,
        "/events": logs.events,
    }
    for path, route in paths.items():
        methods = ["GET", "HEAD"] if path == "/log" else ["GET"]
        if path in ("/log/search", "/log/lines", "/log/steps"):
            needed = [*reading, SEARCH_SLOT]
        elif path == "/log/stream":  # it lasts, and has limits of its own
            needed = reading
        else:
            needed = [*reading, READ_SLOT]
        routes.add_api_route(
            _PREFIX + path, route, methods=methods, dependencies=needed, response_class=Response
        )
    for path in ("/{bucket}/log-{build}.txt", "/{bucket}/{folder:path}/log-{build}.txt"):
        routes.add_api_route(path, logs.object, methods=["GET", "HEAD"], include_in_schema=False)
    return routes


class _Logs:
    """The routes, and the objects that they use."""

    def __init__(self, context: ServerContext, watches: BuildWatches) -> None:
        self._context = context
        self._access = Access(context)
        self._kept = KeptLogs(context)
        self._watches = watches
        self._strangers: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()

    async def bytes(
        self,
        request: Request,
        build: str,
        offset: Annotated[int, Query(ge=0)] = 0,
        limit: Annotated[int | None, Query(ge=0)] = None,
        range: Annotated[str, Header()] = "",
    ) -> Response:
        """Return the log, or the part that ``Range`` or ``offset`` and ``limit`` select."""
        reader = await run_in_threadpool(self._kept.reader, self._project(request), build)
        size = await run_in_threadpool(reader.size)
        wanted = None
        if not range and (offset or limit is not None):
            end = size if limit is None else min(size, offset + limit)
            return _text(reader, ByteRange(min(offset, end), end), size, 200)
        if range:
            wanted = _range(range, size)
        return _text(reader, wanted or ByteRange(0, size), size, 200 if wanted is None else 206)

    async def object(
        self,
        request: Request,
        bucket: str,
        build: str,
        folder: str = "",
        range: Annotated[str, Header()] = "",
    ) -> Response:
        """Return the log as the object of ``logsBucket`` that gcloud polls."""
        caller = await self._access.caller(request)
        async with read_slot(request, caller.name):
            stored = await run_in_threadpool(self._context.store.builds.find, build)
        if not caller.may("read", stored.document.get("projectId", "")):
            raise NotFound("no build of that id that the caller may see")
        place = stored.document.get("logsBucket") or DEFAULT_BUCKET
        if place.removeprefix("gs://").strip("/") != "/".join(filter(None, (bucket, folder))):
            raise NotFound(f"the log of build {build} is not in {bucket}")
        reader = await run_in_threadpool(self._kept.reader_of, stored)
        size = await run_in_threadpool(reader.size)
        if not size:
            raise NotFound(f"build {build} has written nothing yet")
        wanted = _range(range, size) if range else None
        return _text(reader, wanted or ByteRange(0, size), size, 200 if wanted is None else 206)

    async def lines(
        self,
        request: Request,
        build: str,
        start: int = 0,
        count: Annotated[int, Query(ge=0, le=10_000)] = 1000,
        since: datetime | None = None,
        step: Annotated[int | None, Query(ge=-1)] = None,
        width: Annotated[int, Query(ge=100, le=LONGEST_LINE)] = LONGEST_LINE,
    ) -> Response:
        """Return lines of the log with number, offset, time and step.

        A negative ``start`` counts from the end. ``since`` replaces ``start``, and selects lines
        from that time on. ``step`` selects the lines of one step; -1 selects the build's own lines.
        Lines longer than ``width`` bytes are cut, and ``bytes`` is their length. If the lines
        exceed 8 MiB, ``next`` is the number of the first omitted line, else null.
        """
        if since is not None and since.tzinfo is None:
            raise invalid_argument("since needs a time zone: 2024-05-31T12:00:00Z", field="since")
        reader = await run_in_threadpool(self._kept.reader, self._project(request), build)

        def answer() -> dict[str, Any]:
            return lines_answer(
                reader, start=start, count=count, since=since, step=step, width=width
            )

        return _json(await run_in_threadpool(answer))

    async def steps(self, request: Request, build: str) -> Response:
        """Return the lines of each step: runs of ``[step, first, line after the last]``."""
        reader = await run_in_threadpool(self._kept.reader, self._project(request), build)
        return _json(await run_in_threadpool(step_runs, reader))

    async def search(
        self,
        request: Request,
        build: str,
        q: str,
        regex: bool = False,
        ignore_case: Annotated[bool, Query(alias="ignoreCase")] = False,
        start: Annotated[int | None, Query(alias="from", ge=0)] = None,
        direction: Literal["next", "previous"] = "next",
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        accept: Annotated[str, Header()] = "",
    ) -> Response:
        """Search the whole log on the server.

        One call searches for two seconds at most, and returns at most ``limit`` matches. ``next``
        in the answer is the ``from`` of the next call, or null at the end. With ``Accept:
        application/x-ndjson`` the whole log is searched, and each part is sent as a line. If the
        caller has too many searches, the answer ends early, and the last ``next`` is not null.
        """
        try:
            query = LogQuery(q, regex=regex, ignore_case=ignore_case)
        except UsageError as error:
            raise invalid_argument(f"{error}; {error.hint}" if error.hint else str(error)) from None
        reader = await run_in_threadpool(self._kept.reader, self._project(request), build)
        backwards = direction == "previous"
        if start is None:
            start = await run_in_threadpool(reader.size) if backwards else 0

        def look(at: int) -> SearchResult:
            may_continue = wants_more(_SEARCH_S, time.monotonic)
            return search_log(
                reader, query, start=at, backwards=backwards, limit=limit, may_continue=may_continue
            )

        if _NDJSON not in accept:
            return _json(await run_in_threadpool(look, start))

        async def parts(at: int | None) -> AsyncIterator[bytes]:
            while at is not None:
                try:
                    async with search_slot(request):  # not while the part waits for its reader
                        result = await run_in_threadpool(look, at)
                except ApiError:
                    return
                yield msgspec.json.encode(result) + b"\n"
                at = result.next

        return StreamingResponse(parts(start), media_type=_NDJSON, headers=_STREAM_HEADERS)

    async def stream(
        self,
        request: Request,
        build: str,
        offset: Annotated[int, Query(ge=0)] = 0,
        events: Annotated[int | None, Query(ge=0)] = None,
        chunks: bool = False,
        text: bool = True,
        last_event_id: Annotated[str, Header()] = "",
    ) -> Response:
        """Send the log as server-sent events from ``offset`` on, until the build has ended.

        With ``events=N``, the stream also sends the build's events after number N. With
        ``chunks=true``, it sends the arrival time and the step of each part of the log. With
        ``text=false``, it sends the current size of the log in place of the text.
        """
        position = StreamPosition(offset, events, chunks, text).moved_to(last_event_id)
        return await self._stream(request, build, position)

    async def events(
        self,
        request: Request,
        build: str,
        after: Annotated[int, Query(ge=0)] = 0,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
        accept: Annotated[str, Header()] = "",
        last_event_id: Annotated[str, Header()] = "",
    ) -> Response:
        """Return the build's events after number ``after``: as JSON, or as server-sent events."""
        if _EVENT_STREAM in accept:
            position = StreamPosition(None, after).moved_to(last_event_id)
            return await self._stream(request, build, position)
        await run_in_threadpool(self._kept.check, self._project(request), build)
        reader = EventLogReader(self._kept.folder(build))
        found = await run_in_threadpool(reader.read, after=after, limit=limit)
        last = found[-1].sequence if found else after
        return _json({"events": [msgspec.Raw(event.line) for event in found], "last": last})

    async def _stream(self, request: Request, build: str, position: StreamPosition) -> Response:
        project = self._project(request)
        # Checked before the answer begins: an error can't be sent in the middle of a stream.
        await run_in_threadpool(self._kept.check, project, build)
        streams, source = self._streams_like(request)

        async def messages() -> Any:
            async with _counted(streams, source), self._watches.watch(project, build) as watch:
                checked_at = time.monotonic()
                async for message in build_stream(watch, self._kept.folder(build), position):
                    if time.monotonic() - checked_at > CHECKED_EVERY_S:
                        checked_at = time.monotonic()
                        if not await self._may_still_read(request, project):
                            return
                    yield message

        return StreamingResponse(messages(), media_type=_EVENT_STREAM, headers=_STREAM_HEADERS)

    def _streams_like(self, request: Request) -> tuple[Counter[str], str]:
        """Return the open streams of callers of this kind, and the key that counts this caller.

        Raises:
            ApiError: 429, the caller has too many streams already.
        """
        caller = request.state.caller.name
        if caller == PUBLIC_NAME:
            streams, key = self._strangers, network_of(client_address(request))
            is_full = streams[key] >= STREAMS_OF_SOURCE or streams.total() >= STREAMS_OF_STRANGERS
            whose = "without a token"
        else:
            streams, key = self._tokens, caller
            is_full = streams[key] >= STREAMS_OF_TOKEN
            whose = "of this token"
        if is_full:
            message = f"too many streams {whose} at the same time: try again later"
            raise ApiError(429, message, headers={"Retry-After": "10"})
        return streams, key

    async def _may_still_read(self, request: Request, project: str) -> bool:
        """Return whether the caller may still read: the token or the session may have ended."""
        try:
            return (await self._access.caller(request)).may("read", project)
        except StoreUnavailable:
            return True  # checked again with the next heartbeat
        except BuildrunnerError:
            return False

    def _project(self, request: Request) -> str:
        return project_of(request, self._context.settings.default_project)


@asynccontextmanager
async def _counted(streams: Counter[str], key: str) -> AsyncIterator[None]:
    """Count a stream until the block ends."""
    streams[key] += 1
    try:
        yield
    finally:
        streams[key] -= 1
        if not streams[key]:
            del streams[key]


def _range(header: str, size: int) -> ByteRange | None:
    try:
        return parse_range(header, size)
    except ValueError:
        raise ApiError(
            416,
            f"the log has {size} bytes by now",
            headers={"Content-Range": f"bytes */{size}"},
        ) from None


def _text(reader: LogFileReader, part: ByteRange, size: int, status: int) -> Response:
    headers = {
        "Accept-Ranges": "bytes",
        "Content-Length": str(part.end - part.start),
        "X-Log-Size": str(size),
    }
    if status == 206:
        headers["Content-Range"] = f"bytes {part.start}-{part.end - 1}/{size}"
    return StreamingResponse(_blocks(reader, part), status, headers, media_type=_TEXT)


def _blocks(reader: LogFileReader, part: ByteRange) -> Iterator[bytes]:
    offset = part.start
    while offset < part.end:
        block = reader.read(offset, min(_BLOCK_BYTES, part.end - offset))
        if not block:
            return  # deleted meanwhile: the answer ends early, which the client notices
        yield block
        offset += len(block)


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
