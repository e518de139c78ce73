"""The images that a build needs: those of its steps, and those that its Dockerfiles start from."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from buildrunner.spec.model import Build, BuildStep

_NAMED_LIKE_ONE = re.compile(r"(^|[./_-])(dockerfile|containerfile)([._-]|$)", re.IGNORECASE)
_SEPARATORS = re.compile(r"[\s\"'=;,()&|]+")
_REFERENCE = re.compile(r"\$(?:\{(?P<braced>\w+)(?::-(?P<default>[^}]*))?\}|(?P<plain>\w+))")
_ARGUMENT = re.compile(r"--build-arg[= ]+(\w+)=(\S*)")


def step_images(build: Build) -> list[str]:
    """The images of the build's steps, each once. Every substitution must have been made."""
    return list(dict.fromkeys(step.name for step in build.steps))


def dockerfile_images(build: Build, folder: str) -> list[str]:
    """The images that the FROM lines of the build's Dockerfiles name, each once.

    A Dockerfile belongs to the build if a step's arguments or script name it, or name the folder
    that it lies in. Stages of the same Dockerfile and ``scratch`` are left out, as are names that
    depend on a build argument without a value.

    Args:
        build: with every substitution made.
        folder: the source.
    """
    images: dict[str, None] = {}
    for step in build.steps:
        text = "\n".join((*step.args, step.script))
        arguments = dict(_ARGUMENT.findall(" ".join(step.args) + " " + step.script))
        for path in _dockerfiles(step, text, folder):
            with open(path, encoding="utf-8", errors="replace") as file:
                images |= dict.fromkeys(from_lines(file.read(), arguments))
    return list(images)


def _dockerfiles(step: BuildStep, text: str, folder: str) -> Iterator[str]:
    at = os.path.join(folder, step.dir)
    words = dict.fromkeys(word for word in _SEPARATORS.split(text) if word)
    for word in words:
        path = os.path.normpath(os.path.join(at, word.removeprefix("/workspace/")))
        if _NAMED_LIKE_ONE.search(os.path.basename(path)) and os.path.isfile(path):
            yield path
        elif os.path.isfile(inside := os.path.join(path, "Dockerfile")):
            yield inside


def from_lines(dockerfile: str, arguments: Mapping[str, str]) -> list[str]:
    """The images that a Dockerfile starts from.

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
    """The words of each ARG and FROM instruction, the first in capitals."""
    for line in lines:
        words = line.split()
        if words and words[0].upper() in ("ARG", "FROM"):
            yield [words[0].upper(), *words[1:]]
