"""Templates and static files: how a page is drawn, and what browsers may do with it."""

from __future__ import annotations

import functools
import hashlib
from base64 import b64encode
from importlib import resources
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from starlette.responses import Response

from buildrunner.errors import NotFound
from buildrunner.server.pages.wording import FILTERS
from buildrunner.server.secure_headers import policy

if TYPE_CHECKING:
    from starlette.requests import Request

# What every page has in itself.
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
    """A page.

    Args:
        request: whose answer it is; its viewer is in the page's head.
        template: name of a template, without its endings.
        code: HTTP status.
        **values: what the template shows.
    """
    viewer = getattr(request.state, "viewer", None)
    text = (
        _templates()
        .get_template(f"{template}.html.j2")
        .render(viewer=viewer, path=request.url.path, **values)
    )
    return Response(text, code, HEADERS, media_type="text/html; charset=utf-8")


@functools.cache
def _files() -> dict[str, bytes]:
    """All static files: name -> content. No name that a request holds reaches the file system."""
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
    """Address of a static file; it changes with what any of them holds, so browsers may keep it.

    Any, since scripts name each other by relative addresses.
    """
    _content(name)
    return f"/static/{_version()}/{name}"


@functools.cache
def _version() -> str:
    content = b"".join(name.encode() + b"\0" + data for name, data in sorted(_files().items()))
    return hashlib.sha256(content).hexdigest()[:12]


def static_file(name: str) -> Response:
    """A static file.

    Raises:
        NotFound: there is none of that name.
    """
    kind = _TYPES.get(name.rpartition(".")[2], "application/octet-stream")
    headers = {"Cache-Control": _A_YEAR}
    return Response(_content(name), 200, headers, media_type=f"{kind}; charset=utf-8")
