"""Deployments of a step, which its image reports in ``$BUILDER_OUTPUT/deployments.jsonl``.

A config has no field for deployments, and needs none. Without a report, the command of a known
tool suggests the target; see `deploy_commands`.
"""

from __future__ import annotations

import re
from typing import Annotated, Final

import msgspec
from msgspec import Meta
from msgspec.structs import replace

REPORT: Final = "deployments.jsonl"
"""The file of ``$BUILDER_OUTPUT`` with a deployment a line."""

MOST_OF_STEP: Final = 100
"""The most targets of one step that count."""

MOST_OF_BUILD: Final = 1000
"""The most deployments of one build that are recorded."""

_Target = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]*://[!-~]+\Z", max_length=512)]
# No character with a meaning in a shell: a rollback puts images into the script of a step.
_REFERENCE: Final = r"^[A-Za-z0-9][A-Za-z0-9_./:@+-]*\Z"
_Image = Annotated[str, Meta(pattern=_REFERENCE, max_length=512)]
_Images = Annotated[tuple[_Image, ...], Meta(max_length=50)]
_Version = Annotated[str, Meta(pattern=r"^[ -~]*\Z", max_length=256)]
_Url = Annotated[str, Meta(pattern=r"^(https?://[!-~]+)?\Z", max_length=2048)]


class Deployment(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One deployment of a step.

    Attributes:
        target: URI of the target: ``gke://PROJECT/LOCATION/CLUSTER/NAMESPACE/KIND/NAME``,
            ``kubernetes://HOST/NAMESPACE/KIND/NAME``, ``run://PROJECT/REGION/SERVICE``,
            ``functions://PROJECT/REGION/NAME``, ``appengine://PROJECT/SERVICE``.
        images: the images that run there now, by digest if it is known.
        previous_images: the images that ran there before; empty if there were none, or if the
            step did not report them.
        version: the target's own name of the running revision or version.
        url: the address of the deployed service; empty if unknown.
        reported: the step's image reported it. False: the step's command suggests it.
    """

    target: _Target
    images: _Images = ()
    previous_images: _Images = ()
    version: _Version = ""
    url: _Url = ""
    reported: bool = False


def is_reference(image: str) -> bool:
    """Return whether a deployment may have an image of that name."""
    return re.match(_REFERENCE, image) is not None


def with_short_digest(image: str) -> str:
    """Return an image with the first twelve digits of its digest, for tables."""
    name, at, digest = image.partition("@sha256:")
    return f"{name}{at}{digest[:12]}"


def read_report(data: bytes) -> tuple[tuple[Deployment, ...], str]:
    """Return the deployments in a step's report, and its first problem; empty if it has none.

    Args:
        data: the report, in JSON lines. Invalid lines are skipped, and the report ends at the
            first target beyond `MOST_OF_STEP`. Of two lines with one target, the later one counts.
    """
    found: dict[str, Deployment] = {}
    problem = ""
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            one = msgspec.json.decode(line, type=Deployment)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            problem = problem or f"line {number} of $BUILDER_OUTPUT/{REPORT} can't be read: {error}"
            continue
        if len(found) == MOST_OF_STEP and one.target not in found:
            problem = problem or f"$BUILDER_OUTPUT/{REPORT} has more than {MOST_OF_STEP} targets"
            break
        found[one.target] = replace(one, reported=True)
    return tuple(found.values()), problem
