"""The pages of triggers: their events, builds and next runs; run, enable and disable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import msgspec
from fastapi import APIRouter, Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response

from buildrunner.errors import BuildrunnerError, NotFound
from buildrunner.server.context import ServerContext
from buildrunner.server.events.handling import tried
from buildrunner.server.http.access import note_action, note_target
from buildrunner.server.http.bodies import READ_SLOT, build_slot
from buildrunner.server.http.errors import ApiError
from buildrunner.server.http.requests import address_of, project_of
from buildrunner.server.pages.builds.changes import BuildHistory
from buildrunner.server.pages.builds.view import build_view
from buildrunner.server.pages.rendering import PageRoute, page
from buildrunner.server.pages.session import (
    Session,
    Viewer,
    check_may,
    refusal,
    refused_address,
)
from buildrunner.server.services.authorship import caller_alone
from buildrunner.server.services.queueing import RunFacts
from buildrunner.server.services.triggers import KnownTrigger, Triggers, known_trigger
from buildrunner.spec.model.git_address import masked_trigger
from buildrunner.spec.model.source import RepoSource
from buildrunner.spec.writing import encode_instant, yaml_text
from buildrunner.store.model.deliveries import StoredDelivery
from buildrunner.triggers.forge_host import request_word
from buildrunner.triggers.forges.forge import BadDelivery
from buildrunner.triggers.schedule import BadSchedule, Missed, Overlap, Schedule, fire_times
from buildrunner.triggers.settings import OnLost, TriggerSettings

_LAST_BUILDS = 20
_RECENT = 8  # number of builds of each trigger in the list
_LOOKED_AT = 200  # number of deliveries that are searched for those of a trigger
_FIRES = 10

_EVENTS_OF_GITLAB = "gitlabEnterpriseEventsConfig"
_EVENTS = {
    "github": "GitHub",
    "repositoryEventConfig": "repository",
    _EVENTS_OF_GITLAB: "GitLab",
    "bitbucketServerTriggerConfig": "Bitbucket Server",
}


def router(context: ServerContext) -> APIRouter:
    """Return the routes of the pages of triggers."""
    pages = _TriggerPages(context)
    routes = APIRouter(include_in_schema=False, route_class=PageRoute)
    viewer = [Depends(pages.session.viewer)]
    path = "/triggers/{project}/{trigger}"
    routes.add_api_route("/triggers", pages.all, methods=["GET"], dependencies=viewer)
    reading = [*viewer, READ_SLOT]
    routes.add_api_route(path, pages.one, methods=["GET"], dependencies=reading)
    routes.add_api_route(path + "/{action}", pages.act, methods=["POST"], dependencies=viewer)
    return routes


class _TriggerPages:
    def __init__(self, context: ServerContext) -> None:
        self.session = Session(context)
        self._context = context
        self._triggers = Triggers(context)
        self._history = BuildHistory(context)

    def all(self, request: Request) -> Response:
        """Show all triggers of a project."""
        viewer: Viewer = request.state.viewer
        project = request.query_params.get("project") or self.session.first_project(viewer)
        check_may(viewer, "read", project)
        now = self._context.clock()
        found, more = self._context.store.triggers.page(
            project, page_size=100, page_token=request.query_params.get("page", "")
        )
        triggers = [trigger_view(document, project, now=now, runs=1) for document in found]
        recent = self._context.store.builds.recent(
            project, [trigger.id for trigger in triggers], count=_RECENT
        )
        query = urlencode({"project": project, "page": more})
        return page(
            request,
            "triggers",
            triggers=triggers,
            last=recent,
            project=project,
            now=now,
            more=f"/triggers?{query}" if more else "",
        )

    def one(self, request: Request) -> Response:
        """Show one trigger."""
        document, project = self._found(request)
        now = self._context.clock()
        store, viewer = self._context.store, request.state.viewer
        known = known_trigger(self._context, project, document)
        settings = known.settings
        trigger = trigger_view(document, project, now=now, settings=settings)
        everywhere = not viewer.caller.projects and viewer.may("read")
        requested = test_event_of(request.query_params)
        verdicts, problem = self._tried(known, requested)
        return page(
            request,
            "trigger",
            trigger=trigger,
            builds=self._builds(project, trigger.id, _LAST_BUILDS),
            usual_s=self._history.usual_s(project, trigger.id),
            deliveries=compared_deliveries(trigger.id, store.deliveries.page(limit=_LOOKED_AT))
            if everywhere
            else [],
            may_replay=everywhere and viewer.may("admin"),
            fires=store.schedules.fires(project, trigger.id, limit=_FIRES),
            settings=shown_settings(settings),
            settings_text=yaml_text(known.set_beside) if known.set_beside else "",
            repository=known.repository,
            requested=requested,
            tried=verdicts,
            trial_problem=problem,
            now=now,
            wrong=refusal(request),
        )

    async def act(self, request: Request) -> Response:
        """Run, enable or disable a trigger."""
        viewer: Viewer = request.state.viewer
        fields = await self.session.form(request, viewer)
        document, project = await run_in_threadpool(self._found, request)
        action = request.path_params["action"]
        acts = {
            "run": ("submit", self._run),
            "enable": ("admin", self._switch),
            "disable": ("admin", self._switch),
        }
        if action not in acts:
            raise NotFound(f"there is no {action} for triggers")
        scope, act = acts[action]
        note_action(request, f"triggers.{action}", f"{project}/{document['id']}")
        check_may(viewer, scope, project)
        path = f"/triggers/{project}/{document['id']}"
        try:
            async with build_slot(request, request.state.viewer.name):
                path = await run_in_threadpool(act, request, document, fields) or path
        except (ApiError, BuildrunnerError) as error:
            path = refused_address(request, path, str(error))
        return RedirectResponse(path, 303)

    def _tried(self, known: KnownTrigger, requested: TestEvent) -> tuple[list[dict[str, Any]], str]:
        """Return whether the event would fire the trigger, rule by rule; or why that is unknown."""
        if not requested.ref:
            return [], ""
        try:
            return tried(self._context, known, requested.event()), ""
        except (BadDelivery, BuildrunnerError) as error:
            return [], str(error)

    def _found(self, request: Request) -> tuple[dict[str, Any], str]:
        project = project_of(request, self._context.settings.default_project)
        check_may(request.state.viewer, "read", project)
        return self._context.store.triggers.get(project, request.path_params["trigger"]), project

    def _builds(self, project: str, trigger_id: str, count: int) -> list[Any]:
        wanted = f'trigger_id="{trigger_id}"'
        found = self._context.store.builds.page(project, filter=wanted, page_size=count)
        now = self._context.clock()
        return [build_view(stored, now=now) for stored in found.builds]

    def _run(self, request: Request, document: dict[str, Any], fields: dict[str, str]) -> str:
        name = fields.get("ref", "").strip()
        kind = fields.get("kind", "branch") if name else ""
        source = RepoSource(
            branch_name=name if kind == "branch" else None,
            tag_name=name if kind == "tag" else None,
            commit_sha=name if kind == "commit" else None,
            substitutions=_substitutions(fields.get("substitutions", "")),
        )
        wanted = source if name or source.substitutions else None
        caller = request.state.viewer.caller
        project = address_of(self._context, request).project
        facts = RunFacts(who=caller.name, people=caller_alone(caller.name))
        made = self._triggers.run(project, document, wanted, facts)
        note_target(request, project, document["id"], made.id)
        return f"/builds/{project}/{made.id}"

    def _switch(self, request: Request, document: dict[str, Any], _: dict[str, str]) -> str:
        disabled = request.path_params["action"] == "disable"
        project = address_of(self._context, request).project
        self._triggers.change(project, document, {"disabled": disabled}, "disabled")
        return ""


def _substitutions(text: str) -> dict[str, str]:
    """Parse substitutions of a form, one ``_NAME=value`` a line."""
    pairs = (line.partition("=") for line in text.splitlines() if line.strip())
    return {name.strip(): value for name, _, value in pairs}


_MOST = 10


class ComparedDelivery(msgspec.Struct, frozen=True):
    """One delivery that was compared with the trigger.

    Attributes:
        number: number of the delivery.
        at: time of its arrival, in the API's form.
        event: the delivered event, in words.
        verdict: the stored verdict.
    """

    number: int
    at: str
    event: str
    verdict: dict[str, Any]


def compared_deliveries(
    trigger_id: str, deliveries: Iterable[StoredDelivery]
) -> list[ComparedDelivery]:
    """Return the deliveries that were matched with a trigger, up to a page's limit, in order."""
    found = (
        ComparedDelivery(
            one.number, encode_instant(one.received_at), event.get("event", ""), verdict
        )
        for one in deliveries
        for event in one.outcome.get("events", ())
        for verdict in event.get("verdicts", ())
        if verdict.get("triggerId") == trigger_id
    )
    return [compared for compared, _ in zip(found, range(_MOST), strict=False)]


class TestEvent(msgspec.Struct, frozen=True, kw_only=True):
    """The event of a user's test of a trigger; ``ref`` is empty without a test.

    Attributes:
        ref: branch, or full name of a ref.
        base: target branch of a pull request; empty for a push.
        files: changed files, one a line; empty if unknown.
        message: message of the commit, or the comment on the pull request.
        fork: the event comes from a fork, by a user without write access.
    """

    ref: str = ""
    base: str = ""
    files: str = ""
    message: str = ""
    fork: bool = False

    def event(self) -> dict[str, Any]:
        """Return the test event in the form of `trial_events`."""
        files = [line.strip() for line in self.files.splitlines() if line.strip()]
        return {
            "ref": self.ref,
            "baseBranch": self.base,
            "message": self.message,
            "comment": self.message if self.base else "",
            "fork": self.fork,
            "writer": not self.fork,
            **({"files": files} if files else {}),
        }


def test_event_of(query: Mapping[str, str]) -> TestEvent:
    """Return the test event in the query of the page's address."""
    texts = {name: query.get(name, "").strip() for name in ("ref", "base", "files", "message")}
    return TestEvent(**texts, fork=query.get("fork") == "true")


class ShownSettings(msgspec.Struct, frozen=True, kw_only=True):
    """A trigger's settings as form fields; empty for defaults."""

    jitter: str
    missed: str
    overlap: str
    limit: int
    group: str
    policy: str
    approvers: str
    expires: str
    not_author: bool
    on_lost: str
    audiences: str
    identity_forks: bool
    public_badge: bool
    forge: str
    forge_host: str


def shown_settings(settings: TriggerSettings) -> ShownSettings:
    """Return the fields of the form."""
    queue = settings.concurrency.policy
    forge = None if settings.forge is None or settings.forge.unconfirmed else settings.forge
    return ShownSettings(
        jitter=settings.jitter,
        missed="" if settings.missed is Missed.SKIP else settings.missed.value,
        overlap="" if settings.overlap is Overlap.ALLOW else settings.overlap.value,
        limit=settings.concurrency.limit,
        group=settings.concurrency.group,
        policy="" if queue == "queue" else queue,
        approvers=", ".join(settings.approval.approvers),
        expires=settings.approval.expires,
        not_author=settings.approval.not_author,
        on_lost="" if settings.on_lost is OnLost.FAIL else settings.on_lost.value,
        audiences=", ".join(settings.identity.audiences),
        identity_forks=settings.identity.forks,
        public_badge=settings.public_badge,
        forge=forge.kind if forge else "",
        forge_host=forge.host if forge else "",
    )


class NextRun(msgspec.Struct, frozen=True):
    """A fire time: in UTC in the API's form, and in the trigger's own time zone."""

    at: str
    local: str


class TriggerView(msgspec.Struct, frozen=True, kw_only=True):
    """One trigger.

    Attributes:
        id, name, project, description: the id, name, project and description of the trigger.
        disabled: the trigger runs only manually.
        request_word: the forge's term for a pull request.
        fires_on: the events that fire it, in words.
        builds: the source of its build's steps, in words.
        conditions: further conditions to fire, in words.
        needs_approval: its builds wait for an approval.
        has_source: a manual run may name a branch, tag or commit.
        substitutions: its substitutions.
        next_runs: next fire times of its schedule.
        schedule: its schedule with the time zone; empty without one.
        json: the whole resource.
    """

    id: str
    name: str
    project: str
    description: str = ""
    disabled: bool = False
    request_word: str = "pull request"
    fires_on: str = ""
    builds: str = ""
    conditions: tuple[str, ...] = ()
    needs_approval: bool = False
    has_source: bool = False
    substitutions: dict[str, str] = {}
    next_runs: tuple[NextRun, ...] = ()
    schedule: str = ""
    json: str = ""

    @property
    def path(self) -> str:
        """Return the address of its page."""
        return f"/triggers/{self.project}/{self.id}"


def trigger_view(
    document: Mapping[str, Any],
    project: str,
    *,
    now: datetime,
    runs: int = 5,
    settings: TriggerSettings | None = None,
) -> TriggerView:
    """Return the facts of a trigger for its pages.

    Args:
        document: the BuildTrigger as JSON.
        project: its project.
        now: the present, for the next runs.
        runs: number of next runs.
        settings: its settings.
    """
    document = masked_trigger(dict(document))
    cron = document.get("cron", {})
    zone = cron.get("timeZone", "")
    word = _request_word(document, settings)
    return TriggerView(
        id=document.get("id", ""),
        name=document.get("name", ""),
        project=project,
        description=document.get("description", ""),
        disabled=bool(document.get("disabled", False)),
        request_word=word,
        fires_on=fires_on(document, word),
        builds=_builds(document),
        conditions=_conditions(document),
        needs_approval=document.get("approvalConfig", {}).get("approvalRequired", False) is True,
        has_source=not ("build" in document and not _has_repository(document)),
        substitutions=dict(document.get("substitutions", {})),
        next_runs=_next_runs((settings or TriggerSettings()).schedule(cron), now, runs),
        schedule=f"{cron['schedule']} ({zone or 'UTC'})" if cron.get("schedule") else "",
        json=msgspec.json.format(msgspec.json.encode(dict(document)), indent=2).decode(),
    )


def _request_word(document: Mapping[str, Any], settings: TriggerSettings | None) -> str:
    if settings is not None and settings.forge is not None:
        return request_word(settings.forge.kind)
    return request_word("gitlab" if _EVENTS_OF_GITLAB in document else "")


def fires_on(document: Mapping[str, Any], word: str = "pull request") -> str:
    """Describe in words which events fire a trigger.

    Args:
        document: the BuildTrigger as JSON.
        word: the forge's term for a pull request.
    """
    for field, forge in _EVENTS.items():
        if field in document:
            return _event(document[field], forge, word)
    template = document.get("triggerTemplate")
    if template is not None:
        ref = _ref(template, "branchName", "tagName", inverted=template.get("invertRegex", False))
        return f"push of {ref} to {template.get('repoName', '')}"
    if "webhookConfig" in document:
        return "a call of its webhook"
    if "pubsubConfig" in document:
        return f"a message of {document['pubsubConfig'].get('topic', 'its topic')}"
    if document.get("cron", {}).get("schedule"):
        return "the clock"
    return "by hand only"


def _event(config: Mapping[str, Any], forge: str, word: str) -> str:
    name = "/".join(filter(None, (config.get("owner"), config.get("name"))))
    name = (
        name
        or config.get("repository", "").rpartition("/")[2]
        or config.get("projectNamespace", "")
        or "/".join(filter(None, (config.get("projectKey"), config.get("repoSlug"))))
    )
    push, pull = config.get("push"), config.get("pullRequest")
    if push is not None:
        ref = _ref(push, "branch", "tag", inverted=push.get("invertRegex", False))
        return f"push of {ref} to {name} ({forge})"
    inverted = " not" if (pull or {}).get("invertRegex") else ""
    into = (pull or {}).get("branch", "")
    return f"{word} into a branch{inverted} like {into} of {name} ({forge})"


def _ref(config: Mapping[str, Any], branch: str, tag: str, *, inverted: bool) -> str:
    kind, pattern = ("tag", config[tag]) if config.get(tag) else ("branch", config.get(branch, ""))
    return f"a {kind}{' not' if inverted else ''} like {pattern}"


def _builds(document: Mapping[str, Any]) -> str:
    if "build" in document:
        count = len(document["build"].get("steps", ()))
        return f"{count} step{'s' if count != 1 else ''} of its own"
    if document.get("filename"):
        return f"{document['filename']} of the repository"
    if "gitFileSource" in document:
        file = document["gitFileSource"]
        return (
            f"{file.get('path', '')} of {file.get('uri') or file.get('repository') or 'the source'}"
        )
    return "the repository's own config"


def _conditions(document: Mapping[str, Any]) -> tuple[str, ...]:
    found = []
    if document.get("includedFiles"):
        found.append(f"a file of {', '.join(document['includedFiles'])} changed")
    if document.get("ignoredFiles"):
        found.append(f"a file outside {', '.join(document['ignoredFiles'])} changed")
    if document.get("filter"):
        found.append(f"filter: {document['filter']}")
    return tuple(found)


def _has_repository(document: Mapping[str, Any]) -> bool:
    return any(name in document for name in (*_EVENTS, "triggerTemplate", "sourceToBuild"))


def _next_runs(schedule: Schedule, now: datetime, count: int) -> tuple[NextRun, ...]:
    if not schedule.cron or not count:
        return ()
    try:
        times = fire_times(schedule, now, count)
    except BadSchedule:
        return ()
    from zoneinfo import ZoneInfo

    zone = ZoneInfo(schedule.time_zone or "UTC")
    return tuple(
        NextRun(
            moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            moment.astimezone(zone).strftime("%a %d %b %Y, %H:%M %Z"),
        )
        for moment in times
    )
