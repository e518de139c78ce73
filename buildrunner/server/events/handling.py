"""Handles a stored delivery: reads it, matches every trigger, queues builds, stores the reasons.

Handling is idempotent: a build's key is made of the delivery, the event's index in it and the
trigger. A server that is killed in the middle repeats the work and creates nothing twice. A
delivery that waits for an unreachable host is retried for a day: a forge that is down for hours
must not lose a comment that requests a build. Decisions made before stay.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from buildrunner.errors import (
    BuildrunnerError,
    ConfigError,
    Conflict,
    QuotaExceeded,
    StoreError,
    UsageError,
)
from buildrunner.retry import backoff
from buildrunner.server.bounded import BoundedFilters, Busy
from buildrunner.server.context import ServerContext
from buildrunner.server.events.debts import MOST_S, Debts
from buildrunner.server.events.facts import (
    EventFacts,
    KnownEvent,
    MustAsk,
    NotNow,
    OfflinePlaces,
    Places,
    SilentPlaces,
)
from buildrunner.server.events.reading import (
    RECONCILE,
    WEBHOOK,
    delivered_repository,
    parsed_delivery,
    reconciled_project,
)
from buildrunner.server.events.reconcile import SeenRefs
from buildrunner.server.outbox.status_reporter import StatusReporter
from buildrunner.server.services.approval_facts import (
    AUTHOR_ID,
    BASE_BRANCH,
    PULL_REQUEST_URL,
    TITLE,
)
from buildrunner.server.services.authorship import AUTHOR, COMMENTER, people_behind
from buildrunner.server.services.queueing import RunFacts, TriggerQueue, reason_of
from buildrunner.server.services.triggers import (
    KnownTrigger,
    KnownTriggers,
    hook_binding,
    hook_bindings,
)
from buildrunner.spec.writing import encode_instant
from buildrunner.store.model.deliveries import WAITING, StoredDelivery
from buildrunner.triggers.build import TriggeredBuild, event_run, failed_run, forge_labels
from buildrunner.triggers.events import (
    Event,
    MessageEvent,
    PullRequestEvent,
    PushEvent,
    Rule,
    Verdict,
)
from buildrunner.triggers.forge_host import request_name
from buildrunner.triggers.forges.bare_git import INSTALLED, INSTALLING
from buildrunner.triggers.forges.forge import BadDelivery, shortened
from buildrunner.triggers.hook_binding import BARE, HookBinding, read_binding
from buildrunner.triggers.labels import DELIVERY, EVENT_NUMBER, FORK, HEAD_REPOSITORY
from buildrunner.triggers.matching import may_care
from buildrunner.triggers.repository import TriggerRepository, listens_to
from buildrunner.triggers.trial import trial_events

_DELIVERY_S: Final = 1.0
"""The time that a delivery may take, if it may not wait for others."""
_SLOW: Final = "the project's triggers take long for this event: this one is asked later"
_DECIDED: Final = "decided"  # the rule of a verdict that an earlier try did not store
MOST_VERDICTS = 1000
"""The most stored verdicts of an event; with more triggers, most are for other repositories."""


def described(event: Event) -> str:
    """Describe the event in one line."""
    match event:
        case PushEvent():
            where = f"{event.repository.full_name} ({event.repository.forge})"
            if event.is_deletion:
                return f"{shortened(event.ref)} of {where} was deleted"
            return f"push of {shortened(event.ref)} to {event.after[:12]} in {where}"
        case PullRequestEvent():
            name = request_name(event.repository.forge, event.number)
            return f"{name} of {event.repository.full_name}: {event.action}"
        case MessageEvent():
            return f"{event.kind} message" + (f" of {event.topic}" if event.topic else "")


def shown_verdict(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as JSON, to store and to show."""
    shown: dict[str, Any] = {
        "fires": verdict.fires,
        "reason": verdict.reason,
        "rules": [msgspec.structs.asdict(rule) for rule in verdict.rules],
    }
    if verdict.hold:
        shown["hold"] = True
    if verdict.waits_for_comment:
        shown["waitsForComment"] = True
    if verdict.waits_for_answer:
        shown["waitsForAnswer"] = True
    return shown


def kept_verdicts(verdicts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the verdicts to store.

    Verdicts for other repositories are dropped first, and counted. Of those that a later try must
    not ask again, the triggers' ids are kept.
    """
    if len(verdicts) <= MOST_VERDICTS:
        return {"verdicts": verdicts}
    ordered = sorted(verdicts, key=_says_little)
    kept, dropped = ordered[:MOST_VERDICTS], ordered[MOST_VERDICTS:]
    found: dict[str, Any] = {"verdicts": kept, "more": len(dropped)}
    if waits(verdicts):
        found["decided"] = [one["triggerId"] for one in dropped if not waits([one])]
    return found


def _says_little(verdict: dict[str, Any]) -> bool:
    last = verdict["rules"][-1] if verdict["rules"] else {}
    return last.get("name") in ("repository", _DECIDED) and last.get("passed") is False


def build_labels(delivery: StoredDelivery, event: Event) -> dict[str, str]:
    """Return labels that describe a build's event. Statuses are sent with these labels."""
    labels = {DELIVERY: str(delivery.number), "hook": delivery.hook}
    if isinstance(event, MessageEvent):
        return {**labels, "event": event.kind}
    repository = event.repository
    if repository.host is not None:
        labels |= forge_labels(repository.host, repository.full_name)
    else:
        labels |= {"forge": repository.forge, "repository": repository.full_name}
    if isinstance(event, PushEvent):
        labels |= {"event": "tag" if event.tag else "push", "commit": event.after}
        labels["branch"] = event.branch
    else:
        labels |= {"event": "pull_request", "commit": event.head_commit}
        labels |= {"branch": event.head_branch, "pull_request": str(event.number)}
        labels |= _pull_labels(event)
    return {name: value for name, value in labels.items() if value}


def _pull_labels(event: PullRequestEvent) -> dict[str, str]:
    """Return labels for the approver of a pull request's build; see `approval_facts`."""
    repository = event.repository
    labels = {
        TITLE: shortened(event.title),
        BASE_BRANCH: event.base_branch,
        HEAD_REPOSITORY: event.head_full_name,
        FORK: "yes" if event.is_fork else "",
        PULL_REQUEST_URL: repository.host.pull_request_page(repository.full_name, event.number)
        if repository.host
        else "",
        AUTHOR: f"{repository.forge}:{event.author}" if event.author else "",
        AUTHOR_ID: event.author_id,
        COMMENTER: event.commenter if event.action == "commented" else "",
    }
    return {name: value for name, value in labels.items() if value}


def who_made(delivery: StoredDelivery, event: Event) -> str:
    """Return the author of an event, for the audit log."""
    if isinstance(event, MessageEvent):
        forge, _, name = delivery.hook.rpartition("/")
        return f"{WEBHOOK}:{name}" if forge.startswith(WEBHOOK) else f"hook:{delivery.hook}"
    person = event.author
    if isinstance(event, PullRequestEvent):
        person = event.commenter if event.action == "commented" else event.actor or event.author
    return f"{event.repository.forge}:{person}" if person else f"hook:{delivery.hook}"


_log = logging.getLogger("buildrunner.server")


class DeliveryHandler:
    """Handles deliveries. Thread-safe.

    Args:
        context: the server's context.
        facts: the sources of facts.
        waits: wait for running filters of the project, instead of raising `NotNow`.
        seconds: returns monotonic seconds.
        worked: returns processor seconds of the thread.
    """

    def __init__(
        self,
        context: ServerContext,
        facts: EventFacts | None = None,
        *,
        waits: bool = True,
        seconds: Callable[[], float] = time.monotonic,
        worked: Callable[[], float] = time.thread_time,
    ) -> None:
        self._context = context
        self._seconds = seconds
        self._worked = worked
        self._waits = waits
        self._facts = facts or EventFacts()
        self._queue = TriggerQueue(context)
        self._triggers = KnownTriggers(context.store, context.repositories)
        self._statuses = StatusReporter(
            context.secrets,
            lambda: hook_bindings(context.store),
            context.store.outbox.changed_build,
        )
        self._places = SilentPlaces()
        self._seen = SeenRefs(context.store)
        self._debts = Debts(seconds)

    def stop(self) -> None:
        """End running requests: see `NotNow`. Idempotent."""
        self._places.stop()
        self._facts.stop()

    def handle(self, delivery: StoredDelivery, *, may_ask: bool = True) -> dict[str, Any]:
        """Handle a delivery; return its outcome, for `ServerStore.finish_deliveries`.

        The outcome is preliminary if `tried_again_at` says so.

        Args:
            delivery: the claimed delivery.
            may_ask: permit requests to other hosts, and wait for their answers.

        Raises:
            StoreError: the database fails, or refuses something of the delivery itself.
            MustAsk: ``may_ask`` is false, and the delivery takes long or needs another host.
            NotNow: `stop` ended a request, or too many filters of the project run.
        """
        try:
            binding = self._binding(delivery)
            parsed = parsed_delivery(delivery, binding)
            if parsed.kind in (INSTALLED, INSTALLING) and binding is not None:
                self._seen.know(delivery, parsed, binding.repository)
        except BadDelivery as error:
            return {"error": str(error)}
        outcome: dict[str, Any] = {"kind": parsed.kind}
        if parsed.ignored:
            outcome["ignored"] = parsed.ignored
        retry = next_try(delivery, self._context.clock())
        places = self._places if may_ask else OfflinePlaces(self._places)
        reported = [
            ReportedEvent(delivery, number, event, bool(retry))
            for number, event in enumerate(parsed.events)
        ]
        waiting: list[MustAsk] = []
        outcome["events"] = []
        ends = self._seconds() + _DELIVERY_S
        for one in reported:
            if not may_ask and self._seconds() > ends:
                hook = f"hook {delivery.hook}"
                owners = binding.projects if binding is not None else ()
                raise MustAsk(hook, owners[0] if len(owners) == 1 else hook)
            try:
                outcome["events"].append(self._event(one, places, binding))
            except MustAsk as requested:
                waiting.append(requested)
        if waiting:
            raise waiting[0]
        waits_for = next((one.waits_for for one in reported if one.waits_for), "")
        if waits_for and retry:
            outcome["retry"] = {**retry, "because": waits_for}
        elif waits_for:
            outcome["error"] = f"given up: {waits_for}"
        return outcome

    def _binding(self, delivery: StoredDelivery) -> HookBinding | None:
        """Return the binding of the delivery's hook.

        The first delivery of a bare repository's hook, which is genuine, binds it to the address
        that it names. Later ones can't change that. An event that the server found is for one
        project.

        Raises:
            BadDelivery: the address can't be used, or the project is unknown.
        """
        if delivery.hook == RECONCILE:
            return HookBinding(projects=(reconciled_project(delivery),))
        found = hook_binding(self._context.store, delivery.hook)
        if found is not None or delivery.hook.partition("/")[0] != BARE:
            return found
        try:
            first = read_binding(delivery.hook, {"repository": delivered_repository(delivery)})
        except ConfigError as error:
            raise BadDelivery(str(error)) from error
        document = self._context.store.hooks.add(delivery.hook, msgspec.to_builtins(first))
        return msgspec.convert(document, HookBinding)

    def _event(
        self, reported: ReportedEvent, places: Places, binding: HookBinding | None
    ) -> dict[str, Any]:
        found: dict[str, Any] = {"event": described(reported.event)}
        known = KnownEvent(reported.event, self._facts, places)
        triggers = self._asked(reported.event, reported.delivery, binding)
        if not triggers and reported.delivery.hook.startswith(f"{WEBHOOK}/"):
            return {**found, "ignored": "the trigger was deleted", "verdicts": []}
        problem = self._complete(known, triggers)
        if problem:
            found["problem"] = problem
        if problem and known.waits_for and not isinstance(known.event, PushEvent):
            reported.waits_for = known.waits_for
            if reported.may_wait:
                found["verdicts"] = list(reported.decided.values())
                return found | ({"decided": sorted(reported.dropped)} if reported.dropped else {})
        old_news = self._old_news(reported.delivery, known.event, triggers)
        if old_news and all(old_news.values()):
            reasons = "; ".join(dict.fromkeys(old_news.values()))
            return {**found, "ignored": reasons, "verdicts": []}
        verdicts = self._verdicts(reported, known, triggers, old_news, places)
        if waits(verdicts):
            reported.waits_for = known.waits_for or _SLOW
        found |= kept_verdicts(verdicts)
        return found

    def _asked(
        self, event: Event, delivery: StoredDelivery, binding: HookBinding | None
    ) -> list[KnownTrigger]:
        """Return the triggers for the source of an event that its hook may fire."""
        found = self._triggers.listening(event, delivery.hook)
        if binding is None:
            return found
        return [one for one in found if binding.allows_project(one.project)]

    def _complete(self, known: KnownEvent, triggers: list[KnownTrigger]) -> str:
        """Request facts that the payload lacks, if a trigger needs them. Returns the error."""
        if not known.lacks_commit:
            return ""
        if not any(may_care(one.trigger, known.event, one.repository) for one in triggers):
            return ""
        with _needed_by(min((one.project for one in triggers), key=self._debts.of)):
            return known.complete()

    def _old_news(
        self, delivery: StoredDelivery, event: Event, triggers: list[KnownTrigger]
    ) -> dict[str, str]:
        """Return why an event brings a project nothing new: by project; empty if it does.

        The event is recorded for each project with a trigger that listens to its repository. The
        first try records a push: at a later one, the server may have recorded newer commits.
        """
        if isinstance(event, MessageEvent) or (is_retry(delivery) and isinstance(event, PushEvent)):
            return {}
        listening: dict[str, list[TriggerRepository]] = {}
        for one in triggers:
            wanted = one.repository
            if wanted is not None and listens_to(wanted, event.repository).passed:
                listening.setdefault(one.project, []).append(wanted)
        if isinstance(event, PushEvent):
            return self._seen.note_push(delivery, event, listening)
        return {project: self._seen.unchanged(delivery, event, project) for project in listening}

    def _verdicts(
        self,
        reported: ReportedEvent,
        known: KnownEvent,
        triggers: list[KnownTrigger],
        old_news: Mapping[str, str],
        places: Places,
    ) -> list[dict[str, Any]]:
        """Return the verdicts of triggers, in their order.

        No project delays others for long. The triggers of a project are asked after those of others
        with less debt. If it has too much, or no time left, they are asked in a later try.

        Raises:
            MustAsk: a project's triggers must be waited for elsewhere. Those of others are asked.
        """
        projects: dict[str, list[KnownTrigger]] = {}
        for one in triggers:
            projects.setdefault(one.project, []).append(one)
        least = min(map(self._debts.of, projects), default=0.0)
        found: dict[str, dict[str, Any]] = {}
        waiting: list[MustAsk] = []
        for project in sorted(projects, key=self._debts.of):
            # It is asked later only if another one gains by that.
            is_behind = self._debts.of(project) > 2 * least and not is_retry(reported.delivery)
            undecided: list[KnownTrigger] = []
            for one in projects[project]:
                verdict = reported.decided.get(one.trigger.id)
                if verdict is None and one.trigger.id in reported.dropped:
                    verdict = _not_asked(one, _DECIDED, "an earlier try has decided about it")
                if verdict is None and old_news.get(project):
                    verdict = _not_asked(one, "news", old_news[project])
                if verdict is None:
                    undecided.append(one)
                else:
                    found[one.trigger.id] = verdict
            try:
                found |= self._judged(
                    reported, known, undecided, places, is_behind and len(projects) > 1
                )
            except MustAsk as requested:
                waiting.append(requested)
        if waiting:
            raise waiting[0]
        return [found[one.trigger.id] for one in triggers]

    def _judged(
        self,
        reported: ReportedEvent,
        known: KnownEvent,
        triggers: list[KnownTrigger],
        places: Places,
        is_behind: bool,
    ) -> dict[str, dict[str, Any]]:
        """Return the verdicts of undecided triggers of one project, by trigger."""
        found: dict[str, dict[str, Any]] = {}
        ends = self._seconds() + places.project_s
        for one in triggers:
            is_indebted = self._debts.of(one.project) > MOST_S
            is_late = is_indebted and is_behind
            if not is_late and (is_indebted or self._seconds() > ends):
                with _needed_by(one.project):
                    places.give_up(one.trigger)
                is_late = self._seconds() > ends
            if not is_late:
                try:
                    found[one.trigger.id] = self._answer(reported, known, one)
                    continue
                except Busy as error:
                    if not self._waits:
                        raise NotNow(str(error)) from error
            verdict = _not_asked(one, "time", _SLOW)
            found[one.trigger.id] = {**verdict, "waitsForAnswer": True}
        return found

    def _answer(
        self, reported: ReportedEvent, known: KnownEvent, one: KnownTrigger
    ) -> dict[str, Any]:
        """Return the verdict of one trigger.

        An unexpected error is stored in the verdict, and other triggers still fire.
        """
        trigger = one.trigger
        try:
            return self._ask(reported, known, one)
        except (NotNow, Busy):
            raise
        except Exception as error:
            if isinstance(error, StoreError) and not error.is_refusal:
                raise
            number = reported.delivery.number
            _log.exception("delivery %s: trigger %s can't be asked", number, trigger.name)
            reason = f"internal error, see the server's log: {type(error).__name__}"
            return _not_asked(one, "internal", reason)

    def _ask(self, reported: ReportedEvent, known: KnownEvent, one: KnownTrigger) -> dict[str, Any]:
        trigger = one.trigger
        filters = BoundedFilters(self._context.calls, one.project, waits=self._waits)
        began, asked_s = self._seconds(), known.asked_s
        try:
            with _needed_by(one.project):
                verdict = known.judge(trigger, one.repository, filters.rule)
        finally:
            # Git servers, forges and the database are slow without the project's doing.
            spent_s = self._seconds() - began - (known.asked_s - asked_s)
            self._debts.add(one.project, spent_s)
        event = known.event
        found: dict[str, Any] = {
            "project": one.project,
            "trigger": trigger.name,
            "triggerId": trigger.id,
            **shown_verdict(verdict),
        }
        if not verdict.fires:
            if verdict.waits_for_comment and not (verdict.waits_for_answer and reported.may_wait):
                self._report_waiting(reported, event, one)
            return found
        began_work = self._worked()  # waiting for the database is not the project's doing
        try:
            found |= self._queued(reported, event, one)
        except BuildrunnerError as error:
            if isinstance(error, StoreError) and not isinstance(error, QuotaExceeded):
                raise
            hint = getattr(error, "hint", "")
            found["problem"] = f"{error}; {hint}" if hint else str(error)
        finally:
            self._debts.add(one.project, self._worked() - began_work)
        return found

    def _queued(self, reported: ReportedEvent, event: Event, one: KnownTrigger) -> dict[str, Any]:
        """Queue the build, and return its id. A build that can't run is stored as failed."""
        delivery, trigger = reported.delivery, one.trigger
        facts = RunFacts(
            who=who_made(delivery, event),
            people=people_behind(event),
            labels={**build_labels(delivery, event), EVENT_NUMBER: str(reported.number)},
            request_id=f"delivery-{reported.key}-{trigger.id}",
        )
        made: TriggeredBuild | None = None
        try:
            made = event_run(trigger, event, one.repository)
            stored = self._queue.queue(one.project, one.document, made, facts)
        except (ConfigError, UsageError) as error:
            made = made or failed_run(trigger, event)
            failed = self._queue.fail(one.project, one.document, made, facts, error)
            return {"build": failed.id, "problem": reason_of(error)}
        warnings = {"warnings": list(made.warnings)} if made.warnings else {}
        return {"build": stored.id, **warnings}

    def _report_waiting(self, reported: ReportedEvent, event: Event, one: KnownTrigger) -> None:
        """Let the forge show that a build of a pull request waits for a comment."""
        context, delivery = self._context, reported.delivery
        message = self._statuses.waiting(
            build_labels(delivery, event),
            one.project,
            one.trigger.name,
            url=f"{context.settings.public_url}/deliveries/{delivery.number}",
            key=f"waits/{reported.key}-{one.trigger.id}",
        )
        if message is not None:
            with suppress(Conflict):  # reported before a crash
                context.store.outbox.put(message, now=context.clock())


def _not_asked(one: KnownTrigger, rule: str, reason: str) -> dict[str, Any]:
    """Return the verdict of a trigger that does not fire for a single reason."""
    verdict = Verdict(fires=False, rules=(Rule(name=rule, passed=False, text=reason),))
    return {
        "project": one.project,
        "trigger": one.trigger.name,
        "triggerId": one.trigger.id,
        **shown_verdict(verdict),
    }


@contextmanager
def _needed_by(project: str) -> Iterator[None]:
    """Add the project whose trigger needs the answer to a `MustAsk`."""
    try:
        yield
    except MustAsk as requested:
        raise MustAsk(requested.place, project) from requested


class ReportedEvent:
    """An event, and the state of its handling.

    Attributes:
        delivery: the delivery that reports the event.
        number: index of the event in the delivery.
        event: the event as the delivery reports it.
        may_wait: whether another try follows this one.
        decided: decisions of earlier tries, by trigger.
        dropped: ids of triggers whose decision an earlier try did not store.
        waits_for: why the decision of a trigger waits; empty if all is decided.
    """

    def __init__(self, delivery: StoredDelivery, number: int, event: Event, may_wait: bool) -> None:
        self.delivery = delivery
        self.number = number
        self.event = event
        self.may_wait = may_wait
        self.waits_for = ""
        earlier = delivery.outcome.get("events", ()) if is_retry(delivery) else ()
        found = earlier[number] if number < len(earlier) else {"verdicts": ()}
        self.decided = {one["triggerId"]: one for one in found["verdicts"] if not waits([one])}
        self.dropped = frozenset(found.get("decided", ()))

    @property
    def key(self) -> str:
        """Return the key of the event: the same for each try, and different for other events."""
        return f"{self.delivery.number}-{self.delivery.replays}-{self.number}"


def waits(verdicts: Iterable[dict[str, Any]]) -> bool:
    """Return whether one of the verdicts depends on a later answer."""
    return any(one.get("waitsForAnswer") for one in verdicts)


FIRST_PAUSE: Final = timedelta(seconds=30)
LONGEST_PAUSE: Final = timedelta(minutes=10)
GIVE_UP_AFTER: Final = timedelta(days=1)


def is_retry(delivery: StoredDelivery) -> bool:
    """Return whether a delivery was handled in part, and waited for facts."""
    return delivery.status == WAITING


def next_try(delivery: StoredDelivery, now: datetime) -> dict[str, Any]:
    """Return the record of a failed try: ``tries``, ``since``, ``at`` of the next; or empty.

    The record is empty if the delivery has waited for a day, and is given up.
    """
    before = delivery.outcome.get("retry", {}) if is_retry(delivery) else {}
    since = datetime.fromisoformat(before["since"]) if before else now
    if now - since >= GIVE_UP_AFTER:
        return {}
    tries = before.get("tries", 0) + 1
    pause = backoff(tries, FIRST_PAUSE, LONGEST_PAUSE)
    at = min(now + pause, since + GIVE_UP_AFTER)
    return {"tries": tries, "since": encode_instant(since), "at": encode_instant(at)}


def tried_again_at(outcome: dict[str, Any]) -> datetime | None:
    """Return the time of the next attempt at a delivery; None if its outcome is final."""
    retry = outcome.get("retry")
    return datetime.fromisoformat(retry["at"]) if retry else None


def tried(
    context: ServerContext, known: KnownTrigger, requested: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return the verdicts of a trigger on hypothetical events. Builds nothing.

    Args:
        context: the server's context.
        known: the trigger.
        requested: see `trial_events`.

    Raises:
        BadDelivery: ``requested`` describes no possible event.
        Busy: the project has too many running filters.
    """
    bindings = {
        hook: binding
        for hook, binding in hook_bindings(context.store).items()
        if binding.allows_project(known.project)
    }
    events = trial_events(known.trigger, requested, known.repository, bindings)
    filters = BoundedFilters(context.calls, known.project, waits=False)
    verdicts = []
    for event in events:
        judged = KnownEvent(event, EventFacts(), SilentPlaces())
        verdict = judged.judge(known.trigger, known.repository, filters.rule)
        verdicts.append({"event": described(event), **shown_verdict(verdict)})
    return verdicts
