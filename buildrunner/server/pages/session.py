"""Who looks at a page: a token in a cookie that scripts can't read, and forms nobody can forge.

A browser sends the cookie by itself, so it opens pages and what they read (GET), and nothing else:
a form must also hold a value that only our own pages know.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from buildrunner.server.errors import permission_denied
from buildrunner.server.requests import body_pieces
from buildrunner.server.session_cookie import COOKIE
from buildrunner.server.tokens import LOCAL, Caller, caller_of, hash_of, public_caller
from buildrunner.server.unverified_bodies import UnverifiedBodies

if TYPE_CHECKING:
    from buildrunner.server.context import ServerContext

_MAX_FORM_BYTES = 1 << 16
_A_MONTH_S = 30 * 86400
_PROCESS_KEY = secrets.token_bytes(32)


class LoginNeeded(Exception):
    """Nobody is signed in; the answer leads to the page where one can."""


class Viewer(msgspec.Struct, frozen=True):
    """Who looks.

    Attributes:
        caller: what he may do.
        csrf: the value that his forms hold.
        signed_in: with a token, so that he can sign out.
        is_public: he has none, and sees what everyone may read.
    """

    caller: Caller
    csrf: str
    signed_in: bool
    is_public: bool = False

    @property
    def name(self) -> str:
        """Name of the token."""
        return self.caller.name

    def may(self, scope: str, project: str = "") -> bool:
        """See `Caller.may`."""
        return self.caller.may(scope, project)


class Session:
    """Signs in and out, and tells who looks."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    async def viewer(self, request: Request) -> Viewer:
        """Who looks; noted in the request for the page's head and the audit log.

        Raises:
            LoginNeeded: nobody is signed in.
        """
        viewer = await self._viewer(request)
        request.state.viewer = viewer
        request.state.caller = viewer.caller
        return viewer

    async def _viewer(self, request: Request) -> Viewer:
        if not self._context.settings.auth:
            return Viewer(LOCAL, _csrf(""), signed_in=False)
        token = request.cookies.get(COOKIE, "")
        caller = await self._caller(token) if token else None
        if caller is None:
            public = public_caller(self._context.settings.public_projects)
            if public is None or request.method != "GET":
                raise LoginNeeded
            return Viewer(public, "", signed_in=False, is_public=True)
        return Viewer(caller, _csrf(token), signed_in=True)

    async def _caller(self, token: str) -> Caller | None:
        found = await run_in_threadpool(self._context.store.find_token, hash_of(token))
        return caller_of(token, found)

    def first_project(self, viewer: Viewer) -> str:
        """The project to show when none was asked for: the server's, or the viewer's first."""
        default = self._context.settings.default_project
        projects = viewer.caller.projects
        return default if not projects or default in projects else projects[0]

    async def form(self, request: Request, viewer: Viewer | None) -> dict[str, str]:
        """The fields of a form.

        Args:
            request: the request.
            viewer: whose form it is; None for the one by which one signs in.

        Raises:
            ApiError: it does not come from one of our pages, or is too large.
        """
        if viewer is None:
            bodies: UnverifiedBodies = request.app.state.unverified_bodies
            async with bodies.read(request, _MAX_FORM_BYTES) as body:
                return self._fields(request, body, None)
        pieces = body_pieces(self._context, request, _MAX_FORM_BYTES)
        return self._fields(request, b"".join([piece async for piece in pieces]), viewer)

    def _fields(self, request: Request, body: bytes, viewer: Viewer | None) -> dict[str, str]:
        fields = {
            name: values[-1] for name, values in parse_qs(body.decode("utf-8", "replace")).items()
        }
        site = request.headers.get("sec-fetch-site", "same-origin")
        if site not in ("same-origin", "none"):
            raise permission_denied("forms of other sites are not taken")
        if viewer is not None and not hmac.compare_digest(fields.get("csrf", ""), viewer.csrf):
            raise permission_denied("this form is not of this session: go back and reload the page")
        return fields

    async def sign_in(self, token: str, target: str, *, secure: bool) -> Response | None:
        """Keep a good token in the browser and lead on; None when the token is not good.

        Args:
            token: what was typed.
            target: path of ours to go to; anything else leads to the first page.
            secure: the connection is TLS.
        """
        if await self._caller(token) is None:
            return None
        answer = RedirectResponse(own_path(target), 303)
        answer.set_cookie(
            COOKIE,
            token,
            max_age=_A_MONTH_S,
            httponly=True,
            samesite="lax",
            secure=secure,
            path="/",
        )
        return answer

    def sign_out(self) -> Response:
        """Forget the token."""
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE, path="/", httponly=True, samesite="lax")
        return answer


def check_may(viewer: Viewer, scope: str, project: str) -> None:
    """See that somebody may do what needs a scope in a project.

    Raises:
        LoginNeeded: he has no token, and this is not for everyone.
        ApiError: his token does not allow it.
    """
    if viewer.may(scope, project):
        return
    if viewer.is_public:
        raise LoginNeeded
    raise permission_denied(
        f"token {viewer.name} may not do this: it needs scope {scope} for project {project}"
    )


def check_everywhere(viewer: Viewer, scope: str) -> None:
    """See that somebody may do what needs a scope for all projects. Raises as `check_may`."""
    if viewer.may(scope) and not viewer.caller.projects:
        return
    if viewer.is_public:
        raise LoginNeeded
    raise permission_denied(
        f"token {viewer.name} may not see this: it needs scope {scope} for all projects"
    )


def login_address(path: str) -> str:
    """Where one signs in, to come back to ``path``."""
    return f"/login?next={quote(path, safe='/')}"


def own_path(target: str) -> str:
    """``target`` if it is a path of this server, else the first page."""
    plain = target.startswith("/") and not target.startswith(("//", "/\\"))
    return target if plain and "\n" not in target and "\r" not in target else "/"


def _csrf(token: str) -> str:
    return hmac.new(_PROCESS_KEY, f"form {token}".encode(), hashlib.sha256).hexdigest()
