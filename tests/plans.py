"""Plans of builds, compiled without the checks of whole configs."""

from __future__ import annotations

from buildrunner.plan.build_plan import BuildPlan
from buildrunner.plan.compile import plan_resolved
from buildrunner.plan.resolve import PlanContext, resolve
from buildrunner.spec.model.build import Build


def plan_build(build: Build, *, context: PlanContext) -> BuildPlan:
    """The plan of a build, with its substitutions made."""
    return plan_resolved(resolve(build, context=context), context=context)
