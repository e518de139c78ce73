"""Going on with a build: the steps that are still to run, without those that are reused. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from buildrunner.errors import ConfigError
from buildrunner.spec.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from buildrunner.spec.model import Build, BuildStep

_AT_ONCE = ("-",)


def without_steps(build: Build, reused: Collection[int]) -> Build:
    """The build without some of its steps; what waited for them does not wait.

    Images and artifacts stay: with what is reused the build is whole.

    Args:
        build: with its substitutions made.
        reused: indexes of the steps that are left out.

    Raises:
        ConfigError: nothing would be left to run.
    """
    left = [step for index, step in enumerate(build.steps) if index not in reused]
    if not left:
        raise ConfigError([Problem("no step is left to run", rule="selection")])
    ids = {step.id for step in left if step.id}
    return replace(build, steps=tuple(_waiting_for(step, ids) for step in left))


def _waiting_for(step: BuildStep, ids: Collection[str]) -> BuildStep:
    if not step.wait_for:
        return step  # for all before it, and these are fewer now
    kept = tuple(one for one in step.wait_for if one in ids or one in _AT_ONCE)
    return replace(step, wait_for=kept or _AT_ONCE)


def reused_steps(
    statuses: Sequence[str], first: int, earlier: Sequence[int] = ()
) -> tuple[int, ...]:
    """The steps that a build need not run again, by their indexes in the whole build.

    Args:
        statuses: of the steps of the build that is gone on with, as it had them.
        first: index among these of the step to go on from. Steps before it are reused if they
            succeeded.
        earlier: what that build itself did not run, by the indexes in the whole build.
    """
    whole = [index for index in range(len(statuses) + len(earlier)) if index not in earlier]
    done = (whole[at] for at in range(first) if statuses[at] == "SUCCESS")
    return tuple(sorted({*earlier, *done}))
