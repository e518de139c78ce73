"""Images of a Docker engine: find, pull, push.

A pull or push is one request whose answer streams JSON events and ends with HTTP 200 whatever
came of it: success is a digest in the stream, failure an ``error`` event, and a stream that ends
with neither is a failure too. Credentials come from registry_auth.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from buildrunner.containers.docker import errors as docker_errors
from buildrunner.containers.docker.api import DockerApi, filters, json_body
from buildrunner.containers.docker.http import quoted
from buildrunner.containers.image_name import ImageName, is_image_id
from buildrunner.containers.types import ImageInfo, PushedImage, RegistryLogin, TransferProgress
from buildrunner.errors import ImagePullError

_MADE_HERE = "buildrunner/"
_INVALID_NAME = "invalid reference format"


class _Config(msgspec.Struct):
    entrypoint: list[str] | None = msgspec.field(name="Entrypoint", default=None)
    cmd: list[str] | None = msgspec.field(name="Cmd", default=None)
    user: str = msgspec.field(name="User", default="")


class _RootFs(msgspec.Struct):
    layers: list[str] | None = msgspec.field(name="Layers", default=None)


class _Image(msgspec.Struct):
    id: str = msgspec.field(name="Id")
    size: int = msgspec.field(name="Size", default=0)
    digests: list[str] | None = msgspec.field(name="RepoDigests", default=None)
    config: _Config | None = msgspec.field(name="Config", default=None)
    root_fs: _RootFs = msgspec.field(name="RootFS", default_factory=_RootFs)


class _ListedImage(msgspec.Struct):
    tags: list[str] | None = msgspec.field(name="RepoTags", default=None)


class DockerImages:
    """The `Images` part of a Docker engine. Thread-safe."""

    def __init__(self, api: DockerApi, environ: Mapping[str, str]) -> None:
        self._api = api
        self._environ = environ

    def find_image(self, name: str) -> ImageInfo | None:
        """See `Images.find_image`."""
        asked = ImageName.parse(name)
        status, body = self._api.call("GET", f"/images/{quoted(asked.reference)}/json")
        if status != 200:
            message = docker_errors.message_of(body)
            if status in (400, 404) or _INVALID_NAME in message:
                return None  # nothing can have a name that is not valid
            raise docker_errors.engine_error(f"the image {name} can't be looked up", status, body)
        image = json_body(body, _Image)
        config = image.config or _Config()
        return ImageInfo(
            id=image.id,
            digest="" if is_image_id(name) else _digest_of(asked, image.digests or ()),
            size_bytes=image.size,
            entrypoint=tuple(config.entrypoint or ()),
            cmd=tuple(config.cmd or ()),
            layers=tuple(image.root_fs.layers or ()),
            user=config.user,
        )

    def tags_of(self, repository: str) -> tuple[str, ...]:
        """See `Images.tags_of`."""
        wanted = ImageName.parse(repository).familiar
        status, body = self._api.call("GET", f"/images/json?{filters(reference=[wanted])}")
        if status != 200:
            raise docker_errors.engine_error("images can't be listed", status, body)
        names = [
            ImageName.parse(tag)
            for image in json_body(body, list[_ListedImage])
            for tag in image.tags or ()
        ]
        return tuple(sorted({name.tag for name in names if name.familiar == wanted}))

    def tag_image(self, image: str, name: str) -> bool:
        """See `Images.tag_image`."""
        asked = ImageName.parse(name)
        query = f"repo={quoted(asked.repository)}&tag={quoted(asked.tag or 'latest')}"
        status, body = self._api.call("POST", f"/images/{quoted(image)}/tag?{query}")
        if status not in (201, 404):
            raise docker_errors.engine_error(f"{image} can't be named {name}", status, body)
        return status == 201

    def untag_image(self, name: str) -> None:
        """See `Images.untag_image`."""
        status, body = self._api.call("DELETE", f"/images/{quoted(name)}?noprune=1")
        if status not in (200, 404, 409):  # 409: a container needs the image
            raise docker_errors.engine_error(f"the name {name} can't be removed", status, body)

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
        from buildrunner.containers.docker import image_import

        changes = image_import.import_changes(entrypoint, cmd, env, labels or {})
        image_import.import_tar(self._api, name, tar, changes)
        image = self.find_image(name)
        if image is None:
            raise image_import.vanished(name)
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
        from buildrunner.containers.docker import transfers as image_transfer

        _check_is_pulled(name)
        environ = None if anonymous else self._environ
        image_transfer.pull(self._api, environ, name, on_progress, cancel)
        image = self.find_image(name)
        if image is None:
            raise image_transfer.vanished(name)
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
        from buildrunner.containers.docker import transfers as image_transfer

        image = self.find_image(name)
        if image is None:
            raise image_transfer.not_here(name)
        return image_transfer.push(
            self._api, self._environ, name, image.size_bytes, on_progress, cancel, login
        )


def _check_is_pulled(name: str) -> None:
    """Refuse the names of images that buildrunner makes itself.

    Builds of all projects run what has such a name. Docker Hub's owner of the name could be anyone.

    Raises:
        ImagePullError: it is one.
    """
    if is_image_id(name):
        return
    asked = ImageName.parse(name)
    if asked.familiar.startswith(_MADE_HERE):
        raise ImagePullError(
            f"{name} is an image that buildrunner makes, and is never pulled",
            hint=f"buildrunner builders install {asked.familiar.removeprefix(_MADE_HERE)}",
        )


def _digest_of(asked: ImageName, repo_digests: list[str] | tuple[()]) -> str:
    """The digest by which the registry of *this* name knows the image.

    An image can carry digests of several repositories; only the one that was asked for counts.
    """
    if asked.digest:
        return asked.digest
    for entry in repo_digests:
        known = ImageName.parse(entry)
        if known.familiar == asked.familiar:
            return known.digest
    return ""
