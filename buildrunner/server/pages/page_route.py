"""Routes of pages, whose failures are pages too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi.routing import APIRoute
from starlette.responses import RedirectResponse

from buildrunner.errors import BuildrunnerError
from buildrunner.server.errors import as_api_error
from buildrunner.server.pages.look import page
from buildrunner.server.pages.session import LoginNeeded, login_address

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from starlette.requests import Request
    from starlette.responses import Response


class PageRoute(APIRoute):
    """A route whose failures are pages too, and lead to signing in where that is missing."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[object, object, Response]]:
        """The route's handler, with its failures turned into pages."""
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except LoginNeeded:
                query = request.url.query
                path = f"{request.url.path}?{query}" if query else request.url.path
                return RedirectResponse(
                    login_address(path if request.method == "GET" else "/"), 303
                )
            except BuildrunnerError as error:
                answer = as_api_error(error)
                text = str(answer) if answer.code != 404 else f"There is nothing here: {error}."
                title = "Not found" if answer.code == 404 else "This can't be shown"
                return page(request, "message", answer.code, title=title, text=text, back="")

        return handled
