"""Answers of the API: builds and operations as JSON."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any, Final

import msgspec
from fastapi import Request
from fastapi.responses import Response

from buildrunner.server.http.requests import wants_enum_numbers
from buildrunner.spec.model.build import Build
from buildrunner.spec.model.message import Message
from buildrunner.spec.writing import rewritten

# The bucket in answers about builds that name none, since gcloud does not wait for such builds.
# Their logs are on the server, which serves this bucket itself.
LOGS_BUCKET: Final = "buildrunner-logs"

_TYPES = "type.googleapis.com/google.devtools.cloudbuild.v1"
_METADATA: Final = f"{_TYPES}.BuildOperationMetadata"
_BUILD: Final = f"{_TYPES}.Build"
# Final status -> google.rpc.Code and the sentence of the operation's error.
_ERRORS: Final = {
    "FAILURE": (2, "Build failed; check build logs for details"),
    "INTERNAL_ERROR": (13, "Build failed by an internal error"),
    "TIMEOUT": (4, "Build timed out"),
    "CANCELLED": (1, "Build was cancelled"),
    "EXPIRED": (4, "Build expired in the queue"),
}


# gcloud reads logs from fixed hosts, and fails if it can't, even if the build succeeds. It waits
# for the end without reading a log only if the build stores none.
_GCLOUD: Final = re.compile(r"\bcommand/gcloud(\.alpha|\.beta)?\.builds\.(submit|log)\b")


def json_response(value: Any, code: int = 200) -> Response:
    """Return ``value`` as a JSON answer."""
    return Response(msgspec.json.encode(value), code, media_type="application/json")


def shown_build(document: dict[str, Any]) -> dict[str, Any]:
    """Return the build for clients: its log always has a bucket."""
    if document.get("logsBucket"):
        return document
    return {**document, "logsBucket": f"gs://{LOGS_BUCKET}"}


def as_requested(
    request: Request, message: type[Message], document: dict[str, Any]
) -> dict[str, Any]:
    """Return a document with its enums in the requested form."""
    return rewritten(message, document, enum_numbers=wants_enum_numbers(request))


def build_response(request: Request, document: dict[str, Any]) -> Response:
    """Return a Build as an answer."""
    document = without_stream(document, request.headers.get("user-agent", ""))
    return json_response(as_requested(request, Build, shown_build(document)))


def operation_response(request: Request, document: dict[str, Any]) -> Response:
    """Return the Operation of a build as an answer."""
    document = without_stream(document, request.headers.get("user-agent", ""))
    return json_response(operation(document, enum_numbers=wants_enum_numbers(request)))


def without_stream(document: dict[str, Any], user_agent: str) -> dict[str, Any]:
    """Return the build in a form that gcloud can wait for, if gcloud requests it.

    The build changes only if it sets neither a logging option nor a bucket, and only for commands
    of gcloud that would read the log. The change is never stored, and ``gcloud builds describe``
    gets the unchanged build.
    """
    if document.get("logsBucket") or "logging" in document.get("options", {}):
        return document
    if not _GCLOUD.search(user_agent):
        return document
    return {**document, "options": {**document.get("options", {}), "logging": "NONE"}}


def operation(document: dict[str, Any], *, enum_numbers: bool = False) -> dict[str, Any]:
    """Return the current state of a build's long-running operation.

    It has only fields that the published client knows, since its poller refuses unknown fields.
    """
    build = rewritten(Build, shown_build(document), enum_numbers=enum_numbers, published_only=True)
    status = document["status"]
    answer: dict[str, Any] = {
        "name": operation_name(document["projectId"], document["id"]),
        "metadata": {"@type": _METADATA, "build": build},
        "done": False,
    }
    if status == "SUCCESS":
        answer |= {"done": True, "response": {"@type": _BUILD, **build}}
    elif status in _ERRORS:
        code, message = _ERRORS[status]
        detail = document.get("statusDetail") or document.get("failureInfo", {}).get("detail")
        text = f"{message}: {detail}" if detail else message
        answer |= {"done": True, "error": {"code": code, "message": text}}
    return answer


def operation_name(project: str, build_id: str) -> str:
    """Return the name of a build's operation.

    Source: names of the hosted service, as seen in public logs.
    """
    return f"operations/build/{project}/{base64.b64encode(build_id.encode()).decode()}"


def build_of_operation(name: str) -> tuple[str, str] | None:
    """Return project and build id in an operation's name; None if it is not one of this server's.

    Args:
        name: with or without the prefix ``operations/``.
    """
    parts = name.removeprefix("operations/").split("/")
    if len(parts) != 3 or parts[0] != "build":
        return None
    build_id = id_of_operation(parts[2])
    return (parts[1], build_id) if build_id else None


def id_of_operation(part: str) -> str:
    """Return the build id in the last part of a name, in base64 or plain; else empty."""
    if len(part) == 36 and part.count("-") == 4:
        return part
    try:
        return base64.b64decode(part, validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        return ""
