"""Pulling and pushing images through the Docker Engine API, one try at a time."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, NoReturn

import msgspec

from buildrunner.containers import docker_errors
from buildrunner.containers.engine_types import PushedImage, TransferProgress
from buildrunner.containers.http_client import quoted
from buildrunner.containers.http_connection import Stopped
from buildrunner.containers.image_name import ImageName
from buildrunner.containers.registry_auth import login_header, registry_auth_header
from buildrunner.errors import CredentialsError, EngineError, ImagePullError, ImagePushError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence

    from buildrunner.containers.docker_api import DockerApi
    from buildrunner.containers.engine_types import RegistryLogin

_LINE_LIMIT = 1024 * 1024
# The engine hands on no headers, but registries that limit rates say it in words too.
_RETRY_AFTER = re.compile(r"retry[- ]after:?\s*(\d+(?:\.\d+)?)\s*(µs|us|ms|s|m)?\b", re.IGNORECASE)
_UNITS_S = {"µs": 1e-6, "us": 1e-6, "ms": 1e-3, "": 1.0, "s": 1.0, "m": 60.0}

_UNAUTHORIZED = (
    "unauthorized",
    "authentication required",
    "no basic auth credentials",
    "incorrect username or password",
    "denied",
    "forbidden",
    "http 401",
    "http 403",
)
_PERMANENT = (
    *_UNAUTHORIZED,
    "not found",
    "http 400",
    "http 404",
    "manifest unknown",
    "name unknown",
    "does not exist",
    "no such image",
    "no matching manifest",
    "invalid reference",
    "invalid repository name",
    "invalid tag",
    "server gave http response to https client",
    "x509",
    "no space left on device",
)
# These win over the words above: "503 ... not found" or a proxy's "403 (rate limit)" may pass.
_TRANSIENT = (
    "toomanyrequests",
    "too many requests",
    "rate limit",
    "500 internal server error",
    "502 bad gateway",
    "503 service",
    "504 gateway",
    "timeout",
    "timed out",
    "deadline exceeded",
    "no such host",
    "server misbehaving",
    "temporary failure",
    "network is unreachable",
    "connection refused",
    "connection reset",
    "broken pipe",
    "eof",
)


class _Detail(msgspec.Struct):
    current: int = 0
    total: int = 0


class _ErrorDetail(msgspec.Struct):
    message: str = ""


class _Aux(msgspec.Struct):
    digest: str = msgspec.field(name="Digest", default="")
    tag: str = msgspec.field(name="Tag", default="")


class _Event(msgspec.Struct):
    status: str = ""
    id: str = ""
    progress: _Detail = msgspec.field(name="progressDetail", default_factory=_Detail)
    error: str = ""
    error_detail: _ErrorDetail | None = msgspec.field(name="errorDetail", default=None)
    aux: _Aux | None = None


class _Descriptor(msgspec.Struct):
    digest: str = ""


class _Distribution(msgspec.Struct):
    descriptor: _Descriptor = msgspec.field(name="Descriptor", default_factory=_Descriptor)


class _Failure(Exception):
    """The engine or the registry refused; ``status`` is 0 when it said so inside the stream."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status

    @property
    def transient(self) -> bool:
        """Whether another try may succeed. What nobody has heard of is tried again."""
        text = str(self).lower()
        if any(word in text for word in _TRANSIENT):
            return True
        return self.status not in (400, 401, 403, 404) and not any(
            word in text for word in _PERMANENT
        )

    @property
    def retry_after_s(self) -> float:
        """How long the registry asks to wait; 0 when it does not say."""
        found = _RETRY_AFTER.search(str(self))
        return float(found[1]) * _UNITS_S[(found[2] or "").lower()] if found else 0.0

    @property
    def unauthorized(self) -> bool:
        """Whether the registry wants other credentials."""
        text = str(self).lower()
        return not self.transient and any(word in text for word in _UNAUTHORIZED)


def pull(
    api: DockerApi,
    environ: Mapping[str, str],
    name: str,
    on_progress: Callable[[TransferProgress], None],
    cancel: threading.Event,
) -> None:
    """Pull ``name``; without tag and digest it is ``latest`` (the API would take all tags).

    Raises:
        ImagePullError: it did not come, or ``cancel`` was set.
    """
    asked = ImageName.parse(name)
    version = asked.digest or asked.tag or "latest"
    path = f"/images/create?fromImage={quoted(asked.repository)}&tag={quoted(version)}"
    try:
        auth = registry_auth_header(asked.registry, environ)
        with contextlib.closing(_transfer(api, auth, path, cancel)) as events:
            for event in events:
                on_progress(_progress(name, event))
    except Stopped as error:
        raise ImagePullError(f"the pull of {name} was cancelled") from error
    except CredentialsError as error:
        raise ImagePullError(str(error), hint=error.hint) from error
    except _Failure as error:
        _raise_pull_error(name, asked, error)


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
        auth = _auth_header(asked, environ, login)
        with contextlib.closing(_transfer(api, auth, path, cancel)) as events:
            for event in events:
                on_progress(_progress(name, event))
                if event.aux is not None:
                    digest = event.aux.digest or digest
                if event.status and not (event.progress.current or event.progress.total):
                    # as `docker push` prints without a terminal: no bars
                    lines.append(f"{event.id}: {event.status}" if event.id else event.status)
                if event.id:
                    layers[event.id] = event.status
    except Stopped as error:
        raise ImagePushError(f"the push of {name} was cancelled") from error
    except CredentialsError as error:
        raise ImagePushError(str(error), unauthorized=True, hint=error.hint) from error
    except _Failure as error:
        _raise_push_error(name, asked, error)
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


def import_changes(
    entrypoint: Sequence[str], cmd: Sequence[str], env: Sequence[str], labels: Mapping[str, str]
) -> list[str]:
    """An image's config as the Dockerfile lines that the engine's import takes."""

    def quoted_text(text: str) -> str:
        if "\n" in text:
            raise EngineError(f"an image's setting can't have several lines: {text!r}")
        escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
        return f'"{escaped}"'

    changes = [f"LABEL {key}={quoted_text(value)}" for key, value in labels.items()]
    for entry in env:
        key, _, value = entry.partition("=")
        changes.append(f"ENV {key}={quoted_text(value)}")
    if entrypoint:
        changes.append(f"ENTRYPOINT {msgspec.json.encode(list(entrypoint)).decode()}")
    if cmd:
        changes.append(f"CMD {msgspec.json.encode(list(cmd)).decode()}")
    return changes


def import_tar(api: DockerApi, name: str, tar: Iterable[bytes], changes: Sequence[str]) -> None:
    """Make an image from a root file system.

    Raises:
        EngineError: the engine could not.
    """
    asked = ImageName.parse(name)
    path = f"/images/create?fromSrc=-&repo={quoted(asked.repository)}&tag={asked.tag or 'latest'}"
    path += "".join(f"&changes={quoted(change)}" for change in changes)
    headers = {"Content-Type": "application/x-tar"}
    response = api.request("POST", path, body=tar, headers=headers)
    body = response.body()
    if response.status != 200:
        raise docker_errors.engine_error(f"the image {name} can't be made", response.status, body)
    try:
        for _ in _events([body]):
            pass
    except _Failure as error:
        raise EngineError(f"the image {name} can't be made: {error}") from error


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
) -> Generator[_Event, None, None]:
    response = api.send("POST", path, headers={"X-Registry-Auth": auth}, stop=cancel).head()
    if response.status != 200:
        raise _Failure(docker_errors.message_of(response.body()), response.status)
    try:
        yield from _events(response.pieces())
    finally:
        response.close()


def _auth_header(image: ImageName, environ: Mapping[str, str], login: RegistryLogin | None) -> str:
    return registry_auth_header(image.registry, environ) if login is None else login_header(login)


def _confirm(api: DockerApi, auth: str, name: str, digest: str, cancel: threading.Event) -> None:
    """Let the engine ask the registry what ``name`` is there.

    A login may be allowed to push and not to pull, and not every engine can ask: then the word of
    the push has to do.

    Raises:
        ImagePushError: the registry has nothing, or something else, under ``name``.
    """
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


def _events(pieces: Iterable[bytes]) -> Iterator[_Event]:
    """The events of a transfer. Errors hide among them: they become a _Failure."""
    try:
        for line in _lines(pieces):
            event = msgspec.json.decode(line, type=_Event)
            if event.error_detail is not None and event.error_detail.message:
                raise _Failure(event.error_detail.message)
            if event.error:
                raise _Failure(event.error)
            yield event
    except msgspec.DecodeError as error:
        raise _Failure(f"the engine's answer can't be understood: {error}") from error


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        if len(rest) > _LINE_LIMIT:
            raise _Failure("the engine's answer has a line without end")
        yield from (line for line in lines if line.strip())
    if rest.strip():
        yield rest


def _progress(name: str, event: _Event) -> TransferProgress:
    return TransferProgress(
        image=name,
        layer=event.id,
        status=event.status,
        current_bytes=event.progress.current,
        total_bytes=event.progress.total,
    )


def _login(asked: ImageName) -> str:
    registry = "" if asked.registry == "docker.io" else f" {asked.registry}"
    return f"docker login{registry}"


def _hint(asked: ImageName, failure: _Failure) -> str:
    text = str(failure).lower()
    if "server gave http response to https client" in text:
        return f"Add {asked.registry!r} to insecure-registries of the engine (daemon.json)."
    if "x509" in text:
        return f"The engine does not trust the certificate of {asked.registry}."
    if "no space left" in text:
        return "The engine's disk is full: docker system df shows what uses it."
    if failure.unauthorized:
        return f"Check the name; if it is private: {_login(asked)}"
    if failure.transient:
        return f"Is {asked.registry} reachable from the engine's machine?"
    return ""


def _raise_pull_error(name: str, asked: ImageName, failure: _Failure) -> NoReturn:
    hint = _hint(asked, failure) or "Check its spelling, and that its tag exists in the registry."
    raise ImagePullError(
        f"the image {name} can't be pulled: {failure}", transient=failure.transient, hint=hint
    ) from failure


def _raise_push_error(name: str, asked: ImageName, failure: _Failure) -> NoReturn:
    raise ImagePushError(
        f"the image {name} can't be pushed: {failure}",
        transient=failure.transient,
        unauthorized=failure.unauthorized,
        retry_after_s=failure.retry_after_s,
        hint=_hint(asked, failure),
    ) from failure
