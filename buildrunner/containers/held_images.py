"""The host engine's images that nested engines show, and the names that keep them there.

A nested engine reads their layers where they lie (`image_share`). So none may go while there is
one: each is given a name of our own, and the names are taken away with the last nested engine.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

import msgspec

from buildrunner.containers import docker_errors
from buildrunner.containers.docker_api import DockerApi, json_body
from buildrunner.containers.http_client import quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

HELD_REPOSITORY = "buildrunner.shared"
"""Names that keep images on the host engine as long as a nested engine shows them."""


class _ListedImage(msgspec.Struct):
    id: str = msgspec.field(name="Id")
    tags: list[str] | None = msgspec.field(name="RepoTags", default=None)
    digests: list[str] | None = msgspec.field(name="RepoDigests", default=None)


class HeldImages:
    """Those of one host engine. Thread-safe.

    Args:
        api: of the host engine.
    """

    def __init__(self, api: DockerApi) -> None:
        self._api = api

    def named(self) -> list[tuple[str, list[str]]]:
        """The host engine's images and their names: what it would share now."""
        held = f"{HELD_REPOSITORY}:"
        found = []
        for image in self._listed("/images/json"):
            names = [*(image.tags or ()), *(image.digests or ())]
            names = sorted(one for one in names if not one.startswith(held) and "<none>" not in one)
            if names:
                found.append((image.id, names))
        return sorted(found)

    def hold(self, images: Iterable[str]) -> bool:
        """Give each image (by id) a name that keeps it on the host engine.

        Returns:
            Whether all are there; False when one was removed just now.
        """
        held, all_there = self._held(), True
        for image in images:
            if image in held:
                continue
            query = f"repo={HELD_REPOSITORY}&tag={_tag(image)}"
            status, body = self._api.call("POST", f"/images/{quoted(image)}/tag?{query}")
            if status not in (201, 404):
                raise docker_errors.engine_error("an image can't be held", status, body)
            all_there = all_there and status == 201
        return all_there

    def release(self) -> None:
        """Take those names away: images that were removed meanwhile go now."""
        for image in self._held():
            name = f"{HELD_REPOSITORY}:{_tag(image)}"
            status, body = self._api.call("DELETE", f"/images/{name}")
            if status not in (200, 404, 409):  # 409: a container stands on it, and holds it
                raise docker_errors.engine_error("an image can't be let go", status, body)

    def _held(self) -> set[str]:
        chosen = quoted(msgspec.json.encode({"reference": [HELD_REPOSITORY]}).decode())
        path = f"/images/json?filters={chosen}"
        return {image.id for image in self._listed(path)}

    def _listed(self, path: str) -> list[_ListedImage]:
        status, body = self._api.call("GET", path)
        if status != 200:
            raise docker_errors.engine_error("images can't be listed", status, body)
        return json_body(body, list[_ListedImage])


@contextlib.contextmanager
def turn(lock_path: str) -> Iterator[None]:
    """Nobody takes the names of shared images away while a nested engine is being made.

    Raises:
        OSError: the file can't be made.
    """
    descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _tag(image: str) -> str:
    return image.removeprefix("sha256:")[:40]
