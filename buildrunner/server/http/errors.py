"""Error answers of the API: one shape for every failure.

Source: Google's error model: ``{"error": {"code", "message", "status", "details"}}``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from msgspec.structs import replace
from starlette.exceptions import HTTPException

from buildrunner.errors import (
    BuildrunnerError,
    ConfigError,
    Conflict,
    FilterError,
    NotFound,
    PageTokenError,
    StoreError,
    StoreUnavailable,
)
from buildrunner.problem import Problem, Severity

_log = logging.getLogger("buildrunner.server")

_LONGEST_PATH: Final = 200
NOT_FOUND: Final = "Requested entity was not found."
_BAD_REQUEST = "type.googleapis.com/google.rpc.BadRequest"
_STATUSES: Final = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED",
    409: "ABORTED",
    413: "INVALID_ARGUMENT",
    416: "OUT_OF_RANGE",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


class ApiError(BuildrunnerError):
    """A request that is refused.

    Attributes:
        code: HTTP status.
        status: name of the `google.rpc.Code`; by default the usual one of ``code``.
        details: further machine-readable parts.
        headers: headers that go with the status.
    """

    def __init__(
        self,
        code: int,
        message: str,
        *,
        status: str = "",
        details: Sequence[dict[str, Any]] = (),
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = status or _STATUSES.get(code, "UNKNOWN")
        self.details = list(details)
        self.headers = headers or {}


def invalid_argument(message: str, *, field: str = "") -> ApiError:
    """Return a 400: the request is invalid, whatever the state of the server."""
    details = [_violations([(field, message)])] if field else []
    return ApiError(400, message, details=details)


def failed_precondition(message: str, *, details: Sequence[dict[str, Any]] = ()) -> ApiError:
    """Return a 400: the request would be valid in another state of the server."""
    return ApiError(400, message, status="FAILED_PRECONDITION", details=details)


def already_exists(message: str) -> ApiError:
    """Return a 409: the name is taken."""
    return ApiError(409, message, status="ALREADY_EXISTS")


def permission_denied(message: str) -> ApiError:
    """Return a 403: the caller lacks the right."""
    return ApiError(403, message)


def unauthenticated(message: str) -> ApiError:
    """Return a 401: the credentials are invalid."""
    return ApiError(401, message, headers={"WWW-Authenticate": "Bearer"})


def unimplemented(message: str) -> ApiError:
    """Return a 405 for a method that this server lacks. gcloud would retry a 501 five times."""
    return ApiError(405, message, headers={"Allow": ""})


def unavailable(message: str) -> ApiError:
    """Return a 503: a dependency is unavailable now."""
    return ApiError(503, message, headers={"Retry-After": "10"})


def invalid_config(problems: Sequence[Problem], *, prefix: str = "") -> ApiError:
    """Return a 400 with all problems, in the message and as field violations."""
    wrong = [problem for problem in problems if problem.severity is Severity.ERROR]
    placed = [replace(problem, path=f"{prefix}{problem.path}") for problem in wrong]
    message = "; ".join(problem.text() for problem in placed)
    fields = [(each.path, each.text().removeprefix(f"{each.path}: ")) for each in placed]
    return ApiError(400, message, details=[_violations(fields)])


def _violations(fields: Sequence[tuple[str, str]]) -> dict[str, Any]:
    violations = [{"field": field, "description": text} for field, text in fields]
    return {"@type": _BAD_REQUEST, "fieldViolations": violations}


def error_response(error: ApiError) -> Response:
    """Return the answer to a refused request."""
    body: dict[str, Any] = {"code": error.code, "message": str(error), "status": error.status}
    if error.details:
        body["details"] = error.details
    content = msgspec.json.encode({"error": body})
    return Response(content, error.code, error.headers, media_type="application/json")


def as_api_error(error: Exception) -> ApiError:
    """Convert an error to an error of the API."""
    match error:
        case ApiError():
            return error
        case ConfigError():
            return invalid_config(error.problems)
        case NotFound():
            return ApiError(404, NOT_FOUND)
        case FilterError():
            return invalid_argument(_sentence(error), field="filter")
        case PageTokenError():
            return invalid_argument(_sentence(error), field="pageToken")
        case Conflict():
            return ApiError(409, _sentence(error))
        case StoreUnavailable():
            # A locked or restarting database: clients retry by themselves.
            _log.warning("a request is answered with 503: %s", _sentence(error))
            text = "the server's data can't be reached now: try again"
            return ApiError(503, text, headers={"Retry-After": "1"})
        case StoreError() if error.http_status == HTTPStatus.INTERNAL_SERVER_ERROR:
            # Its text names folders, or the database's host and user.
            _log.error("a request is answered with 500: %s", _sentence(error))
            return ApiError(500, "internal error: the server's log has the details")
        case BuildrunnerError():
            return ApiError(error.http_status, _sentence(error))
        case _:
            return ApiError(500, "internal error: the server's log has the details")


def _sentence(error: BuildrunnerError) -> str:
    return f"{error}; {error.hint}" if error.hint else str(error)


def _nothing_at(path: str) -> str:
    """Return why no route has a path."""
    if path.startswith("/v2/"):
        return (
            "this server has no Cloud Build v2 API (connections, repositories): triggers name "
            "their repository and forge themselves, in the v1 API"
        )
    return f"this server has no {quote(path)[:_LONGEST_PATH]}: /docs lists what it has"


def add_error_handlers(app: FastAPI, page: Callable[[Request, ApiError], Response]) -> None:
    """Let every failure of ``app`` have the same JSON form, or a page for browsers.

    Args:
        app: the application.
        page: renders an error for a browser.
    """

    def answered(request: Request, error: ApiError) -> Response:
        if "text/html" in request.headers.get("accept", ""):
            return page(request, error)
        return error_response(error)

    async def ours(request: Request, error: Exception) -> Response:
        answer = as_api_error(error)
        if answer.code >= 500:
            _log.error("%s %s: %s", request.method, request.url.path, error)
        return answered(request, answer)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101  (registered for it)
        code, headers = error.status_code, dict(error.headers or {})
        message = str(error.detail)
        if code == 404:
            message = _nothing_at(request.url.path)
        elif code == 405:
            message = "this path does not take this method"
        return answered(request, ApiError(code, message, headers=headers))

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101  (registered for it)
        texts = [f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors()]
        return answered(request, invalid_argument("; ".join(texts)))

    app.add_exception_handler(BuildrunnerError, ours)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
