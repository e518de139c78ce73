"""The files that a build uploaded, from its manifest, and their downloads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote

import msgspec
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response, StreamingResponse

from buildrunner.errors import NotFound, StorageError
from buildrunner.server.context import ServerContext
from buildrunner.server.http.bodies import READ_SLOT
from buildrunner.server.http.requests import project_of
from buildrunner.server.pages.rendering import HEADERS, PageRoute
from buildrunner.server.pages.session import Session, check_may
from buildrunner.storage.object_store import ObjectReader, StoredObject
from buildrunner.storage.stores import Stores

_MOST_MANIFEST_BYTES = 16 << 20
_PIECE_BYTES = 256 << 10
_MOST_SIZES = 500  # the most files whose sizes are looked up, see `_size`


class UploadedFile(msgspec.Struct, frozen=True, kw_only=True):
    """One uploaded file.

    Attributes:
        number: its index in the manifest, from 0.
        name: its path below the folder of the manifest.
        location: its URL.
        size_bytes: None if it was not looked up, or the file was deleted.
    """

    number: int
    name: str
    location: str
    size_bytes: int | None = None


def router(context: ServerContext) -> APIRouter:
    """Return the route of downloads."""
    session = Session(context)
    routes = APIRouter(include_in_schema=False, route_class=PageRoute)

    def download(request: Request, build: str, number: int) -> Response:
        """Return one file that the manifest of a build lists."""
        project = project_of(request, context.settings.default_project)
        check_may(request.state.viewer, "read", project)
        stored = context.store.builds.get(project, build)
        manifest = stored.document.get("results", {}).get("artifactManifest", "")
        if not manifest:
            raise NotFound(f"build {build} has uploaded no files")
        stores = _stores(context, project)
        locations = _locations(stores, manifest)
        if not 0 <= number < len(locations):
            raise NotFound(f"build {build} has uploaded no file {number}")
        reader = _reader(stores, locations[number])
        name = _name(locations[number]).rpartition("/")[2]
        return StreamingResponse(
            _pieces(reader),
            headers={
                **HEADERS,
                # Browsers must only download a build's file, and never show it as a page.
                "Content-Security-Policy": "sandbox; default-src 'none'",
                "Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}",
                "Content-Length": str(reader.found.size_bytes),
            },
            media_type="application/octet-stream",
        )

    routes.add_api_route(
        "/builds/{project}/{build}/artifacts/{number}",
        download,
        methods=["GET"],
        dependencies=[Depends(session.viewer), READ_SLOT],
    )
    return routes


def listed_files(context: ServerContext, project: str, manifest: str) -> tuple[UploadedFile, ...]:
    """Return the files that the manifest of a build of a project lists.

    Raises:
        NotFound: the manifest was deleted.
        StorageError: the manifest can't be read.
    """
    folder, stores = _folder(manifest), _stores(context, project)
    return tuple(
        UploadedFile(
            number=number,
            name=_name(location).removeprefix(folder),
            location=location,
            size_bytes=_size(stores, location) if number < _MOST_SIZES else None,
        )
        for number, location in enumerate(_locations(stores, manifest))
    )


def _locations(stores: Stores, manifest: str) -> list[str]:
    """Return the URLs of the files, which are below the folder of the manifest.

    A build may write a manifest that lists any other objects. They are ignored, since the server
    would read them with its own rights.
    """
    reader = _reader(stores, manifest)
    if reader.found.size_bytes > _MOST_MANIFEST_BYTES:
        raise StorageError(f"{manifest} is too large for a page: {reader.found.size_bytes:,} bytes")
    try:
        lines = reader.read().splitlines()
        entries: list[Any] = [msgspec.json.decode(line) for line in lines]
        folder = _folder(manifest)
        locations = [str(entry["location"]) for entry in entries]
        return [one for one in locations if _is_below(folder, _name(one))]
    except (msgspec.DecodeError, RecursionError, KeyError, TypeError) as error:
        raise StorageError(f"{manifest} is no list of files") from error


def _stores(context: ServerContext, project: str) -> Stores:
    """Return the stores of the build's project.

    A worker may name a manifest of another project, which these stores can't read.
    """
    if context.stores is None:
        raise NotFound("this server has no storage to read from")
    return context.stores(project)


def _reader(stores: Stores, url: str) -> ObjectReader:
    store, _ = stores.written(url)
    return ObjectReader(store, _found(stores, url), cancel=threading.Event())


def _found(stores: Stores, url: str) -> StoredObject:
    store, place = stores.written(url)
    try:
        return store.find(place.bucket, place.name, place.generation)
    except StorageError as error:
        if error.missing:
            raise NotFound(f"{url.partition('#')[0]} is no longer there") from error
        raise


def _size(stores: Stores, url: str) -> int | None:
    """Return the size of a file on this machine's disk; None elsewhere, to avoid a request."""
    if not url.startswith("file://"):
        return None
    try:
        return _found(stores, url).size_bytes
    except (NotFound, StorageError):
        return None


def _pieces(reader: ObjectReader) -> Iterator[bytes]:
    while piece := reader.read(_PIECE_BYTES):
        yield piece


def _folder(manifest: str) -> str:
    return f"{_name(manifest).rpartition('/')[0]}/"


def _is_below(folder: str, name: str) -> bool:
    return name.startswith(folder) and ".." not in name.removeprefix(folder).split("/")


def _name(location: str) -> str:
    """Return the URL of an object, unquoted and without the generation."""
    return unquote(location.partition("#")[0])
