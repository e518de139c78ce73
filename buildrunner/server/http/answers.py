"""Builds, triggers and operations in the form in which they are answered."""

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

# The bucket that answers name where a build names none: gcloud refuses to wait for a build without
# one. Logs of such builds lie on the server, which answers for this bucket itself.
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


# gcloud takes logs from fixed hosts, and fails when it can't, though the build is well. Only where
# no log is kept does it wait for the end without looking for one.
_GCLOUD: Final = re.compile(r"\bcommand/gcloud(\.alpha|\.beta)?\.builds\.(submit|log)\b")


def json_response(value: Any, code: int = 200) -> Response:
    """``value`` as JSON."""
    return Response(msgspec.json.encode(value), code, media_type="application/json")


def shown_build(document: dict[str, Any]) -> dict[str, Any]:
    """The build as clients see it: its log has a bucket in any case."""
    if document.get("logsBucket"):
        return document
    return {**document, "logsBucket": f"gs://{LOGS_BUCKET}"}


def as_asked(request: Request, message: type[Message], document: dict[str, Any]) -> dict[str, Any]:
    """A document with its enums as the request wants them."""
    return rewritten(message, document, enum_numbers=wants_enum_numbers(request))


def build_response(request: Request, document: dict[str, Any]) -> Response:
    """A Build."""
    document = without_stream(document, request.headers.get("user-agent", ""))
    return json_response(as_asked(request, Build, shown_build(document)))


def operation_response(request: Request, document: dict[str, Any]) -> Response:
    """The Operation that stands for a build."""
    document = without_stream(document, request.headers.get("user-agent", ""))
    return json_response(operation(document, enum_numbers=wants_enum_numbers(request)))


def without_stream(document: dict[str, Any], user_agent: str) -> dict[str, Any]:
    """The build as gcloud can wait for it, when it is gcloud that asks.

    Only where the build itself says nothing about its log, and only for the commands that would
    look for it; nothing of this is stored, and ``gcloud builds describe`` sees the build as it is.
    """
    if document.get("logsBucket") or "logging" in document.get("options", {}):
        return document
    if not _GCLOUD.search(user_agent):
        return document
    return {**document, "options": {**document.get("options", {}), "logging": "NONE"}}


def operation(document: dict[str, Any], *, enum_numbers: bool = False) -> dict[str, Any]:
    """The long-running operation of a build, as of now.

    Nothing but what the published client knows is in it: its poller refuses unknown fields.
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
    """Name of a build's operation.

    Source: names of the hosted service, as seen in public logs.
    """
    return f"operations/build/{project}/{base64.b64encode(build_id.encode()).decode()}"


def build_of_operation(name: str) -> tuple[str, str] | None:
    """Project and build id in an operation's name; None when it is not one of ours.

    Args:
        name: with or without ``operations/`` before it.
    """
    parts = name.removeprefix("operations/").split("/")
    if len(parts) != 3 or parts[0] != "build":
        return None
    build_id = id_of_operation(parts[2])
    return (parts[1], build_id) if build_id else None


def id_of_operation(part: str) -> str:
    """The build id that the last part of a name stands for: in base64 or as it is; else empty."""
    if len(part) == 36 and part.count("-") == 4:
        return part
    try:
        return base64.b64decode(part, validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        return ""
