"""Builds for pages. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import Any

import msgspec

from buildrunner.engine.events import BuildEvent, ImagePushed, StepFinished, Warned
from buildrunner.plan.drawing import short_image
from buildrunner.server.pages.wording import seconds_between, shown_text
from buildrunner.server.services.approval_facts import ApprovalFacts, approval_facts
from buildrunner.spec.model.build import FINAL_STATUSES
from buildrunner.store.model.builds import StoredBuild
from buildrunner.store.records import FROM_BUILD, FROM_STEP, ROLLBACK_TO, reused_steps_of
from buildrunner.triggers.built_revision import BuiltRevision, built_revision
from buildrunner.triggers.labels import trigger_name


def provenance_of(document: Mapping[str, Any]) -> dict[str, str]:
    """Return the exact source of the build, by name, for a table."""
    shown: dict[str, str] = {}
    for kind, fields in document.get("sourceProvenance", {}).items():
        if kind != "fileHashes" and isinstance(fields, dict):
            shown |= {f"{kind}.{name}": str(value) for name, value in fields.items()}
    return shown


BAD = frozenset({"FAILURE", "TIMEOUT", "INTERNAL_ERROR"})
"""Statuses of failed steps and builds."""


class StepView(msgspec.Struct, frozen=True, kw_only=True):
    """One step.

    Attributes:
        index: index from 0.
        title: its id, or the short name of its image.
        image: the image in the config.
        command: its command, on one line.
        script: its whole script; empty for none.
        status: name of its status; QUEUED before it began, NOT_RUN when it never will.
        seconds: its duration.
        pull_s, start_s, run_s: the parts of that duration: to get the image, to start the
            container, and to run.
        digest: digest of its image; empty if unknown.
        exit_code: exit code; None unless it failed by itself.
        error: one sentence, if it failed.
        last_lines: the end of its log, if it failed.
        waits_for: titles of the steps that it waits for.
        timeout: timeout in the config; empty for none.
        env: its environment in the config, without secret variables.
        secrets: names of its secret variables.
        ended: time of its end.
        forgiven: it failed, and the build continued.
        reused: it ran in the earlier build that this build resumes.
    """

    index: int
    title: str
    image: str
    command: str
    status: str
    script: str = ""
    seconds: float | None = None
    pull_s: float | None = None
    start_s: float | None = None
    run_s: float | None = None
    digest: str = ""
    ended: datetime | None = None
    forgiven: bool = False
    reused: bool = False
    exit_code: int | None = None
    error: str = ""
    last_lines: tuple[str, ...] = ()
    waits_for: tuple[str, ...] = ()
    timeout: str = ""
    env: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()

    @property
    def is_bad(self) -> bool:
        """Return whether the step failed."""
        return self.status in BAD


def step_views(
    document: Mapping[str, Any],
    finished: Mapping[int, StepFinished],
    reused: Collection[int] = (),
) -> tuple[StepView, ...]:
    """Return the steps of a build.

    Args:
        document: the build.
        finished: the last event of each step that ended, by its index.
        reused: indexes of the steps that an earlier build ran.
    """
    described = document.get("steps", ())
    titles = [step.get("id") or short_image(step.get("name", "")) for step in described]
    digests = document.get("results", {}).get("buildStepImages", ())
    views = []
    for index, step in enumerate(described):
        event = finished.get(index)
        timing, pull = step.get("timing", {}), step.get("pullTiming", {})
        is_bad = event is not None and event.status in BAD
        views.append(
            StepView(
                index=index,
                title=titles[index],
                image=step.get("name", ""),
                command=_command(step),
                script=str(step.get("script", "")),
                status=_status(step, document),
                seconds=seconds_between(timing.get("startTime"), timing.get("endTime")),
                pull_s=seconds_between(pull.get("startTime"), pull.get("endTime")),
                start_s=event.start_s if event else None,
                run_s=event.run_s if event else None,
                digest=(digests[index] if index < len(digests) else "")
                or (event.image_digest if event else ""),
                ended=event.at if event else None,
                forgiven=bool(event and event.forgiven),
                reused=index in reused,
                exit_code=step.get("exitCode") or None,
                error=event.error if event is not None and is_bad else "",
                last_lines=tuple(map(shown_text, event.last_lines)) if event and is_bad else (),
                waits_for=tuple(step.get("waitFor", ())),
                timeout=step.get("timeout", ""),
                env=tuple(step.get("env", ())),
                secrets=tuple(step.get("secretEnv", ())),
            )
        )
    return tuple(views)


def _status(step: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """Return the status of a step. A step that still waits when the build has ended never runs."""
    status = str(step.get("status", "QUEUED"))
    return "NOT_RUN" if status == "QUEUED" and document.get("status") in FINAL_STATUSES else status


def _command(step: Mapping[str, Any]) -> str:
    if step.get("script"):
        return str(step["script"]).strip().partition("\n")[0]
    words = [step["entrypoint"]] if step.get("entrypoint") else []
    return " ".join([*words, *map(str, step.get("args", ()))]).replace("\n", " ")


_PACKAGES = {
    "Python": "pythonPackages",
    "Maven": "mavenArtifacts",
    "Go": "goModules",
    "npm": "npmPackages",
}


class ImageView(msgspec.Struct, frozen=True, kw_only=True):
    """One pushed image.

    Attributes:
        name: name with its tag.
        digest: digest that the registry confirmed.
        size_bytes: unpacked size; None if unknown.
        layers_pushed, layers_reused: numbers of layers; None if unknown.
    """

    name: str
    digest: str
    size_bytes: int | None = None
    layers_pushed: int | None = None
    layers_reused: int | None = None


class BuildView(msgspec.Struct, frozen=True, kw_only=True):
    """One build.

    Attributes:
        id, project, location, status: the id, project, location and status of the build.
        reason: reason of its result, one sentence; empty for a success.
        failing: the step that failed the build; None if no step did.
        trigger: name of its trigger; empty for none.
        trigger_id: its id; empty for none.
        revision: its repository, ref and commit.
        submitter: the caller who requested it; empty if unknown.
        create_time, start_time, finish_time: instants of the API's JSON; None for none.
        seconds: its duration, so far if it still runs; None before it starts.
        queued_s: seconds that it waited; None while it waits.
        steps: steps in order.
        images: the pushed images.
        substitutions: the given substitutions.
        tags: tags of the build.
        warnings: texts of warnings.
        provenance: the exact source, by name.
        approval: the approval, and its pull request.
        retry_of: the build that this one retries; empty for none.
        from_build, from_step: the build that this one resumes, and the step from which it resumes;
            empty for a build that runs all steps.
        rollback_to: the deployment that this build repeats; empty for no rollback.
        processes: number of processes that were started for it.
        timeout: timeout of the whole build in the config.
        packages: the published packages, by kind.
        manifest: URL of the list of uploaded files; empty for none.
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
    revision: BuiltRevision = BuiltRevision()
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
    rollback_to: str = ""
    processes: int = 0
    timeout: str = ""
    packages: tuple[tuple[str, str], ...] = ()
    manifest: str = ""
    json: str = ""

    @property
    def is_over(self) -> bool:
        """Return whether the build has ended."""
        return self.status in FINAL_STATUSES

    @property
    def path(self) -> str:
        """Return the address of its page."""
        return f"/builds/{self.project}/{self.id}"

    @property
    def api(self) -> str:
        """Return the path of buildrunner's own routes for the build."""
        return f"/buildrunner/v1/projects/{self.project}/builds/{self.id}"


def build_view(
    stored: StoredBuild, events: Iterable[BuildEvent] = (), *, now: datetime
) -> BuildView:
    """Return the facts of a build for its pages.

    Args:
        stored: the build.
        events: its events; empty for a list.
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
    steps = step_views(document, finished, reused_steps_of(stored.labels))
    ended = document.get("finishTime")
    trigger_id = document.get("buildTriggerId", "")
    until = ended or now.isoformat()
    warnings = [one.get("text", "") for one in document.get("warnings", ())] or warned
    return BuildView(
        id=stored.id,
        project=document.get("projectId", ""),
        location=stored.location,
        status=stored.status,
        reason=_reason(document),
        failing=steps[failing] if failing is not None and failing < len(steps) else None,
        trigger=trigger_name(stored.labels, trigger_id),
        trigger_id=trigger_id,
        revision=built_revision(document, stored.labels),
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
        rollback_to=stored.labels.get(ROLLBACK_TO, ""),
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


def _packages(document: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return kind and address of each published package."""
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
