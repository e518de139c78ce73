"""The page of one build: its result with the reason, steps, times, inputs and outputs."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter, Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response

from buildrunner.engine.events import StepFinished
from buildrunner.errors import BuildrunnerError, NotFound
from buildrunner.logs.files.events import EventLogReader
from buildrunner.logs.files.log_file import log_folder
from buildrunner.logs.files.reader import LogFileReader
from buildrunner.plan.build_plan import BuildPlan
from buildrunner.provenance.stored import has_attestations, sbom_failures
from buildrunner.server.context import ServerContext
from buildrunner.server.http.access import note_action, note_target
from buildrunner.server.http.bodies import READ_SLOT, build_slot
from buildrunner.server.http.errors import ApiError
from buildrunner.server.http.requests import project_of
from buildrunner.server.pages.builds.artifacts import listed_files
from buildrunner.server.pages.builds.changes import BuildHistory, changes_since, step_times
from buildrunner.server.pages.builds.drawings import draw_graph, ticks, waterfall
from buildrunner.server.pages.builds.first_errors import Excerpt, excerpt_of
from buildrunner.server.pages.builds.view import BuildView, build_view
from buildrunner.server.pages.rendering import PageRoute, page
from buildrunner.server.pages.session import (
    Session,
    Viewer,
    check_may,
    refusal,
    refused_address,
)
from buildrunner.server.pages.wording import Estimate
from buildrunner.server.services.builds import BuildOptions, Builds
from buildrunner.spec.model.build import FINAL_STATUSES
from buildrunner.spec.model.results import ApprovalResult, Decision
from buildrunner.store.model.builds import StoredBuild

_MANY_EVENTS = 20_000
_MANY_MESSAGES = 100
_MOST_DEPLOYED = 100
_KEPT_EXCERPTS = 500
VIEWS = ("steps", "waterfall", "graph", "inputs", "results", "compare")


def router(context: ServerContext) -> APIRouter:
    """Return the routes of the page and of its forms."""
    pages = BuildPage(context)
    routes = APIRouter(include_in_schema=False, route_class=PageRoute)
    viewer = [Depends(pages.session.viewer)]
    routes.add_api_route(
        "/builds/{project}/{build}",
        pages.build,
        methods=["GET"],
        dependencies=[*viewer, READ_SLOT],
    )
    routes.add_api_route(
        "/builds/{project}/{build}/{action}",
        _BuildActions(context).act,
        methods=["POST"],
        dependencies=viewer,
    )
    return routes


class BuildPage:
    """Renders the page."""

    def __init__(self, context: ServerContext) -> None:
        self.session = Session(context)
        self._context = context
        self._history = BuildHistory(context)
        self._excerpts: dict[str, Excerpt | None] = {}

    def build(self, request: Request) -> Response:
        """Show one build."""
        stored = self._stored(request)
        now = self._context.clock()
        folder = log_folder(self._context.data_folder, stored.id)
        numbered = EventLogReader(folder).read(limit=_MANY_EVENTS)
        events = [one.event() for one in numbered]
        build = build_view(stored, events, now=now)
        view = request.query_params.get("view", "steps")
        view = view if view in VIEWS else "steps"
        other = self._other(request, stored, build, view)
        reader = LogFileReader(folder)
        return page(
            request,
            "build",
            build=build,
            now=now,
            view=view,
            waiting=self._context.why_waiting(build.id) if not build.is_over else None,
            estimate=self._estimate(build),
            excerpt=self._excerpt(reader, build),
            other=other,
            changes=changes_since(other, build) if other is not None else (),
            may_resume=build.is_over and self._context.workspace_is_kept(build.id),
            deployed=self._context.store.deployments.of_build(stored.id, page_size=_MOST_DEPLOYED),
            attempts=self._history.attempts(stored),
            messages=self._message_count(request.state.viewer, stored),
            sequence=numbered[-1].sequence if numbered else 0,
            log_size=reader.size(),
            wrong=refusal(request),
            **self._of_view(view, stored, build, other, events),
        )

    def _stored(self, request: Request) -> StoredBuild:
        project = project_of(request, self._context.settings.default_project)
        check_may(request.state.viewer, "read", project)
        return self._context.store.builds.get(project, request.path_params["build"])

    def _message_count(self, viewer: Viewer, stored: StoredBuild) -> int:
        """Count the messages about a build; 0 for viewers without a token, since it is private."""
        if viewer.is_public:
            return 0
        return len(self._context.store.outbox.page(build_id=stored.id, limit=_MANY_MESSAGES))

    def _other(
        self, request: Request, stored: StoredBuild, build: BuildView, view: str
    ) -> BuildView | None:
        """Return the build to compare with: the requested one, or the last success before it."""
        now = self._context.clock()
        wanted = request.query_params.get("with", "").strip() if view == "compare" else ""
        if wanted:
            return build_view(self._context.store.builds.get(build.project, wanted), now=now)
        if view != "compare" and (build.status not in FINAL_STATUSES or build.status == "SUCCESS"):
            return None
        green = self._history.last_green(stored, build)
        return build_view(green, now=now) if green is not None else None

    def _estimate(self, build: BuildView) -> Estimate | None:
        if build.status != "WORKING" or build.seconds is None:
            return None
        usual = self._history.usual_s(build.project, build.trigger_id)
        return Estimate(usual, build.seconds) if usual is not None else None

    def _excerpt(self, reader: LogFileReader, build: BuildView) -> Excerpt | None:
        """Return the excerpt of the failed step's log, cached once the build has ended."""
        step = build.failing
        if step is None:
            return None
        if build.id in self._excerpts:
            return self._excerpts[build.id]
        found = excerpt_of(reader, step.index, step.ended)
        if build.is_over:
            if len(self._excerpts) >= _KEPT_EXCERPTS:
                self._excerpts.clear()
            self._excerpts[build.id] = found
        return found

    # -- data that only one view needs -----------------------------------------------------------

    def _of_view(
        self,
        view: str,
        stored: StoredBuild,
        build: BuildView,
        other: BuildView | None,
        events: list[Any],
    ) -> dict[str, Any]:
        match view:
            case "waterfall":
                edges = depends_on(self._plan(stored), len(build.steps))
                starts = {one.step: one.start_s for one in events if isinstance(one, StepFinished)}
                bars = waterfall(stored.document, edges, self._context.clock(), starts)
                total = max((bar.end_s for bar in bars), default=0.0)
                return {"bars": bars, "total": total, "ticks": ticks(total)}
            case "graph":
                return {
                    "graph": draw_graph(
                        build.steps, depends_on(self._plan(stored), len(build.steps))
                    )
                }
            case "inputs":
                return {"plan": self._plan(stored)}
            case "results":
                folder = log_folder(self._context.data_folder, stored.id)
                return {
                    **self._results(build),
                    "is_attested": has_attestations(folder),
                    "sbom_failures": sbom_failures(folder),
                }
            case "compare":
                return {"times": step_times(other, build) if other is not None else ()}
            case _:
                return {}

    def _plan(self, stored: StoredBuild) -> BuildPlan | None:
        data = self._context.store.builds.plan(stored.id)
        return None if data is None else msgspec.json.decode(data, type=BuildPlan)

    def _results(self, build: BuildView) -> dict[str, Any]:
        if not build.manifest:
            return {"files": (), "files_problem": ""}
        try:
            return {
                "files": listed_files(self._context, build.project, build.manifest),
                "files_problem": "",
            }
        except NotFound:
            problem = f"The list of the files, {build.manifest}, is no longer there."
        except BuildrunnerError as error:
            problem = f"The list of the files can't be read: {error}."
        return {"files": (), "files_problem": problem}


def depends_on(plan: BuildPlan | None, count: int) -> list[tuple[int, ...]]:
    """Return, for each step, the indexes of its dependencies; empty without a plan."""
    if plan is None or not plan.steps:
        return []
    edges: list[tuple[int, ...]] = [() for _ in range(count)]
    for step in plan.steps:
        if step.index < count:
            edges[step.index] = tuple(plan.steps[at].index for at in step.depends_on)
    return edges


class _BuildActions:
    """Actions on a build from its page: cancel, run again, approve, reject."""

    def __init__(self, context: ServerContext) -> None:
        self.session = Session(context)
        self._context = context
        self._builds = Builds(context)

    async def act(self, request: Request) -> Response:
        """Perform the action of a form, and redirect to the page or to the new build."""
        viewer: Viewer = request.state.viewer
        fields = await self.session.form(request, viewer)
        project = project_of(request, self._context.settings.default_project)
        check_may(viewer, "read", project)
        build_id = request.path_params["build"]
        stored = await run_in_threadpool(self._context.store.builds.get, project, build_id)
        action = request.path_params["action"]
        acts = {
            "cancel": ("submit", self._cancel),
            "retry": ("submit", self._retry),
            "approve": ("approve", self._decide),
            "reject": ("approve", self._decide),
        }
        if action not in acts:
            raise NotFound(f"there is no {action} for builds")
        scope, act = acts[action]
        note_action(request, f"builds.{action}", f"{project}/{stored.id}")
        check_may(viewer, scope, project)
        path = f"/builds/{project}/{stored.id}"
        try:
            async with build_slot(request, viewer.name):
                path = await run_in_threadpool(act, request, stored, fields)
        except (ApiError, BuildrunnerError) as error:
            path = refused_address(request, path, str(error))
        return RedirectResponse(path, 303)

    def _cancel(self, request: Request, stored: StoredBuild, _fields: dict[str, str]) -> str:
        self._builds.cancel(stored, request.state.viewer.caller)
        return _path_of(stored)

    def _retry(self, request: Request, stored: StoredBuild, fields: dict[str, str]) -> str:
        caller = request.state.viewer.caller
        deployment = fields.get("deployment", "")
        rollback = (
            self._context.store.deployments.get(stored.document["projectId"], deployment)
            if deployment
            else None
        )
        step = fields.get("fromStep", "")
        made = self._builds.retry(stored, BuildOptions(), caller, step, rollback)
        note_target(request, made.document["projectId"], stored.id, made.id)
        return _path_of(made)

    def _decide(self, request: Request, stored: StoredBuild, fields: dict[str, str]) -> str:
        approved = request.path_params["action"] == "approve"
        decision = ApprovalResult(
            decision=Decision.APPROVED if approved else Decision.REJECTED,
            comment=fields.get("comment", ""),
        )
        self._builds.decide(stored, decision, request.state.viewer.caller)
        return _path_of(stored)


def _path_of(stored: StoredBuild) -> str:
    return f"/builds/{stored.document['projectId']}/{stored.id}"
