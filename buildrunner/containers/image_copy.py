"""Copies an image from one Docker engine to another, in one stream."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from buildrunner.containers import docker_errors
from buildrunner.containers.docker_api import DockerApi
from buildrunner.containers.endpoint import open_socket
from buildrunner.containers.http_client import HttpClient, quoted
from buildrunner.containers.image_name import ImageName
from buildrunner.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from threading import Event

    from buildrunner.containers.endpoint import Endpoint

_LOADED = re.compile(r"Loaded image ID: (sha256:[0-9a-f]{64})")


class _Event(msgspec.Struct):
    stream: str = ""
    error: str = ""


def copy_image(
    image: str, names: Iterable[str], source: Endpoint, target: Endpoint, cancel: Event
) -> str:
    """Give ``target`` an image of ``source``, and names.

    Args:
        image: its id in ``source``.
        names: for ``target``; those with a digest are left out, since no engine can be given one.
        source: the engine that has it.
        target: the engine that gets it.
        cancel: stops the copy.

    Returns:
        Its id in ``target``: the digest of its config.

    Raises:
        EngineError: one of them refused, or ``cancel`` was set.
    """
    taking = _api(target)
    try:
        made = load_image(image, source, taking, cancel)
        for name in names:
            parsed = ImageName.parse(name)
            if not parsed.digest:
                name_image(taking, made, parsed.repository, parsed.tag or "latest")
        return made
    finally:
        taking.close()


def load_image(image: str, source: Endpoint, target: DockerApi, cancel: Event) -> str:
    """See `copy_image`: the copy has no name."""
    giving = _api(source)
    try:
        given = giving.request("GET", f"/images/{quoted(image)}/get")
        if given.status != 200:
            what = f"the image {image} can't be read"
            raise docker_errors.engine_error(what, given.status, given.body())
        taken = target.request(
            "POST",
            "/images/load?quiet=1",
            body=_until(given.pieces(), cancel),
            headers={"Content-Type": "application/x-tar"},
            timeout_s=None,
        )
        what = f"the image {image} can't be copied"
        body = taken.body()
        if taken.status != 200:
            raise docker_errors.engine_error(what, taken.status, body)
        for line in filter(None, map(bytes.strip, body.splitlines())):
            event = msgspec.json.decode(line, type=_Event)
            if event.error:
                raise EngineError(f"{what}: {event.error}")
            if loaded := _LOADED.search(event.stream):
                return loaded[1]
        raise EngineError(f"{what}: the engine does not say what it loaded")
    finally:
        giving.close()


def name_image(api: DockerApi, image: str, repository: str, tag: str) -> None:
    """Give an image (by id) a name.

    Raises:
        EngineError: the engine refused.
    """
    path = f"/images/{quoted(image)}/tag?repo={quoted(repository)}&tag={quoted(tag)}"
    status, body = api.call("POST", path)
    if status != 201:
        what = f"the image {repository}:{tag} can't be named"
        raise docker_errors.engine_error(what, status, body)


def _api(endpoint: Endpoint) -> DockerApi:
    return DockerApi(HttpClient(lambda: open_socket(endpoint)))


def _until(pieces: Iterator[bytes], cancel: Event) -> Iterator[bytes]:
    for piece in pieces:
        if cancel.is_set():
            raise EngineError("the copy of an image was stopped")
        yield piece
