"""The builder images: what each serves, from the catalog, and when it was tried, from a file."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

from buildrunner.builders.catalog import BUILDERS, PROJECT_IMAGE
from buildrunner.builders.image_contents import content_hash, read_step_files
from pages.markdown import code, codes, table

if TYPE_CHECKING:
    from pathlib import Path

    from buildrunner.builders.catalog import BuilderImage

_HEAD = """\
# Builder images

[`buildrunner builders install`](../how-to/builder-images.md) can make these images. Each image is called
`buildrunner/NAME`. The linked page lists its contents, and its differences from the public image.

- *Serves*: steps and `FROM` lines that name such an image get this one, if it is installed and the public image is not
  on the engine.
- *May stand in for*: you can use it for these images with an alias (`--image-alias`, `[images] aliases`). `PROJECT`
  stands for images that a project built from cloud-builders-community: `gcr.io/my-project/helm`.
- *Common*: `builders install` without names makes it.
- *Takes*: the arguments that `--build-arg` can set.

"""

_TRIED = """
## How they were tested

Every installation runs a container of each image that it made. Beyond that, `buildrunner submit steps/NAME`
builds the images of a folder and uses them; `make builders-test` does so for every folder and writes this
table. The machine reaches the package registries of Debian, PyPI, npm, Go and Maven and nothing else, so
that the ways around vendors' archives are what was tried there.

"""


def page(results: Path) -> str:
    """The page; ``results`` is the file that ``make builders-test`` writes."""
    known = tomllib.loads(results.read_text())
    return (
        _HEAD
        + table(
            ("image", "what it is", "serves", "may stand in for", "common", "takes"),
            [_image(builder) for builder in BUILDERS],
        )
        + _TRIED
        + table(
            ("folder", "images", "tests", "last run", "came from, and what was not tried"),
            [_folder(name, known["folders"].get(name, {})) for name in _folders()],
        )
    )


def _folders() -> list[str]:
    return list(dict.fromkeys(builder.folder for builder in BUILDERS))


def _image(builder: BuilderImage) -> tuple[str, ...]:
    return (
        f"[{builder.name}](../../steps/{builder.folder}/README.md)",
        builder.summary,
        codes(builder.serves),
        codes(name.replace(PROJECT_IMAGE, "gcr.io/PROJECT/") for name in builder.stands_in_for),
        "yes" if builder.common else "",
        codes(builder.arguments),
    )


def _folder(name: str, result: dict[str, object]) -> tuple[str, ...]:
    images = codes(builder.name for builder in BUILDERS if builder.folder == name)
    if not result:
        return (code(name), images, "not tried", "", "")
    same = result["files"] == content_hash(read_step_files(name), {})[:12]
    return (
        code(name),
        images,
        f"{result['tests']}{'' if same else '; the files changed since'}",
        ", ".join(str(result[key]) for key in ("date", "engine") if key in result),
        str(result.get("note", "")),
    )
