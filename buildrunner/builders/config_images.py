"""Finds the images that a build needs: for its steps, and for FROM lines of its Dockerfiles."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from buildrunner.spec.model.build import Build, BuildStep

_NAMED_LIKE_ONE = re.compile(r"(^|[./_-])(dockerfile|containerfile)([._-]|$)", re.IGNORECASE)
_SEPARATORS = re.compile(r"[\s\"'=;,()&|]+")
_REFERENCE = re.compile(r"\$(?:\{(?P<braced>\w+)(?::-(?P<default>[^}]*))?\}|(?P<plain>\w+))")
# Arguments that name a new image: of docker, buildx, kaniko, and `docker tag FROM TO`.
_TAG = re.compile(r"""(?:\s|^)(?:(?:-t|--tag|-d|--destination)[= ]+|tag \S+ )["']?([^\s"']+)""")
_ARGUMENT = re.compile(r"--build-arg[= ]+(\w+)=(\S*)")


def needed_images(build: Build, folders: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the images that the build needs, from its steps and its Dockerfiles' FROM lines.

    Images that the build makes itself are left out.

    Args:
        build: with every substitution made.
        folders: folders that may hold the source.
    """
    made = set(build.images)
    for step in build.steps:
        made.update(_TAG.findall(_text(step)))
    bases = [image for folder in folders for image in dockerfile_images(build, folder)]
    needed = [[one for one in images if one not in made] for images in (_step_images(build), bases)]
    return needed[0], list(dict.fromkeys(needed[1]))


def _step_images(build: Build) -> list[str]:
    return list(dict.fromkeys(step.name for step in build.steps))


def _text(step: BuildStep) -> str:
    return " ".join((*step.args, step.script))


def dockerfile_images(build: Build, folder: str) -> list[str]:
    """Return the images in the FROM lines of the build's Dockerfiles, each once.

    A Dockerfile belongs to the build if a step's arguments or script name it, or name the folder
    that it lies in. Stages of the same Dockerfile and ``scratch`` are left out, as are names that
    depend on a build argument without a value.

    Args:
        build: with every substitution made.
        folder: the source.
    """
    images: dict[str, None] = {}
    for step in build.steps:
        arguments = dict(_ARGUMENT.findall(_text(step)))
        for path in _dockerfiles(step, folder):
            with open(path, encoding="utf-8", errors="replace") as file:
                images |= dict.fromkeys(from_lines(file.read(), arguments))
    return list(images)


def _dockerfiles(step: BuildStep, folder: str) -> Iterator[str]:
    at = os.path.join(folder, step.dir)
    words = dict.fromkeys(word for word in _SEPARATORS.split(_text(step)) if word)
    for word in words:
        path = os.path.normpath(os.path.join(at, word.removeprefix("/workspace/")))
        if _NAMED_LIKE_ONE.search(os.path.basename(path)) and os.path.isfile(path):
            yield path
        elif os.path.isfile(inside := os.path.join(path, "Dockerfile")):
            yield inside


def from_lines(dockerfile: str, arguments: Mapping[str, str]) -> list[str]:
    """Return the images that a Dockerfile starts from.

    Args:
        dockerfile: its text.
        arguments: values for its ``ARG`` lines before the first ``FROM``.
    """
    values: dict[str, str] = {}
    stages: set[str] = set()
    images: list[str] = []
    for words in _instructions(dockerfile.splitlines()):
        if words[0] == "ARG" and not stages and not images:
            for word in words[1:]:
                name, _, default = word.partition("=")
                values[name] = arguments.get(name, default.strip("\"'"))
        elif words[0] == "FROM":
            image, *rest = [word for word in words[1:] if not word.startswith("--")] or [""]
            image = _REFERENCE.sub(lambda match: _value(match, values), image)
            if image and image != "scratch" and image.lower() not in stages:
                images.append(image)
            stages.add(rest[1].lower() if len(rest) > 1 else "")
    return list(dict.fromkeys(images))


def _value(match: re.Match[str], values: Mapping[str, str]) -> str:
    name = match["braced"] or match["plain"]
    return values.get(name) or match["default"] or ""


def _instructions(lines: Iterable[str]) -> Iterator[Sequence[str]]:
    """Yield the words of each ARG and FROM instruction, the first word in capitals."""
    for line in lines:
        words = line.split()
        if words and words[0].upper() in ("ARG", "FROM"):
            yield [words[0].upper(), *words[1:]]
