"""Copies an image from one Docker engine to another, in one stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from buildrunner.containers import docker_errors
from buildrunner.containers.docker_api import DockerApi
from buildrunner.containers.endpoint import open_socket
from buildrunner.containers.http_client import HttpClient, quoted
from buildrunner.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from threading import Event

    from buildrunner.containers.endpoint import Endpoint


class _Event(msgspec.Struct):
    error: str = ""


def copy_image(name: str, source: Endpoint, target: Endpoint, cancel: Event) -> None:
    """Give ``target`` the image that ``source`` has under ``name``, under the same name.

    Nothing is kept on the way. (A name with a digest is not a name in the target: there the image
    is known by its id.)

    Raises:
        EngineError: one of them refused, or ``cancel`` was set.
    """
    giving, taking = (_api(endpoint) for endpoint in (source, target))
    try:
        given = giving.request("GET", f"/images/{quoted(name)}/get")
        if given.status != 200:
            what = f"the image {name} can't be read"
            raise docker_errors.engine_error(what, given.status, given.body())
        taken = taking.request(
            "POST",
            "/images/load?quiet=1",
            body=_until(given.pieces(), cancel),
            headers={"Content-Type": "application/x-tar"},
            timeout_s=None,
        )
        body = taken.body()
        if taken.status != 200:
            what = f"the image {name} can't be copied to the sandbox"
            raise docker_errors.engine_error(what, taken.status, body)
        for line in body.splitlines():
            error = msgspec.json.decode(line, type=_Event).error if line.strip() else ""
            if error:
                raise EngineError(f"the image {name} can't be copied to the sandbox: {error}")
    finally:
        giving.close()
        taking.close()


def _api(endpoint: Endpoint) -> DockerApi:
    return DockerApi(HttpClient(lambda: open_socket(endpoint)))


def _until(pieces: Iterator[bytes], cancel: Event) -> Iterator[bytes]:
    for piece in pieces:
        if cancel.is_set():
            raise EngineError("the copy of an image was stopped")
        yield piece
