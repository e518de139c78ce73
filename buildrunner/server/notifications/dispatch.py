"""Messages of notifiers about builds: which are sent, and their text, rendered within bounds.

A notifier that may report a build becomes a message of kind `NOTIFY` in the outbox, which holds the
notifier and the facts of the build. Its text is rendered when the message is sent: a slow template
of a project then delays one message, and no others.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from buildrunner.errors import ConfigError
from buildrunner.server.bounded import BoundedCalls, Bug, TooMuch
from buildrunner.server.context import ServerContext
from buildrunner.server.http.errors import invalid_argument
from buildrunner.server.http.pinned import NotDelivered
from buildrunner.server.notifications.facts import BAD, BROKEN, FIXED, GOOD, Facts
from buildrunner.server.notifications.messages import target_of
from buildrunner.server.notifications.model import Notifier
from buildrunner.server.notifications.notifier import config_error, notifier_of
from buildrunner.store.list_filter import quoted
from buildrunner.store.model.builds import StoredBuild
from buildrunner.store.model.outbox import BuildChange, Message, NewMessage
from buildrunner.triggers.build_filter import build_rule
from buildrunner.triggers.events import Rule, Verdict

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
        """Return a notifier's message: see `operations.notify`; too much text is a ``problem``.

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
    """The argument for a notifier's evaluation, as JSON (`operations.NotifyArgument`)."""
    asked = {"notifier": document, "facts": facts, "key": key, "now": now}
    found: dict[str, Any] = msgspec.to_builtins(asked)
    return found


_MOST_TOLD: Final = 1000
_SAYING: Final = " OR ".join(f'status="{status}"' for status in sorted({GOOD, *BAD}))

_log = logging.getLogger("buildrunner.server")


class NotificationDesk:
    """A `Reporter` of the outbox: its messages are of kind `words.NOTIFY`.

    Args:
        context: the server's.
    """

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._told: set[str] = set()

    def __call__(self, change: BuildChange, _: StoredBuild | None) -> Sequence[NewMessage]:
        """The notifiers of the build's project that may have something to say of a change."""
        documents = self._context.store.notifiers.of_project(change.project_id)
        if not documents:
            return ()
        facts = self.facts(change.project_id, change.document)
        found = []
        for name, document in documents.items():
            try:
                notifier = notifier_of(document)
            except ConfigError as error:  # kept by another version
                self._tell_once(f"notifier {name} of {change.project_id}: {error}")
                continue
            if change_rule(notifier, facts).passed is False:
                continue
            key = f"notify/{change.id}/{name}"
            asked = asked_of(document, facts, key=key, now=self._context.clock())
            found.append(message_of(notifier, facts, key, NOTIFY, asked))
        return found

    def facts(self, project: str, build: dict[str, Any]) -> Facts:
        """The facts of a build, as of this document of it."""
        facts = Facts(
            build=build, trigger=str(build.get("substitutions", {}).get("TRIGGER_NAME", ""))
        )
        trigger_id = build.get("buildTriggerId", "")
        if not trigger_id or facts.status not in {GOOD, *BAD}:
            return facts
        created, finished = build.get("createTime", ""), build.get("finishTime", "")
        same = f"trigger_id={quoted(trigger_id)} AND ({_SAYING}){_branch(facts)}"
        if finished:  # what has ended since is not known to this status yet
            same += f" AND finish_time<{quoted(finished)}"
        before = self._first(project, f"{same} AND create_time<{quoted(created)}")
        after = f"{same} AND create_time>{quoted(created)}"
        overtaken = bool(finished) and self._first(project, after) is not None
        return msgspec.structs.replace(facts, previous=before, overtaken=overtaken)

    def _first(self, project: str, wanted: str) -> dict[str, Any] | None:
        """The newest build of a filter; None for none."""
        found = next(self._context.store.builds.newest(project, wanted), None)
        return None if found is None else found.document

    def _tell_once(self, text: str) -> None:
        if text not in self._told:
            if len(self._told) >= _MOST_TOLD:
                self._told.clear()
            self._told.add(text)
            _log.warning("%s", text)


def message_of(
    notifier: Notifier, facts: Facts, key: str, kind: str, message: dict[str, Any]
) -> NewMessage:
    """A message of a notifier about a build."""
    project, build_id = str(facts.build.get("projectId", "")), str(facts.build.get("id", ""))
    return NewMessage(
        key=key,
        lane=f"notify/{project}/{notifier.name}/{build_id}",
        kind=kind,
        project_id=project,
        build_id=build_id,
        target=target_of(notifier),
        message=message,
    )


def _branch(facts: Facts) -> str:
    """The part of a filter that keeps branches and pull requests apart."""
    values = facts.substitutions
    names = ("BRANCH_NAME", "_PR_NUMBER")
    parts = [f"substitutions.{name}={quoted(values[name])}" for name in names if values.get(name)]
    return "".join(f" AND {part}" for part in parts)


def verdict_of(notifier: Notifier, facts: Facts) -> Verdict:
    """The verdict, rule by rule."""
    rules = [change_rule(notifier, facts)]
    if rules[0].passed is not False:
        others = {
            "previous": facts.previous,
            "change": facts.change,
            "trigger": facts.trigger,
        }
        rules.append(build_rule(notifier.spec.notification.filter, facts.build, others))
    return Verdict(fires=all(rule.passed is not False for rule in rules), rules=tuple(rules))


def change_rule(notifier: Notifier, facts: Facts) -> Rule:
    """Whether a notifier tells of such a change; its filter is not asked."""
    on = notifier.spec.notification.on
    if on == "status":
        return Rule(name="on", passed=None, text="it tells of each new status")
    wanted = (FIXED,) if on == "recovery" else (BROKEN, FIXED)
    passed = facts.change in wanted
    return Rule(name="on", passed=passed, text=f"it tells of {' and '.join(wanted)}: {_why(facts)}")


def _why(facts: Facts) -> str:
    if facts.overtaken:
        return "a newer build of the same trigger and branch has ended before this one"
    if not facts.build.get("buildTriggerId"):
        return "the build has no trigger whose other builds it could be compared with"
    if facts.status not in {GOOD, *BAD}:
        return f"{facts.status} says nothing of that"
    if facts.previous is None:
        return f"{facts.status}, and there was no build before it: {facts.change}"
    return f"{facts.previous['status']} before, {facts.status} now: {facts.change}"
