"""Pages before a user has signed in: the first page, signing in and out, and static files."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from starlette.responses import RedirectResponse, Response

from buildrunner.server.context import ServerContext
from buildrunner.server.http.access import note_action
from buildrunner.server.pages.rendering import PageRoute, page, static_file
from buildrunner.server.pages.session import Session


def router(context: ServerContext) -> APIRouter:
    """Return the routes."""
    pages = _Pages(context)
    routes = APIRouter(include_in_schema=False, route_class=PageRoute)
    viewer = [Depends(pages.session.viewer)]
    routes.add_api_route("/", pages.start, methods=["GET"])
    routes.add_api_route("/login", pages.login, methods=["GET"])
    routes.add_api_route("/login", pages.sign_in, methods=["POST"])
    routes.add_api_route("/logout", pages.sign_out, methods=["POST"], dependencies=viewer)
    routes.add_api_route("/static/{version}/{name}", static, methods=["GET"])
    return routes


class _Pages:
    def __init__(self, context: ServerContext) -> None:
        self.session = Session(context)

    async def start(self) -> Response:
        """Redirect to the first page."""
        return RedirectResponse("/builds", 303)

    async def login(self, request: Request) -> Response:
        """Show the page to sign in."""
        target = request.query_params.get("next", "/")
        return page(request, "login", target=target, wrong="")

    async def sign_in(self, request: Request) -> Response:
        """Sign in with a token."""
        fields = await self.session.form(request, None)
        target = fields.get("next", "/")
        note_action(request, "login", "")
        answer = await self.session.sign_in(request, fields.get("token", "").strip(), target)
        if answer is not None:
            return answer
        wrong = "This token is unknown or was revoked."
        return page(request, "login", 403, target=target, wrong=wrong)

    async def sign_out(self, request: Request) -> Response:
        """End the session."""
        note_action(request, "logout", "")
        await self.session.form(request, request.state.viewer)
        return await self.session.sign_out(request)


def static(name: str) -> Response:
    """Return a static file; the version in its address is for browsers' caches only."""
    return static_file(name)
