"""Parses requests: addresses, query parameters, ranges of bytes."""

from __future__ import annotations

import re
from typing import Final

import msgspec
from fastapi import Request
from starlette.requests import HTTPConnection

from buildrunner.server.context import ServerContext
from buildrunner.server.http.errors import invalid_argument
from buildrunner.server.http.tokens import PROJECT_ID, Caller

_LOCATION: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")
_PARENT: Final = re.compile(r"projects/([^/]+)(?:/locations/([^/]+))?")
MAX_PAGE: Final = 1000
DEFAULT_PAGE: Final = 50
_LONGEST_KEY: Final = 500


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
        """Return whether the path means all locations (``-``)."""
        return self.location == "-"


def project_of(request: Request, default: str) -> str:
    """Return the project that the path names; empty if it names none.

    Raises:
        ApiError: the project id is invalid.
    """
    project: str = request.path_params.get("project", "")
    if project == "-":
        return default
    if project and not PROJECT_ID.fullmatch(project):
        raise invalid_argument(f"{project!r} is no project id", field="projectId")
    return project


def address_of(context: ServerContext, request: Request) -> Address:
    """Return project and location of a request.

    ``?parent=projects/P/locations/L`` gives an address of the older form its location, as the
    official client sends it.

    Raises:
        ApiError: a name is invalid, or the parent is another project.
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
    """Return the ``requestId`` of a request as a key that no other caller can have.

    The server's own keys, of deliveries and schedules, have other prefixes: a caller who guessed
    one could otherwise pass off their own build as the build of a push.

    Raises:
        ApiError: it is too long.
    """
    given = parameter(request, "requestId")
    if len(given) > _LONGEST_KEY:
        message = f"a requestId has {_LONGEST_KEY} characters at most: use a UUID"
        raise invalid_argument(message, field="requestId")
    return f"caller/{caller.name}/{given}" if given else ""


def client_address(request: HTTPConnection) -> str:
    """Return the IP address of the client; behind a trusted proxy, the address that it reports."""
    return request.client.host if request.client else ""


def wants_enum_numbers(request: Request) -> bool:
    """Return whether the caller requests enums as numbers (``$alt=json;enum-encoding=int``)."""
    return "enum-encoding=int" in request.query_params.get("$alt", "")


def page_size(request: Request) -> int:
    """Return ``pageSize``: 50 by default, at most 1000.

    Raises:
        ApiError: the value is no number, or negative.
    """
    text = parameter(request, "pageSize") or "0"
    if not text.isascii() or not text.isdecimal() or len(text) > 10:
        raise invalid_argument(f"pageSize takes a number, not {text}", field="pageSize")
    return min(int(text) or DEFAULT_PAGE, MAX_PAGE)


def parameter(request: Request, name: str) -> str:
    """Return a query parameter in camelCase or snake_case; empty if it is missing."""
    value = request.query_params.get(name)
    if value is None:
        snake = re.sub(r"[A-Z]", lambda match: f"_{match.group().lower()}", name)
        value = request.query_params.get(snake, "")
    return value


def flag(request: Request, name: str, *, default: bool) -> bool:
    """Return a boolean query parameter.

    Raises:
        ApiError: the value is neither true nor false.
    """
    text = parameter(request, name).lower()
    if text in ("", "true", "false"):
        return default if not text else text == "true"
    raise invalid_argument(f"{name} takes true or false, not {text}", field=name)


def number(request: Request, name: str, *, low: int, high: int, default: int = 0) -> int:
    """Return an integer query parameter.

    Raises:
        ApiError: the value is no integer, or out of bounds.
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
    """Return the number of a database row in a page's address; 0 if it is invalid."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else 0


_FORM: Final = re.compile(r"bytes=(\d*)-(\d*)")


class ByteRange(msgspec.Struct, frozen=True):
    """Bytes ``start`` .. ``end`` - 1."""

    start: int
    end: int


def parse_range(header: str, size: int) -> ByteRange | None:
    """Return the requested part of ``size`` bytes; None for all of them.

    Raises:
        ValueError: the range is empty, or begins after the end (416).
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
