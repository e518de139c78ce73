"""Converts the requested Build to the stored one: makes every substitution.

A resolved Build must not be resolved again: text from a value may look like a reference without
being one.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from buildrunner.errors import ConfigError
from buildrunner.plan.pinned_images import Rollback
from buildrunner.plan.privilege import NO_PRIVILEGE, Privilege
from buildrunner.plan.selection import Selection
from buildrunner.problem import Problem
from buildrunner.spec.model.build import Build, BuildOptions
from buildrunner.spec.substitutions.expressions import BadExpression, Budget
from buildrunner.spec.substitutions.fields import with_templates_replaced
from buildrunner.spec.substitutions.templates import (
    MAX_SUBSTITUTED_LENGTH,
    SUBSTITUTED_TOO_LONG,
    Cycle,
    ValuesTooLong,
    expand,
    substitute,
)
from buildrunner.spec.substitutions.variables import OVERRIDABLE, BuiltIns, is_user_variable, merged
from buildrunner.spec.validation.build import effective_options


class PlanContext(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a plan depends on besides the Build.

    Attributes:
        built_ins: the inputs of built-in variables, build id and project included.
        substitutions: values given at run time, which override those of the Build.
        triggered: a trigger made the build, so that substitutions are loose and dynamic.
        source_dir: relative folder of the source in which the work starts; empty takes the one
            that ``build.source`` names, if any.
        grant: the rights that the place of the build grants; ``options.dockerDaemon`` only lowers
            them.
        selection: the steps that the user wants to run.
        reused: indexes of steps that an earlier build ran, and that this build does not run.
        rollback: the one step to run, and its images; None for a build that is no rollback.
        strict: a warning about the config counts as an error.
        trusted: the build may use the rights of its project.
    """

    built_ins: BuiltIns
    substitutions: dict[str, str] = {}
    triggered: bool = False
    source_dir: str = ""
    grant: Privilege = NO_PRIVILEGE
    selection: Selection = Selection()
    reused: frozenset[int] = frozenset()
    rollback: Rollback | None = None
    strict: bool = False
    trusted: bool = True


class ResolvedBuild(msgspec.Struct, frozen=True, kw_only=True):
    """A Build with every substitution made.

    Attributes:
        build: the Build to store and show; its ``options`` are the effective ones.
        variables: every known variable, built-in or user's, with its final value.
    """

    build: Build
    variables: dict[str, str]


def resolve(build: Build, *, context: PlanContext) -> ResolvedBuild:
    """Return the build with every substitution made and the effective options.

    The build must have passed `spec.validate.check_build`. Unknown variables are empty here.

    Raises:
        ConfigError: variables form a cycle, an expression can't be evaluated, the expressions take
            more work than a `Budget` allows, or the result would be larger than
            `MAX_SUBSTITUTED_LENGTH` characters.
    """
    options = effective_options(build.options, triggered=context.triggered)
    built_in = context.built_ins.values()
    user = merged(build.substitutions, context.substitutions)
    dynamic = options.dynamic_substitutions
    budget = Budget()
    try:
        if dynamic:
            user = expand(user, built_in, is_template=is_user_variable, budget=budget)
        variables = {**built_in, **user}
        replaced = _with_values(build, variables, budget if dynamic else None)
    except Cycle as error:
        path = f"substitutions.{error.names[0]}"
        raise ConfigError([Problem(str(error), path=path, rule="cycle")]) from error
    except BadExpression as error:
        raise ConfigError([Problem(str(error), rule="expression")]) from error
    shown = user
    if context.triggered:
        source = {name: value for name, value in built_in.items() if value}
        shown = {name: source[name] for name in sorted(source) if _is_event_data(name)} | user
    changes: dict[str, object] = {"substitutions": shown, "tags": _cleaned_tags(replaced.tags)}
    changes |= _images_in_both_places(replaced)
    if options != (build.options or BuildOptions()):
        forced = replaced.options or BuildOptions()
        changes["options"] = effective_options(forced, triggered=context.triggered)
    return ResolvedBuild(build=msgspec.structs.replace(replaced, **changes), variables=variables)


def _cleaned_tags(tags: tuple[str, ...]) -> tuple[str, ...]:
    """Return the tags without empty ones (an unset ``$TAG_NAME``) and duplicates, in order.

    Source: the local builder.
    """
    return tuple(dict.fromkeys(tag for tag in tags if tag))


def _images_in_both_places(build: Build) -> dict[str, object]:
    """Return fields with the same ``images`` in both places. Source: the local builder."""
    images = build.images or (build.artifacts.images if build.artifacts else ())
    if not images:
        return {}
    from buildrunner.spec.model.results import Artifacts

    artifacts = build.artifacts or Artifacts()
    return {"images": images, "artifacts": msgspec.structs.replace(artifacts, images=images)}


def _is_event_data(name: str) -> bool:
    return name in OVERRIDABLE or is_user_variable(name)


def _with_values(build: Build, variables: Mapping[str, str], budget: Budget | None) -> Build:
    """Return the build with values. With a budget, bash-style expressions are evaluated."""
    room = MAX_SUBSTITUTED_LENGTH

    def replace(template: str) -> str:
        nonlocal room
        if "$" not in template:
            return template
        dynamic = budget is not None
        try:
            text = substitute(template, variables.get, dynamic=dynamic, budget=budget, longest=room)
        except ValuesTooLong:
            text = None
        room -= len(text or "")
        if text is None or room < 0:
            raise ConfigError([Problem(SUBSTITUTED_TOO_LONG, rule="substituted-size")])
        return text

    return with_templates_replaced(build, replace)
