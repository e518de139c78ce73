"""Actions on a build from its page: cancel, run again, approve, reject."""

from __future__ import annotations

from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response

from buildrunner.errors import BuildrunnerError, NotFound
from buildrunner.server.context import ServerContext
from buildrunner.server.http.access import note_action, note_target, project_of
from buildrunner.server.http.errors import ApiError
from buildrunner.server.pages.rendering import PageRoute
from buildrunner.server.pages.session import Session, Viewer, check_may
from buildrunner.server.services.builds import BuildOptions, Builds
from buildrunner.spec.model.results import ApprovalResult, Decision
from buildrunner.store.model.builds import StoredBuild


def router(context: ServerContext) -> APIRouter:
    """The routes of the forms."""
    actions = _BuildActions(context)
    routes = APIRouter(include_in_schema=False, route_class=PageRoute)
    routes.add_api_route(
        "/builds/{project}/{build}/{action}",
        actions.act,
        methods=["POST"],
        dependencies=[Depends(actions.session.viewer)],
    )
    return routes


class _BuildActions:
    def __init__(self, context: ServerContext) -> None:
        self.session = Session(context)
        self._context = context
        self._builds = Builds(context)

    async def act(self, request: Request) -> Response:
        """Do what a form of the page asks for, and go back to it or on to what was made."""
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
            path = await run_in_threadpool(act, request, stored, fields)
        except (ApiError, BuildrunnerError) as error:
            path = f"{path}?{urlencode({'wrong': str(error)})}"
        return RedirectResponse(path, 303)

    def _cancel(self, request: Request, stored: StoredBuild, _fields: dict[str, str]) -> str:
        self._builds.cancel(stored, request.state.viewer.caller)
        return _path(stored)

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
        return _path(made)

    def _decide(self, request: Request, stored: StoredBuild, fields: dict[str, str]) -> str:
        approved = request.path_params["action"] == "approve"
        decision = ApprovalResult(
            decision=Decision.APPROVED if approved else Decision.REJECTED,
            comment=fields.get("comment", ""),
        )
        self._builds.decide(stored, decision, request.state.viewer.caller)
        return _path(stored)


def _path(stored: StoredBuild) -> str:
    return f"/builds/{stored.document['projectId']}/{stored.id}"
