"""Rendering of pages from templates, static files, and the security policy for browsers."""

from __future__ import annotations

import functools
import hashlib
from base64 import b64encode
from collections.abc import Callable, Coroutine
from importlib import resources
from typing import Any

from fastapi.routing import APIRoute
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from buildrunner.errors import BuildrunnerError, NotFound
from buildrunner.server.http.access import policy
from buildrunner.server.http.errors import ApiError, as_api_error
from buildrunner.server.pages.session import LoginNeeded, login_address
from buildrunner.server.pages.wording import FILTERS

# The script that every page contains.
_INLINE = resources.files("buildrunner.server.pages").joinpath("static", "arrival.js").read_bytes()
_INLINE_SHA256 = b64encode(hashlib.sha256(_INLINE).digest()).decode()
HEADERS = {"Content-Security-Policy": policy(script=f"'self' 'sha256-{_INLINE_SHA256}'")}

_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_A_YEAR = "public, max-age=31536000, immutable"


@functools.cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("buildrunner.server.pages"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    environment.globals["static"] = static_url
    environment.globals["inline"] = Markup(_INLINE.decode())  # noqa: S704  (a file of ours)
    return environment


def page(request: Request, template: str, code: int = 200, **values: Any) -> Response:
    """Return a page.

    Args:
        request: the request. Its viewer is in the page's head.
        template: name of a template, without its endings.
        code: HTTP status.
        **values: values for the template.
    """
    viewer = getattr(request.state, "viewer", None)
    text = (
        _templates()
        .get_template(f"{template}.html.j2")
        .render(viewer=viewer, path=request.url.path, **values)
    )
    return Response(text, code, HEADERS, media_type="text/html; charset=utf-8")


def error_page(request: Request, error: ApiError) -> Response:
    """Return an error as a page."""
    is_missing = error.code == 404
    title = "Not found" if is_missing else "This can't be shown"
    said = str(error)
    text = f"There is nothing here: {said.rstrip('.')}." if is_missing else said
    answer = page(request, "message", error.code, title=title, text=text, back="")
    answer.headers.update(error.headers)
    return answer


@functools.cache
def _files() -> dict[str, bytes]:
    """Return all static files by name. No name from a request reaches the file system."""
    folder = resources.files("buildrunner.server.pages").joinpath("static")
    files = (file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    return {file.name: file.read_bytes() for file in files}


def _content(name: str) -> bytes:
    try:
        return _files()[name]
    except KeyError:
        raise NotFound(f"there is no file {name}") from None


@functools.cache
def static_url(name: str) -> str:
    """Return the address of a static file. Browsers may cache the file without limit.

    The address changes when any static file changes, since scripts import each other by relative
    addresses.
    """
    _content(name)
    return f"/static/{_version()}/{name}"


@functools.cache
def _version() -> str:
    content = b"".join(name.encode() + b"\0" + data for name, data in sorted(_files().items()))
    return hashlib.sha256(content).hexdigest()[:12]


def static_file(name: str) -> Response:
    """Return a static file.

    Raises:
        NotFound: there is none of that name.
    """
    kind = _TYPES.get(name.rpartition(".")[2], "application/octet-stream")
    headers = {"Cache-Control": _A_YEAR}
    return Response(_content(name), 200, headers, media_type=f"{kind}; charset=utf-8")


class PageRoute(APIRoute):
    """A route whose errors are pages, or redirect to the sign-in page."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[object, object, Response]]:
        """Return the route's handler, with errors as pages."""
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
                if answer.code == 404:
                    answer = ApiError(404, str(error))
                return error_page(request, answer)

        return handled
