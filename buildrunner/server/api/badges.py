"""Badges: small pictures with the result of a trigger's last build, on any branch or on one.

A caller who may not see a badge gets the same answer as for a missing one.

Source: semantics 12.3. The hosted service has no badges; its users' own ones show the same words.
"""

from __future__ import annotations

from typing import Final
from xml.sax.saxutils import escape

from fastapi import APIRouter, Request, Response

from buildrunner.addresses import network_of
from buildrunner.errors import BuildrunnerError, ConfigError, NotFound
from buildrunner.server.context import ServerContext
from buildrunner.server.http.access import Access
from buildrunner.server.http.bodies import CallerSlots
from buildrunner.server.http.errors import ApiError
from buildrunner.server.http.requests import client_address, project_of
from buildrunner.server.http.tokens import PUBLIC_NAME
from buildrunner.server.openapi import Parameter, documented
from buildrunner.server.services.queueing import TriggerQueue
from buildrunner.store.model.builds import BuildCondition
from buildrunner.triggers.labels import BUILT_REF

_WORDS: Final = {
    "SUCCESS": ("passing", "#2e7d32"),
    "FAILURE": ("failing", "#c62828"),
    "TIMEOUT": ("timed out", "#c62828"),
    "INTERNAL_ERROR": ("error", "#c62828"),
    "CANCELLED": ("cancelled", "#616161"),
    "EXPIRED": ("expired", "#616161"),
}
_UNKNOWN: Final = ("unknown", "#616161")
_ENDED: Final = " OR ".join(f'status="{status}"' for status in _WORDS)
_HEADERS: Final = {
    # Image proxies must request the badge each time.
    "Cache-Control": "no-cache, no-store, max-age=0, must-revalidate",
    "Cross-Origin-Resource-Policy": "cross-origin",
}
_LETTER: Final = 6.6
_MOST_LETTERS: Final = 40
_BRANCH: Final = Parameter("branch", "string", "Only builds of this branch.")


def router(context: ServerContext) -> APIRouter:
    """Return the route."""
    badges = _Badges(context)
    routes = APIRouter(tags=["notifications"])

    async def badge(request: Request) -> Response:
        """Return the result of the last finished build as SVG; ``branch`` selects a branch."""
        return await badges.answer(request)

    routes.add_api_route(
        "/badge/{project}/{trigger}.svg",
        badge,
        methods=["GET", "HEAD"],
        openapi_extra=documented(query=(_BRANCH,)),
    )
    return routes


class _Badges:
    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._access = Access(context)
        self._queue = TriggerQueue(context)

    async def answer(self, request: Request) -> Response:
        from starlette.concurrency import run_in_threadpool

        branch = request.query_params.get("branch", "")
        badges: CallerSlots = request.app.state.badges
        # A trigger can be large, and nothing is known about the caller yet. The second slot limits
        # the badges of all networks, each of which has only a few in its line.
        async with badges.slot(network_of(client_address(request))), badges.slot(PUBLIC_NAME):
            found = await run_in_threadpool(self._trigger, request)
            if found is None or not (found[2] or await self._may_read(request, found[0])):
                return _svg("build", *_UNKNOWN, code=404)
            project, document, _ = found
            status = await run_in_threadpool(self._status, project, document["id"], branch)
        label = str(document.get("name", "build"))
        return _svg(f"{label} ({branch})" if branch else label, *_WORDS.get(status, _UNKNOWN))

    def _trigger(self, request: Request) -> tuple[str, dict[str, object], bool] | None:
        """Return project, trigger, and whether its badge is public."""
        try:
            project = project_of(request, self._context.settings.default_project)
            trigger = self._context.store.triggers.get(project, request.path_params["trigger"])
        except (NotFound, ApiError):
            return None
        try:
            is_public = self._queue.settings(project, str(trigger["id"])).public_badge
        except ConfigError:  # the settings can't be read, so the badge is not public
            is_public = False
        return project, trigger, is_public

    async def _may_read(self, request: Request, project: str) -> bool:
        try:
            return (await self._access.caller(request)).may("read", project)
        except BuildrunnerError:
            return False

    def _status(self, project: str, trigger_id: object, branch: str) -> str:
        wanted = f'trigger_id="{trigger_id}" AND ({_ENDED})'
        builds = self._context.store.builds
        # Callers and forks choose BRANCH_NAME freely; only the server sets the label.
        accepts = _is_of_branch(branch) if branch else None
        return next((one.status for one in builds.newest(project, wanted, accepts=accepts)), "")


def _is_of_branch(branch: str) -> BuildCondition:
    return lambda _, labels: labels.get(BUILT_REF) == f"refs/heads/{branch}"


def _svg(label: str, words: str, colour: str, code: int = 200) -> Response:
    return Response(badge_svg(label, words, colour), code, _HEADERS, media_type="image/svg+xml")


def badge_svg(label: str, words: str, colour: str) -> str:
    """Return a badge as SVG.

    Args:
        label: the subject, on the left.
        words: the result, on the right.
        colour: background colour of the result.
    """
    if len(label) > _MOST_LETTERS:
        label = f"{label[: _MOST_LETTERS - 1]}…"
    left, right = (round(len(text) * _LETTER) + 12 for text in (label, words))
    width, name = left + right, escape(f"{label}: {words}", {'"': "&quot;"})
    text = (
        f'<text x="{left / 2}" y="14">{escape(label)}</text>'
        f'<text x="{left + right / 2}" y="14">{escape(words)}</text>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="20" role="img"'
        f' aria-label="{name}"><title>{name}</title>'
        f'<clipPath id="r"><rect width="{width}" height="20" rx="3"/></clipPath>'
        f'<g clip-path="url(#r)"><rect width="{left}" height="20" fill="#424242"/>'
        f'<rect x="{left}" width="{right}" height="20" fill="{colour}"/></g>'
        f'<g fill="#fff" text-anchor="middle" font-size="11"'
        f' font-family="Verdana,Geneva,DejaVu Sans,sans-serif">{text}</g></svg>'
    )
