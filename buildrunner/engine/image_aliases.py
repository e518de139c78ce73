"""Serving one image where the config names another (sites without access to a registry)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

_GCB_INTERNAL = "gcr.io/cloud-builders/gcb-internal"


class ServedImage(msgspec.Struct, frozen=True):
    """What to run where the config says ``asked``.

    Attributes:
        asked: the name in the config.
        serving: the name to look up and run.
        drops_program: the first argument names a program that is ``serving``'s entrypoint.
    """

    asked: str
    serving: str
    drops_program: bool = False

    @property
    def note(self) -> str:
        """What the log adds behind ``asked``; empty when no alias is at work."""
        return "" if self.asked == self.serving else f" (alias of {self.serving})"


def serve_image(asked: str, aliases: Mapping[str, str]) -> ServedImage:
    """Apply the alias map to one image name.

    An alias for the very name wins; an alias without a tag serves every tag of its repository.
    ``gcb-internal`` takes the program as its first argument, which the image that serves it has as
    its entrypoint.
    """
    repository, _tag = split_reference(asked)
    serving = aliases.get(asked) or aliases.get(repository) or asked
    return ServedImage(asked, serving, serving != asked and repository == _GCB_INTERNAL)


def split_reference(name: str) -> tuple[str, str]:
    """Split ``host:5000/repo:tag`` or ``repo@sha256:...`` into repository and tag or digest.

    The tag is cut at the last colon behind the last slash, so that a registry's port stays (the
    local builder cuts at the first colon, which breaks such names).
    """
    head, at, digest = name.partition("@")
    slash = head.rfind("/")
    colon = head.rfind(":")
    repository, tag = (head[:colon], head[colon + 1 :]) if colon > slash else (head, "")
    return repository, digest if at else tag
