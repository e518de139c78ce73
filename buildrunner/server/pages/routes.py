"""The pages: builds, one build, signing in; and what can be done from them.

Addresses are short ones for people; all that changes something is a form that comes back to the
page it stands on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlencode

import msgspec
from fastapi import APIRouter, Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response

from buildrunner.errors import BuildrunnerError, FilterError, NotFound
from buildrunner.logs.event_log import EventLogReader
from buildrunner.logs.log_file import LogFileReader, log_folder
from buildrunner.plan.build_plan import BuildPlan
from buildrunner.server.access import note_action, project_of
from buildrunner.server.errors import ApiError, permission_denied
from buildrunner.server.pages.build_view import FINAL, build_view, changes_since
from buildrunner.server.pages.graph import draw_graph
from buildrunner.server.pages.look import page, static_file
from buildrunner.server.pages.page_route import PageRoute
from buildrunner.server.pages.session import Session, Viewer
from buildrunner.server.pages.waterfall import waterfall
from buildrunner.server.routes_builds import Builds
from buildrunner.spec.model_results import ApprovalResult, Decision

if TYPE_CHECKING:
    from buildrunner.server.context import ServerContext
    from buildrunner.server.pages.build_view import BuildView, Change
    from buildrunner.store.server_store import StoredBuild, WaitReason

_PAGE_SIZE = 50
_MANY_EVENTS = 20_000
_STATES = ("SUCCESS", "FAILURE", "WORKING", "QUEUED", "PENDING", "TIMEOUT", "CANCELLED")


def router(context: ServerContext) -> APIRouter:
    """The routes of the dashboard."""
    return _Pages(context).routes()


class _Pages:
    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._session = Session(context)
        self._builds = Builds(context)

    def routes(self) -> APIRouter:
        routes = APIRouter(include_in_schema=False, route_class=PageRoute)
        viewer = Depends(self._session.viewer)
        routes.add_api_route("/", self.start, methods=["GET"])
        routes.add_api_route("/builds", self.builds, methods=["GET"], dependencies=[viewer])
        routes.add_api_route(
            "/builds/{project}/{build}", self.build, methods=["GET"], dependencies=[viewer]
        )
        routes.add_api_route(
            "/builds/{project}/{build}/{action}", self.act, methods=["POST"], dependencies=[viewer]
        )
        routes.add_api_route("/login", self.login, methods=["GET"])
        routes.add_api_route("/login", self.sign_in, methods=["POST"])
        routes.add_api_route("/logout", self.sign_out, methods=["POST"], dependencies=[viewer])
        routes.add_api_route("/static/{version}/{name}", static, methods=["GET"])
        return routes

    async def start(self) -> Response:
        """The first page."""
        return RedirectResponse("/builds", 303)

    def builds(self, request: Request) -> Response:
        """The list of builds: those that wait and run on top, then the newest."""
        query = request.query_params
        viewer: Viewer = request.state.viewer
        project = query.get("project") or self._session.first_project(viewer)
        if not viewer.may("read", project):
            raise permission_denied(f"token {viewer.name} may not read project {project}")
        status, text = query.get("status", ""), query.get("filter", "")
        wanted = " AND ".join(
            part for part in (f'status="{status}"' if status in _STATES else "", text) if part
        )
        wrong, builds, more = "", [], ""
        try:
            found = self._context.store.list_builds(
                project, filter=wanted, page_size=_PAGE_SIZE, page_token=query.get("page", "")
            )
        except FilterError as error:
            wrong = str(error)
        else:
            now = self._context.clock()
            builds = [build_view(one, now=now) for one in found.builds]
            more = found.next_page_token
        given = {"project": project, "status": status, "filter": text}
        return page(
            request,
            "builds",
            builds=builds,
            waiting={b.id: self._waiting(b) for b in builds if b.status in ("QUEUED", "PENDING")},
            live=any(not build.is_over for build in builds),
            states=_STATES,
            wanted_status=status,
            filter=text,
            project=project,
            wrong=wrong,
            now=self._context.clock(),
            more=f"/builds?{urlencode({**given, 'page': more})}" if more else "",
        )

    def build(self, request: Request) -> Response:
        """One build."""
        stored = self._stored(request)
        now = self._context.clock()
        folder = log_folder(self._context.data_folder, stored.id)
        numbered = EventLogReader(folder).read(limit=_MANY_EVENTS)
        build = build_view(stored, (one.event() for one in numbered), now=now)
        depends_on = self._depends_on(stored)
        green = self._last_green(stored, build)
        return page(
            request,
            "build",
            build=build,
            now=now,
            waiting=self._waiting(build) if not build.is_over else None,
            changes=self._changes(green, build),
            green=green,
            bars=waterfall(stored.document, depends_on, now),
            graph=draw_graph(build.steps, depends_on),
            sequence=numbered[-1].sequence if numbered else 0,
            log_size=LogFileReader(folder).size(),
            view=request.query_params.get("view", "steps"),
            wrong=request.query_params.get("wrong", ""),
        )

    async def act(self, request: Request) -> Response:
        """Cancel, retry, approve or reject."""
        viewer: Viewer = request.state.viewer
        fields = await self._session.form(request, viewer)
        stored = await run_in_threadpool(self._stored, request)
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
        project = stored.document["projectId"]
        note_action(request, f"builds.{action}", f"{project}/{stored.id}")
        if not viewer.may(scope, project):
            raise permission_denied(f"token {viewer.name} may not do this: it needs scope {scope}")
        path = f"/builds/{project}/{stored.id}"
        try:
            path = await run_in_threadpool(act, request, stored, fields)
        except (ApiError, BuildrunnerError) as error:
            path = f"{path}?{urlencode({'wrong': str(error)})}"
        return RedirectResponse(path, 303)

    async def login(self, request: Request) -> Response:
        """Where one signs in."""
        target = request.query_params.get("next", "/")
        return page(request, "login", target=target, wrong="")

    async def sign_in(self, request: Request) -> Response:
        """Take a token."""
        fields = await self._session.form(request, None)
        target = fields.get("next", "/")
        note_action(request, "login", "")
        secure = request.url.scheme == "https"
        answer = await self._session.sign_in(fields.get("token", "").strip(), target, secure=secure)
        if answer is not None:
            return answer
        wrong = "This token is unknown or was revoked."
        return page(request, "login", 403, target=target, wrong=wrong)

    async def sign_out(self, request: Request) -> Response:
        """Forget the token."""
        await self._session.form(request, request.state.viewer)
        return self._session.sign_out()

    # -- what the pages need ---------------------------------------------------------------------

    def _stored(self, request: Request) -> StoredBuild:
        project = project_of(request, self._context.settings.default_project)
        viewer: Viewer = request.state.viewer
        if not viewer.may("read", project):
            raise permission_denied(f"token {viewer.name} may not read project {project}")
        return self._context.store.get_build(project, request.path_params["build"])

    def _waiting(self, build: BuildView) -> WaitReason | None:
        return self._context.why_waiting(build.id)

    def _depends_on(self, stored: StoredBuild) -> list[tuple[int, ...]]:
        data = self._context.store.plan(stored.id)
        if data is None:
            return []
        plan = msgspec.json.decode(data, type=BuildPlan)
        positions = {step.index: at for at, step in enumerate(plan.steps)}
        edges: list[tuple[int, ...]] = [() for _ in stored.document.get("steps", ())]
        for step in plan.steps:
            if step.index < len(edges):
                edges[step.index] = tuple(plan.steps[at].index for at in step.depends_on)
        return edges if positions else []

    def _last_green(self, stored: StoredBuild, build: BuildView) -> BuildView | None:
        trigger = stored.document.get("buildTriggerId")
        if not trigger or build.status not in FINAL - {"SUCCESS"}:
            return None
        wanted = f'trigger_id="{trigger}" AND status="SUCCESS"'
        before = f' AND create_time<"{stored.document.get("createTime", "")}"'
        found = self._context.store.list_builds(build.project, filter=wanted + before, page_size=1)
        return build_view(found.builds[0], now=self._context.clock()) if found.builds else None

    def _changes(self, green: BuildView | None, build: BuildView) -> tuple[Change, ...]:
        return changes_since(green, build) if green is not None else ()

    # -- what can be done ------------------------------------------------------------------------

    def _cancel(self, _request: Request, stored: StoredBuild, _fields: dict[str, str]) -> str:
        self._builds.cancel(stored)
        return _path(stored)

    def _retry(self, request: Request, stored: StoredBuild, _fields: dict[str, str]) -> str:
        return _path(self._builds.retry(request, stored, request.state.viewer.caller))

    def _decide(self, request: Request, stored: StoredBuild, fields: dict[str, str]) -> str:
        approved = request.path_params["action"] == "approve"
        decision = ApprovalResult(
            decision=Decision.APPROVED if approved else Decision.REJECTED,
            comment=fields.get("comment", ""),
        )
        self._builds.decide(stored, decision, request.state.viewer.caller)
        return _path(stored)


def static(name: str) -> Response:
    """A static file; the version in its address is for browsers' caches only."""
    return static_file(name)


def _path(stored: StoredBuild) -> str:
    return f"/builds/{stored.document['projectId']}/{stored.id}"
