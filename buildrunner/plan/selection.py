"""Selects a part of a build: ``--step``, ``--from``, ``--until``, ``--skip``.

A step is named by its id or by its index. A skipped step counts as done: no step waits for it, and
its files are expected to exist already. The other steps keep their indexes.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Sequence

import msgspec
from msgspec.structs import replace

from buildrunner.errors import ConfigError
from buildrunner.plan.build_plan import BuildPlan, StepPlan
from buildrunner.problem import Problem
from buildrunner.spec.validation.findings import did_you_mean


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """The steps to run; all of them by default.

    Attributes:
        steps: only these (``--step``, repeatable).
        first: start with this step, and skip all before it in the list (``--from``).
        last: end with this step, and skip all after it in the list (``--until``).
        skip: never these, whatever the other fields say (``--skip``, repeatable).
    """

    steps: tuple[str, ...] = ()
    first: str = ""
    last: str = ""
    skip: tuple[str, ...] = ()

    @property
    def is_all(self) -> bool:
        """Return whether no step is skipped."""
        return not (self.steps or self.first or self.last or self.skip)


def select_steps(plan: BuildPlan, selection: Selection) -> BuildPlan:
    """Return the plan with the selected steps only.

    A part of a build pushes no images and uploads no files, since it may lack their inputs.
    ``left_out`` names the missing steps and uploads.

    Raises:
        ConfigError: a name matches no step, ``--until`` is before ``--from``, or nothing is
            left to run.
    """
    if selection.is_all:
        return plan
    chosen = _chosen(plan.steps, selection)
    if len(chosen) == len(plan.steps):
        return plan
    return _part(plan, chosen)


def only_step(plan: BuildPlan, index: int) -> BuildPlan:
    """Return the plan with one step, which pushes no images and uploads no files.

    Raises:
        ConfigError: there is no step of that index.
    """
    if index >= len(plan.steps):
        message = f"the build has no step {index}: its config has changed"
        raise ConfigError([Problem(message, rule="selection")])
    return _part(plan, [index])


def _part(plan: BuildPlan, chosen: Sequence[int]) -> BuildPlan:
    steps = _only(plan.steps, chosen)
    mounted = (volume.name for step in steps for volume in step.volumes)
    return replace(
        plan,
        steps=steps,
        volumes=tuple(dict.fromkeys(mounted)),
        images=(),
        object_location="",
        object_paths=(),
        packages=(),
        left_out=_left_out(plan, chosen),
    )


def _only(steps: Sequence[StepPlan], chosen: Sequence[int]) -> tuple[StepPlan, ...]:
    """Return the chosen steps with their own indexes. They do not wait for other steps."""
    position = {index: at for at, index in enumerate(chosen)}
    return tuple(
        replace(
            steps[index],
            depends_on=tuple(position[one] for one in steps[index].depends_on if one in position),
        )
        for index in chosen
    )


def _left_out(plan: BuildPlan, kept: Container[int]) -> tuple[str, ...]:
    steps = [step.label for step in plan.steps if step.index not in kept]
    pushes = [f"push of {image}" for image in plan.images]
    uploads = [f"upload of {path}" for path in plan.object_paths]
    packages = [f"publication of {package.label}" for package in plan.packages]
    return (*steps, *pushes, *uploads, *packages)


def _chosen(steps: Sequence[StepPlan], selection: Selection) -> list[int]:
    problems: list[Problem] = []

    def find(flag: str, names: Iterable[str]) -> list[int]:
        found: list[int] = []
        for name in names:
            index = _index_of(steps, name)
            if index is None:
                problems.append(_unknown(steps, flag, name))
            else:
                found.append(index)
        return found

    only = set(find("--step", selection.steps))
    first = find("--from", [selection.first] if selection.first else [])
    last = find("--until", [selection.last] if selection.last else [])
    skipped = set(find("--skip", selection.skip))
    if problems:
        raise ConfigError(problems)
    start = first[0] if first else 0
    end = last[0] if last else len(steps) - 1
    if start > end:
        message = f"--until {selection.last} stands before --from {selection.first}"
        raise ConfigError([Problem(message, rule="selection")])
    chosen = [
        index
        for index in range(start, end + 1)
        if index not in skipped and (not only or index in only)
    ]
    if not chosen:
        raise ConfigError([Problem("no step is left to run", rule="selection")])
    return chosen


def _index_of(steps: Sequence[StepPlan], name: str) -> int | None:
    """Return the step with that id; else the step at that index."""
    for step in steps:
        if step.id == name:
            return step.index
    if name.isascii() and name.isdecimal() and len(name) < 10:
        index = int(name)
        return index if index < len(steps) else None
    return None


def _unknown(steps: Sequence[StepPlan], flag: str, name: str) -> Problem:
    known = [step.id for step in steps if step.id]
    hint = did_you_mean(name, known)
    if not hint:
        hint = f"steps have the indexes 0 to {len(steps) - 1}"
        if known:
            hint += " and the ids " + ", ".join(known[:20])
    return Problem(f'{flag}: no step has the id or index "{name}"', hint=hint, rule="selection")


def without_steps(plan: BuildPlan, reused: Collection[int]) -> BuildPlan:
    """Return the plan without the steps that are reused.

    Images and artifacts stay: with the reused steps the build is complete.

    Args:
        plan: plan of the whole build.
        reused: indexes of the steps that are left out.

    Raises:
        ConfigError: nothing would be left to run.
    """
    left = [step.index for step in plan.steps if step.index not in reused]
    if not left:
        raise ConfigError([Problem("no step is left to run", rule="selection")])
    return replace(plan, steps=_only(plan.steps, left))


def reused_steps(statuses: Sequence[str], first: int) -> tuple[int, ...]:
    """Return the indexes of the steps that need not run again.

    Args:
        statuses: statuses of the steps of the resumed build. A step that this build reused itself
            counts as succeeded.
        first: index of the step to resume from. Steps before it are reused if they succeeded.
    """
    return tuple(index for index in range(first) if statuses[index] == "SUCCESS")
