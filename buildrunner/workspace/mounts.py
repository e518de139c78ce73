"""Steps that ask the engine to mount ``/workspace`` into containers of their own.

``docker run -v $PWD:/x`` names a path of the engine's machine. On the hosted service and in a
nested sandbox that is the build's workspace. On a shared engine there is no such folder: the engine
makes an empty one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from buildrunner.plan.build_plan import BuildPlan, StepPlan

_PLACE = r"""["']?(?:/workspace\b|\$\{?PWD\b|\$\(pwd\)|`pwd`)"""
_MOUNT = re.compile(
    rf"(?:^|\s)(?:-v|--volume)[=\s]*{_PLACE}[^\s:]*:/"  # -v $PWD/sub:/target
    rf"|--mount[=\s]\S*\b(?:source|src)={_PLACE}"
)


def mounting_steps(plan: BuildPlan) -> tuple[StepPlan, ...]:
    """Return the steps whose arguments or script have the engine mount the workspace."""
    return tuple(step for step in plan.steps if any(map(_mounts, _texts(step))))


def _texts(step: StepPlan) -> Iterator[str]:
    yield "\n".join(step.args or ())
    yield step.script or ""


def _mounts(text: str) -> bool:
    return _MOUNT.search(text) is not None
