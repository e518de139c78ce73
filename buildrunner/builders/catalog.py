"""Which builder images there are, and which public names each of them can serve.

This module is imported by every build (for `DEFAULT_ALIASES`): it must stay literal and light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

REPOSITORY = "buildrunner"
"""Builder images are called ``buildrunner/NAME:latest``."""

ROOT_FILESYSTEM = f"{REPOSITORY}/debian"
"""Repository of the root file system that is made here when none can be pulled."""


class BuilderImage(msgspec.Struct, frozen=True, kw_only=True):
    """One builder image.

    Attributes:
        name: last part of its name: ``docker`` is ``buildrunner/docker``.
        folder: folder under steps/ with its Dockerfile.
        summary: what it is for, in a few words.
        target: stage of the Dockerfile; empty for the last one.
        parents: build argument -> name of the builder image it stands on (made before it).
        settings: build arguments taken from this machine's settings where it has them.
        serves: public image names that it is a drop-in for.
    """

    name: str
    folder: str
    summary: str
    target: str = ""
    parents: dict[str, str] = {}
    settings: tuple[str, ...] = ()
    serves: tuple[str, ...] = ()

    @property
    def image(self) -> str:
        """Its name on the engine, with the tag."""
        return f"{REPOSITORY}/{self.name}:latest"


_ON_BASE = {"BASE": "base"}
_APT = ("DEBIAN_MIRROR",)
_PIP = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")

# The order is that in which people meet them; what stands on what is in `parents`.
BUILDERS: tuple[BuilderImage, ...] = (
    BuilderImage(
        name="base",
        folder="base",
        summary="Debian, slim, with certificates; what the others stand on",
        settings=_APT,
    ),
    BuilderImage(
        name="docker",
        folder="docker",
        summary="the docker command",
        parents=_ON_BASE,
        settings=_APT,
        serves=("gcr.io/cloud-builders/docker", "gcr.io/cloud-builders/gcb-internal"),
    ),
    BuilderImage(
        name="git",
        folder="git",
        summary="git over https and ssh",
        parents=_ON_BASE,
        settings=_APT,
        serves=("gcr.io/cloud-builders/git",),
    ),
    BuilderImage(
        name="curl",
        folder="curl",
        target="curl",
        summary="curl",
        parents=_ON_BASE,
        settings=_APT,
        serves=("gcr.io/cloud-builders/curl",),
    ),
    BuilderImage(
        name="wget",
        folder="curl",
        target="wget",
        summary="wget",
        parents=_ON_BASE,
        settings=_APT,
        serves=("gcr.io/cloud-builders/wget",),
    ),
    BuilderImage(
        name="python",
        folder="python",
        summary="Python with pip and venv",
        parents=_ON_BASE,
        settings=_APT,
    ),
    BuilderImage(
        name="node",
        folder="node",
        target="node",
        summary="Node.js with npm and yarn",
        parents={"BASE": "base", "PYTHON": "python"},
        settings=(*_PIP, "NPM_CONFIG_REGISTRY"),
    ),
    BuilderImage(
        name="npm",
        folder="node",
        target="npm",
        summary="npm",
        parents={"BASE": "base", "PYTHON": "python"},
        settings=(*_PIP, "NPM_CONFIG_REGISTRY"),
        serves=("gcr.io/cloud-builders/npm",),
    ),
    BuilderImage(
        name="yarn",
        folder="node",
        target="yarn",
        summary="yarn",
        parents={"BASE": "base", "PYTHON": "python"},
        settings=(*_PIP, "NPM_CONFIG_REGISTRY"),
        serves=("gcr.io/cloud-builders/yarn",),
    ),
    BuilderImage(
        name="gcs",
        folder="gcs",
        summary="gsutil's everyday commands",
        parents={"PYTHON": "python"},
        settings=_PIP,
        serves=("gcr.io/cloud-builders/gsutil",),
    ),
    BuilderImage(
        name="twine",
        folder="twine",
        summary="twine, which publishes Python packages",
        parents={"PYTHON": "python"},
        settings=_PIP,
    ),
    BuilderImage(
        name="gcc",
        folder="gcc",
        summary="the C compiler and make",
        parents=_ON_BASE,
        settings=_APT,
    ),
    BuilderImage(
        name="engine",
        folder="engine",
        summary="a Docker engine, for the sandbox that gives each build its own",
        parents=_ON_BASE,
        settings=_APT,
    ),
)

ENGINE_IMAGE = f"{REPOSITORY}/engine:latest"
"""The image of nested engines."""

DEFAULT_ALIASES: dict[str, str] = {
    public: builder.image for builder in BUILDERS for public in builder.serves
}
"""Public repository (no tag: all its tags) -> the builder image that may serve it.

An entry holds only where the engine has the builder image and not the public one. Only Google's
builders are here: an image of Docker Hub is always the real one, unless the user says otherwise
(``[images] aliases``, ``--image-alias``).
"""


def installed_aliases(images: Iterable[str], has_image: Callable[[str], bool]) -> dict[str, str]:
    """Which of ``images`` are to be served by builder images, on an engine without the real ones.

    Args:
        images: names as the steps of a build have them.
        has_image: whether the engine has an image of that name.

    Returns:
        Name as asked -> builder image; only where the engine has the latter and not the former.
    """
    aliases = {}
    for image in dict.fromkeys(images):
        serving = DEFAULT_ALIASES.get(_repository(image))
        if serving and not has_image(image) and has_image(serving):
            aliases[image] = serving
    return aliases


def _repository(image: str) -> str:
    name = image.partition("@")[0]
    head, colon, tag = name.rpartition(":")
    return head if colon and "/" not in tag else name


def builder_named(name: str) -> BuilderImage | None:
    """The builder image of that name (``docker``), or None."""
    return next((builder for builder in BUILDERS if builder.name == name), None)
