"""Replaces references to images by digests, for rollbacks. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import msgspec
from msgspec.structs import replace

from buildrunner.plan.build_plan import BuildPlan, StepPlan

VARIABLE: Final = "BUILDRUNNER_PINNED_IMAGES"
"""Environment variable of a step: images by digest, separated by spaces. Our builder images put
them into the deployed configuration."""

_TAG: Final = r"(?::\w[\w.-]*)?(?:@sha256:[0-9a-f]{64})?"
_PINNED: Final = re.compile(r"[A-Za-z0-9][\w./:-]*@sha256:[0-9a-f]{64}", re.ASCII)
_BEFORE: Final = r"(?<![\w./@:-])"
_BEHIND: Final = r"(?![\w./@:-])"


class Rollback(msgspec.Struct, frozen=True):
    """The index of the step that deploys again, and the images by digest that it deploys."""

    step: int
    images: tuple[str, ...] = ()


def with_pinned_images(plan: BuildPlan, images: Iterable[str]) -> BuildPlan:
    """Return a plan whose steps use these images by digest instead of by tag.

    Args:
        plan: the plan.
        images: images by digest.
    """
    pinned = tuple(images)
    if not pinned:
        return plan
    return replace(plan, steps=tuple(_pinned(step, pinned) for step in plan.steps))


def is_pinned(image: str) -> bool:
    """Return whether an image is named by digest, without characters special to a shell."""
    return _PINNED.fullmatch(image) is not None


def pinned_variable(step: StepPlan) -> str:
    """Return the entry of the environment of a step that the server adds for a rollback."""
    return f"{VARIABLE}={' '.join(step.pinned_images)}"


def is_other(image: str, pinned: str) -> bool:
    """Return whether an image is in the repository of a pinned one, with another digest."""
    digest = image.partition("@")[2]
    same = _repository(image) == _repository(pinned)
    return same and bool(digest) and digest != pinned.partition("@")[2]


def _pinned(step: StepPlan, images: tuple[str, ...]) -> StepPlan:
    args, script, env = step.args, step.script, step.env
    for image in images:
        if args is not None:
            args = tuple(_with(argument, image, bare=True) for argument in args)
        script = script and _with(script, image)
        env = tuple(_with(entry, image) for entry in env)
    others = (entry for entry in env if not entry.startswith(f"{VARIABLE}="))
    pinned = replace(step, args=args, script=script, pinned_images=images)
    return replace(pinned, env=tuple(sorted((*others, pinned_variable(pinned)))))


def _with(text: str, image: str, *, bare: bool = False) -> str:
    """Return the text with an image by digest; without ``bare``, only if it has a tag or digest.

    In variables and scripts, a name alone may get its tag elsewhere: ``$IMAGE:$TAG``.
    """
    named = re.escape(_repository(image)) + ("" if bare else r"(?=[:@])")
    return re.sub(f"{_BEFORE}{named}{_TAG}{_BEHIND}", lambda _: image, text)


def _repository(image: str) -> str:
    name = image.partition("@")[0]
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.partition(':')[0]}"
