"""Middleware of every request: audit log, metrics, one line in the server's log."""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import unquote_plus

from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from buildrunner.errors import StoreError
from buildrunner.logs.console.wording import printable
from buildrunner.server.context import ServerContext
from buildrunner.server.http.errors import ApiError, error_response
from buildrunner.store.model.access import AuditEntry

_log = logging.getLogger("buildrunner.requests")

_SECRETS: Final = ("secret", "key", "access_token")
_QUIET: Final = ("/healthz", "/readyz", "/metrics")
_WORKERS: Final = "/worker/v1/"


class Watch:
    """Wraps the whole application (pure ASGI, so that streams are not buffered)."""

    def __init__(self, app: ASGIApp, context: ServerContext) -> None:
        self._app = app
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward the request and record its result."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})
        begun = time.monotonic()
        answered = False

        async def noting(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                code = message["status"]
                self._note(scope, code, time.monotonic() - begun)
                await self._audit(scope, code)
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception:
            _log.exception("%s %s failed", scope["method"], scope["path"])
            if answered:
                raise
            answer = error_response(ApiError(500, "internal error: see the server's log"))
            await answer(scope, receive, noting)

    def _note(self, scope: Scope, code: int, seconds: float) -> None:
        route = scope.get("route")
        path = getattr(route, "path", "none")
        self._context.metrics.request_answered(scope["method"], path, code, seconds)
        quiet = scope["path"] in _QUIET or scope["path"].startswith(_WORKERS)
        if quiet and code < 400:
            return
        facts = {
            "method": scope["method"],
            "path": shown_target(scope),
            "code": code,
            "milliseconds": round(seconds * 1000, 1),
            "caller": _caller(scope),
            "address": _address(scope),
        }
        _log.info("%s %s %s", scope["method"], facts["path"], code, extra={"request": facts})

    async def _audit(self, scope: Scope, code: int) -> None:
        """Write the audit entry before the answer, so that a caller with the answer finds it."""
        noted = scope["state"].get("audit")
        # Refused requests of strangers are only in the server's log: they must not fill the
        # database.
        if noted is None or scope["state"].get("caller") is None:
            return
        action, target = noted
        entry = AuditEntry(
            at=self._context.clock(),
            who=_caller(scope),
            action=action,
            target=target,
            outcome=str(code),
            address=_address(scope),
        )
        try:
            await run_in_threadpool(self._context.store.audit.add, entry)
        except StoreError as error:
            _log.error("not in the audit log: %s %s: %s", action, target, error)


def shown_target(scope: Scope) -> str:
    """Return path and query of a request, unchanged but without the secrets of webhooks.

    Unchanged, since decoded ones may have spaces and line breaks: see `server_log`.
    """
    path: str = scope["raw_path"].decode("ascii", "backslashreplace")
    query = scope["query_string"].decode("ascii", "backslashreplace")
    shown = "&".join(map(_without_secret, query.split("&")))
    return f"{path}?{shown}" if shown else path


def _without_secret(parameter: str) -> str:
    name, equals, _ = parameter.partition("=")
    return f"{name}=***" if equals and unquote_plus(name).lower() in _SECRETS else parameter


def _caller(scope: Scope) -> str:
    caller: Any = scope["state"].get("caller")
    return caller.name if caller is not None else "nobody"


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""


# Facts that log calls pass by ``extra=``.
_EXTRAS: Final = ("build_id", "request")
_LEVELS: Final = {"WARNING": "WARN"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, severity, logger, message, and further facts."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "severity": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name in _EXTRAS:
            value = getattr(record, name, None)
            if value is not None:
                line[name] = value
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class TextFormatter(logging.Formatter):
    """A line for people: time, event, caller."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        at = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        request = getattr(record, "request", None)
        if request is not None:
            facts = f"{request['milliseconds']:g} ms {request['caller']} {request['address']}"
            return _entry(f"{at} {request['method']} {request['path']} {request['code']} {facts}")
        level = _LEVELS.get(record.levelname, record.levelname)
        text = f"{at} {level.lower()} {record.getMessage()}"
        if record.exc_info:
            text += f"\n{self.formatException(record.exc_info)}"
        return _entry(text)


def _entry(text: str) -> str:
    return printable(text).replace("\n", "\n  ")


def start_logging(form: str) -> None:
    """Send the log of this process to stderr.

    Args:
        form: ``text`` or ``json``.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("buildrunner").setLevel(logging.INFO)
