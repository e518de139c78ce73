"""The OpenAPI document, the parts of it that routes declare, and the page that shows it.

The page is Swagger UI, served by this server: no CDN.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from base64 import b64encode
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import Any, Final, NamedTuple

import msgspec
from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, HTMLResponse, Response
from fastapi.routing import APIRoute

from buildrunner.server.http.access import Requirement, WorkerAccess, policy
from buildrunner.server.http.answers import json_response
from buildrunner.server.notifications.notifier import Notifier
from buildrunner.sources.uploads import SourceFile
from buildrunner.spec.schema import build_schema, trigger_schema
from buildrunner.triggers.hook_binding import HookBinding
from buildrunner.triggers.settings import TriggerSettings

SCHEMAS: Final = "#/components/schemas/"
JSON: Final = "application/json"
BYTES: Final = "application/octet-stream"


class Parameter(NamedTuple):
    """A query parameter: its name in camelCase, its JSON type, and what it does."""

    name: str
    kind: str
    text: str


PARENT: Final = Parameter(
    "parent", "string", "projects/P/locations/L: the location, for paths that name none."
)
PAGING: Final = (
    Parameter("pageSize", "integer", "How many at most: 50 unless given, 1000 at most."),
    Parameter("pageToken", "string", "nextPageToken of the answer before."),
)
REQUEST_ID: Final = Parameter(
    "requestId", "string", "A second request with the same key makes nothing new."
)
PUSH: Final = Parameter("push", "boolean", "false: push no images at the end.")
PRIORITY: Final = Parameter(
    "priority", "integer", "From -1000 to 1000; higher runs earlier in its project."
)
SUPERSEDE: Final = Parameter(
    "supersede", "string", "cancel_queued or cancel_all: older builds of the group."
)
GROUP: Final = (
    Parameter("group", "string", "Builds of one group of a project share a limit."),
    Parameter("groupLimit", "integer", "How many of the group run at the same time; 0: no limit."),
)
LIMIT: Final = Parameter("limit", "integer", "How many at most.")
BEFORE: Final = Parameter("before", "integer", "Only entries before this one; 0: the newest.")


def documented(
    *, body: str = "", answer: str = "", query: Iterable[Parameter] = (), media: str = JSON
) -> dict[str, Any]:
    """Return the ``openapi_extra`` of a route.

    Args:
        body: name of the body's schema; empty for a route without one.
        answer: name of the answer's schema; empty for FastAPI's own.
        query: the query parameters that the route reads.
        media: media type of the body.
    """
    extra: dict[str, Any] = {
        "parameters": [
            {
                "name": one.name,
                "in": "query",
                "description": one.text,
                "schema": {"type": one.kind},
            }
            for one in query
        ]
    }
    if body:
        schema = ref(body) if media == JSON else {"type": "string", "format": "binary"}
        extra["requestBody"] = {"content": {media: {"schema": schema}}}
    if answer:
        extra["responses"] = {"200": content("Done.", answer)}
    return extra


def ref(name: str) -> dict[str, Any]:
    """Return a reference to a schema of the document."""
    return {"$ref": f"{SCHEMAS}{name}"}


def content(text: str, name: str) -> dict[str, Any]:
    """Return an answer in JSON of a schema."""
    return {"description": text, "content": {JSON: {"schema": ref(name)}}}


_ASSETS: Final = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon.png": "image/png",
}
_CACHED: Final = {"Cache-Control": "public, max-age=3600"}
# Prefix of the names in the document -> the message, whose parts may have names of Cloud Build.
_OWN_MESSAGES: Final = {
    "HookBinding": HookBinding,
    "Notifier": Notifier,
    "SourceFile": SourceFile,
    "TriggerSettings": TriggerSettings,
}
_STRINGS: Final = {"type": "array", "items": {"type": "string"}}
_BUILD_OF_TEST: Final = {
    "buildId": {"type": "string", "description": "Empty: the newest build."},
    "status": {"type": "string", "description": "As if the build had this status."},
}


def _list_of(field: str, name: str) -> dict[str, Any]:
    properties = {
        field: {"type": "array", "items": ref(name)},
        "nextPageToken": {"type": "string"},
    }
    return {"type": "object", "properties": properties}


_OWN_SCHEMAS: Final[dict[str, Any]] = {
    "Empty": {"type": "object"},
    "Payload": {"description": "Any JSON, or the same wrapped into an HttpBody message."},
    "ListBuildsResponse": _list_of("builds", "Build"),
    "ListBuildTriggersResponse": _list_of("triggers", "BuildTrigger"),
    "ApproveBuildRequest": {
        "type": "object",
        "properties": {"approvalResult": ref("ApprovalResult")},
    },
    "ApprovalResult": {
        "type": "object",
        "required": ["decision"],
        "properties": {
            "decision": {"enum": ["APPROVED", "REJECTED", 1, 2]},
            "comment": {"type": "string"},
            "url": {"type": "string"},
        },
    },
    "RunBuildTriggerRequest": {
        "description": "The older address form takes the RepoSource itself.",
        "type": "object",
        "properties": {"source": ref("RepoSource")},
    },
    "Operation": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "metadata": {"type": "object", "properties": {"build": ref("Build")}},
            "done": {"type": "boolean"},
            "error": ref("Status"),
            "response": ref("Build"),
        },
    },
    "Status": {
        "type": "object",
        "properties": {
            "code": {"type": "integer"},
            "message": {"type": "string"},
            "status": {"type": "string"},
            "details": {"type": "array", "items": {"type": "object"}},
        },
    },
    "Error": {"type": "object", "properties": {"error": ref("Status")}},
    "MissingRequest": {
        "description": "SHA-256 sums of files, in hex.",
        "type": "object",
        "required": ["sha256"],
        "properties": {"sha256": _STRINGS},
    },
    "NewToken": {
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"type": "string"},
            "scopes": _STRINGS,
            "projects": _STRINGS,
            "pool": {"type": "string", "description": "Of the token of a worker."},
        },
    },
    "WorkerClaim": {
        "type": "object",
        "required": ["worker"],
        "properties": {
            "worker": {"type": "string", "description": "The same after a restart."},
            "pool": {"type": "string"},
            "buildId": {"type": "string", "description": "The only build that it wants."},
            "limit": {"type": "integer", "description": "How many builds it runs at once."},
            "isolation": {"type": "string"},
            "waitS": {"type": "number", "description": "How long to wait for a build."},
        },
    },
    "NotifierTest": {"type": "object", "properties": _BUILD_OF_TEST},
    "NotifierTrial": {
        "type": "object",
        "required": ["notifier"],
        "properties": {"notifier": ref("Notifier"), **_BUILD_OF_TEST},
    },
    "SourceManifest": {
        "description": "Either files or archive.",
        "type": "object",
        "properties": {
            "files": {"type": "array", "items": ref("SourceFile")},
            "archive": {
                "type": "object",
                "required": ["sha256", "name"],
                "properties": {"sha256": {"type": "string"}, "name": {"type": "string"}},
            },
        },
    },
    "TrialEvent": {
        "description": "A payload (event, with hook and headers), or a push or pull request.",
        "type": "object",
        "properties": {
            "hook": {"type": "string"},
            "headers": {"type": "object", "additionalProperties": {"type": "string"}},
            "event": {"type": "object"},
            "ref": {"type": "string", "description": "Branch, or refs/tags/TAG."},
            "baseBranch": {"type": "string", "description": "Of a pull request."},
            "files": _STRINGS,
            "message": {"type": "string"},
            "comment": {"type": "string"},
            "writer": {"type": "boolean", "description": "Whether the author may write."},
            "fork": {"type": "boolean"},
        },
    },
}


def add_documentation(app: FastAPI, routers: Sequence[APIRouter]) -> None:
    """Add ``/openapi.json``, ``/docs`` and the files that the page needs.

    Args:
        app: the application. Its routes at the first request for the page are documented.
        routers: the routers that it includes.
    """

    def document() -> Response:
        if app.openapi_schema is None:
            app.openapi_schema = openapi_document(app, routers)
        return json_response(app.openapi_schema)

    def asset(name: str) -> Response:
        if name not in _ASSETS:
            return Response(status_code=404)
        path = os.path.join(_assets_folder(), name)
        return FileResponse(path, media_type=_ASSETS[name], headers=_CACHED)

    app.add_api_route("/openapi.json", document, methods=["GET"], include_in_schema=False)
    app.add_api_route("/docs", _page, methods=["GET"], include_in_schema=False)
    app.add_api_route("/docs/assets/{name}", asset, methods=["GET"], include_in_schema=False)


def _page() -> HTMLResponse:
    """Return the page of Swagger UI, which runs only its own script and the one that starts it."""
    answer = get_swagger_ui_html(
        openapi_url="openapi.json",
        title="buildrunner API",
        swagger_js_url="docs/assets/swagger-ui-bundle.js",
        swagger_css_url="docs/assets/swagger-ui.css",
        swagger_favicon_url="docs/assets/favicon.png",
        # The validator would send the document to another server.
        swagger_ui_parameters={"validatorUrl": None},
    )
    inline = re.findall(rb"<script>(.*?)</script>", bytes(answer.body), re.DOTALL)
    sums = [b64encode(hashlib.sha256(script).digest()).decode() for script in inline]
    script = " ".join(["'self'", *(f"'sha256-{each}'" for each in sums)])
    answer.headers["Content-Security-Policy"] = policy(script=script, image="'self' data:")
    return answer


def _assets_folder() -> str:
    spec = find_spec("fastapi_offline")
    assert spec is not None  # noqa: S101  (a dependency of the server)
    assert spec.origin is not None  # noqa: S101
    return os.path.join(os.path.dirname(spec.origin), "static")


def openapi_document(app: FastAPI, routers: Iterable[APIRouter]) -> dict[str, Any]:
    """Return the document: FastAPI's list of routes, with the messages of Cloud Build."""
    with warnings.catch_warnings():
        # One function may serve several methods, each of which gets its own id below.
        warnings.filterwarnings("ignore", "Duplicate Operation ID")
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    scopes = scopes_of(routers)
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            _describe(path, method, operation)
            scope = scopes.get((method.upper(), path))
            if scope:
                text = operation.get("description", "")
                operation["description"] = f"{text} Needs scope {scope}.".strip()
    schemas = document.setdefault("components", {})
    schemas["schemas"] = {**_message_schemas(), **_own_schemas(), **_OWN_SCHEMAS}
    schemas["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"token": []}]
    return document


def scopes_of(routers: Iterable[APIRouter]) -> dict[tuple[str, str], str]:
    """Return the required scope by method and path; other routes need none."""
    found = {}
    for route in (route for router in routers for route in router.routes):
        if not isinstance(route, APIRoute):
            continue
        for part in route.dependant.dependencies:
            if isinstance(part.call, Requirement | WorkerAccess):
                for method in route.methods or ():
                    found[method, route.path_format] = part.call.scope
    return found


def _describe(path: str, method: str, operation: dict[str, Any]) -> None:
    operation["operationId"] = re.sub(r"[^A-Za-z0-9]+", "_", f"{method}{path}").strip("_")
    operation["parameters"] = [
        *(
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in re.findall(r"\{([^}]*)\}", path)
        ),
        *(p for p in operation.get("parameters", []) if p["in"] != "path"),
    ]
    operation["responses"].pop("422", None)
    operation["responses"]["default"] = content("Refused, or failed.", "Error")


def _own_schemas() -> dict[str, Any]:
    schemas: dict[str, Any] = {}
    for name, message in _OWN_MESSAGES.items():
        (top,), parts = msgspec.json.schema_components(
            (message,), ref_template=f"{SCHEMAS}{name}.{{name}}"
        )
        schemas[name] = top
        schemas |= {f"{name}.{part}": schema for part, schema in parts.items()}
    return schemas


def _message_schemas() -> dict[str, Any]:
    definitions = {**build_schema()["$defs"], **trigger_schema()["$defs"]}
    moved: dict[str, Any] = _moved(definitions)
    return moved


def _moved(value: Any) -> Any:
    """Return the schema with its references moved to OpenAPI's place of schemas."""
    if isinstance(value, dict):
        return {
            key: item.replace("#/$defs/", SCHEMAS)
            if key == "$ref" and isinstance(item, str)
            else _moved(item)
            for key, item in value.items()
        }
    return [_moved(item) for item in value] if isinstance(value, list) else value
