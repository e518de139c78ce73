"""Asks notifiers what they say of builds, within bounds: their templates are their projects' own.

A notifier that may have something to say becomes a message of kind `NOTIFY` in the outbox, which
holds the notifier and the facts of the build. What it says is found out when the message is to be
sent: then a template that takes its time holds up one message, and no others.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from buildrunner.server.bounded import BoundedCalls, Bug, TooMuch
from buildrunner.server.http.errors import invalid_argument
from buildrunner.server.http.pinned import NotDelivered
from buildrunner.server.notifications.facts import Facts
from buildrunner.server.notifications.notifier import config_error, notifier_of
from buildrunner.store.model.outbox import Message

NOTIFY: Final = "notify"
MOST_BYTES: Final = 256 << 10
"""Of a notifier's config."""


class NotifierWords:
    """Evaluates the words and filters of notifiers. Thread-safe.

    Args:
        calls: evaluates.
    """

    def __init__(self, calls: BoundedCalls) -> None:
        self._calls = calls

    def check(self, project: str, document: dict[str, Any]) -> None:
        """Look for what is wrong with a notifier.

        Raises:
            ConfigError: something is.
            ApiError: it is too large.
            Busy: the project has too many others under way.
        """
        notifier_of(document)
        if len(msgspec.json.encode(document)) > MOST_BYTES:
            raise invalid_argument(f"the notifier is larger than {MOST_BYTES >> 10} KiB")
        try:
            problems = self._calls.call("check_notifier", document, owner=project)
        except TooMuch as error:
            raise invalid_argument(
                f"its templates or its filter can't be checked: {error}"
            ) from error
        if problems:
            raise config_error([tuple(problem) for problem in problems])

    def of(
        self,
        project: str,
        document: dict[str, Any],
        facts: Facts,
        *,
        key: str,
        now: datetime,
        in_any_case: bool = False,
    ) -> dict[str, Any]:
        """What a notifier says: see `bounded_operations.notify`; too much of it is a ``problem``.

        Raises:
            Busy: the project has too many others under way.
            BuildrunnerError: nothing can be evaluated now.
        """
        asked = asked_of(document, facts, key=key, now=now)
        return self._said(project, {**asked, "in_any_case": in_any_case})

    def _said(self, project: str, asked: dict[str, Any]) -> dict[str, Any]:
        digest = hashlib.sha256(msgspec.json.encode(asked["notifier"])).hexdigest()
        try:
            said: dict[str, Any] = self._calls.call("notify", asked, owner=project, key=digest)
        except TooMuch as error:
            text = f"the notifier's template or filter is given up: {error}"
            return {"fires": False, "rules": [], "problem": text}
        return said

    def prepared(self, message: Message) -> Message | None:
        """A message as it can be sent; None for one of a notifier that has nothing to say.

        Raises:
            NotDelivered: the notifier's words can't be had, for good.
            Busy: the project has too many others under way.
            BuildrunnerError: nothing can be evaluated now.
        """
        if message.kind != NOTIFY:
            return message
        try:
            said = self._said(message.project_id, message.message)
        except Bug as error:
            raise NotDelivered(str(error), is_final=True) from error
        if said.get("problem"):
            raise NotDelivered(said["problem"], is_final=True)
        if not said["fires"]:
            return None
        return replace(message, kind=said["kind"], message=said["message"])


def asked_of(document: dict[str, Any], facts: Facts, *, key: str, now: datetime) -> dict[str, Any]:
    """What is asked of a notifier, as JSON (`bounded_operations.NotifyArgument`)."""
    asked = {"notifier": document, "facts": facts, "key": key, "now": now}
    found: dict[str, Any] = msgspec.to_builtins(asked)
    return found
