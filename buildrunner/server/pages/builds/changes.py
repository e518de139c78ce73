"""Differences from another build: commit, values, steps, images. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

import msgspec

from buildrunner.errors import NotFound
from buildrunner.server.context import ServerContext
from buildrunner.server.pages.builds.view import BuildView, StepView
from buildrunner.server.pages.wording import seconds_between
from buildrunner.store.model.builds import StoredBuild
from buildrunner.store.records import ATTEMPTS, FIRST_ATTEMPT, FROM_BUILD, FROM_STEP
from buildrunner.triggers.built_revision import built_revision

_ORDER = "predecessors"
_NAMED = 3  # the most steps that are named in one change
_OF_EACH_BUILD = frozenset(
    {"BUILD_ID", "COMMIT_SHA", "REVISION_ID", "SHORT_SHA", "BRANCH_NAME", "TAG_NAME", "REF_NAME"}
)


class Change(msgspec.Struct, frozen=True):
    """One difference between two builds.

    Attributes:
        name: what changed, such as ``commit`` or the name of a substitution.
        before: the earlier value; empty for none.
        after: the present value; empty for none.
        link: page that compares both; empty for none.
    """

    name: str
    before: str
    after: str
    link: str = ""


class StepTime(msgspec.Struct, frozen=True, kw_only=True):
    """One step in two builds: its times and statuses."""

    title: str
    before_s: float | None = None
    after_s: float | None = None
    before_status: str = ""
    after_status: str = ""

    @property
    def is_slower(self) -> bool:
        """Return whether the step takes much longer than before."""
        if self.before_s is None or self.after_s is None:
            return False
        return self.after_s > self.before_s * 1.3 and self.after_s > self.before_s + 1


def changes_since(old: BuildView, build: BuildView) -> tuple[Change, ...]:
    """Return the differences from an earlier build, the most important first."""
    changes = []
    was, is_now = old.revision, build.revision
    if was.commit != is_now.commit:
        changes.append(Change("commit", was.commit, is_now.commit, _compare_link(old, build)))
    if was.ref != is_now.ref:
        changes.append(Change("branch or tag", was.ref, is_now.ref))
    for name in sorted({*old.substitutions, *build.substitutions}):
        before, after = old.substitutions.get(name, ""), build.substitutions.get(name, "")
        if before != after and name not in _OF_EACH_BUILD:
            changes.append(Change(name, before, after))
    return (*changes, *_grouped(_step_changes(old.steps, build.steps)))


def step_times(old: BuildView, build: BuildView) -> tuple[StepTime, ...]:
    """Return the time of each step in both builds."""
    before = _by_title(old.steps)
    times = []
    for title, step in _by_title(build.steps).items():
        was = before.get(title)
        times.append(
            StepTime(
                title=title,
                before_s=was.seconds if was else None,
                before_status=was.status if was else "",
                after_s=step.seconds,
                after_status=step.status,
            )
        )
    return tuple(times)


def _compare_link(old: BuildView, build: BuildView) -> str:
    """Return the forge's own page that compares two commits."""
    repository = build.revision.address.removesuffix(".git").rstrip("/")
    if not (repository.startswith("https://") and old.revision.commit and build.revision.commit):
        return ""
    if "@" in repository or repository != old.revision.address.removesuffix(".git").rstrip("/"):
        return ""
    gitlab = "/-" if "gitlab" in repository else ""
    if not gitlab and "github" not in repository:
        return ""
    return f"{repository}{gitlab}/compare/{old.revision.commit}...{build.revision.commit}"


def _by_title(steps: Sequence[StepView]) -> dict[str, StepView]:
    """Return steps by their titles, with the index if several have the same title."""
    titles = [step.title for step in steps]
    return {
        step.title if titles.count(step.title) == 1 else f"#{step.index} {step.title}": step
        for step in steps
    }


class _StepChange(msgspec.Struct, frozen=True):
    """A difference in one step; ``what`` is empty for the step itself."""

    step: str
    what: str
    before: str
    after: str


def _grouped(changes: Iterable[_StepChange]) -> Iterator[Change]:
    """Join the same change of several steps into one."""
    steps: dict[tuple[str, str, str], list[str]] = {}
    for one in changes:
        steps.setdefault((one.what, one.before, one.after), []).append(one.step)
    for (what, before, after), titles in steps.items():
        named = ", ".join(titles[:_NAMED])
        rest = f" and {len(titles) - _NAMED} more" if len(titles) > _NAMED else ""
        about = f"{what} of " if what else ""
        yield Change(f"{about}step{'s' if len(titles) > 1 else ''} {named}{rest}", before, after)


def _differing(before: Sequence[str], after: Sequence[str]) -> tuple[str, str]:
    """Return the entries that only one of two lists has."""
    old, new = set(before), set(after)
    return (
        " ".join(one for one in before if one not in new),
        " ".join(one for one in after if one not in old),
    )


def _step_changes(old: Sequence[StepView], new: Sequence[StepView]) -> Iterator[_StepChange]:
    before, after = _by_title(old), _by_title(new)
    for title, step in before.items():
        if title not in after:
            yield _StepChange(title, "", step.image, "")
    for title, step in after.items():
        was = before.get(title)
        if was is None:
            yield _StepChange(title, "", "", step.image)
            continue
        for what, one, other in (
            ("image", was.image, step.image),
            ("command", was.command, step.command),
            ("script", was.script, step.script),
            ("environment", *_differing(was.env, step.env)),
            (_ORDER, ", ".join(was.waits_for), ", ".join(step.waits_for)),
        ):
            if one != other and not (what == "command" and was.script and step.script):
                yield _StepChange(title, what, one, other)
        if was.digest and step.digest and was.digest != step.digest and was.image == step.image:
            yield _StepChange(title, f"content of {step.image}", was.digest, step.digest)


_GREENS = 20
_MOST_ATTEMPTS = 30


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt of the same build; ``is_this`` is the build of the page."""

    id: str
    status: str
    submitter: str
    create_time: str
    from_step: str
    is_this: bool


class BuildHistory:
    """Queries for earlier builds. Every query uses an index."""

    def __init__(self, context: ServerContext) -> None:
        self._store = context.store

    def usual_s(self, project: str, trigger_id: str) -> float | None:
        """Return the usual seconds of a trigger's successful builds; None if no build succeeded."""
        if not trigger_id:
            return None
        wanted = f'trigger_id="{trigger_id}" AND status="SUCCESS"'
        found = self._store.builds.page(project, filter=wanted, page_size=LOOKED_AT)
        whole = (one for one in found.builds if FROM_BUILD not in one.labels)
        return usual_seconds(one.document for one in whole)

    def last_green(self, stored: StoredBuild, build: BuildView) -> StoredBuild | None:
        """Return the last successful build of a build's trigger before it; None without one.

        A build of the same branch or tag is preferred.
        """
        if not build.trigger_id:
            return None
        wanted = (
            f'trigger_id="{build.trigger_id}" AND status="SUCCESS"'
            f' AND create_time<"{stored.document.get("createTime", "")}"'
        )
        found = self._store.builds.page(build.project, filter=wanted, page_size=_GREENS).builds
        ref = build.revision.ref
        same = (one for one in found if built_revision(one.document, one.labels).ref == ref)
        return next(same, found[0] if found else None)

    def attempts(self, stored: StoredBuild) -> list[Attempt]:
        """Return all attempts of the same build, the first one first; empty for only one."""
        project = stored.document["projectId"]
        first = self._build(project, stored.labels.get(FIRST_ATTEMPT, "")) or stored
        ids = first.labels.get(ATTEMPTS, "").split()[-_MOST_ATTEMPTS:]
        tried = [self._build(project, one) for one in ids]
        found = [first, *(one for one in tried if one is not None)]
        if len(found) == 1:
            return []
        return [
            Attempt(
                id=one.id,
                status=one.status,
                submitter=one.labels.get("submitter", ""),
                create_time=one.document.get("createTime", ""),
                from_step=one.labels.get(FROM_STEP, ""),
                is_this=one.id == stored.id,
            )
            for one in found
        ]

    def _build(self, project: str, build_id: str) -> StoredBuild | None:
        """Return a build; None if it was deleted."""
        try:
            return self._store.builds.get(project, build_id) if build_id else None
        except NotFound:
            return None


LOOKED_AT = 7


def usual_seconds(documents: Iterable[Mapping[str, Any]]) -> float | None:
    """Return the usual seconds of successful builds; None if no build succeeded.

    Args:
        documents: Builds as JSON, newest first, as lists have them.
    """
    times = [
        seconds
        for one in documents
        if one.get("status") == "SUCCESS"
        and (seconds := seconds_between(one.get("startTime"), one.get("finishTime"))) is not None
    ]
    return median(times[:LOOKED_AT]) if times else None
