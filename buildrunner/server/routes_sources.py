"""Our own routes of sources: upload what the server lacks, then name it as the source of a build.

Files are known by their SHA-256 sums, per project. A folder that hardly changed since the last
build costs one question and the files that changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from fastapi import APIRouter, Depends, Request, Response
from starlette.concurrency import run_in_threadpool

from buildrunner.errors import StorageError, UsageError
from buildrunner.server.access import Access, note_target, project_of
from buildrunner.server.answers import json_response
from buildrunner.server.errors import ApiError, failed_precondition, invalid_argument
from buildrunner.server.requests import as_mapping, body_pieces, json_body
from buildrunner.server.tokens import Caller
from buildrunner.sources.source_uploads import MissingBlobs, SourceFile, as_source, is_sum

if TYPE_CHECKING:
    from buildrunner.server.context import ServerContext

_MAX_SUMS = 10_000
_MAX_MANIFEST_BYTES = 256 << 20
# Hashing and writing go on in a thread; it is woken for pieces of this size, not for every packet.
_PIECE_BYTES = 1 << 20


def router(context: ServerContext) -> APIRouter:
    """The routes."""
    access = Access(context)
    routes = APIRouter(prefix="/buildrunner/v1/projects/{project}", tags=["sources"])

    def project_in(request: Request) -> str:
        return project_of(request, context.settings.default_project)

    def missing(
        request: Request,
        _: Caller = Depends(access.may("submit")),
        body: Any = Depends(json_body(context)),
    ) -> Response:
        """Which of these files the server lacks."""
        sums = _sums(as_mapping(body).get("sha256"))
        return json_response({"missing": context.uploads.missing(project_in(request), sums)})

    async def upload(
        request: Request, sha256: str, _: Caller = Depends(access.may("submit"))
    ) -> Response:
        """Take one file."""
        if not is_sum(sha256):
            raise invalid_argument("the path must end in 64 hexadecimal digits", field="sha256")
        await _receive(context, request, project_in(request), sha256)
        return Response(status_code=204)

    def manifest(
        request: Request,
        _: Caller = Depends(access.may("submit", "sources.create")),
        body: Any = Depends(json_body(context, _MAX_MANIFEST_BYTES)),
    ) -> Response:
        """Make a source of uploaded files, or of an uploaded archive."""
        project = project_in(request)
        try:
            name = _object_of(context, project, as_mapping(body))
        except MissingBlobs as error:
            raise failed_precondition(str(error), details=[{"missing": error.sums}]) from error
        except UsageError as error:
            raise invalid_argument(str(error)) from error
        except StorageError as error:
            raise ApiError(503, str(error)) from error
        note_target(request, project, name)
        return json_response({"source": as_source(name)})

    routes.add_api_route("/sources:missing", missing, methods=["POST"])
    routes.add_api_route("/sources/blobs/{sha256}", upload, methods=["PUT"])
    routes.add_api_route("/sources/manifests", manifest, methods=["POST"])
    return routes


def _sums(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(v, str) and is_sum(v) for v in value):
        raise invalid_argument("sha256 must be a list of SHA-256 sums in hex", field="sha256")
    if len(value) > _MAX_SUMS:
        message = f"{_MAX_SUMS} sums a call are the most, not {len(value)}"
        raise invalid_argument(message, field="sha256")
    return value


async def _receive(context: ServerContext, request: Request, project: str, sha256: str) -> None:
    try:
        receiver = await run_in_threadpool(context.uploads.receive, project, sha256)
        try:
            waiting = bytearray()
            async for piece in body_pieces(context, request, context.settings.max_blob_bytes):
                waiting += piece
                if len(waiting) >= _PIECE_BYTES:
                    await run_in_threadpool(receiver.write, bytes(waiting))
                    waiting.clear()
            await run_in_threadpool(receiver.write, bytes(waiting))
            await run_in_threadpool(receiver.finish)
        finally:
            receiver.abandon()
    except UsageError as error:
        raise invalid_argument(str(error), field="sha256") from error
    except StorageError as error:
        raise ApiError(503, str(error)) from error


def _object_of(context: ServerContext, project: str, body: dict[str, Any]) -> str:
    if "archive" in body:
        archive = as_mapping(body["archive"])
        sha256, name = archive.get("sha256"), archive.get("name")
        if not isinstance(sha256, str) or not is_sum(sha256) or not isinstance(name, str):
            raise invalid_argument("archive needs sha256 and name", field="archive")
        return context.uploads.adopt(project, sha256, name)
    try:
        files = msgspec.convert(body.get("files"), list[SourceFile])
    except msgspec.ValidationError as error:
        raise invalid_argument(f"files: {error}", field="files") from error
    return context.uploads.pack(project, files)
