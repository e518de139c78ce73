"""Pulls and pushes images through the Docker Engine API, one try at a time."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import NoReturn
from urllib.parse import quote

import msgspec

from buildrunner.containers.docker.api import Capabilities, DockerApi
from buildrunner.containers.docker.errors import EndlessLine, Refusal, Stopped
from buildrunner.containers.image_name import ImageName
from buildrunner.containers.protocol import PushedImage, RegistryLogin, TransferProgress
from buildrunner.containers.registry_auth import ANONYMOUS, login_header, registry_auth_header
from buildrunner.errors import CredentialsError, ImagePullError, ImagePushError

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
    """Pull ``name``; without tag and digest, ``latest`` (the API would pull all tags).

    Args:
        api: the engine.
        environ: names the user's Docker config; None pulls without a login.
        name: the image to pull.
        on_progress: called with each report of progress.
        cancel: ends the pull.

    Raises:
        ImagePullError: the pull failed, or ``cancel`` was set.
    """
    requested = ImageName.parse(name)
    version = requested.digest or requested.tag or "latest"
    query = {"fromImage": requested.repository, "tag": version}
    try:
        auth = ANONYMOUS
        if environ is not None:
            auth = registry_auth_header(requested.registry, environ, cancel)
        with contextlib.closing(_transfer(api, auth, "/images/create", query, cancel)) as events:
            for event in events:
                on_progress(_progress(name, event))
    except Stopped as error:
        raise ImagePullError(f"the pull of {name} was cancelled") from error
    except CredentialsError as error:
        raise ImagePullError(str(error), hint=error.hint) from error
    except TransferFailure as error:
        raise_pull_error(name, requested, error, api.capabilities())


def push(
    api: DockerApi,
    environ: Mapping[str, str] | None,
    name: str,
    size_bytes: int,
    on_progress: Callable[[TransferProgress], None],
    cancel: threading.Event,
    login: RegistryLogin | None = None,
) -> PushedImage:
    """Push one tag (``latest`` if ``name`` has none), and confirm it with the registry's digest.

    The engine's report of the push is verified: the registry itself must have the digest under
    the tag.

    Args:
        api: the engine.
        environ: names the user's Docker config; None pushes without a login of the user.
        name: the image to push.
        size_bytes: the image's size, for the result.
        on_progress: called with each report of progress.
        cancel: ends the push.
        login: used instead of the user's credentials.

    Raises:
        ImagePushError: the push failed, or ``cancel`` was set.
    """
    requested = ImageName.parse(name)
    tag = requested.tag or "latest"
    path = f"/images/{quote(requested.repository)}/push"
    lines: list[str] = []
    layers: dict[str, str] = {}
    digest = ""
    try:
        auth = _auth_header(requested, environ, login, cancel)
        with contextlib.closing(_transfer(api, auth, path, {"tag": tag}, cancel)) as events:
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
        raise_push_error(name, requested, error, api.capabilities())
    if not digest:
        raise ImagePushError(
            f"the push of {name} ended without a digest from the registry",
            transient=True,
            hint="Look at the registry's log: it may have refused the manifest.",
        )
    _confirm(api, auth, f"{requested.repository}:{tag}", digest, cancel)
    return PushedImage(
        name=f"{requested.repository}:{tag}",
        digest=digest,
        size_bytes=size_bytes,
        layers_pushed=sum(status == "Pushed" for status in layers.values()),
        layers_reused=sum(
            status == "Layer already exists" or status.startswith("Mounted from")
            for status in layers.values()
        ),
        log=tuple(lines),
    )


def _transfer(
    api: DockerApi,
    auth: str,
    path: str,
    query: Mapping[str, str],
    cancel: threading.Event,
) -> Generator[TransferEvent, None, None]:
    headers = {"X-Registry-Auth": auth}
    try:
        with api.until(cancel) as own:
            answer = own.stream("POST", path, params=query, headers=headers, timeout_s=None)
            with contextlib.closing(answer):
                yield from transfer_events(answer.lines(_LINE_LIMIT))
    except Refusal as refusal:
        raise TransferFailure(refusal.message, refusal.status) from refusal
    except EndlessLine as error:
        raise TransferFailure(str(error)) from error


def _auth_header(
    image: ImageName,
    environ: Mapping[str, str] | None,
    login: RegistryLogin | None,
    cancel: threading.Event,
) -> str:
    if login is not None:
        return login_header(login)
    if environ is None:
        return ANONYMOUS
    return registry_auth_header(image.registry, environ, cancel)


def _confirm(api: DockerApi, auth: str, name: str, digest: str, cancel: threading.Event) -> None:
    """Let the engine query the registry for the digest of ``name``.

    A login may permit pushes but not pulls, and not every engine can query, or give an answer
    that can be read: then the digest that the push reported is used.

    Raises:
        ImagePushError: the registry has nothing, or something else, under ``name``.
    """
    if not api.capabilities().asks_registries:
        return
    found = ""
    try:
        with api.until(cancel) as own:
            body = own.send(
                "GET", f"/distribution/{quote(name)}/json", headers={"X-Registry-Auth": auth}
            )
        found = msgspec.json.decode(body, type=_Distribution).descriptor.digest
    except Stopped as error:
        raise ImagePushError(f"the push of {name} was cancelled") from error
    except (msgspec.DecodeError, RecursionError):
        return
    except Refusal as refusal:
        if refusal.status != 404 or "page not found" in refusal.message.lower():
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


_LINE_LIMIT = 1024 * 1024
_MOST_NEWS = 16 * 1024 * 1024  # characters of one transfer that are kept


class _Detail(msgspec.Struct):
    current: int = 0
    total: int = 0


class _ErrorDetail(msgspec.Struct):
    message: str = ""


class TransferEvent(msgspec.Struct):
    """One line of the stream. Its subject decides which fields are set."""

    status: str = ""
    id: str = ""
    progress: _Detail = msgspec.field(name="progressDetail", default_factory=_Detail)
    error: str = ""
    error_detail: _ErrorDetail | None = msgspec.field(name="errorDetail", default=None)


def transfer_events(lines: Iterable[bytes]) -> Iterator[TransferEvent]:
    """Yield the events of a transfer. An error among them raises a `TransferFailure`.

    More reports of layers than a caller can keep in memory are an error, too.
    """
    known: dict[str, str] = {}
    news = 0
    try:
        for line in lines:
            event = msgspec.json.decode(line, type=TransferEvent)
            if event.error_detail is not None and event.error_detail.message:
                raise TransferFailure(event.error_detail.message)
            if event.error:
                raise TransferFailure(event.error)
            is_progress = event.progress.current or event.progress.total
            if not is_progress or known.get(event.id) != event.status:
                known[event.id] = event.status
                news += len(event.id) + len(event.status)
                if news > _MOST_NEWS:
                    raise TransferFailure("the engine reports too much of one transfer")
            yield event
    except (msgspec.DecodeError, RecursionError) as error:
        raise TransferFailure(f"the engine's answer can't be understood: {error}") from error


# The engine does not pass headers on, but registries also report rate limits in words.
_RETRY_AFTER = re.compile(r"retry[- ]after:?\s*(\d+(?:\.\d+)?)\s*(µs|us|ms|s|m)?\b", re.IGNORECASE)
# The engine's message about an answer that is not the JSON it expects, such as a proxy's page.
_UNREAD = re.compile(
    r"error parsing HTTP (?P<status>\d{3}) response body: .*?: \"(?P<body>.*)\"", re.DOTALL
)
_NO_REGISTRY = r"the registry answers HTTP \g<status>, with no error of a registry"
# The containerd image store's message about an answer. Its URLs end in "?" and the upload's state.
_STATUS = re.compile(
    r"(?:unknown: )?(?:failed commit on ref \"[^\"]*\": )?"
    r"unexpected status from [A-Z]+ request to \S+: (?P<status>\d{3}) ?(?P<words>.*)"
)
_QUERY = re.compile(r"(https?://[^\s\"?]+)\?[^\s\"]*")
_LONGEST = 1000
_UNITS_S = {"µs": 1e-6, "us": 1e-6, "ms": 1e-3, "": 1.0, "s": 1.0, "m": 60.0}

# The engine's message about an answer without the header Docker-Content-Digest. It is retried: a
# proxy may have dropped the manifest this time.
_NO_DIGEST = "invalid checksum digest format"
_ANSWERED = re.compile(
    r"http (?:status: )?(?:429|5\d\d)|toomanyrequests|too many requests|rate limit", re.IGNORECASE
)

# No name server answers on a machine without a network.
_UNRESOLVED = re.compile(r"no such host|\blookup .*(?:connection refused|network is unreachable)")

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
    # of a registry that refuses the image: too large, read-only, an immutable tag
    "size invalid",
    "digest invalid",
    "manifest invalid",
    "tag invalid",
    "unsupported",
    "quota",
    "immutable",
    "read-only",
    "http 405",
    "http 409",
    "http 412",
    "http 413",
    "status: 405",
    "status: 409",
    "status: 412",
    "status: 413",
)
# These override the words above: "503 ... not found" or "403 (rate limit)" may be transient.
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


class TransferFailure(Exception):
    """The engine or the registry refused; ``status`` is 0 if the refusal was inside the stream.

    Attributes:
        without_answer: the message without the text of an answer that is not a registry's.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        sentence = _STATUS.sub(r"the registry answers HTTP \g<status>: \g<words>", message)
        self.without_answer = _one_line(_UNREAD.sub(_NO_REGISTRY, sentence))
        sentence = _one_line(_UNREAD.sub(_said, sentence))
        super().__init__(sentence)
        self.status = status
        self._words = sentence.lower()

    def leave_out(self, requested: ImageName) -> None:
        """Exclude the names of an image from the search for words: "geofence" contains "eof"."""
        path = requested.repository.removeprefix(f"{requested.registry}/")
        names = {requested.repository, requested.familiar, requested.registry, path} - {
            *_PERMANENT,
            *_TRANSIENT,
        }
        either = "|".join(re.escape(name.lower()) for name in sorted(names, key=len, reverse=True))
        tag = rf":{re.escape(requested.tag.lower())}" if requested.tag else ""
        self._words = re.sub(
            rf"(?<![\w.-])(?:{either})(?:{tag})?(?![\w-])|/manifests/[^\s\"']+", "", self._words
        )

    @property
    def transient(self) -> bool:
        """Return whether a retry may succeed. Unknown errors are retried."""
        if any(word in self._words for word in _TRANSIENT):
            return True
        return self.status not in (400, 401, 403, 404) and not any(
            word in self._words for word in _PERMANENT
        )

    @property
    def unresolved(self) -> bool:
        """Return whether the registry's host has no address."""
        return _UNRESOLVED.search(self._words) is not None

    @property
    def retry_after_s(self) -> float:
        """Return the seconds that the registry requests to wait; 0 if it does not."""
        found = _RETRY_AFTER.search(str(self))
        return float(found[1]) * _UNITS_S[(found[2] or "").lower()] if found else 0.0

    @property
    def unauthorized(self) -> bool:
        """Return whether the registry requests other credentials."""
        return not self.transient and any(word in self._words for word in _UNAUTHORIZED)


def _one_line(text: str) -> str:
    return " ".join(_QUERY.sub(r"\1", text).split())[:_LONGEST]


def _said(unread: re.Match[str]) -> str:
    """Return a sentence about an answer that the engine could not read. Web pages are left out."""
    quoted = unread["body"].encode("latin-1", "backslashreplace")
    body = quoted.decode("unicode_escape", "replace").strip()
    words = "it gives no reason" if not body or body.startswith("<") else body
    return f"the registry answers HTTP {unread['status']}: {words}"


def _login(requested: ImageName) -> str:
    registry = "" if requested.registry == "docker.io" else f" {requested.registry}"
    return f"docker login{registry}"


def _hint(requested: ImageName, failure: TransferFailure, engine: Capabilities) -> str:
    text = str(failure).lower()
    if "server gave http response to https client" in text:
        return engine.trust_plain_http.format(requested.registry)
    if "x509" in text:
        said = f"The engine does not trust the certificate of {requested.registry}"
        if "unknown authority" not in text:
            return f"{said}."
        place = f"/etc/docker/certs.d/{requested.registry}/ca.crt"
        return f"{said}: put its authority's into {place}, on the engine's machine."
    if "no matching manifest" in text:
        return f"{requested.registry} has it for other platforms only than the engine's."
    if "no space left" in text:
        return "The engine's disk is full: docker system df shows what uses it."
    if _NO_DIGEST in text:
        return (
            f"{requested.registry} answers without the header Docker-Content-Digest: is it a "
            "registry, and does a proxy before it take the header away?"
        )
    if failure.unauthorized:
        return f"Check the name; if it is private: {_login(requested)}"
    if failure.transient and _ANSWERED.search(text):
        return (
            f"{requested.registry} is busy or broken: try again later, "
            "or report it to its operator."
        )
    if failure.transient:
        return f"Is {requested.registry} reachable from the engine's machine?"
    return ""


def _login_hint(requested: ImageName) -> str:
    return f"Log in as a user with write access: {_login(requested)}"


def raise_pull_error(
    name: str, requested: ImageName, failure: TransferFailure, engine: Capabilities
) -> NoReturn:
    """Raise the error of a pull of ``name``, with advice.

    A registry may redirect the engine to a service of the machine's network. The answer of that
    service is not shown to the author of the build.
    """
    failure.leave_out(requested)
    hint = _hint(requested, failure, engine)
    raise ImagePullError(
        f"the image {name} can't be pulled: {failure.without_answer}",
        transient=failure.transient,
        unresolved=failure.unresolved,
        retry_after_s=failure.retry_after_s,
        hint=hint or "Check its spelling, and that its tag exists in the registry.",
    ) from failure


def raise_push_error(
    name: str, requested: ImageName, failure: TransferFailure, engine: Capabilities
) -> NoReturn:
    """Raise the error of a push of ``name``, with advice."""
    failure.leave_out(requested)
    raise ImagePushError(
        f"the image {name} can't be pushed: {failure}",
        transient=failure.transient,
        unauthorized=failure.unauthorized,
        retry_after_s=failure.retry_after_s,
        hint=_login_hint(requested) if failure.unauthorized else _hint(requested, failure, engine),
    ) from failure
