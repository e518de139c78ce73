"""What it means that an image was not pulled or pushed: try again, log in, or give up."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NoReturn

from buildrunner.errors import ImagePullError, ImagePushError

if TYPE_CHECKING:
    from buildrunner.containers.capabilities import Capabilities
    from buildrunner.containers.image_name import ImageName

# The engine hands on no headers, but registries that limit rates say it in words too.
_RETRY_AFTER = re.compile(r"retry[- ]after:?\s*(\d+(?:\.\d+)?)\s*(µs|us|ms|s|m)?\b", re.IGNORECASE)
# How the engine tells of an answer that is not the JSON it expects, as proxies give it.
_UNREAD = re.compile(
    r"error parsing HTTP (?P<status>\d{3}) response body: .*?: \"(?P<body>.*)\"", re.DOTALL
)
# How the containerd image store reports an answer. Its URLs carry the upload's state behind "?".
_STATUS = re.compile(
    r"(?:unknown: )?(?:failed commit on ref \"[^\"]*\": )?"
    r"unexpected status from [A-Z]+ request to \S+: (?P<status>\d{3}) ?(?P<words>.*)"
)
_QUERY = re.compile(r"(https?://[^\s\"?]+)\?[^\s\"]*")
_LONGEST = 1000
_UNITS_S = {"µs": 1e-6, "us": 1e-6, "ms": 1e-3, "": 1.0, "s": 1.0, "m": 60.0}

# What the engine says of an answer without the header Docker-Content-Digest. It is tried again: a
# proxy may have swallowed the manifest, for once.
_NO_DIGEST = "invalid checksum digest format"
_ANSWERED = re.compile(
    r"http (?:status: )?(?:429|5\d\d)|toomanyrequests|too many requests|rate limit", re.IGNORECASE
)

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
    # of a registry that takes nothing: too large, read-only, a tag that must stay as it is
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


class TransferFailure(Exception):
    """The engine or the registry refused; ``status`` is 0 when it said so inside the stream."""

    def __init__(self, message: str, status: int = 0) -> None:
        sentence = _STATUS.sub(r"the registry answers HTTP \g<status>: \g<words>", message)
        sentence = _QUERY.sub(r"\1", _UNREAD.sub(_said, sentence))
        sentence = " ".join(sentence.split())[:_LONGEST]
        super().__init__(sentence)
        self.status = status
        self._words = sentence.lower()

    def leave_out(self, asked: ImageName) -> None:
        """Know that the names of ``asked`` tell nothing: "geofence" holds "eof"."""
        path = asked.repository.removeprefix(f"{asked.registry}/")
        names = {asked.repository, asked.familiar, asked.registry, path} - {
            *_PERMANENT,
            *_TRANSIENT,
        }
        either = "|".join(re.escape(name.lower()) for name in sorted(names, key=len, reverse=True))
        tag = rf":{re.escape(asked.tag.lower())}" if asked.tag else ""
        self._words = re.sub(
            rf"(?<![\w.-])(?:{either})(?:{tag})?(?![\w-])|/manifests/[^\s\"']+", "", self._words
        )

    @property
    def transient(self) -> bool:
        """Whether another try may succeed. What nobody has heard of is tried again."""
        if any(word in self._words for word in _TRANSIENT):
            return True
        return self.status not in (400, 401, 403, 404) and not any(
            word in self._words for word in _PERMANENT
        )

    @property
    def retry_after_s(self) -> float:
        """How long the registry asks to wait; 0 when it does not say."""
        found = _RETRY_AFTER.search(str(self))
        return float(found[1]) * _UNITS_S[(found[2] or "").lower()] if found else 0.0

    @property
    def unauthorized(self) -> bool:
        """Whether the registry wants other credentials."""
        return not self.transient and any(word in self._words for word in _UNAUTHORIZED)


def _said(unread: re.Match[str]) -> str:
    """What an answer says that the engine could not read: words, a page for people, or nothing."""
    quoted = unread["body"].encode("latin-1", "backslashreplace")
    body = quoted.decode("unicode_escape", "replace").strip()
    words = "it gives no reason" if not body or body.startswith("<") else body
    return f"the registry answers HTTP {unread['status']}: {words}"


def _login(asked: ImageName) -> str:
    registry = "" if asked.registry == "docker.io" else f" {asked.registry}"
    return f"docker login{registry}"


def _hint(asked: ImageName, failure: TransferFailure, engine: Capabilities) -> str:
    text = str(failure).lower()
    if "server gave http response to https client" in text:
        return engine.trust_plain_http.format(asked.registry)
    if "x509" in text:
        said = f"The engine does not trust the certificate of {asked.registry}"
        if "unknown authority" not in text:
            return f"{said}."
        place = f"/etc/docker/certs.d/{asked.registry}/ca.crt"
        return f"{said}: put its authority's into {place}, on the engine's machine."
    if "no matching manifest" in text:
        return f"{asked.registry} has it for other platforms only than the engine's."
    if "no space left" in text:
        return "The engine's disk is full: docker system df shows what uses it."
    if _NO_DIGEST in text:
        return (
            f"{asked.registry} answers without the header Docker-Content-Digest: is it a registry, "
            "and does a proxy before it take the header away?"
        )
    if failure.unauthorized:
        return f"Check the name; if it is private: {_login(asked)}"
    if failure.transient and _ANSWERED.search(text):
        return f"{asked.registry} is busy or broken: try again later, or ask who runs it."
    if failure.transient:
        return f"Is {asked.registry} reachable from the engine's machine?"
    return ""


def _login_hint(asked: ImageName) -> str:
    return f"Log in as somebody who may write there: {_login(asked)}"


def raise_pull_error(
    name: str, asked: ImageName, failure: TransferFailure, engine: Capabilities
) -> NoReturn:
    """The error of a pull of ``name``, with what to do about it."""
    failure.leave_out(asked)
    hint = _hint(asked, failure, engine)
    raise ImagePullError(
        f"the image {name} can't be pulled: {failure}",
        transient=failure.transient,
        retry_after_s=failure.retry_after_s,
        hint=hint or "Check its spelling, and that its tag exists in the registry.",
    ) from failure


def raise_push_error(
    name: str, asked: ImageName, failure: TransferFailure, engine: Capabilities
) -> NoReturn:
    """The error of a push of ``name``, with what to do about it."""
    failure.leave_out(asked)
    raise ImagePushError(
        f"the image {name} can't be pushed: {failure}",
        transient=failure.transient,
        unauthorized=failure.unauthorized,
        retry_after_s=failure.retry_after_s,
        hint=_login_hint(asked) if failure.unauthorized else _hint(asked, failure, engine),
    ) from failure
