"""``submit --dry-run``: prints the plan, for people or for programs, and runs nothing.

The plan holds references to secrets, never values, so that it can be shown to anyone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import msgspec

from buildrunner.cli.submit.build_input import BuildInput
from buildrunner.engine.image_pulls import serve_image
from buildrunner.errors import EXIT_SUCCESS, EngineError
from buildrunner.logs.console.outputs import graph_columns
from buildrunner.logs.console.wording import count, seconds
from buildrunner.plan.build_plan import BuildPlan, StepPlan
from buildrunner.settings import Settings

_SCRIPT_LINES = 12


def show_plan(plan: BuildPlan, input_: BuildInput, settings: Settings, form: str) -> int:
    """Print the plan as text, or as the JSON that `BuildPlan.from_json` reads.

    Returns:
        The exit code: always success, since nothing ran.
    """
    if form == "json":
        sys.stdout.write(msgspec.json.format(plan.to_json(), indent=2).decode() + "\n")
        return EXIT_SUCCESS
    aliases, missing = _images_here(plan, settings.image_aliases)
    settings = msgspec.structs.replace(settings, image_aliases=aliases)
    sys.stdout.write("\n".join(_text(plan, input_, settings, missing)) + "\n")
    return EXIT_SUCCESS


def _text(
    plan: BuildPlan, input_: BuildInput, settings: Settings, missing: frozenset[str] | None
) -> Iterator[str]:
    config = input_.config or "the Dockerfile of the source"
    source = _source(input_)
    yield f"{config}: {count(len(plan.steps), 'step')}, {source}"
    yield f"project {plan.project_id}, timeout {seconds(plan.timeout_s)}"
    if plan.left_out:
        yield f"left out: {', '.join(plan.left_out)}"
    if missing is None:
        yield "no container engine answers, so missing images are unknown"
    yield ""
    yield "order (the steps of a line can run at the same time)"
    for number, column in enumerate(graph_columns(plan), 1):
        yield f"  {number}. {', '.join(_name(plan.steps[index]) for index in column)}"
    for step in plan.steps:
        yield ""
        yield from _step(plan, step, settings, missing or frozenset())
    yield from _ending(plan, settings)


def _source(input_: BuildInput) -> str:
    if input_.folder is not None:
        return f"source {os.path.abspath(input_.folder)}"
    git = input_.git
    if git is not None:
        url = git.git_source.url if git.git_source else ""
        return f"source {url}" if url else "a connected repository"
    named = input_.object_url or input_.archive
    return f"source {named}" if named else "no source in a folder"


def _step(
    plan: BuildPlan, step: StepPlan, settings: Settings, missing: frozenset[str]
) -> Iterator[str]:
    yield step.label
    served = serve_image(step.image, settings.image_aliases)
    state = ", missing here: will be pulled" if served.serving in missing else ""
    yield f"  image     {step.image}{served.note}{state}"
    yield from _command(step)
    yield f"  workdir   {step.workdir}"
    for entry in step.env:
        yield f"  env       {entry}"
    for secret in step.secrets:
        yield f"  secret    {secret.env} = <{secret.kind} {secret.name}>"
    for mount in _mounts(plan, step):
        yield f"  mount     {mount}"
    yield from _conditions(plan, step)


def _command(step: StepPlan) -> Iterator[str]:
    if step.script is not None:
        lines = step.script.splitlines()
        yield f"  script    {lines[0]}"
        yield from (f"            {line}" for line in lines[1:_SCRIPT_LINES])
        if len(lines) > _SCRIPT_LINES:
            yield f"            ... {count(len(lines) - _SCRIPT_LINES, 'more line')}"
        return
    program = step.entrypoint or "(the image's entrypoint)"
    if step.args is None:
        arguments = "" if step.entrypoint else "(the image's command)"
    else:
        from shlex import join

        arguments = join(step.args)
    yield f"  run       {program} {arguments}".rstrip()


def _mounts(plan: BuildPlan, step: StepPlan) -> Iterator[str]:
    yield "/workspace"
    yield "/builder/home"
    yield "/builder/outputs"
    if plan.docker_socket:
        yield "/var/run/docker.sock (the engine's socket)"
    yield from (f"{volume.path} (volume {volume.name})" for volume in step.volumes)


def _conditions(plan: BuildPlan, step: StepPlan) -> Iterator[str]:
    if step.depends_on:
        names = ", ".join(_name(plan.steps[index]) for index in step.depends_on)
        yield f"  after     {names}"
    if step.timeout_s is not None:
        yield f"  timeout   {seconds(step.timeout_s)}"
    if step.allow_exit_codes:
        yield f"  forgiven  exit codes {', '.join(map(str, step.allow_exit_codes))}"
    elif step.allow_failure:
        yield "  forgiven  any failure"
    if plan.privileged:
        yield "  privileged"


def _ending(plan: BuildPlan, settings: Settings) -> Iterator[str]:
    if plan.images:
        yield ""
        yield "push"
        yield from (f"  {image}" for image in plan.images)
    if plan.object_paths:
        yield ""
        yield f"upload to {plan.object_location}"
        yield from (f"  {path}" for path in plan.object_paths)
    if plan.packages:
        yield ""
        yield "publish"
    for package in plan.packages:
        place = settings.package_repositories.get(package.repository, package.repository)
        yield f"  {package.label}, to {place}"


def _images_here(
    plan: BuildPlan, aliases: dict[str, str]
) -> tuple[dict[str, str], frozenset[str] | None]:
    """Return the effective aliases, and the images that the engine lacks (None: no engine)."""
    from buildrunner import wiring
    from buildrunner.build_run.compile import with_builder_images

    try:
        engine = wiring.container_engine()
        aliases = with_builder_images(aliases, plan, engine)
        wanted = {serve_image(step.image, aliases).serving for step in plan.steps}
        missing = frozenset(image for image in wanted if engine.find_image(image) is None)
        engine.close()
    except EngineError:
        return aliases, None
    return aliases, missing


def _name(step: StepPlan) -> str:
    return f"#{step.index} {step.id}".rstrip()
