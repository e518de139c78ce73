"""Pulling and pushing images through the Docker Engine API, one try at a time."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

import msgspec

from buildrunner.containers import docker_errors
from buildrunner.containers.engine_types import PushedImage, TransferProgress
from buildrunner.containers.http_client import quoted
from buildrunner.containers.http_connection import Stopped
from buildrunner.containers.image_name import ImageName
from buildrunner.containers.registry_auth import ANONYMOUS, login_header, registry_auth_header
from buildrunner.containers.transfer_events import TransferEvent, transfer_events
from buildrunner.containers.transfer_failure import (
    TransferFailure,
    raise_pull_error,
    raise_push_error,
)
from buildrunner.errors import CredentialsError, ImagePullError, ImagePushError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Generator, Mapping

    from buildrunner.containers.docker_api import DockerApi
    from buildrunner.containers.engine_types import RegistryLogin


# The last line of a successful push. The containerd image store reports the digest nowhere else.
_PUSHED = re.compile(r": digest: (sha256:[0-9a-f]{64}) size: \d+$")


class _Descriptor(msgspec.Struct):
    digest: str = ""


class _Distribution(msgspec.Struct):
    descriptor: _Descriptor = msgspec.field(name="Descriptor", default_factory=_Descriptor)


def pull(
    api: DockerApi,
    environ: Mapping[str, str] | None,
    name: str,
    on_progress: Callable[[TransferProgress], None],
    cancel: threading.Event,
) -> None:
    """Pull ``name``; without tag and digest it is ``latest`` (the API would take all tags).

    Args:
        api: the engine.
        environ: where the user's Docker config is; None pulls without a login.
        name: what to pull.
        on_progress: takes news.
        cancel: ends the pull.

    Raises:
        ImagePullError: it did not come, or ``cancel`` was set.
    """
    asked = ImageName.parse(name)
    version = asked.digest or asked.tag or "latest"
    path = f"/images/create?fromImage={quoted(asked.repository)}&tag={quoted(version)}"
    try:
        auth = ANONYMOUS
        if environ is not None:
            auth = registry_auth_header(asked.registry, environ, cancel)
        with contextlib.closing(_transfer(api, auth, path, cancel)) as events:
            for event in events:
                on_progress(_progress(name, event))
    except Stopped as error:
        raise ImagePullError(f"the pull of {name} was cancelled") from error
    except CredentialsError as error:
        raise ImagePullError(str(error), hint=error.hint) from error
    except TransferFailure as error:
        raise_pull_error(name, asked, error, api.capabilities())


def push(
    api: DockerApi,
    environ: Mapping[str, str],
    name: str,
    size_bytes: int,
    on_progress: Callable[[TransferProgress], None],
    cancel: threading.Event,
    login: RegistryLogin | None = None,
) -> PushedImage:
    """Push one tag (``latest`` when ``name`` has none); done only with the registry's digest.

    What the engine says about the push is checked: the registry itself is asked what it has under
    the tag now.

    Args:
        api: the engine.
        environ: where the user's Docker config is.
        name: what to push.
        size_bytes: what to report as the image's size.
        on_progress: takes news.
        cancel: ends the push.
        login: used instead of the user's credentials.

    Raises:
        ImagePushError: it did not arrive, or ``cancel`` was set.
    """
    asked = ImageName.parse(name)
    tag = asked.tag or "latest"
    path = f"/images/{quoted(asked.repository)}/push?tag={quoted(tag)}"
    lines: list[str] = []
    layers: dict[str, str] = {}
    digest = ""
    try:
        auth = _auth_header(asked, environ, login, cancel)
        with contextlib.closing(_transfer(api, auth, path, cancel)) as events:
            for event in events:
                on_progress(_progress(name, event))
                if pushed := _PUSHED.search(event.status):
                    digest = pushed[1]
                if event.status and not (event.progress.current or event.progress.total):
                    # as `docker push` prints without a terminal: no bars
                    lines.append(f"{event.id}: {event.status}" if event.id else event.status)
                if event.id:
                    layers[event.id] = event.status
    except Stopped as error:
        raise ImagePushError(f"the push of {name} was cancelled") from error
    except CredentialsError as error:
        raise ImagePushError(str(error), unauthorized=True, hint=error.hint) from error
    except TransferFailure as error:
        raise_push_error(name, asked, error, api.capabilities())
    if not digest:
        raise ImagePushError(
            f"the push of {name} ended without a digest from the registry",
            transient=True,
            hint="Look at the registry's log: it may have refused the manifest.",
        )
    _confirm(api, auth, f"{asked.repository}:{tag}", digest, cancel)
    return PushedImage(
        name=f"{asked.repository}:{tag}",
        digest=digest,
        size_bytes=size_bytes,
        layers_pushed=sum(status == "Pushed" for status in layers.values()),
        layers_reused=sum(
            status == "Layer already exists" or status.startswith("Mounted from")
            for status in layers.values()
        ),
        log=tuple(lines),
    )


def vanished(name: str) -> ImagePullError:
    """The pull went well, and the image is not there all the same."""
    return ImagePullError(
        f"the image {name} was pulled, but the engine does not have it",
        transient=True,
        hint="Is something removing images while builds run?",
    )


def not_here(name: str) -> ImagePushError:
    """There is nothing to push."""
    return ImagePushError(
        f"the engine has no image {name} to push", hint="Build it under exactly this name."
    )


def _transfer(
    api: DockerApi,
    auth: str,
    path: str,
    cancel: threading.Event,
) -> Generator[TransferEvent, None, None]:
    response = api.send("POST", path, headers={"X-Registry-Auth": auth}, stop=cancel).head()
    if response.status != 200:
        raise TransferFailure(docker_errors.message_of(response.body()), response.status)
    try:
        yield from transfer_events(response.pieces())
    finally:
        response.close()


def _auth_header(
    image: ImageName,
    environ: Mapping[str, str],
    login: RegistryLogin | None,
    cancel: threading.Event,
) -> str:
    if login is not None:
        return login_header(login)
    return registry_auth_header(image.registry, environ, cancel)


def _confirm(api: DockerApi, auth: str, name: str, digest: str, cancel: threading.Event) -> None:
    """Let the engine ask the registry what ``name`` is there.

    A login may be allowed to push and not to pull, and not every engine can ask: then the digest
    that the push reported has to do.

    Raises:
        ImagePushError: the registry has nothing, or something else, under ``name``.
    """
    if not api.capabilities().asks_registries:
        return
    path = f"/distribution/{quoted(name)}/json"
    try:
        response = api.send("GET", path, headers={"X-Registry-Auth": auth}, stop=cancel).head()
        body = response.body()
    except Stopped as error:
        raise ImagePushError(f"the push of {name} was cancelled") from error
    found = ""
    if response.status == 200:
        found = msgspec.json.decode(body, type=_Distribution).descriptor.digest
    elif response.status != 404 or "page not found" in docker_errors.message_of(body).lower():
        return
    if found != digest:
        raise ImagePushError(
            f"the registry has {found or 'nothing'} as {name} after the push of {digest}",
            transient=True,
            hint="Is somebody else pushing or removing the same tag?",
        )


def _progress(name: str, event: TransferEvent) -> TransferProgress:
    return TransferProgress(
        image=name,
        layer=event.id,
        status=event.status,
        current_bytes=event.progress.current,
        total_bytes=event.progress.total,
    )
