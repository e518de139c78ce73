"""Finds, pulls, pushes and copies images of a Docker engine.

A pull or push is one request whose answer streams JSON events with HTTP 200, even on
failure: success is a digest in the stream, failure an ``error`` event, and a stream that ends
with neither is a failure too. Credentials come from registry_auth.py.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from threading import Event
from typing import Any
from urllib.parse import quote

import msgspec

from buildrunner.containers.docker import transfers
from buildrunner.containers.docker.api import DockerApi, filters
from buildrunner.containers.docker.endpoint import Endpoint
from buildrunner.containers.docker.errors import Refusal
from buildrunner.containers.image_name import ImageName, is_image_id
from buildrunner.containers.protocol import ImageInfo, PushedImage, RegistryLogin, TransferProgress
from buildrunner.errors import EngineError, ImagePullError, ImagePushError

_MADE_HERE = "buildrunner/"
_INVALID_NAME = "invalid reference format"
_SHOWN_OF_ID = 12  # digits


class DockerImages:
    """The `Images` part of a Docker engine. Thread-safe."""

    def __init__(self, api: DockerApi, environ: Mapping[str, str] | None) -> None:
        self._api = api
        self._environ = environ

    def find_image(self, name: str) -> ImageInfo | None:
        """See `Images.find_image`."""
        requested = ImageName.parse(name)
        try:
            with self._api.client() as client:
                image = client.inspect_image(requested.reference)
                if not has_name(image, requested):
                    return None
                config = image.get("Config") or {}
                return ImageInfo(
                    id=image["Id"],
                    digest="" if is_image_id(name) else _digest_of(requested, image),
                    size_bytes=image.get("Size", 0),
                    entrypoint=tuple(config.get("Entrypoint") or ()),
                    cmd=tuple(config.get("Cmd") or ()),
                    layers=tuple((image.get("RootFS") or {}).get("Layers") or ()),
                    user=config.get("User") or "",
                )
        except Refusal as refusal:
            if refusal.status in (400, 404) or _INVALID_NAME in refusal.message:
                return None  # no image has an invalid name
            raise refusal.as_error(f"the image {name} can't be looked up") from refusal

    def tags_of(self, repository: str) -> tuple[str, ...]:
        """See `Images.tags_of`."""
        wanted = ImageName.parse(repository).familiar
        try:
            with self._api.client() as client:
                found = client.images(filters={"reference": [wanted]})
                names = [ImageName.parse(tag) for one in found for tag in one["RepoTags"] or ()]
        except Refusal as refusal:
            raise refusal.as_error("images can't be listed") from refusal
        return tuple(sorted({name.tag for name in names if name.familiar == wanted}))

    def tag_image(self, image: str, name: str) -> bool:
        """See `Images.tag_image`."""
        requested = ImageName.parse(name)
        try:
            with self._api.client() as client:
                return client.tag(image, requested.repository, requested.tag or "latest")
        except Refusal as refusal:
            if refusal.status == 404:
                return False
            raise refusal.as_error(f"{image} can't be named {name}") from refusal

    def untag_image(self, name: str) -> None:
        """See `Images.untag_image`."""
        try:
            with self._api.client() as client:
                # Podman would take the name away from an image whose name only ends like it.
                if has_name(client.inspect_image(name), ImageName.parse(name)):
                    client.remove_image(name, noprune=True)
        except Refusal as refusal:
            if refusal.status not in (404, 409):  # 409: a container needs the image
                raise refusal.as_error(f"the name {name} can't be removed") from refusal

    def import_image(
        self,
        name: str,
        tar: Iterable[bytes],
        *,
        entrypoint: Sequence[str] = (),
        cmd: Sequence[str] = (),
        env: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
    ) -> str:
        """See `Images.import_image`."""
        requested = ImageName.parse(name)
        query = {
            "fromSrc": "-",
            "repo": requested.repository,
            "tag": requested.tag or "latest",
            "changes": _import_changes(entrypoint, cmd, env, labels or {}),
        }
        failed = f"the image {name} can't be made"
        try:
            said = self._api.send("POST", "/images/create", params=query, body=tar)
            for _ in transfers.transfer_events(said.splitlines()):
                pass
        except Refusal as refusal:
            raise refusal.as_error(failed) from refusal
        except transfers.TransferFailure as error:
            raise EngineError(f"{failed}: {error}") from error
        image = self.find_image(name)
        if image is None:
            raise EngineError(
                f"the image {name} was made, but the engine does not have it",
                hint="Is something removing images at the same time?",
            )
        return image.id

    def pull_image(
        self,
        name: str,
        *,
        on_progress: Callable[[TransferProgress], None],
        cancel: threading.Event,
        anonymous: bool = False,
    ) -> ImageInfo:
        """See `Images.pull_image`."""
        check_is_pulled(name)
        environ = None if anonymous else self._environ
        transfers.pull(self._api, environ, name, on_progress, cancel)
        image = self.find_image(name)
        if image is None:
            raise ImagePullError(
                f"the image {name} was pulled, but the engine does not have it",
                transient=True,
                hint="Is something removing images while builds run?",
            )
        return image

    def push_image(
        self,
        name: str,
        *,
        on_progress: Callable[[TransferProgress], None],
        cancel: threading.Event,
        login: RegistryLogin | None = None,
    ) -> PushedImage:
        """See `Images.push_image`."""
        image = self.find_image(name)
        if image is None:
            raise ImagePushError(
                f"the engine has no image {name} to push",
                hint="Build it under exactly this name.",
            )
        return transfers.push(
            self._api, self._environ, name, image.size_bytes, on_progress, cancel, login
        )


def check_is_pulled(name: str) -> None:
    """Refuse to pull the images that buildrunner makes itself.

    Builds of all projects run images of these names. Anyone could own them on Docker Hub.

    Raises:
        ImagePullError: ``name`` is the name of such an image.
    """
    if is_image_id(name):
        return
    requested = ImageName.parse(name)
    if requested.familiar.startswith(_MADE_HERE):
        raise ImagePullError(
            f"{name} is an image that buildrunner makes, and is never pulled",
            hint=f"buildrunner builders install {requested.familiar.removeprefix(_MADE_HERE)}",
        )


def _import_changes(
    entrypoint: Sequence[str], cmd: Sequence[str], env: Sequence[str], labels: Mapping[str, str]
) -> list[str]:
    """Return an image's config as Dockerfile lines for the engine's import."""

    def quoted(text: str) -> str:
        if "\n" in text:
            raise EngineError(f"an image's setting can't have several lines: {text!r}")
        escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
        return f'"{escaped}"'

    changes = [f"LABEL {key}={quoted(value)}" for key, value in labels.items()]
    for entry in env:
        key, _, value = entry.partition("=")
        changes.append(f"ENV {key}={quoted(value)}")
    if entrypoint:
        changes.append(f"ENTRYPOINT {json.dumps(list(entrypoint))}")
    if cmd:
        changes.append(f"CMD {json.dumps(list(cmd))}")
    return changes


def has_name(image: Mapping[str, Any], requested: ImageName) -> bool:
    """Return whether an image that the engine found has the requested name or id.

    Engines take any word of hexadecimal digits for the beginning of an id. Here it must be as long
    as the ids that engines show, since somebody could make an image whose id begins with ``cafe``.
    Podman finds ``docker.io/acme/python`` by the name ``python``, too. With Docker this name means
    one image, and a config that names it must not run another.
    """
    name = str(requested)
    if is_image_id(name):
        return True
    names = [*(image.get("RepoTags") or ()), *(image.get("RepoDigests") or ())]
    known = {ImageName.parse(one).familiar for one in names}
    # Podman's own commands name images without a registry below localhost.
    if requested.familiar in known or f"localhost/{requested.familiar}" in known:
        return True
    if image["Id"].removeprefix("sha256:").startswith(name):
        return len(name) >= _SHOWN_OF_ID
    return not known


def _digest_of(requested: ImageName, image: Mapping[str, Any]) -> str:
    """Return the digest of the image in the registry of *this* name.

    An image can carry digests of several repositories; only the requested one counts.
    """
    if requested.digest:
        return requested.digest
    for entry in image.get("RepoDigests") or ():
        known = ImageName.parse(entry)
        if known.familiar == requested.familiar:
            return known.digest
    return ""


_LOADED = re.compile(r"Loaded image ID: (sha256:[0-9a-f]{64})")


class _Event(msgspec.Struct):
    stream: str = ""
    error: str = ""


def copy_image(
    image: str, names: Iterable[str], source: Endpoint, target: Endpoint, cancel: Event
) -> str:
    """Copy an image from ``source`` to ``target``, and name it there.

    Args:
        image: its id in ``source``.
        names: names on ``target``; names with a digest are skipped, since no engine can set them.
        source: the engine that has the image.
        target: the engine that receives the image.
        cancel: stops the copy.

    Returns:
        The image's id in ``target``: the digest of its config.

    Raises:
        EngineError: one of the engines refused, or ``cancel`` was set.
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
            with contextlib.closing(given):
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
            try:
                event = msgspec.json.decode(line, type=_Event)
            except (msgspec.DecodeError, RecursionError) as error:
                raise EngineError(f"{what}: the engine's answer can't be understood") from error
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
    """An iterable of the names of images that an engine has pulled since its start, or pulls now.

    The iteration waits for further pulls until `close`, and so needs a thread of its own. The
    engine does not report images that BuildKit pulls.

    Attributes:
        pushed: whether the events read so far report a push.

    Args:
        endpoint: where the engine is.

    Raises:
        EngineError: the engine does not report its events.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.pushed = False
        self._api = DockerApi(endpoint)
        query = {"since": 0, "filters": filters(type=["image"], event=["pull", "push"])}
        try:
            self._answer = self._api.stream("GET", "/events", params=query)
        except Refusal as refusal:
            raise refusal.as_error("the engine reports no progress of pulls") from refusal
        self._answer.wait_for_ever()

    def __iter__(self) -> Iterator[str]:
        try:  # steps can replace the engine of a sandbox: limit the length of a line
            for line in self._answer.lines(_MOST_BYTES):
                event = msgspec.json.decode(line, type=_EventImageEvents)
                if event.action == "push":
                    self.pushed = True
                else:
                    yield event.actor.name
        # The engine has stopped, or this object was closed.
        except (EngineError, msgspec.DecodeError, RecursionError):
            return

    def close(self) -> None:
        """End the iteration. Any thread may call it."""
        self._answer.close()
        self._api.close()
