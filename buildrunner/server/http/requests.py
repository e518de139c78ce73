"""Taking requests apart: addresses, query parameters, bodies with a limit."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import nullcontext
from typing import Any, Final

import msgspec
from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, HTTPConnection

from buildrunner.server.context import ServerContext
from buildrunner.server.http.access import project_of
from buildrunner.server.http.caller_slots import CallerSlots, is_large
from buildrunner.server.http.errors import ApiError, invalid_argument
from buildrunner.server.http.tokens import Caller

_LOCATION: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")
# A string that does not end reaches to the end of the body: else the search for its end would begin
# anew at each quotation mark in it, and take quadratic time.
_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_MARKS: Final = (b",", b"[", b"{")
_PARENT: Final = re.compile(r"projects/([^/]+)(?:/locations/([^/]+))?")
_MOST_DISCARDED: Final = 64 << 20
_DISCARDING_S: Final = 10.0
QUICK_BYTES: Final = 200_000
"""A body of fewer bytes is parsed in the event loop."""
MAX_PAGE: Final = 1000
DEFAULT_PAGE: Final = 50
MAX_VALUES: Final = 100_000
MAX_PAYLOAD_VALUES: Final = 1_000_000
MAX_TEXT: Final = 1 << 20


class Address(msgspec.Struct, frozen=True):
    """The resource that a path names.

    Attributes:
        project: its project.
        location: region or ``global``.
        regional: the path named the location; else the older address form was used.
    """

    project: str
    location: str
    regional: bool

    @property
    def any_location(self) -> bool:
        """Whether the path asks for all locations (``-``)."""
        return self.location == "-"


def address_of(context: ServerContext, request: Request) -> Address:
    """Project and location of a request.

    ``?parent=projects/P/locations/L`` gives an address of the older form its location, as the
    official client sends it.

    Raises:
        ApiError: a name that can't be, or a parent of another project.
    """
    settings = context.settings
    project = project_of(request, settings.default_project)
    location = request.path_params.get("location", "")
    if location:
        return Address(project, _location(location, settings.default_location), regional=True)
    parent = request.query_params.get("parent", "")
    if parent:
        match = _PARENT.fullmatch(parent)
        if not match or match.group(1) not in (project, "-"):
            message = f"parent must be projects/{project}/locations/LOCATION, not {parent}"
            raise invalid_argument(message, field="parent")
        location = match.group(2) or ""
    fallback = settings.default_location
    return Address(project, _location(location or fallback, fallback), regional=False)


def _location(name: str, default: str) -> str:
    if name == "-" or _LOCATION.fullmatch(name):
        return name
    message = f"{name!r} is no location: {default} or a region such as europe-west1"
    raise invalid_argument(message, field="location")


def idempotency_key(request: Request, caller: Caller) -> str:
    """Return the ``requestId`` of a request as a key that only its caller can have.

    The server's own keys, of deliveries and schedules, begin otherwise: a caller who guessed one
    could have a build of their own taken for the build of a push.
    """
    given = parameter(request, "requestId")
    return f"caller/{caller.name}/{given}" if given else ""


def client_address(request: HTTPConnection) -> str:
    """The IP address of the client; behind a trusted proxy, the one that the proxy reports."""
    return request.client.host if request.client else ""


def wants_enum_numbers(request: Request) -> bool:
    """Whether the caller asked for enums as numbers (``$alt=json;enum-encoding=int``)."""
    return "enum-encoding=int" in request.query_params.get("$alt", "")


def page_size(request: Request) -> int:
    """``pageSize``: 50 unless given, never more than 1000.

    Raises:
        ApiError: it is no number, or negative.
    """
    text = parameter(request, "pageSize") or "0"
    if not text.isascii() or not text.isdecimal() or len(text) > 10:
        raise invalid_argument(f"pageSize takes a number, not {text}", field="pageSize")
    return min(int(text) or DEFAULT_PAGE, MAX_PAGE)


def parameter(request: Request, name: str) -> str:
    """A query parameter in camelCase or snake_case; empty when it is not there."""
    value = request.query_params.get(name)
    if value is None:
        snake = re.sub(r"[A-Z]", lambda match: f"_{match.group().lower()}", name)
        value = request.query_params.get(snake, "")
    return value


def flag(request: Request, name: str, *, default: bool) -> bool:
    """A query parameter that is true or false.

    Raises:
        ApiError: it is neither.
    """
    text = parameter(request, name).lower()
    if text in ("", "true", "false"):
        return default if not text else text == "true"
    raise invalid_argument(f"{name} takes true or false, not {text}", field=name)


def number(request: Request, name: str, *, low: int, high: int, default: int = 0) -> int:
    """A query parameter that is a whole number.

    Raises:
        ApiError: it is none, or out of bounds.
    """
    text = parameter(request, name) or str(default)
    try:
        value = int(text) if len(text) < 20 else high + 1
    except ValueError:
        raise invalid_argument(f"{name} takes a number, not {text}", field=name) from None
    if not low <= value <= high:
        raise invalid_argument(f"{name} must be from {low} to {high}, not {text}", field=name)
    return value


def row_number(text: str) -> int:
    """The number of a database row that a page's address names; 0 when it is none."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else 0


def raw_body(context: ServerContext, limit: int) -> Callable[[Request], Awaitable[bytes]]:
    """A dependency: the body as it came, with at most ``limit`` bytes."""

    async def read(request: Request) -> bytes:
        pieces = [piece async for piece in body_pieces(context, request, limit)]
        return b"".join(pieces)

    return read


def json_text(
    context: ServerContext, limit: int, values: int = 0
) -> Callable[[Request], AsyncIterator[bytes]]:
    """A dependency behind that of the caller: the JSON text that a route decodes by itself.

    Large ones of one caller are handled two at a time.

    Args:
        context: the server's.
        limit: most bytes.
        values: most values in it; 0 if the route looks at them by itself.
    """
    read_raw = raw_body(context, limit)

    async def read(request: Request) -> AsyncIterator[bytes]:
        large: CallerSlots = request.app.state.large_bodies
        async with large.slot(request.state.caller.name) if is_large(request) else nullcontext():
            raw = await read_raw(request)
            if values:
                await run_in_threadpool(check_values, raw, values)
            yield raw

    return read


def json_body(
    context: ServerContext, limit: int = 0, *, payload: bool = False
) -> Callable[[Request], AsyncIterator[Any]]:
    """A dependency behind that of the caller: the body as parsed JSON; None when it is empty.

    Args:
        context: the server's.
        limit: most bytes; 0 for that of API calls.
        payload: the body is that of a forge's event, which may be of many values.
    """
    read_raw = raw_body(context, limit or context.settings.max_body_bytes)

    def parse(raw: bytes) -> Any:
        check_values(raw, MAX_PAYLOAD_VALUES if payload else MAX_VALUES)
        body = parsed(raw)
        if not payload:
            _check_texts(body)
        return body

    async def read(request: Request) -> AsyncIterator[Any]:
        large: CallerSlots = request.app.state.large_bodies
        async with large.slot(request.state.caller.name) if is_large(request) else nullcontext():
            raw = await read_raw(request)
            # A thread costs more than a small body; a large one would hold up all other requests.
            quick = len(raw) < QUICK_BYTES
            yield parse(raw) if quick else await run_in_threadpool(parse, raw)

    return read


def build_body(context: ServerContext) -> Callable[[Request], AsyncIterator[Any]]:
    """A dependency as `json_body`, for a build or a trigger: to check one takes long."""
    settings = context.settings
    return json_body(context, min(settings.max_build_bytes, settings.max_body_bytes))


def check_values(body: bytes, most: int) -> None:
    """Refuse JSON of very many values before it is parsed, which would take time and memory.

    The largest build that the rules allow has some 60,000 values.

    Raises:
        ApiError: there are more than ``most``, or about as many.
    """
    if _marks(body) > most and _marks(_STRING.sub(b"", body)) > most:
        raise invalid_argument(f"the body holds more than {most} values")


def _marks(body: bytes) -> int:
    """Count the values of a JSON text, except the first one of each object and list."""
    return sum(body.count(mark) for mark in _MARKS)


def _check_texts(body: Any) -> None:
    """Refuse texts that take long to check: longer than a script may be, or full of references."""
    references = 0
    pending = [body]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)
        elif isinstance(value, str):
            references += value.count("$")
            if len(value) > MAX_TEXT:
                raise invalid_argument(f"a text in the body is longer than {MAX_TEXT} characters")
        if references > MAX_VALUES:
            raise invalid_argument(f"the body holds more than {MAX_VALUES} references ($)")


def parsed(body: bytes) -> Any:
    """A JSON body; None when it is empty.

    Raises:
        ApiError: it is not JSON.
    """
    if not body.strip():
        return None
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise invalid_argument(f"the body is not JSON: {error}") from None


async def body_pieces(context: ServerContext, request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body as it arrives.

    Raises:
        ApiError: 413 when it is longer than ``limit`` bytes, 408 when it stops coming.
    """
    declared = request.headers.get("content-length", "")
    pieces = request.stream()
    if declared.isdecimal() and int(declared) > limit:
        if request.headers.get("expect", "").lower() != "100-continue":  # it has begun to send
            await _discard(pieces)
        raise _too_large(limit)
    taken = 0
    while True:
        try:
            async with asyncio.timeout(context.settings.body_timeout_s):
                piece = await anext(pieces, None)
        except TimeoutError:
            raise ApiError(
                408, "the body stopped coming", headers={"Connection": "close"}
            ) from None
        except ClientDisconnect:
            raise ApiError(400, "the client hung up in the middle of the body") from None
        if piece is None:
            return
        taken += len(piece)
        if taken > limit:
            await _discard(pieces)
            raise _too_large(limit)
        yield piece


async def _discard(pieces: AsyncIterator[bytes]) -> None:
    """Read what still comes, up to a bound.

    A client that is answered while it sends may find its connection reset before it reads why.
    """
    left = _MOST_DISCARDED
    try:
        async with asyncio.timeout(_DISCARDING_S):
            while left > 0 and (piece := await anext(pieces, None)) is not None:
                left -= len(piece)
    except (TimeoutError, ClientDisconnect):
        return


def _too_large(limit: int) -> ApiError:
    message = f"the body is larger than {limit} bytes, which is all that is taken here"
    return ApiError(413, message)


def as_mapping(body: Any) -> dict[str, Any]:
    """The body as a JSON object; empty when there is none.

    Raises:
        ApiError: it is something else.
    """
    if body is None:
        return {}
    if not isinstance(body, dict):
        raise invalid_argument("the body must be a JSON object")
    return body


def member(body: dict[str, Any], name: str) -> Any:
    """A member by its camelCase name, also in snake_case; None when it is not there."""
    if name in body:
        return body[name]
    return body.get(re.sub(r"[A-Z]", lambda match: f"_{match.group().lower()}", name))


_FORM: Final = re.compile(r"bytes=(\d*)-(\d*)")


class ByteRange(msgspec.Struct, frozen=True):
    """Bytes ``start`` .. ``end`` - 1."""

    start: int
    end: int


def parse_range(header: str, size: int) -> ByteRange | None:
    """The part of ``size`` bytes that is asked for; None for all of them.

    Raises:
        ValueError: nothing of it is there (416).
    """
    match = _FORM.fullmatch(header.strip())
    if match is None or match.group() == "bytes=-":
        return None
    first, last = match.groups()
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1 if last else size)
        if last and int(last) < start:
            return None
    if start >= end:
        raise ValueError(header)
    return ByteRange(start, end)
