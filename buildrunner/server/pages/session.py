"""The viewer of a page: a session in a cookie that scripts can't read, and protected forms.

A browser sends the cookie by itself, also for requests of other sites. So the cookie permits only
GET requests: a form must also have a value that only this server's pages know.
"""

from __future__ import annotations

import hmac
from hashlib import sha256
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from buildrunner.server.context import ServerContext
from buildrunner.server.http.access import Sessions, take_place
from buildrunner.server.http.bodies import UnverifiedBodies, body_pieces
from buildrunner.server.http.errors import invalid_argument, permission_denied
from buildrunner.server.http.tokens import LOCAL, Caller, caller_of, hash_of, public_caller

_MAX_FORM_BYTES = 1 << 16
_MOST_FIELDS = 200


class LoginNeeded(Exception):
    """Raised without a session; the answer redirects to the sign-in page."""


class Viewer(msgspec.Struct, frozen=True):
    """The user who looks at a page.

    Attributes:
        caller: the caller, with its scopes and projects.
        csrf: the secret value of the viewer's forms.
        signed_in: the viewer has signed in with a token, and can sign out.
        is_public: the viewer has no token, and sees only public projects.
    """

    caller: Caller
    csrf: str
    signed_in: bool
    is_public: bool = False

    @property
    def name(self) -> str:
        """Return the name of the token."""
        return self.caller.name

    def may(self, scope: str, project: str = "") -> bool:
        """See `Caller.may`."""
        return self.caller.may(scope, project)


class Session:
    """Signs in and out, and finds the viewer of a request."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._sessions = Sessions(context)

    async def viewer(self, request: Request) -> Viewer:
        """Return the viewer, and store it in the request for the page's head and the audit log.

        Raises:
            LoginNeeded: the user is not signed in.
        """
        viewer = await self._viewer(request)
        request.state.viewer = viewer
        request.state.caller = viewer.caller
        take_place(request, viewer.name)
        return viewer

    async def _viewer(self, request: Request) -> Viewer:
        if not self._context.settings.auth:
            return Viewer(LOCAL, self._sessions.form_value(""), signed_in=False)
        session = self._sessions.id_of(request)
        caller = await run_in_threadpool(self._sessions.caller, session) if session else None
        if caller is None:
            public = public_caller(self._context.settings.public_projects)
            if public is None or request.method != "GET":
                raise LoginNeeded
            return Viewer(public, "", signed_in=False, is_public=True)
        return Viewer(caller, self._sessions.form_value(session), signed_in=True)

    def first_project(self, viewer: Viewer) -> str:
        """Return the default project of pages: the server's, or the viewer's first."""
        default = self._context.settings.default_project
        projects = viewer.caller.projects
        return default if not projects or default in projects else projects[0]

    async def form(self, request: Request, viewer: Viewer | None) -> dict[str, str]:
        """Return the fields of a form.

        Args:
            request: the request.
            viewer: owner of the form; None for the sign-in form.

        Raises:
            ApiError: the form is not from a page of this server, or is too large.
        """
        if viewer is None:
            bodies: UnverifiedBodies = request.app.state.unverified_bodies
            async with bodies.read(request, _MAX_FORM_BYTES) as body:
                return self._fields(request, body, None)
        pieces = body_pieces(self._context, request, _MAX_FORM_BYTES)
        return self._fields(request, b"".join([piece async for piece in pieces]), viewer)

    def _fields(self, request: Request, body: bytes, viewer: Viewer | None) -> dict[str, str]:
        text = body.decode("utf-8", "replace")
        try:
            found = parse_qs(text, max_num_fields=_MOST_FIELDS)
        except ValueError as error:
            raise invalid_argument(f"a form has at most {_MOST_FIELDS} fields") from error
        fields = {name: values[-1] for name, values in found.items()}
        if not self._is_of_our_site(request):
            raise permission_denied("forms of other sites are not taken")
        if viewer is not None and not hmac.compare_digest(
            fields.get("csrf", "").encode(), viewer.csrf.encode()
        ):
            raise permission_denied("this form is not of this session: go back and reload the page")
        return fields

    def _is_of_our_site(self, request: Request) -> bool:
        """Return False if the browser's headers name another site as the sender of the form."""
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return False
        origin = request.headers.get("origin")
        ours = (request.headers.get("host"), urlsplit(self._context.settings.public_url).netloc)
        return origin is None or urlsplit(origin).netloc in ours

    async def sign_in(self, request: Request, token: str, target: str) -> Response | None:
        """Begin a session with a valid token and redirect; None if the token is invalid.

        Args:
            request: the request; a session that it presents ends.
            token: the typed token.
            target: path on this server to redirect to; anything else leads to the first page.
        """
        found = await run_in_threadpool(self._context.store.tokens.find, hash_of(token))
        caller = caller_of(token, found)
        if caller is None:
            return None
        request.state.caller = caller
        await self._end(request)
        answer = RedirectResponse(own_path(target), 303)
        self._sessions.set_cookie(
            answer, await run_in_threadpool(self._sessions.begin, caller.name)
        )
        return answer

    async def sign_out(self, request: Request) -> Response:
        """End the session."""
        await self._end(request)
        answer = RedirectResponse("/login", 303)
        self._sessions.set_cookie(answer, "")
        return answer

    async def _end(self, request: Request) -> None:
        session = self._sessions.id_of(request)
        if session:
            await run_in_threadpool(self._sessions.end, session)


def check_may(viewer: Viewer, scope: str, project: str) -> None:
    """Check that a viewer has a scope in a project.

    Raises:
        LoginNeeded: the viewer has no token, and the page is not public.
        ApiError: the viewer's token lacks the scope.
    """
    if viewer.may(scope, project):
        return
    if viewer.is_public:
        raise LoginNeeded
    raise permission_denied(
        f"token {viewer.name} may not do this: it needs scope {scope} for project {project}"
    )


def check_everywhere(viewer: Viewer, scope: str) -> None:
    """Check that a viewer has a scope for all projects. Raises like `check_may`."""
    if viewer.may(scope) and not viewer.caller.projects:
        return
    if viewer.is_public:
        raise LoginNeeded
    raise permission_denied(
        f"token {viewer.name} may not see this: it needs scope {scope} for all projects"
    )


def refused_address(request: Request, path: str, text: str, **query: str) -> str:
    """Return the address of a page that shows to this viewer why a form was refused.

    Args:
        request: the request with the form; its viewer is known.
        path: path of the page.
        text: the reason.
        **query: further parameters of the page.
    """
    seal = _seal(request.state.viewer, path, text)
    return f"{path}?{urlencode({**query, 'wrong': text, 'seal': seal})}"


def refusal(request: Request) -> str:
    """Return the reason in a page's address if `refused_address` made it for this viewer.

    The author of a link can't make the page say something else.
    """
    text = request.query_params.get("wrong", "")
    viewer: Viewer = request.state.viewer
    if not text or not viewer.csrf:
        return ""
    seal = request.query_params.get("seal", "")
    expected = _seal(viewer, request.url.path, text)
    return text if hmac.compare_digest(seal.encode(), expected.encode()) else ""


def _seal(viewer: Viewer, path: str, text: str) -> str:
    return hmac.new(viewer.csrf.encode(), f"{path}\n{text}".encode(), sha256).hexdigest()


def login_address(path: str) -> str:
    """Return the address of the page to sign in, which leads back to ``path``."""
    return f"/login?next={quote(path, safe='/')}"


def own_path(target: str) -> str:
    """Return ``target`` if it is a path of this server, else the first page."""
    plain = target.startswith("/") and not target.startswith(("//", "/\\"))
    return target if plain and "\n" not in target and "\r" not in target else "/"
