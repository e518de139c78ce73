"""Looks up what notifiers need of a build, and asks each whether it tells, and what."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import msgspec

from buildrunner.errors import ConfigError
from buildrunner.server.notifications.facts import BAD, GOOD, Facts
from buildrunner.server.notifications.messages import made_message, target_of
from buildrunner.server.notifications.notifier import read_notifier
from buildrunner.server.notifications.templates import TemplateProblem
from buildrunner.server.notifications.verdict import verdict_of
from buildrunner.store.outbox_store import NewMessage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buildrunner.server.context import ServerContext
    from buildrunner.server.notifications.model import Notifier
    from buildrunner.store.outbox_store import BuildChange
    from buildrunner.store.stored_build import StoredBuild

_KIND_OF_PROBLEM: Final = "none"
_MOST_PAGES: Final = 3
_SAYING: Final = " OR ".join(f'status="{status}"' for status in sorted({GOOD, *BAD}))

_log = logging.getLogger("buildrunner.server")


class NotificationDesk:
    """A `Reporter` of the outbox, which also answers "would this notify?".

    Args:
        context: the server's.
    """

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._told: set[str] = set()

    def __call__(self, change: BuildChange, _: StoredBuild | None) -> Sequence[NewMessage]:
        """What the notifiers of the build's project say of a change."""
        documents = self._context.store.list_notifiers(change.project_id)
        if not documents:
            return ()
        facts = self.facts(change.project_id, change.document)
        found = []
        for name, document in documents.items():
            try:
                notifier = read_notifier(document, with_filter=False)  # asking it tells, too
            except ConfigError as error:  # kept by another version
                self._tell_once(f"notifier {name} of {change.project_id}: {error}")
                continue
            new = self._of(notifier, facts, f"notify/{change.id}/{name}")
            if new is not None:
                found.append(new)
        return found

    def _of(self, notifier: Notifier, facts: Facts, key: str) -> NewMessage | None:
        """What one notifier says. A bug that it meets is told there: the others speak as ever."""
        try:
            fires = verdict_of(notifier, facts).fires
            return self.message(notifier, facts, key=key) if fires else None
        except Exception as error:  # noqa: BLE001  (one bad notifier must not silence the others)
            _log.exception("notifier %s can't be asked", notifier.name)
            problem = f"internal error, see the server's log: {type(error).__name__}"
            return msgspec.structs.replace(_unsent(notifier, facts, key), problem=problem)

    def facts(self, project: str, build: dict[str, Any]) -> Facts:
        """What is known of a build, as of this document of it."""
        facts = Facts(
            build=build, trigger=str(build.get("substitutions", {}).get("TRIGGER_NAME", ""))
        )
        trigger_id = build.get("buildTriggerId", "")
        if not trigger_id or facts.status not in {GOOD, *BAD}:
            return facts
        created, finished = build.get("createTime", ""), build.get("finishTime", "")
        same = f"trigger_id={_quoted(trigger_id)} AND ({_SAYING}){_branch(facts)}"
        if finished:  # what has ended since is not known to this status yet
            same += f" AND finish_time<{_quoted(finished)}"
        before = self._first(project, f"{same} AND create_time<{_quoted(created)}")
        after = f"{same} AND create_time>{_quoted(created)}"
        overtaken = bool(finished) and self._first(project, after) is not None
        return msgspec.structs.replace(facts, previous=before, overtaken=overtaken)

    def message(self, notifier: Notifier, facts: Facts, *, key: str) -> NewMessage:
        """The message that tells of a build; one that is given up when the template fails."""
        new = _unsent(notifier, facts, key)
        try:
            made = made_message(notifier, facts, key=key, now=self._context.clock())
        except TemplateProblem as error:
            _log.warning("outbox: nothing to tell %s: %s", new.target, error)
            return msgspec.structs.replace(new, problem=f"template: {error}")
        return msgspec.structs.replace(new, kind=made.kind, message=msgspec.to_builtins(made.call))

    def _first(self, project: str, wanted: str) -> dict[str, Any] | None:
        """The newest build of a filter; None for none."""
        token = ""
        for _ in range(_MOST_PAGES):
            page = self._context.store.list_builds(
                project, filter=wanted, page_size=1, page_token=token
            )
            if page.builds:
                return page.builds[0].document
            token = page.next_page_token
            if not token:
                break
        return None

    def _tell_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            _log.warning("%s", text)


def _unsent(notifier: Notifier, facts: Facts, key: str) -> NewMessage:
    """A message that holds nothing yet."""
    project, build_id = str(facts.build.get("projectId", "")), str(facts.build.get("id", ""))
    return NewMessage(
        key=key,
        lane=f"notify/{project}/{notifier.name}/{build_id}",
        kind=_KIND_OF_PROBLEM,
        project_id=project,
        build_id=build_id,
        target=target_of(notifier),
        message={},
    )


def _branch(facts: Facts) -> str:
    """The part of a filter that keeps branches and pull requests apart."""
    values = facts.substitutions
    names = ("BRANCH_NAME", "_PR_NUMBER")
    parts = [f"substitutions.{name}={_quoted(values[name])}" for name in names if values.get(name)]
    return "".join(f" AND {part}" for part in parts)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
