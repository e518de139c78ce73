"""buildrunner's own routes of notifications: notifiers, tests, messages of the outbox."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from buildrunner.errors import Conflict, NotFound
from buildrunner.server.context import ServerContext
from buildrunner.server.http.access import Access, note_target
from buildrunner.server.http.answers import json_response
from buildrunner.server.http.bodies import as_mapping, json_body, member
from buildrunner.server.http.errors import ApiError, failed_precondition, invalid_argument
from buildrunner.server.http.requests import number, parameter
from buildrunner.server.http.tokens import Caller
from buildrunner.server.notifications.dispatch import NotificationService, NotifierEvaluation
from buildrunner.server.notifications.facts import BAD, Facts
from buildrunner.server.notifications.messages import masked_message, masked_notifier, target_of
from buildrunner.server.notifications.notifier import notifier_of
from buildrunner.server.openapi import BEFORE, LIMIT, Parameter, documented
from buildrunner.server.services.documents import shown_message
from buildrunner.spec.model.build import Status
from buildrunner.store.model.outbox import STATES, Message, NewMessage

_NOTIFIERS = "/buildrunner/v1/projects/{project}/notifiers"


def notifiers_router(context: ServerContext) -> APIRouter:
    """Return the routes. Changes of notifiers need ``admin``, since they affect all users."""
    access = Access(context)
    body_of = json_body(context)
    tests = _Tests(context)
    routes = APIRouter(tags=["notifications"])

    def listing(
        request: Request, caller: Caller = Depends(access.may("read", known=True))
    ) -> Response:
        """List notifiers by name; their addresses masked for callers without ``admin``."""
        project = access.project_of(request)
        found = context.store.notifiers.of_project(project).values()
        return json_response({"notifiers": [_shown(one, caller, project) for one in found]})

    def get(
        request: Request, notifier: str, caller: Caller = Depends(access.may("read", known=True))
    ) -> Response:
        """Return a notifier as it was stored; its address masked for callers without ``admin``."""
        project = access.project_of(request)
        return json_response(_shown(tests.kept(project, notifier), caller, project))

    def put(
        request: Request,
        notifier: str,
        _: Caller = Depends(access.may("admin", "notifiers.put")),
        body: Any = Depends(body_of),
    ) -> Response:
        """Create or replace a notifier, in the form of Cloud Build's notifiers."""
        project = access.project_of(request)
        note_target(request, project, notifier)
        document = as_mapping(body)
        name = notifier_of(document).name
        if name != notifier:
            message = f"the path names {notifier}, the notifier is called {name}"
            raise invalid_argument(message, field="metadata.name")
        tests.words.check(project, document)
        context.store.notifiers.put(project, name, document)
        return json_response(document)

    def delete(
        request: Request,
        notifier: str,
        _: Caller = Depends(access.may("admin", "notifiers.delete")),
    ) -> Response:
        """Delete a notifier, and its messages that wait in the outbox."""
        project = access.project_of(request)
        note_target(request, project, notifier)
        tests.kept(project, notifier)
        context.store.notifiers.delete(project, notifier)
        return json_response({})

    def test(
        request: Request,
        notifier: str,
        caller: Caller = Depends(access.may("read", known=True)),
        body: Any = Depends(body_of),
    ) -> Response:
        """Test a notifier with a build: the result of each rule, and the message. Sends nothing.

        The message's address is masked for callers without ``admin``.
        """
        project = access.project_of(request)
        document = tests.kept(project, notifier)
        found = tests.tried(project, document, as_mapping(body))
        return json_response({**found, "message": _content(found["message"], caller, project)})

    def try_unkept(
        request: Request,
        _: Caller = Depends(access.may("admin")),
        body: Any = Depends(body_of),
    ) -> Response:
        """Test the notifier in the body (``notifier``), which is not stored."""
        requested = as_mapping(body)
        document = member(requested, "notifier")
        return json_response(
            tests.tried(access.project_of(request), as_mapping(document), requested)
        )

    def send(
        request: Request,
        notifier: str,
        _: Caller = Depends(access.may("admin", "notifiers.send")),
        body: Any = Depends(body_of),
    ) -> Response:
        """Send a notifier's message about a build, even if its rules do not match."""
        project = access.project_of(request)
        note_target(request, project, notifier)
        requested = as_mapping(body)
        return json_response(tests.sent(project, tests.kept(project, notifier), requested))

    test_body = documented(body="NotifierTest")
    for path, answer, method, extra in (
        ("", listing, "GET", None),
        (":test", try_unkept, "POST", documented(body="NotifierTrial")),
        ("/{notifier}:test", test, "POST", test_body),
        ("/{notifier}:send", send, "POST", test_body),
        ("/{notifier}", get, "GET", documented(answer="Notifier")),
        ("/{notifier}", put, "PUT", documented(body="Notifier", answer="Notifier")),
        ("/{notifier}", delete, "DELETE", None),
    ):
        routes.add_api_route(_NOTIFIERS + path, answer, methods=[method], openapi_extra=extra)
    return routes


def _shown(document: dict[str, Any], caller: Caller, project: str) -> dict[str, Any]:
    """Return a notifier as a caller may see it."""
    return document if caller.may("admin", project) else masked_notifier(document)


def _content(message: dict[str, Any], caller: Caller, project: str) -> dict[str, Any]:
    """Return the content of a message as a caller may see it."""
    return message if caller.may("admin", project) else masked_message(message)


class _Tests:
    """Tests notifiers with builds, and sends test messages."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._service = NotificationService(context)
        self.words = NotifierEvaluation(context.calls, self._service.argument_of)

    def kept(self, project: str, name: str) -> dict[str, Any]:
        """Return a stored notifier.

        Raises:
            ApiError: no notifier has that name.
        """
        try:
            return self._context.store.notifiers.get(project, name)
        except NotFound as error:
            raise ApiError(404, str(error)) from error

    def tried(
        self, project: str, document: dict[str, Any], requested: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the result of a notifier's test with a build.

        Raises:
            ApiError: there is no such build.
            ConfigError: the notifier is invalid.
        """
        self.words.check(project, document)
        facts = self._service.facts(project, self._build(project, requested))
        said = self._said(project, document, facts, key="test")
        return {
            "buildId": str(facts.build.get("id", "")),
            "status": facts.status,
            "change": facts.change,
            "notifies": said["fires"] and not said.get("problem"),
            "rules": said["rules"],
            "problem": said.get("problem", ""),
            "target": target_of(notifier_of(document)),
            "message": said.get("message", {}),
        }

    def _said(
        self, project: str, document: dict[str, Any], facts: Facts, *, key: str
    ) -> dict[str, Any]:
        now = self._context.clock()
        return self.words.of(project, document, facts, key=key, now=now, in_any_case=True)

    def sent(self, project: str, document: dict[str, Any], requested: dict[str, Any]) -> Any:
        """Put a notifier's message about a build into the outbox, and return the message.

        Raises:
            ApiError: there is no such build, or the template fails.
        """
        facts = self._service.facts(project, self._build(project, requested))
        key = f"test/{self._context.new_id()}"
        said = self._said(project, document, facts, key=key)
        if said.get("problem"):
            raise invalid_argument(said["problem"], field="spec.notification.template")
        new = NewMessage(
            key=key,
            # A lane of its own: the test does not wait for other messages about the build.
            lane=key,
            kind=said["kind"],
            project_id=project,
            build_id=str(facts.build.get("id", "")),
            target=target_of(notifier_of(document)),
            message=said["message"],
        )
        kept = self._context.store.outbox.put(new, now=self._context.clock())
        return shown_message(kept)

    def _build(self, project: str, requested: dict[str, Any]) -> dict[str, Any]:
        """Return the build with the requested id, or the newest; in the requested status, if any.

        Raises:
            ApiError: the status is unknown, or there is no such build.
        """
        store = self._context.store
        wanted, status = str(requested.get("buildId", "")), str(requested.get("status", ""))
        if status and status not in Status.__members__:
            known = ", ".join(Status.__members__)
            raise invalid_argument(
                f"there is no status {status}; there are {known}", field="status"
            )
        if wanted:
            try:
                build = store.builds.get(project, wanted).document
            except NotFound as error:
                raise ApiError(404, str(error)) from error
        else:
            newest = store.builds.page(project, page_size=1).builds
            if not newest:
                message = f"project {project} has no build to try it on"
                raise ApiError(400, message, status="FAILED_PRECONDITION")
            build = newest[0].document
        if not status or status == build.get("status"):
            return build
        said = () if status in BAD else ("failureInfo", "statusDetail")
        return {**{name: one for name, one in build.items() if name not in said}, "status": status}


_MOST = 500
_STATE = Parameter("state", "string", f"Only messages in this state: {', '.join(STATES)}.")
_BUILD_ID = Parameter("buildId", "string", "Only messages about this build.")
_OUTBOX = "/buildrunner/v1/projects/{project}/outbox"


def outbox_router(context: ServerContext) -> APIRouter:
    """Return the routes."""
    access = Access(context)
    routes = APIRouter(tags=["notifications"])

    def listing(request: Request, _: Caller = Depends(access.may("read", known=True))) -> Response:
        """List messages, newest first; filtered by ``state`` and ``buildId``, ``before=ID``."""
        state = parameter(request, "state")
        if state and state not in STATES:
            message = f"state takes {', '.join(STATES)}, not {state}"
            raise invalid_argument(message, field="state")
        found = context.store.outbox.page(
            project_id=access.project_of(request),
            build_id=parameter(request, "buildId"),
            state=state,
            limit=number(request, "limit", low=1, high=_MOST, default=50),
            before=number(request, "before", low=0, high=1 << 62),
        )
        return json_response({"messages": [shown_message(one) for one in found]})

    def get(
        request: Request, message: int, caller: Caller = Depends(access.may("read", known=True))
    ) -> Response:
        """Return a message with its content, which has only the names of secrets.

        Its address is masked for callers without ``admin``.
        """
        project = access.project_of(request)
        found = find_message(context, project, message)
        content = _content(found.message, caller, project)
        return json_response({**shown_message(found), "message": content})

    def retry(
        request: Request,
        message: int,
        _: Caller = Depends(access.may("admin", "outbox.retry")),
    ) -> Response:
        """Send a message now, even if it was given up."""
        project = access.project_of(request)
        note_target(request, project, str(message))
        find_message(context, project, message)
        try:
            again = context.store.outbox.retry(message, now=context.clock())
        except Conflict as error:
            raise failed_precondition(str(error)) from error
        return json_response(shown_message(again))

    def drop(
        request: Request,
        message: int,
        _: Caller = Depends(access.may("admin", "outbox.drop")),
    ) -> Response:
        """Delete a message without sending it."""
        project = access.project_of(request)
        note_target(request, project, str(message))
        find_message(context, project, message)
        context.store.outbox.drop(message)
        return json_response({})

    for path, answer, method, extra in (
        ("", listing, "GET", documented(query=(_STATE, _BUILD_ID, LIMIT, BEFORE))),
        ("/{message}:retry", retry, "POST", documented(body="Empty")),
        ("/{message}", get, "GET", None),
        ("/{message}", drop, "DELETE", None),
    ):
        routes.add_api_route(_OUTBOX + path, answer, methods=[method], openapi_extra=extra)
    return routes


def find_message(context: ServerContext, project: str, message_id: int) -> Message:
    """Return a message of a project.

    Raises:
        ApiError: the project has no such message.
    """
    missing = f"there is no message {message_id} in the outbox of project {project}"
    if message_id >= 1 << 62:
        raise ApiError(404, missing)
    try:
        found = context.store.outbox.get(message_id)
    except NotFound as error:
        raise ApiError(404, missing) from error
    if found.project_id != project:
        raise ApiError(404, missing)
    return found
