"""Messages of notifiers about builds: the decision to send, and the text, rendered within limits.

For each notifier that may report a build, the outbox gets a message of kind `NOTIFY`. It names the
notifier and the change of the build, so that a large build is stored only once. The text is
rendered for each attempt to send the message, and never stored: a slow template of a project delays
only one message.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from buildrunner.errors import ConfigError, NotFound
from buildrunner.server.bounded import BoundedCalls, Bug, TooMuch, text_key
from buildrunner.server.context import ServerContext
from buildrunner.server.http.errors import invalid_argument
from buildrunner.server.http.pinned import NotDelivered
from buildrunner.server.notifications.facts import BAD, BROKEN, FIXED, GOOD, Facts
from buildrunner.server.notifications.messages import address_of, target_of
from buildrunner.server.notifications.notifier import Notifier, config_error, notifier_of
from buildrunner.store.model.outbox import BuildChange, Message, NewMessage
from buildrunner.triggers.build_filter import build_rule
from buildrunner.triggers.events import Rule, Verdict

NOTIFY: Final = "notify"
MOST_BYTES: Final = 256 << 10
"""The largest config of a notifier."""
_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")  # in JSON


class NotifierEvaluation:
    """Evaluates the templates and filters of notifiers. Thread-safe.

    Args:
        calls: evaluates them, within limits.
        argument_of: returns the argument for the evaluation of a message: see
            `NotificationService.argument_of`.
    """

    def __init__(
        self, calls: BoundedCalls, argument_of: Callable[[Message], dict[str, Any] | None]
    ) -> None:
        self._calls = calls
        self._argument_of = argument_of

    def check(self, project: str, document: dict[str, Any]) -> None:
        """Check a notifier.

        Raises:
            ConfigError: the notifier is invalid.
            ApiError: the notifier is too large.
            Busy: the project has too many other running evaluations.
        """
        notifier_of(document)
        text = msgspec.json.encode(document)
        if len(text) > MOST_BYTES:
            raise invalid_argument(f"the notifier is larger than {MOST_BYTES >> 10} KiB")
        if _NUL.search(text):
            raise invalid_argument("the notifier has a NUL character")
        try:
            key = text_key(project, text.decode())
            problems = self._calls.call("check_notifier", document, owner=project, key=key)
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
        """Return a notifier's message (`bounded_process.notify`); too much text is a ``problem``.

        Raises:
            Busy: the project has too many other running evaluations.
            BuildrunnerError: nothing can be evaluated now.
        """
        argument = notify_argument(document, facts, key=key, now=now)
        return self._said(project, {**argument, "in_any_case": in_any_case})

    def _said(self, project: str, argument: dict[str, Any]) -> dict[str, Any]:
        key = text_key(project, msgspec.json.encode(argument["notifier"]).decode())
        try:
            said: dict[str, Any] = self._calls.call("notify", argument, owner=project, key=key)
        except TooMuch as error:
            text = f"the notifier's template or filter is given up: {error}"
            return {"fires": False, "rules": [], "problem": text}
        return said

    def prepared(self, message: Message) -> Message | None:
        """Return a message ready to be sent; None if its notifier does not report the change.

        None also if the notifier or the change was deleted.

        Raises:
            NotDelivered: the notifier's text can't be rendered, and a retry does not help.
            Busy: the project has too many other running evaluations.
            BuildrunnerError: nothing can be evaluated now.
        """
        if message.kind != NOTIFY:
            return message
        argument = self._argument_of(message)
        if argument is None:
            return None
        try:
            said = self._said(message.project_id, argument)
        except Bug as error:
            raise NotDelivered(str(error), is_final=True) from error
        if said.get("problem"):
            raise NotDelivered(said["problem"], is_final=True)
        if not said["fires"]:
            return None
        return replace(message, kind=said["kind"], message=said["message"])


def notify_argument(
    document: dict[str, Any], facts: Facts, *, key: str, now: datetime
) -> dict[str, Any]:
    """Return the argument for a notifier's evaluation (`NotifyArgument`) as JSON."""
    argument = {"notifier": document, "facts": facts, "key": key, "now": now}
    found: dict[str, Any] = msgspec.to_builtins(argument)
    return found


_MOST_LOGGED: Final = 1000

_log = logging.getLogger("buildrunner.server")


class NotificationService:
    """A `Reporter` of the outbox: its messages are of kind `NOTIFY`.

    Args:
        context: the server's context.
    """

    def __init__(self, context: ServerContext) -> None:
        self._store = context.store
        self._logged: set[str] = set()

    def __call__(self, change: BuildChange) -> Sequence[NewMessage]:
        """Return messages for the notifiers of the build's project that may report a change."""
        facts = _known_facts(change)
        found = []
        for name, document in self._store.notifiers.of_project(change.project_id).items():
            try:
                notifier = notifier_of(document)
            except ConfigError as error:  # stored by another version
                self._log_once(f"notifier {name} of {change.project_id}: {error}")
                continue
            if change_rule(notifier, facts).passed is False:
                continue
            found.append(
                NewMessage(
                    key=f"notify/{change.id}/{name}",
                    lane=f"notify/{change.project_id}/{name}/{change.build_id}",
                    kind=NOTIFY,
                    project_id=change.project_id,
                    build_id=change.build_id,
                    target=target_of(notifier),
                    message={"notifier": name, "receiver": address_of(notifier)},
                    change_id=change.id,
                )
            )
        return found

    def argument_of(self, message: Message) -> dict[str, Any] | None:
        """Return the argument of ``notify`` for a message; None without its notifier or change."""
        build = self._store.outbox.changed_build(message.change_id)
        try:
            name = str(message.message["notifier"])
            document = self._store.notifiers.get(message.project_id, name)
        except NotFound:
            return None
        if build is None:
            return None
        facts = self.facts(message.project_id, build)
        return notify_argument(document, facts, key=message.key, now=message.created_at)

    def facts(self, project: str, build: dict[str, Any]) -> Facts:
        """Return the facts about a build: its document, its labels, and the build before it."""
        labels = self._store.builds.labels(project, str(build.get("id", "")))
        facts = Facts(build=build, labels=labels)
        if not build.get("buildTriggerId") or facts.status not in {GOOD, *BAD}:
            return facts
        previous, overtaken = self._store.outbox.before(project, str(build.get("id", "")))
        try:
            before = self._store.builds.get(project, previous).document if previous else None
        except NotFound:  # retention deleted it
            before = None
        return msgspec.structs.replace(facts, previous=before, overtaken=overtaken)

    def _log_once(self, text: str) -> None:
        if text not in self._logged:
            if len(self._logged) >= _MOST_LOGGED:
                self._logged.clear()
            self._logged.add(text)
            _log.warning("%s", text)


def _known_facts(change: BuildChange) -> Facts:
    """Return the facts of the change alone, which decide whether a notifier reports it."""
    previous = change.previous
    return Facts(
        build={"status": change.status, "buildTriggerId": change.trigger_id},
        previous=None if previous is None else {"id": previous[0], "status": previous[1]},
        overtaken=change.overtaken,
    )


def verdict_of(notifier: Notifier, facts: Facts) -> Verdict:
    """Return whether a notifier reports a build, rule by rule."""
    rules = [change_rule(notifier, facts)]
    if rules[0].passed is not False:
        others = {
            "previous": facts.previous,
            "change": facts.change,
            "trigger": facts.trigger,
            "ref": facts.ref,
            "commit": facts.commit,
        }
        rules.append(build_rule(notifier.spec.notification.filter, facts.build, others))
    return Verdict(fires=all(rule.passed is not False for rule in rules), rules=tuple(rules))


def change_rule(notifier: Notifier, facts: Facts) -> Rule:
    """Return the rule about a build's change of result. The notifier's filter is not evaluated."""
    on = notifier.spec.notification.on
    if on == "status":
        return Rule(name="on", passed=None, text="it reports each new status")
    wanted = (FIXED,) if on == "recovery" else (BROKEN, FIXED)
    passed = facts.change in wanted
    return Rule(name="on", passed=passed, text=f"it reports {' and '.join(wanted)}: {_why(facts)}")


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
