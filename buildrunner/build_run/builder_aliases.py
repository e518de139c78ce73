"""Which steps are served by builder images of ours: those of Google that the engine lacks."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from buildrunner.builders.catalog import (
    DEFAULT_ALIASES,
    advice,
    drop_in,
    installed_aliases,
    stand_in,
)
from buildrunner.containers.protocol import Images
from buildrunner.engine.image_pulls import serve_image, split_reference
from buildrunner.plan.build_plan import BuildPlan


def with_builder_images(
    aliases: Mapping[str, str], plan: BuildPlan, engine: Images
) -> dict[str, str]:
    """The user's aliases, which always win, and those to builder images that are installed.

    Raises:
        EngineError: the engine does not tell what images it has.
    """
    images = {step.image for step in plan.steps if not serve_image(step.image, aliases).note}
    public = [image for image in images if split_reference(image)[0] in DEFAULT_ALIASES]

    def find_image(name: str) -> str | None:
        found = engine.find_image(name)
        return found.id if found else None

    return {**installed_aliases(public, find_image), **aliases}


def image_advice(plan: BuildPlan) -> dict[str, str]:
    """For each image of a step that a builder image could serve, the sentence that says how."""
    images = {step.image for step in plan.steps}
    return {image: said for image in images if (said := advice(image))}


def install_command(plan: BuildPlan, config: str = "") -> str:
    """The command that makes every builder image that could serve a step.

    Args:
        plan: the build.
        config: path of its config on this machine; empty where there is none.
    """
    if config:
        return f"buildrunner builders install --for {shlex.quote(config)}"
    found = (drop_in(step.image) or stand_in(step.image) for step in plan.steps)
    names = dict.fromkeys(builder.name for builder in found if builder)
    return f"buildrunner builders install {' '.join(names)}"
