"""What becomes of every field of the API here.

Modelled fields stand as their class says (`OUTPUT_ONLY`, `REFUSED`) or as listed in `_RECORDED`;
all others are implemented. Fields of the service that we do not model are listed in `_UNMODELLED`.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from buildrunner.spec.message import Message


class Stand(enum.Enum):
    """What we do with a field."""

    IMPLEMENTED = "implemented"
    RECORDED = "recorded"
    REFUSED = "refused"
    OUTPUT_ONLY = "output only"


class Verdict(Struct, frozen=True):
    """What we do with one field, and why."""

    stand: Stand
    reason: str = ""


_WHERE = "it exists only inside Google Cloud"
_NOT_ON_THIS_MACHINE = f"{_WHERE}, and has no effect here"
_REMOTE = "remote configs can't be fetched here; write out the steps in this file"
_OUTPUT = Verdict(Stand.OUTPUT_ONLY, "in the service's newer schema only; it is never set here")

_RECORDED = {
    "Build.logsBucket": "logs are kept by buildrunner; the bucket is not written to",
    "Build.serviceAccount": "steps run with the credentials of this machine",
    "BuildStep.results": "kept with the build; no attestations are made",
    "BuildOptions.requestedVerifyOption": "kept with the build; provenance is recorded unsigned",
    "BuildOptions.machineType": "the machine is the one at hand",
    "BuildOptions.diskSizeGb": "the disk is the one at hand",
    "BuildOptions.logStreamingOption": "logs are always streamed",
    "BuildOptions.workerPool": "the older spelling of pool.name",
    "BuildOptions.pool": "builds run where buildrunner runs",
    "PoolOption.name": "builds run where buildrunner runs",
    "BuildOptions.defaultLogsBucketBehavior": _NOT_ON_THIS_MACHINE,
    "BuildOptions.enableStructuredLogging": "log lines are kept as they are",
    "BuildOptions.workerRelease": _NOT_ON_THIS_MACHINE,
    "StorageSource.sourceFetcher": "archives are always fetched by buildrunner itself",
    "BuildTrigger.description": "shown with the trigger",
    "BuildTrigger.tags": "shown with the trigger",
    "BuildTrigger.serviceAccount": "steps run with the credentials of this machine",
    "GitFileSource.githubEnterpriseConfig": _NOT_ON_THIS_MACHINE,
    "GitRepoSource.githubEnterpriseConfig": _NOT_ON_THIS_MACHINE,
    "PubsubConfig.serviceAccountEmail": _NOT_ON_THIS_MACHINE,
}

_UNMODELLED = {
    "Build.remoteConfig": Verdict(Stand.REFUSED, _REMOTE),
    "BuildStep.remoteConfig": Verdict(Stand.REFUSED, _REMOTE),
    "BuildOptions.cluster": Verdict(
        Stand.REFUSED, f"{_WHERE}; remove it to run the build on this machine"
    ),
    "BuildOptions.anthosCluster": Verdict(
        Stand.REFUSED, f"{_WHERE}; remove it to run the build on this machine"
    ),
    "PoolOption.workerConfig": Verdict(
        Stand.REFUSED,
        "workers have the size of this machine; options.machineType asks for another",
    ),
    "Source.developerConnectConfig": Verdict(
        Stand.REFUSED, f"Developer Connect: {_WHERE}; use gitSource with the repository's url"
    ),
    "Artifacts.genericArtifacts": Verdict(
        Stand.REFUSED, "use artifacts.objects, or a step that uploads the files"
    ),
    "Artifacts.oci": Verdict(Stand.REFUSED, "use images, or a step that pushes the artifact"),
    "Artifacts.volumes": Verdict(
        Stand.REFUSED, "use artifacts.objects, or a step that uploads the files"
    ),
    "Dependency.genericArtifact": Verdict(
        Stand.REFUSED, "fetch the artifact in the first step, or use a gitSource dependency"
    ),
    "Dependency.piperSource": Verdict(
        Stand.REFUSED, "Piper exists only inside Google; use a gitSource dependency"
    ),
    "BuildTrigger.developerConnectEventConfig": Verdict(
        Stand.REFUSED, f"Developer Connect: {_WHERE}; use github or repositoryEventConfig"
    ),
    "Results.buildStepResults": _OUTPUT,
    "Results.genericArtifacts": _OUTPUT,
    "Results.ociArtifacts": _OUTPUT,
    "HashType.DIRSUM_SHA256": Verdict(
        Stand.REFUSED, "hashes of whole folders are not computed; use SHA256"
    ),
}


def stand_of(owner: type[Message] | type[enum.Enum], name: str) -> Verdict | None:
    """What becomes of a field of a message, or of a value of an enum.

    Args:
        owner: class of the message or enum.
        name: the field's name in JSON, or the value's name.

    Returns:
        None for a name that Cloud Build does not know.
    """
    key = f"{owner.__name__}.{name}"
    if key in _UNMODELLED:
        return _UNMODELLED[key]
    if issubclass(owner, enum.Enum):
        return Verdict(Stand.IMPLEMENTED) if name in owner.__members__ else None
    for field, json in zip(owner.__struct_fields__, owner.__struct_encode_fields__, strict=True):
        if json != name:
            continue
        if field in owner.OUTPUT_ONLY:
            return Verdict(Stand.OUTPUT_ONLY)
        if field in owner.REFUSED:
            return Verdict(Stand.REFUSED, owner.REFUSED[field])
        if key in _RECORDED:
            return Verdict(Stand.RECORDED, _RECORDED[key])
        return Verdict(Stand.IMPLEMENTED)
    return None


def unmodelled() -> dict[str, Verdict]:
    """The fields and values that Cloud Build knows and we do not model, by ``Message.field``."""
    return dict(_UNMODELLED)
