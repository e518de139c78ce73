"""Copies an image from one Docker engine to another, in one stream."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from threading import Event

import msgspec

from buildrunner.containers.docker import errors as docker_errors
from buildrunner.containers.docker.api import DockerApi, filters
from buildrunner.containers.docker.endpoint import Endpoint, open_socket
from buildrunner.containers.docker.http import HttpClient, Response, quoted
from buildrunner.containers.image_name import ImageName
from buildrunner.errors import EngineError

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


_MOST_BYTES = 1 << 20
"""Of an event. Engines write less than 1 KiB."""


class _Actor(msgspec.Struct):
    name: str = msgspec.field(name="ID", default="")


class _EventImageEvents(msgspec.Struct):
    action: str = msgspec.field(name="Action", default="")
    actor: _Actor = msgspec.field(name="Actor", default_factory=_Actor)


class PulledImages:
    """Names of images that an engine pulls, from its start on. Iterate in a thread.

    What BuildKit pulls for itself is not told of.

    Attributes:
        pushed: the engine has pushed something, as far as was iterated.

    Args:
        endpoint: where the engine is.

    Raises:
        EngineError: the engine does not tell.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.pushed = False
        self._api = DockerApi(HttpClient(lambda: open_socket(endpoint)))
        query = filters(type=["image"], event=["pull", "push"])
        self._answer: Response = self._api.request("GET", f"/events?since=0&{query}")
        self._answer.wait_for_ever()

    def __iter__(self) -> Iterator[str]:
        rest = b""
        try:
            for piece in self._answer.pieces():
                *lines, rest = (rest + piece).split(b"\n")
                if len(rest) > _MOST_BYTES:  # steps can replace the engine of a sandbox
                    return
                for line in filter(None, lines):
                    event = msgspec.json.decode(line, type=_EventImageEvents)
                    if event.action == "push":
                        self.pushed = True
                    else:
                        yield event.actor.name
        except (EngineError, msgspec.DecodeError):  # it is gone, or we are closed
            return

    def close(self) -> None:
        """End the iteration, also of another thread."""
        self._answer.close()
        self._api.close()
