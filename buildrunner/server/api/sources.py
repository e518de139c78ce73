"""buildrunner's own routes of sources: upload missing files, then name them as a build's source.

Files are identified by their SHA-256 sums, per project. If few files changed since the last build,
the client sends one request and the changed files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from anyio import CancelScope
from fastapi import APIRouter, Depends, Request, Response
from starlette.concurrency import run_in_threadpool

from buildrunner.errors import StorageError, UsageError
from buildrunner.server.context import ServerContext
from buildrunner.server.http.access import Access, note_target
from buildrunner.server.http.answers import json_response
from buildrunner.server.http.bodies import (
    as_mapping,
    body_pieces,
    json_body,
    json_text,
    upload_slot,
    waits_for_pack_slot,
    waits_for_upload_slot,
)
from buildrunner.server.http.errors import ApiError, failed_precondition, invalid_argument
from buildrunner.server.http.requests import project_of
from buildrunner.server.http.tokens import Caller
from buildrunner.server.openapi import BYTES, documented
from buildrunner.sources.uploads import (
    MAX_FILES,
    MissingBlobs,
    SourceFile,
    UploadQuotaExceeded,
    as_source,
    is_sum,
)

Result = TypeVar("Result")

_MAX_SUMS = 10_000
_MAX_MANIFEST_BYTES = 256 << 20
# A thread hashes and writes; it is woken for pieces of this size, not for every packet.
_PIECE_BYTES = 1 << 20


def router(context: ServerContext) -> APIRouter:
    """Return the routes."""
    access = Access(context)
    routes = APIRouter(prefix="/buildrunner/v1/projects/{project}", tags=["sources"])

    def project_in(request: Request) -> str:
        return project_of(request, context.settings.default_project)

    def missing(
        request: Request,
        _: Caller = Depends(access.may("submit")),
        body: Any = Depends(json_body(context)),
        _slot: None = Depends(waits_for_upload_slot),
    ) -> Response:
        """Return the files of a list that the server does not have."""
        sums = _sums(as_mapping(body).get("sha256"))
        return json_response({"missing": context.uploads.missing(project_in(request), sums)})

    async def upload(
        request: Request, sha256: str, _: Caller = Depends(access.may("submit"))
    ) -> Response:
        """Upload one file, named by its SHA-256 sum."""
        if not is_sum(sha256):
            raise invalid_argument("the path must end in 64 hexadecimal digits", field="sha256")
        await _receive(context, request, project_in(request), sha256)
        return Response(status_code=204)

    def manifest(
        request: Request,
        _: Caller = Depends(access.may("submit", "sources.create")),
        body: bytes = Depends(json_text(context, _MAX_MANIFEST_BYTES)),
        _slot: None = Depends(waits_for_pack_slot),
    ) -> Response:
        """Create a source from uploaded files, or from an uploaded archive."""
        project = project_in(request)
        try:
            name = _object_of(context, project, _manifest(body))
        except MissingBlobs as error:
            raise failed_precondition(str(error), details=[{"missing": error.sums}]) from error
        except UploadQuotaExceeded as error:
            raise ApiError(413, f"{error}; {error.hint}") from error
        except UsageError as error:
            raise invalid_argument(str(error)) from error
        except StorageError as error:
            raise ApiError(503, str(error)) from error
        note_target(request, project, name)
        return json_response({"source": as_source(name)})

    routes.add_api_route(
        "/sources:missing",
        missing,
        methods=["POST"],
        openapi_extra=documented(body="MissingRequest"),
    )
    routes.add_api_route(
        "/sources/blobs/{sha256}",
        upload,
        methods=["PUT"],
        openapi_extra=documented(body="Bytes", media=BYTES),
    )
    routes.add_api_route(
        "/sources/manifests",
        manifest,
        methods=["POST"],
        openapi_extra=documented(body="SourceManifest"),
    )
    return routes


def _sums(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(v, str) and is_sum(v) for v in value):
        raise invalid_argument("sha256 must be a list of SHA-256 sums in hex", field="sha256")
    if len(value) > _MAX_SUMS:
        message = f"{_MAX_SUMS} sums a call are the most, not {len(value)}"
        raise invalid_argument(message, field="sha256")
    return value


async def _receive(context: ServerContext, request: Request, project: str, sha256: str) -> None:
    # A caller whose body is slow to arrive holds no slot.
    async def in_thread(call: Callable[..., Result], *arguments: Any) -> Result:
        async with upload_slot(request):
            return await run_in_threadpool(call, *arguments)

    try:
        receiver = await in_thread(context.uploads.receive, project, sha256)
        try:
            waiting = bytearray()
            async for piece in body_pieces(context, request, context.settings.max_blob_bytes):
                waiting += piece
                if len(waiting) >= _PIECE_BYTES:
                    await in_thread(receiver.write, bytes(waiting))
                    waiting.clear()
            await in_thread(receiver.write, bytes(waiting))
            await in_thread(receiver.finish)
        finally:
            with CancelScope(shield=True):
                await run_in_threadpool(receiver.abandon)
    except UploadQuotaExceeded as error:
        raise ApiError(413, f"{error}; {error.hint}") from error
    except UsageError as error:
        raise invalid_argument(str(error), field="sha256") from error
    except StorageError as error:
        raise ApiError(503, str(error)) from error


class _Archive(msgspec.Struct, frozen=True):
    sha256: str
    name: str


class _Manifest(msgspec.Struct, frozen=True):
    files: list[SourceFile] | None = None
    archive: _Archive | None = None


def _manifest(body: bytes) -> _Manifest:
    """Decode a manifest directly into its type, so that other values take no memory.

    Raises:
        ApiError: the body is no manifest, or has too many files.
    """
    # A file has one object, and seven members at most; its name may have commas.
    marks = ((b"{", 2), (b"[", 2), (b",", 16))
    if any(body.count(mark) > of_file * MAX_FILES for mark, of_file in marks):
        raise invalid_argument(f"a source has {MAX_FILES} files at most", field="files")
    try:
        return msgspec.json.decode(body, type=_Manifest)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise invalid_argument(f"this is no list of files: {error}", field="files") from error


def _object_of(context: ServerContext, project: str, manifest: _Manifest) -> str:
    archive = manifest.archive
    if archive is not None:
        if not is_sum(archive.sha256):
            raise invalid_argument("archive needs sha256 and name", field="archive")
        return context.uploads.adopt(project, archive.sha256, archive.name)
    if manifest.files is None:
        raise invalid_argument("files or archive must say what the source is", field="files")
    return context.uploads.pack(project, manifest.files)
