"""The protocol of a forge's webhooks, and the readers of payloads that forges share. Pure.

To add a forge:

- write a module with a `Forge`, and add it to `forges.catalog.FORGES`
- add its kind to `forge_host.KINDS`, with its addresses in `ForgeHost`
- add its commit statuses to `status_report`
- add its marks to `trial`, which recognizes a payload without headers
- add recorded payloads to the tests
"""

from __future__ import annotations

import hashlib
import hmac
import re
from codecs import BOM_UTF8
from collections.abc import Mapping
from typing import Any, Final, Protocol
from urllib.parse import parse_qs

import msgspec

from buildrunner.triggers.events import Event, MessageEvent, PullRequestEvent, PushEvent, Repository
from buildrunner.triggers.forge_host import is_too_long, repository_key


class WebhookRequest(msgspec.Struct, frozen=True):
    """The request of a webhook, unchanged.

    Attributes:
        headers: by lower-case name.
        body: exactly the bytes that the sender signed.
    """

    headers: Mapping[str, str]
    body: bytes

    def header(self, name: str) -> str:
        """Return a header; empty if the request does not have it."""
        return self.headers.get(name.lower(), "")


class ParsedDelivery(msgspec.Struct, frozen=True, kw_only=True):
    """The events of a delivery.

    Attributes:
        kind: the forge's name of the event: ``push``, ``pull_request.opened``, ...
        events: several if the delivery reports several refs; none if it cannot fire a trigger.
        ignored: the reason if there are no events; empty otherwise.
        known: refs that the delivery reports as unchanged.
    """

    kind: str
    events: tuple[Event, ...] = ()
    ignored: str = ""
    known: tuple[PushEvent, ...] = ()


class BadDelivery(ValueError):
    """The delivery does not have the form of its forge. The message says what is wrong."""


MOST_REFS: Final = 1000
"""The most refs that one delivery may report as pushed, or as known."""


class TooManyRefs(BadDelivery):
    """The delivery reports more than `MOST_REFS` refs."""


class Forge(Protocol):
    """One kind of forge."""

    name: str
    """As in `Repository.forge` and in the address ``/hooks/NAME``."""

    def is_genuine(self, request: WebhookRequest, secret: str) -> bool:
        """Return whether the sender knows the secret, checked in constant time.

        Called before the body is parsed. False for an empty secret.
        """
        ...

    def sent_at(self, request: WebhookRequest) -> float | None:
        """Return the time in a genuine delivery at which it was sent, in seconds since 1970.

        None if the signed part of the delivery has no time.
        """
        ...

    def delivery_id(self, request: WebhookRequest) -> str:
        """Return the id of a delivery: the same for each attempt, and different for others."""
        ...

    def parse(self, request: WebhookRequest) -> ParsedDelivery:
        """Return the events of a genuine delivery.

        Raises:
            BadDelivery: the delivery does not have the form of this forge.
        """
        ...


_SIGNATURES = (
    "x-hub-signature-256",
    "x-hub-signature",
    "x-gitea-signature",
    "x-forgejo-signature",
    "x-gogs-signature",
    "x-gitlab-token",
    "webhook-signature",
    "x-buildrunner-signature",
)


def lacking_proof(request: WebhookRequest) -> str:
    """Return the reason why no secret can verify a delivery; empty if one can."""
    given = [request.header(name) for name in _SIGNATURES if request.header(name)]
    if not given:
        return "it is not signed: the webhook has no secret on the forge"
    if all(one.startswith("sha1=") for one in given):
        return "it has only a SHA-1 signature, which is not secure"
    return ""


def hmac_matches(body: bytes, secret: str, presented: str, *, prefix: str = "") -> bool:
    """Return whether ``presented`` is the hex HMAC-SHA256 of the body; in constant time.

    Args:
        body: the signed bytes.
        secret: the key; an empty key matches nothing.
        presented: the sender's signature, with ``prefix``.
        prefix: ``sha256=``, or empty.
    """
    expected = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    given = presented.strip().removeprefix(prefix)
    right_form = presented.strip().startswith(prefix)
    same = hmac.compare_digest(expected.encode(), given.lower().encode())
    return same and right_form and bool(secret)


def token_matches(presented: str, secret: str) -> bool:
    """Return whether ``presented`` is the secret; in constant time. An empty one never matches."""
    return hmac.compare_digest(presented.encode(), secret.encode()) and bool(secret)


def body_digest(request: WebhookRequest) -> str:
    """Return a delivery id for forges without one: the same body is the same delivery."""
    return hashlib.sha256(request.body).hexdigest()


MAX_DEPTH = 100
_FORM = "application/x-www-form-urlencoded"


def payload_bytes(request: WebhookRequest) -> bytes:
    """Return the JSON of a delivery: the body, or the field ``payload`` of a form.

    Source: GitHub's and Gitea's webhooks have both content types. The signature is over the body.
    """
    if request.header("content-type").partition(";")[0].strip().lower() != _FORM:
        return request.body
    if request.body.lstrip()[:1] in (b"{", b"["):  # `curl --data` calls every body a form
        return request.body
    try:
        fields = parse_qs(request.body.decode("ascii"), max_num_fields=100)
    except ValueError:
        return request.body
    payload = fields.get("payload")
    return payload[0].encode("utf-8", "replace") if payload else request.body


def plain_payload(request: WebhookRequest) -> bytes:
    """Return the same as `payload_bytes`, for a body that must not be compressed.

    Raises:
        BadDelivery: the body is compressed.
    """
    encoding = request.header("content-encoding").strip()
    if encoding.lower() not in ("", "identity"):
        raise BadDelivery(f"the body is compressed ({encoding}): only plain ones are read")
    return payload_bytes(request)


def json_object(request: WebhookRequest) -> dict[str, Any]:
    """Return the payload as a JSON object.

    Raises:
        BadDelivery: the payload is no JSON object, or is nested more than 100 deep.
    """
    value = json_value(plain_payload(request))
    if not isinstance(value, dict):
        raise BadDelivery("the body is not a JSON object")
    return value


def json_value(body: bytes) -> Any:
    """Parse a body as JSON.

    Raises:
        BadDelivery: the body is no JSON, or is nested more than 100 deep.
    """
    try:
        value = msgspec.json.decode(body.removeprefix(BOM_UTF8))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadDelivery(f"the body is not JSON: {error}") from error
    if _depth(value) > MAX_DEPTH:
        raise BadDelivery(f"the body is nested more than {MAX_DEPTH} deep")
    return value


def _depth(value: object) -> int:
    depth, level = 0, [value]
    while level and depth <= MAX_DEPTH:
        depth += 1
        level = [
            child
            for one in level
            if isinstance(one, dict | list)
            for child in (one.values() if isinstance(one, dict) else one)
        ]
    return depth


def part(value: object, *path: str | int) -> Any:
    """Return the value at a path of keys and indices; None if a part of the path is missing."""
    for key in path:
        if isinstance(key, int):
            value = value[key] if isinstance(value, list) and key < len(value) else None
        else:
            value = value.get(key) if isinstance(value, dict) else None
    return value


def text(value: object, *path: str | int) -> str:
    """Return the string at a path; empty if the value is missing or no string."""
    found = part(value, *path)
    return found if isinstance(found, str) else ""


def number(value: object, *path: str | int) -> int:
    """Return the integer at a path; 0 if the value is missing or no integer."""
    found = part(value, *path)
    return found if isinstance(found, int) and not isinstance(found, bool) else 0


def items(value: object, *path: str | int) -> list[Any]:
    """Return the list at a path; empty if the value is missing or no list."""
    found = part(value, *path)
    return found if isinstance(found, list) else []


def required(value: object, *path: str | int, of: str = "") -> str:
    """Return the string at a path.

    Args:
        value: a part of the payload.
        path: keys and indices below that part.
        of: path of that part, for the message.

    Raises:
        BadDelivery: the string is missing or empty.
    """
    found = text(value, *path)
    if not found:
        raise _missing(of, *path)
    return found


def required_items(value: object, *path: str | int) -> list[Any]:
    """Return the list at a path, which may be empty.

    Raises:
        BadDelivery: the list is missing.
    """
    found = part(value, *path)
    if not isinstance(found, list):
        raise _missing("", *path)
    return found


def refs_of(listed: list[Any]) -> list[Any]:
    """Return the refs that a delivery reports.

    Raises:
        TooManyRefs: they are too many.
    """
    if len(listed) > MOST_REFS:
        raise TooManyRefs(f"it reports {len(listed)} refs, and {MOST_REFS} are the most")
    return listed


def _missing(of: str, *path: str | int) -> BadDelivery:
    return BadDelivery(f"{'.'.join(map(str, (of, *path) if of else path))} is missing")


def event_kind(request: WebhookRequest, *headers: str) -> str:
    """Return the forge's name of the event, from the first of these headers that is present.

    Raises:
        BadDelivery: all of them are missing.
    """
    for name in headers:
        kind = request.header(name)
        if kind:
            return kind
    raise BadDelivery(f"the header {headers[0]} is missing, which names the event")


def files_of(commits: list[Any]) -> tuple[str, ...]:
    """Return every path that the commits of a push add, change or remove, sorted."""
    paths = {
        path
        for commit in commits
        for kind in ("added", "removed", "modified")
        for path in items(commit, kind)
        if isinstance(path, str)
    }
    return tuple(sorted(paths))


# Paths in payloads of the repository's address (for a pull request, of its base): GitHub and Gitea;
# GitLab; Bitbucket; a bare repository's hook; Bitbucket Server, which may report no address.
_MOST = 500


def lane_of(hook: str, forge: Forge, request: WebhookRequest) -> str:
    """Return the lane of a genuine delivery: its hook, and the repository of its events.

    The repository is read as its events are read later, and no sender of another hook can name the
    same lane. Empty for a delivery without events, which is handled at once.

    Args:
        hook: the hook.
        forge: the forge of the hook.
        request: the delivery.

    Raises:
        TooManyRefs: it has too many events.
    """
    try:
        parsed = parse_delivery(forge, request)
    except TooManyRefs:
        raise
    except BadDelivery:
        return ""
    for event in (*parsed.events, *parsed.known):
        if not isinstance(event, MessageEvent):
            return f"{hook} {repository_key(event.repository.full_name)}"[:_MOST]
    return ""


# Git accepts four digits or more; Bitbucket reports the first twelve of a pull request's commits.
_COMMIT = re.compile(r"[0-9A-Fa-f]{4,64}")
# Source: `git check-ref-format`.
_NEVER_IN_A_REF = re.compile(
    r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|(^|/)\.|\.lock(/|$)|[./]$|^/|^@$"
)
_NEVER_IN_AN_ADDRESS = re.compile(
    r"[\x00-\x1f\x7f]"
)  # spaces are allowed: folders of bare repositories have them
_MOST_SHOWN = 100


def parse_delivery(forge: Forge, request: WebhookRequest) -> ParsedDelivery:
    """Return the events of a delivery, with their refs, commits and addresses checked.

    Raises:
        BadDelivery: the delivery does not have the form of this forge.
    """
    parsed = forge.parse(request)
    for event in (*parsed.events, *parsed.known):
        _check(event)
    return parsed


def shortened(text: str) -> str:
    """Return the first 100 characters of a text, for messages."""
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 1]}…"


def _check(event: Event) -> None:
    match event:
        case PushEvent():
            if not event.ref.startswith("refs/") or not _is_ref(event.ref):
                raise BadDelivery(f"{_quoted(event.ref)} is not the full name of a branch or tag")
            _check_commits(event.before, event.after)
            _check_addresses(event.repository)
        case PullRequestEvent():
            for branch in (event.base_branch, event.head_branch):
                if branch and not _is_ref(branch):
                    raise BadDelivery(f"{_quoted(branch)} is not the name of a branch")
            _check_commits(event.base_commit, event.head_commit)
            _check_addresses(event.repository, event.head_full_name)
        case _:
            return


def _is_ref(name: str) -> bool:
    return not is_too_long(name) and not _NEVER_IN_A_REF.search(name)


def _check_commits(*commits: str) -> None:
    for commit in commits:
        if commit and not _COMMIT.fullmatch(commit):
            raise BadDelivery(f"{_quoted(commit)} is not the id of a commit")


def _check_addresses(repository: Repository, *others: str) -> None:
    for text in (repository.full_name, repository.clone_url, *repository.urls, *others):
        if is_too_long(text) or _NEVER_IN_AN_ADDRESS.search(text):
            raise BadDelivery(f"{_quoted(text)} is not the name or address of a repository")


def _quoted(text: str) -> str:
    shown = text.encode("unicode_escape", "backslashreplace").decode("ascii")
    return f'"{shortened(shown if not text.isprintable() else text)}"'
