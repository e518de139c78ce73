"""What the page of a build shows, made from what is stored. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from buildrunner.engine.events import ImagePushed, StepFinished, Warned
from buildrunner.server.approval_facts import ApprovalFacts, approval_facts
from buildrunner.server.pages.revision import Revision, provenance_of, revision_of
from buildrunner.server.pages.step_view import BAD, FINAL, StepView, step_views
from buildrunner.server.pages.wording import seconds_between
from buildrunner.store.attempt_labels import FROM_BUILD, FROM_STEP

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from buildrunner.engine.events import BuildEvent
    from buildrunner.store.stored_build import StoredBuild

_PACKAGES = {
    "Python": "pythonPackages",
    "Maven": "mavenArtifacts",
    "Go": "goModules",
    "npm": "npmPackages",
}


class ImageView(msgspec.Struct, frozen=True, kw_only=True):
    """One image that was pushed.

    Attributes:
        name: with its tag.
        digest: as the registry confirmed it.
        size_bytes: unpacked; None when not known.
        layers_pushed, layers_reused: None when not known.
    """

    name: str
    digest: str
    size_bytes: int | None = None
    layers_pushed: int | None = None
    layers_reused: int | None = None


class BuildView(msgspec.Struct, frozen=True, kw_only=True):
    """One build.

    Attributes:
        id, project, location, status: of the build.
        reason: why it ended as it did, one sentence; empty for a success.
        failing: the step that failed it; None when it was none.
        trigger: name of its trigger; empty for none.
        trigger_id: its id; empty for none.
        revision: of what it was made.
        submitter: who asked for it; empty when not known.
        create_time, start_time, finish_time: instants of the API's JSON; None for none.
        seconds: how long it has run.
        queued_s: how long it waited; None while it waits.
        steps: in their order.
        images: what was pushed.
        substitutions: as given.
        tags: of the build.
        warnings: texts.
        provenance: what exactly was built, by name.
        approval: what is to be approved, or was, and of which pull request it is.
        retry_of: the build that this one repeats; empty for none.
        from_build, from_step: the build that this one goes on with, and from which step; empty for
            a build that began at its beginning.
        processes: how often a process was started for it.
        timeout: limit of the whole build, as written.
        packages: what was published beside images, by kind.
        manifest: where the list of uploaded files is; empty for none.
        json: the whole Build.
    """

    id: str
    project: str
    location: str
    status: str
    reason: str = ""
    failing: StepView | None = None
    trigger: str = ""
    trigger_id: str = ""
    revision: Revision = Revision()
    submitter: str = ""
    create_time: str | None = None
    start_time: str | None = None
    finish_time: str | None = None
    seconds: float | None = None
    queued_s: float | None = None
    steps: tuple[StepView, ...] = ()
    images: tuple[ImageView, ...] = ()
    substitutions: dict[str, str] = {}
    tags: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    provenance: dict[str, str] = {}
    approval: ApprovalFacts = ApprovalFacts()
    retry_of: str = ""
    from_build: str = ""
    from_step: str = ""
    processes: int = 0
    timeout: str = ""
    packages: tuple[tuple[str, str], ...] = ()
    manifest: str = ""
    json: str = ""

    @property
    def is_over(self) -> bool:
        """It has ended."""
        return self.status in FINAL

    @property
    def path(self) -> str:
        """Address of its page."""
        return f"/builds/{self.project}/{self.id}"

    @property
    def api(self) -> str:
        """Address of what we add to the API for it."""
        return f"/buildrunner/v1/projects/{self.project}/builds/{self.id}"


def build_view(
    stored: StoredBuild, events: Iterable[BuildEvent] = (), *, now: datetime
) -> BuildView:
    """What there is to show.

    Args:
        stored: the build.
        events: its events; none of them for a list.
        now: the present.
    """
    document = stored.document
    finished: dict[int, StepFinished] = {}
    pushed: dict[str, ImagePushed] = {}
    warned: list[str] = []
    failing: int | None = None
    for event in events:
        match event:
            case StepFinished():
                finished[event.step] = event
                if failing is None and event.status in BAD and not event.forgiven:
                    failing = event.step
            case ImagePushed():
                pushed[event.name] = event
            case Warned():
                warned.append(event.text)
            case _:
                pass
    steps = step_views(document, finished)
    ended = document.get("finishTime")
    until = ended or now.isoformat()
    warnings = [one.get("text", "") for one in document.get("warnings", ())] or warned
    return BuildView(
        id=stored.id,
        project=document.get("projectId", ""),
        location=stored.location,
        status=stored.status,
        reason=_reason(document),
        failing=steps[failing] if failing is not None and failing < len(steps) else None,
        trigger=_trigger(document),
        trigger_id=document.get("buildTriggerId", ""),
        revision=revision_of(document),
        submitter=stored.labels.get("submitter", ""),
        create_time=document.get("createTime"),
        start_time=document.get("startTime"),
        finish_time=ended,
        seconds=seconds_between(document.get("startTime"), until),
        queued_s=seconds_between(document.get("createTime"), document.get("startTime")),
        steps=steps,
        images=_images(document, pushed),
        substitutions=dict(document.get("substitutions", {})),
        tags=tuple(document.get("tags", ())),
        warnings=tuple(warnings),
        provenance=provenance_of(document),
        approval=approval_facts(stored),
        retry_of=stored.labels.get("retry_of", ""),
        from_build=stored.labels.get(FROM_BUILD, ""),
        from_step=stored.labels.get(FROM_STEP, ""),
        processes=stored.attempts,
        timeout=document.get("timeout", ""),
        packages=_packages(document),
        manifest=document.get("results", {}).get("artifactManifest", ""),
        json=msgspec.json.format(msgspec.json.encode(document), indent=2).decode(),
    )


def _reason(document: Mapping[str, Any]) -> str:
    if document.get("status") in ("SUCCESS", "QUEUED", "WORKING"):
        return ""
    return str(document.get("failureInfo", {}).get("detail") or document.get("statusDetail", ""))


def _trigger(document: Mapping[str, Any]) -> str:
    name = document.get("substitutions", {}).get("TRIGGER_NAME", "")
    return str(name or document.get("buildTriggerId", ""))


def _packages(document: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Kind and address of each package that was published."""
    results = document.get("results", {})
    return tuple(
        (kind, package.get("uri", ""))
        for kind, field in _PACKAGES.items()
        for package in results.get(field, ())
    )


def _images(
    document: Mapping[str, Any], pushed: Mapping[str, ImagePushed]
) -> tuple[ImageView, ...]:
    views = []
    for image in document.get("results", {}).get("images", ()):
        event = pushed.get(image.get("name", ""))
        known = event if event and (event.layers_pushed or event.layers_reused) else None
        views.append(
            ImageView(
                name=image.get("name", ""),
                digest=image.get("digest", ""),
                size_bytes=event.size_bytes if event else None,
                layers_pushed=known.layers_pushed if known else None,
                layers_reused=known.layers_reused if known else None,
            )
        )
    return tuple(views)
