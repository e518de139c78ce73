"""A plain bare repository, whose ``post-receive`` hook is ours (`cli.triggers.bare_hook`)."""

from __future__ import annotations

from typing import Any

from buildrunner.triggers.events import PushEvent, Repository
from buildrunner.triggers.forges.forge import (
    BadDelivery,
    ParsedDelivery,
    WebhookRequest,
    body_digest,
    hmac_matches,
    items,
    json_object,
    number,
    part,
    refs_of,
    required,
    text,
)

INSTALLED, INSTALLING = "installed", "installing"  # all known refs are reported, or a part
_SKIP_OPTION = "ci.skip"  # the same name as GitLab's
_MOST_FIELDS = 20  # each ref's event has them all; our hook sends seven


class BareGit:
    """See `Forge`."""

    name = "git"

    def is_genuine(self, request: WebhookRequest, secret: str) -> bool:
        """See `Forge.is_genuine`."""
        presented = request.header("x-buildrunner-signature")
        return hmac_matches(request.body, secret, presented, prefix="sha256=")

    def delivery_id(self, request: WebhookRequest) -> str:
        """See `Forge.delivery_id`; called for genuine deliveries only."""
        try:
            return text(json_object(request), "id") or body_digest(request)
        except BadDelivery:
            return body_digest(request)

    def sent_at(self, request: WebhookRequest) -> float | None:
        """See `Forge.sent_at`; a delivery without a time counts as the oldest possible."""
        try:
            return number(json_object(request), "time")
        except BadDelivery:
            return 0

    def parse(self, request: WebhookRequest) -> ParsedDelivery:
        """See `Forge.parse`."""
        body = json_object(request)
        if len(body) > _MOST_FIELDS:
            raise BadDelivery(f"it has {len(body)} fields, and {_MOST_FIELDS} are the most")
        refs = refs_of(items(body, "refs"))
        if part(body, "installed") is True:
            events = tuple(_push(body, ref) for ref in refs)
            if part(body, "more") is True:
                said = "the server knows a part of the repository now"
                return ParsedDelivery(kind=INSTALLING, known=events, ignored=said)
            said = "the server knows the repository now, and what is in it"
            return ParsedDelivery(kind=INSTALLED, known=events, ignored=said)
        if not refs:
            return ParsedDelivery(kind="push", ignored="no ref was pushed")
        return ParsedDelivery(kind="push", events=tuple(_push(body, ref) for ref in refs))


def _push(body: dict[str, Any], ref: Any) -> PushEvent:
    files = part(ref, "files")
    repository = Repository(
        full_name=required(body, "repository", "name"),
        clone_url=text(body, "repository", "url"),
        forge="git",
        bare=True,
    )
    return PushEvent(
        repository=repository,
        ref=required(ref, "ref"),
        before=text(ref, "before"),
        after=text(ref, "after"),
        message=text(ref, "message"),
        files=tuple(str(name) for name in files) if isinstance(files, list) else None,
        forced=part(ref, "forced") is True,
        skip_option=_SKIP_OPTION if _SKIP_OPTION in items(body, "options") else "",
        author=text(body, "pusher"),
        body={**body, **(ref if isinstance(ref, dict) else {})},
    )
