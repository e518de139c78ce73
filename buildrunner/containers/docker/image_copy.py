"""Copies an image from one Docker engine to another, in one stream."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from threading import Event
from urllib.parse import quote

import msgspec

from buildrunner.containers.docker.api import DockerApi, filters
from buildrunner.containers.docker.endpoint import Endpoint
from buildrunner.containers.docker.errors import Refusal
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
    taking = DockerApi(target)
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
    giving = DockerApi(source)
    try:
        try:
            given = giving.stream("GET", f"/images/{quote(image)}/get")
        except Refusal as refusal:
            raise refusal.as_error(f"the image {image} can't be read") from refusal
        what = f"the image {image} can't be copied"
        try:
            said = target.send(
                "POST",
                "/images/load",
                params={"quiet": 1},
                body=_until(given.pieces(), cancel),
                timeout_s=None,
            )
        except Refusal as refusal:
            raise refusal.as_error(what) from refusal
        for line in filter(None, map(bytes.strip, said.splitlines())):
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
    try:
        with api.client() as client:
            client.tag(image, repository, tag)
    except Refusal as refusal:
        raise refusal.as_error(f"the image {repository}:{tag} can't be named") from refusal


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
        self._api = DockerApi(endpoint)
        query = {"since": 0, "filters": filters(type=["image"], event=["pull", "push"])}
        try:
            self._answer = self._api.stream("GET", "/events", params=query)
        except Refusal as refusal:
            raise refusal.as_error("the engine does not tell what it pulls") from refusal
        self._answer.wait_for_ever()

    def __iter__(self) -> Iterator[str]:
        try:  # steps can replace the engine of a sandbox: a line has an end
            for line in self._answer.lines(_MOST_BYTES):
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
