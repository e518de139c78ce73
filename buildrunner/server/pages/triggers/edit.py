"""Pages that create, change and delete triggers: a trigger is edited as YAML."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response

from buildrunner.errors import BuildrunnerError, ConfigError, NotFound, UsageError
from buildrunner.server.context import ServerContext
from buildrunner.server.http.access import note_action, note_target
from buildrunner.server.http.bodies import READ_SLOT, build_slot
from buildrunner.server.http.errors import ApiError
from buildrunner.server.http.requests import address_of, project_of
from buildrunner.server.pages.rendering import HEADERS, PageRoute, page
from buildrunner.server.pages.session import Session, Viewer, check_may
from buildrunner.server.services.triggers import Triggers
from buildrunner.spec.model.git_address import masked_trigger
from buildrunner.spec.reading.decode import load_triggers
from buildrunner.spec.validation.check import errors_of
from buildrunner.spec.writing import encode_message, yaml_text
from buildrunner.triggers.settings import read_settings

Document = dict[str, Any]


def router(context: ServerContext) -> APIRouter:
    """Return the routes. Changes need ``admin``, since triggers affect all users."""
    pages = _TriggerEditing(context)
    routes = APIRouter(include_in_schema=False, route_class=PageRoute)
    viewer = [Depends(pages.session.viewer)]
    one = "/triggers/{project}/{trigger}"

    def add(path: str, answer: Callable[..., Any], method: str) -> None:
        needed = [*viewer, READ_SLOT] if method == "GET" else viewer
        routes.add_api_route(path, answer, methods=[method], dependencies=needed)

    add("/triggers/{project}/-/new", pages.new, "GET")
    add("/triggers/{project}/-/new", pages.make, "POST")
    add(f"{one}/edit", pages.edit, "GET")
    add(f"{one}/edit", pages.change, "POST")
    add(f"{one}/export", pages.export, "GET")
    add(f"{one}/delete", pages.delete, "POST")
    add(f"{one}/settings", pages.set, "POST")
    return routes


class _TriggerEditing:
    def __init__(self, context: ServerContext) -> None:
        self.session = Session(context)
        self._context = context
        self._triggers = Triggers(context)

    def new(self, request: Request) -> Response:
        """Show the form for new triggers."""
        project = self._allowed(request)
        kind = request.query_params.get("kind", "github")
        _, text = STARTERS.get(kind, STARTERS["github"])
        return self._form(request, project, text=text, kind=kind)

    async def make(self, request: Request) -> Response:
        """Create the triggers of a text, or change existing triggers of the same names."""
        fields = await self.session.form(request, request.state.viewer)
        project = project_of(request, self._context.settings.default_project)
        note_action(request, "triggers.import", project)
        self._allowed(request)
        text = fields.get("text", "")
        try:
            async with build_slot(request, request.state.viewer.name):
                made = await run_in_threadpool(self._import, request, text)
        except (ApiError, BuildrunnerError) as error:
            return self._form(request, project, text=text, wrong=str(error), code=400)
        note_target(request, project, *(one["id"] for one in made))
        only = f"/{made[0]['id']}" if len(made) == 1 else ""
        return RedirectResponse(
            f"/triggers/{project}{only}" if only else f"/triggers?project={project}", 303
        )

    def edit(self, request: Request) -> Response:
        """Show the form with a trigger."""
        project = self._allowed(request)
        document = self._found(request, project)
        return self._form(request, project, text=text_of(document), trigger=document)

    async def change(self, request: Request) -> Response:
        """Replace a trigger by the text."""
        fields = await self.session.form(request, request.state.viewer)
        project, old = await self._about(request, "triggers.update")
        text = fields.get("text", "")
        try:
            async with build_slot(request, request.state.viewer.name):
                await run_in_threadpool(self._change, project, old, text)
        except (ApiError, BuildrunnerError) as error:
            return self._form(request, project, text=text, trigger=old, wrong=str(error), code=400)
        return RedirectResponse(f"/triggers/{project}/{old['id']}", 303)

    def export(self, request: Request) -> Response:
        """Return a trigger as a file for ``import``."""
        project = project_of(request, self._context.settings.default_project)
        check_may(request.state.viewer, "read", project)
        document = self._found(request, project)
        headers = {
            **HEADERS,
            "Content-Disposition": f'attachment; filename="{document["id"]}.yaml"',
        }
        return Response(text_of(document), 200, headers, media_type="application/yaml")

    async def delete(self, request: Request) -> Response:
        """Delete a trigger; its builds remain."""
        await self.session.form(request, request.state.viewer)
        project, old = await self._about(request, "triggers.delete")
        await run_in_threadpool(self._triggers.delete, project, old["id"])
        return RedirectResponse(f"/triggers?project={project}", 303)

    async def set(self, request: Request) -> Response:
        """Change the settings for which Cloud Build's triggers have no fields."""
        fields = await self.session.form(request, request.state.viewer)
        project, old = await self._about(request, "triggers.settings")
        path = f"/triggers/{project}/{old['id']}"
        store = self._context.store
        try:
            settings = settings_of(fields)
            read_settings(settings)
        except (ApiError, BuildrunnerError) as error:
            return page(
                request, "message", 400, title="These settings can't be", text=str(error), back=path
            )
        before = await run_in_threadpool(store.triggers.settings, project, old["id"])
        if "forge" not in settings and before.get("forge", {}).get("unconfirmed"):
            settings["forge"] = before["forge"]  # not in the form
        await run_in_threadpool(self._triggers.set_settings, project, old["id"], settings)
        return RedirectResponse(f"{path}#settings", 303)

    # -- shared parts ----------------------------------------------------------------------------

    def _allowed(self, request: Request) -> str:
        project = project_of(request, self._context.settings.default_project)
        viewer: Viewer = request.state.viewer
        check_may(viewer, "admin", project)
        return project

    async def _about(self, request: Request, action: str) -> tuple[str, Document]:
        """Return project and trigger of a form, and record them for the audit log."""
        project = project_of(request, self._context.settings.default_project)
        note_action(request, action, f"{project}/{request.path_params['trigger']}")
        self._allowed(request)
        return project, await run_in_threadpool(self._found, request, project)

    def _found(self, request: Request, project: str) -> Document:
        return self._context.store.triggers.get(project, request.path_params["trigger"])

    def _change(self, project: str, old: Document, text: str) -> None:
        self._triggers.change(project, old, trigger_of(text), "")

    def _import(self, request: Request, text: str) -> list[Document]:
        made = []
        address = address_of(self._context, request)
        for document in triggers_of(text):
            old = self._of_name(address.project, document.get("name", ""))
            if old is None:
                made.append(self._triggers.create(address, document))
            else:
                made.append(self._triggers.change(address.project, old, document, ""))
        return made

    def _of_name(self, project: str, name: str) -> Document | None:
        try:
            return self._context.store.triggers.get(project, name) if name else None
        except NotFound:
            return None

    def _form(
        self,
        request: Request,
        project: str,
        *,
        text: str,
        kind: str = "",
        trigger: Document | None = None,
        wrong: str = "",
        code: int = 200,
    ) -> Response:
        return page(
            request,
            "trigger_edit",
            code,
            project=project,
            text=text,
            kind=kind,
            kinds={name: about for name, (about, _) in STARTERS.items()},
            trigger=trigger,
            wrong=wrong,
        )


def settings_of(fields: dict[str, str]) -> Document:
    """Return the settings of a form; empty fields get their defaults."""

    def given(**values: Any) -> Document:
        return {name: value for name, value in values.items() if value}

    limit = fields.get("limit", "").strip()
    if limit and not (limit.isascii() and limit.isdecimal() and len(limit) < 10):
        raise ApiError(400, f"the limit is a number, not {limit}")
    approvers, audiences = (
        [name.strip() for name in fields.get(field, "").split(",") if name.strip()]
        for field in ("approvers", "audiences")
    )
    return given(
        jitter=fields.get("jitter", "").strip(),
        missed=fields.get("missed", ""),
        overlap=fields.get("overlap", ""),
        concurrency=given(
            group=fields.get("group", "").strip(),
            limit=int(limit or 0),
            policy=fields.get("policy", ""),
        ),
        approval=given(
            approvers=approvers,
            notAuthor=fields.get("notAuthor") == "true",
            expires=fields.get("expires", "").strip(),
        ),
        identity=given(audiences=audiences, forks=fields.get("identityForks") == "true"),
        onLost=fields.get("onLost", ""),
        publicBadge=fields.get("publicBadge") == "true",
        forge=given(
            kind=fields.get("forge", ""),
            host=fields.get("forgeHost", "").strip(),
        ),
    )


OURS = ("resourceName", "id", "createTime")
_BUILD = """\
filename: cloudbuild.yaml
# includedFiles: [src/**]
# ignoredFiles: [docs/**]
# substitutions: {_TARGET: staging}
# approvalConfig: {approvalRequired: true}
"""
# Name -> the event in words, and the initial text.
STARTERS: dict[str, tuple[str, str]] = {
    "github": (
        "a push to GitHub",
        "name: on-push\ngithub:\n  owner: acme\n  name: app\n  push:\n    branch: ^main$\n"
        + _BUILD,
    ),
    "pull-request": (
        "a pull request on GitHub",
        "name: on-pull-request\ngithub:\n  owner: acme\n  name: app\n  pullRequest:\n"
        "    branch: ^main$\n    commentControl: COMMENTS_ENABLED_FOR_EXTERNAL_CONTRIBUTORS_ONLY\n"
        + _BUILD,
    ),
    "gitlab": (
        "a push to GitLab",
        "name: on-push\ngitlabEnterpriseEventsConfig:\n  projectNamespace: acme/app\n  push:\n"
        "    branch: ^main$\n" + _BUILD,
    ),
    "repository": (
        "a push to a Git repository of the server's settings",
        "name: on-push\ntriggerTemplate:\n  repoName: my-repo\n  branchName: ^main$\n" + _BUILD,
    ),
    "schedule": (
        "the clock",
        "name: nightly\ncron:\n  schedule: 30 2 * * *\n  timeZone: Europe/Vienna\nsourceToBuild:\n"
        "  uri: https://github.com/acme/app\n  ref: refs/heads/main\n  repoType: GITHUB\n"
        "gitFileSource:\n  uri: https://github.com/acme/app\n  revision: refs/heads/main\n"
        "  path: cloudbuild.yaml\n  repoType: GITHUB\n",
    ),
    "webhook": (
        "a call of its own address",
        "name: on-call\nwebhookConfig:\n  secret: projects/my-project/secrets/on-call/versions/1\n"
        "substitutions:\n  _WHO: $(body.who)\nbuild:\n  steps:\n  - name: buildrunner/python\n"
        "    script: echo called by $_WHO\n    env: [_WHO=$_WHO]\n",
    ),
    "manual": (
        "nothing: it is run by hand",
        "name: by-hand\nbuild:\n  steps:\n  - name: buildrunner/python\n"
        "    script: python -c 'print(\"hello\")'\n",
    ),
}


def text_of(trigger: Document) -> str:
    """Return a trigger for ``import``, without fields that only the server sets."""
    shown = masked_trigger(trigger)
    return yaml_text({name: value for name, value in shown.items() if name not in OURS})


def triggers_of(text: str) -> list[Document]:
    """Return the triggers of a text, YAML or JSON.

    Raises:
        ConfigError: the text is invalid. Holds all problems, with their lines.
        UsageError: the text has no trigger.
    """
    loaded = load_triggers(text.encode("utf-8", "replace"), file="line")
    problems = errors_of([problem for one in loaded for problem in one.problems])
    if problems:
        raise ConfigError(problems)
    if not loaded:
        raise UsageError("there is no trigger in this text")
    return [encode_message(one.value) for one in loaded]


def trigger_of(text: str) -> Document:
    """Return the only trigger of a text. Raises like `triggers_of`, also for several triggers."""
    found = triggers_of(text)
    if len(found) > 1:
        raise UsageError(f"one trigger is changed here, and the text holds {len(found)}")
    return found[0]
