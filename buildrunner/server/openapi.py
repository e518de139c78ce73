"""The OpenAPI document, and the page that shows it (Swagger UI, served by us: no CDN)."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from base64 import b64encode
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, HTMLResponse, Response
from fastapi.routing import APIRoute

from buildrunner.server.http.access import Requirement, policy
from buildrunner.server.http.answers import json_response
from buildrunner.spec.schema import build_schema, trigger_schema

_ASSETS: Final = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon.png": "image/png",
}
_CACHED: Final = {"Cache-Control": "public, max-age=3600"}
_SCHEMAS: Final = "#/components/schemas/"
# End of the path and method -> what the body holds and what is answered.
_BODIES: Final[dict[tuple[str, str], tuple[str, str]]] = {
    ("/builds", "post"): ("Build", "Operation"),
    ("/builds", "get"): ("", "ListBuildsResponse"),
    ("/builds/{build}", "get"): ("", "Build"),
    ("{build}:cancel", "post"): ("Empty", "Build"),
    ("{build}:retry", "post"): ("Empty", "Operation"),
    ("{build}:approve", "post"): ("ApproveBuildRequest", "Operation"),
    ("/triggers", "post"): ("BuildTrigger", "BuildTrigger"),
    ("/triggers", "get"): ("", "ListBuildTriggersResponse"),
    ("/triggers/{trigger}", "get"): ("", "BuildTrigger"),
    ("/triggers/{trigger}", "patch"): ("BuildTrigger", "BuildTrigger"),
    ("/triggers/{trigger}", "delete"): ("", "Empty"),
    ("{trigger}:run", "post"): ("RunBuildTriggerRequest", "Operation"),
    ("{trigger}:webhook", "post"): ("Payload", "Empty"),
    ("{operation}", "get"): ("", "Operation"),
    ("{operation}:cancel", "post"): ("Empty", "Empty"),
}
_PAGING: Final = ("pageSize", "pageToken")
# End of the path and method -> query parameters.
_QUERIES: Final[dict[tuple[str, str], tuple[str, ...]]] = {
    ("/builds", "post"): (
        *("parent", "requestId", "push", "priority", "group", "groupLimit", "supersede"),
    ),
    ("/builds", "get"): ("filter", *_PAGING),
    ("{build}:retry", "post"): ("fromStep",),
    ("/triggers", "post"): ("forge", "forgeHost"),
    ("/triggers", "get"): _PAGING,
    ("/triggers/{trigger}", "patch"): ("updateMask",),
    ("{trigger}:webhook", "post"): ("secret", "key"),
    ("/audit", "get"): ("limit", "before"),
}
_REF: Final = "$ref"


def _ref(name: str) -> dict[str, Any]:
    return {_REF: f"{_SCHEMAS}{name}"}


def _list_of(field: str, name: str) -> dict[str, Any]:
    properties = {
        field: {"type": "array", "items": _ref(name)},
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
        "properties": {"approvalResult": _ref("ApprovalResult")},
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
        "properties": {"source": _ref("RepoSource")},
    },
    "Operation": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "metadata": {"type": "object", "properties": {"build": _ref("Build")}},
            "done": {"type": "boolean"},
            "error": _ref("Status"),
            "response": _ref("Build"),
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
    "Error": {"type": "object", "properties": {"error": _ref("Status")}},
}


def add_documentation(app: FastAPI, routers: Sequence[APIRouter]) -> None:
    """Add ``/openapi.json``, ``/docs`` and the files that the page needs.

    Args:
        app: where; the routes that it has when the page is first asked for are documented.
        routers: what was or will be included in it.
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
    """Swagger UI, which runs nothing but its own script and the one that starts it."""
    answer = get_swagger_ui_html(
        openapi_url="openapi.json",
        title="buildrunner API",
        swagger_js_url="docs/assets/swagger-ui-bundle.js",
        swagger_css_url="docs/assets/swagger-ui.css",
        swagger_favicon_url="docs/assets/favicon.png",
        swagger_ui_parameters={"validatorUrl": None},  # it would ask a server of others
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
    """The document: FastAPI's list of routes, with the messages of Cloud Build put in."""
    with warnings.catch_warnings():
        # One function may serve several methods; each gets an id of its own below.
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
    schemas["schemas"] = {**_message_schemas(), **_OWN_SCHEMAS}
    schemas["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"token": []}]
    return document


def scopes_of(routers: Iterable[APIRouter]) -> dict[tuple[str, str], str]:
    """Method and path -> scope that a token needs; what is not in it needs none."""
    found = {}
    for route in (route for router in routers for route in router.routes):
        if not isinstance(route, APIRoute):
            continue
        for part in route.dependant.dependencies:
            if isinstance(part.call, Requirement):
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
        *(
            {"name": name, "in": "query", "schema": {"type": "string"}}
            for name in _entry(_QUERIES, path, method) or ()
        ),
    ]
    bodies = _entry(_BODIES, path, method)
    if bodies:
        body, answer = bodies
        if body:
            operation["requestBody"] = {"content": {"application/json": {"schema": _ref(body)}}}
        operation["responses"] = {"200": _content("Done.", answer)}
    operation["responses"].pop("422", None)
    operation["responses"]["default"] = _content("Refused, or failed.", "Error")


def _entry(table: dict[tuple[str, str], Any], path: str, method: str) -> Any:
    if not path.startswith(("/v1/", "/buildrunner/v1/audit")):
        return None
    for (ending, wanted), value in table.items():
        if wanted == method and path.endswith(ending):
            return value
    return None


def _content(text: str, name: str) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": _ref(name)}}}


def _message_schemas() -> dict[str, Any]:
    definitions = {**build_schema()["$defs"], **trigger_schema()["$defs"]}
    moved: dict[str, Any] = _moved(definitions)
    return moved


def _moved(value: Any) -> Any:
    """The schema with its references pointing where OpenAPI keeps schemas."""
    if isinstance(value, dict):
        return {
            key: item.replace("#/$defs/", _SCHEMAS)
            if key == _REF and isinstance(item, str)
            else _moved(item)
            for key, item in value.items()
        }
    return [_moved(item) for item in value] if isinstance(value, list) else value
