"""Which steps are served by builder images of ours: those of Google that the engine lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildrunner.engine.image_aliases import serve_image

if TYPE_CHECKING:
    from collections.abc import Mapping

    from buildrunner.containers.engine_protocol import Images
    from buildrunner.plan.build_plan import BuildPlan


def with_builder_images(
    aliases: Mapping[str, str], plan: BuildPlan, engine: Images
) -> dict[str, str]:
    """The user's aliases, which always win, and those to builder images that are installed.

    Raises:
        EngineError: the engine does not tell what images it has.
    """
    images = {step.image for step in plan.steps if not serve_image(step.image, aliases).note}
    if not any(image.startswith("gcr.io/cloud-builders/") for image in images):
        return dict(aliases)
    from buildrunner.builders.catalog import installed_aliases

    return {
        **installed_aliases(images, lambda name: engine.find_image(name) is not None),
        **aliases,
    }
