"""The support of every field of the API by buildrunner.

The class of a modelled field (`OUTPUT_ONLY`, `REFUSED`) or `_RECORDED` decides the field's support.
All other modelled fields are implemented, those in `_DIFFERS` with differences from the hosted
service. Output fields that are never set are in `_NEVER_SET`. Fields and enum values of the service
that are not modelled are in `_UNMODELLED`.

The manual's page on compatibility is generated from these tables.
"""

from __future__ import annotations

import enum

from msgspec import Struct

from buildrunner.spec.model.message import Message


class Stand(enum.Enum):
    """The kind of support of a field."""

    IMPLEMENTED = "implemented"
    RECORDED = "recorded"
    REFUSED = "refused"
    OUTPUT_ONLY = "output only"


class Verdict(Struct, frozen=True):
    """The support of one field, with the reason.

    Attributes:
        stand: the kind of support.
        reason: the reason; for an implemented field, the differences from the hosted service; for
            an output field, why it is never set. May be empty.
    """

    stand: Stand
    reason: str = ""


_WHERE = "it exists only inside Google Cloud"
_NOT_ON_THIS_MACHINE = f"{_WHERE}, and has no effect here"
_REMOTE = "remote configs can't be fetched here; write out the steps in this file"
_OUTPUT = Verdict(Stand.OUTPUT_ONLY, "in the service's newer schema only; it is never set here")

_MAPPED_REPOSITORY = "its URL is what [git.repositories] of the settings says"
_NO_ATTESTATION = "kept with the build; no attestations are made"
_MAPPED = "looked for on this machine first; Secret Manager is asked with --google-secrets only"
_NOT_DECRYPTED = (
    "the variable's value is looked for on this machine first; what is encrypted is decrypted only "
    "by [secret_sources] kms_command or with --google-secrets"
)

_POOL = "builds run where buildrunner runs, unless the server has workers of that pool"
_RECORDED = {
    "Build.queueTtl": "kept with the build; a build on this machine never waits in a queue",
    "Build.serviceAccount": "kept with the build; no step acts as this account",
    "Build.gitConfig": "it holds nothing that is supported",
    "BuildStep.results": _NO_ATTESTATION,
    "StepResult.name": _NO_ATTESTATION,
    "StepResult.attestationType": _NO_ATTESTATION,
    "StepResult.attestationContent": _NO_ATTESTATION,
    "BuildOptions.diskSizeGb": "the disk is the one at hand",
    "BuildOptions.logStreamingOption": "logs are always streamed",
    "BuildOptions.workerPool": "the older spelling of pool.name",
    "BuildOptions.pool": _POOL,
    "PoolOption.name": _POOL,
    "BuildOptions.defaultLogsBucketBehavior": _NOT_ON_THIS_MACHINE,
    "BuildOptions.enableStructuredLogging": "log lines are kept as they are",
    "BuildOptions.workerRelease": _NOT_ON_THIS_MACHINE,
    "BuildOptions.rankedMachineSeries": "the machine is the one at hand",
    "BuildOptions.pubsubTopic": "kept with the build; nothing is published",
    "StorageSource.sourceFetcher": "archives are always fetched by buildrunner itself",
    "RepoSource.invertRegex": "it has a meaning in triggers only",
    "RepoSource.substitutions": "they have a meaning for runs of a trigger only",
    "GitConfig.http": "it holds nothing that is supported",
    "BuildTrigger.description": "shown with the trigger",
    "BuildTrigger.tags": "shown with the trigger",
    "BuildTrigger.serviceAccount": "steps run with the credentials of this machine",
    "GitFileSource.githubEnterpriseConfig": _NOT_ON_THIS_MACHINE,
    "GitRepoSource.githubEnterpriseConfig": _NOT_ON_THIS_MACHINE,
    "GitFileSource.bitbucketServerConfig": _NOT_ON_THIS_MACHINE,
    "GitRepoSource.bitbucketServerConfig": _NOT_ON_THIS_MACHINE,
    "PubsubConfig.serviceAccountEmail": _NOT_ON_THIS_MACHINE,
}

_OF_SOURCE = "refused unless it names the repository that the trigger builds"

_DIFFERS = {
    "Artifacts.goModules": (
        "put by HTTP where GOPROXY looks for it, into a repository that [artifacts.repositories] "
        "of the settings names; Artifact Registry's own upload is not supported"
    ),
    "Artifacts.mavenArtifacts": "put by HTTP in Maven's layout, with a minimal POM",
    "Artifacts.genericArtifacts": (
        "put by HTTP, each file under NAME/VERSION/ in the repository that the settings name"
    ),
    "Build.secrets": _NOT_DECRYPTED,
    "Secret.kmsKeyName": _NOT_DECRYPTED,
    "Secret.secretEnv": _NOT_DECRYPTED,
    "SecretManagerSecret.versionName": _MAPPED,
    "Secrets.inline": _NOT_DECRYPTED,
    "InlineSecret.kmsKeyName": _NOT_DECRYPTED,
    "InlineSecret.envMap": _NOT_DECRYPTED,
    "BuildOptions.machineType": (
        "the machine is the one at hand; each step is limited to the type's processors and memory"
    ),
    "Build.sourceProvenance": "set for Git, for what lies in a bucket, and for hashes of archives",
    "Source.connectedRepository": _MAPPED_REPOSITORY,
    "ConnectedRepository.repository": _MAPPED_REPOSITORY,
    "Source.repoSource": (
        "a repository that [git.repositories] of the settings names is fetched from there, any "
        "other from Cloud Source Repositories"
    ),
    "GitSourceDependency.destPath": (
        "files that are there already stay, if no fetched one is in their place"
    ),
    "Build.logUrl": "of a build on this machine, the file: URL of its log; there is no page",
    "Build.logsBucket": "the log is stored at the end; on this machine it is kept in any case",
    "BuildOptions.sourceProvenanceHash": (
        "computed for archives and manifests; a commit is pinned by its SHA, a folder is not hashed"
    ),
    "BuildOptions.requestedVerifyOption": (
        "provenance is signed with a key of this machine or server, and stored with the build"
    ),
    "BuildOptions.logging": (
        "NONE keeps no log; any other value keeps it on this machine, and those that mean a bucket "
        "in logsBucket too"
    ),
    "GitFileSource.uri": _OF_SOURCE,
    "GitFileSource.repository": _OF_SOURCE,
    "GitFileSource.revision": "refused unless it names the branch or tag that the trigger builds",
}

_LOCAL = "a build on this machine has none"

_NEVER_SET = {
    "BuildOptions.resolvedWorkerRelease": _LOCAL,
    "PoolOption.workerRelease": _LOCAL,
    "PoolOption.resolvedWorkerRelease": _LOCAL,
    "BuiltImage.artifactRegistryPackage": _NOT_ON_THIS_MACHINE,
    **{
        f"Uploaded{kind}.artifactRegistryPackage": _NOT_ON_THIS_MACHINE
        for kind in ("PythonPackage", "MavenArtifact", "GoModule", "NpmPackage")
    },
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
    "GenericArtifact.contentHandling": Verdict(
        Stand.REFUSED, "remove it: files are uploaded as they are"
    ),
    "Artifacts.oci": Verdict(
        Stand.REFUSED,
        "image archives are not uploaded: load the file in a step (docker load --input FILE) and "
        "name the image in images",
    ),
    "HttpConfig.proxySslCaInfo": Verdict(
        Stand.REFUSED,
        "Git runs on this machine: set the certificate in Git's own configuration "
        "(http.proxySSLCAInfo)",
    ),
    "RepoType.BITBUCKET_CLOUD": Verdict(
        Stand.REFUSED, "leave repoType out and give the repository's whole URL in uri"
    ),
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
    "Results.resourceUsage": _OUTPUT,
    "BuiltImage.ociMediaType": _OUTPUT,
    "HashType.DIRSUM_SHA256": Verdict(
        Stand.REFUSED, "hashes of whole folders are not computed; use SHA256"
    ),
}


def stand_of(owner: type[Message] | type[enum.Enum], name: str) -> Verdict | None:
    """Return the support of a field of a message, or of a value of an enum.

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
        if field in owner.OUTPUT_ONLY or key in _NEVER_SET:
            return Verdict(Stand.OUTPUT_ONLY, _NEVER_SET.get(key, ""))
        if field in owner.REFUSED:
            return Verdict(Stand.REFUSED, owner.REFUSED[field])
        if key in _RECORDED:
            return Verdict(Stand.RECORDED, _RECORDED[key])
        return Verdict(Stand.IMPLEMENTED, _DIFFERS.get(key, ""))
    return None


def unmodelled() -> dict[str, Verdict]:
    """Return the fields and values of Cloud Build that are not modelled, by ``Message.field``."""
    return dict(_UNMODELLED)
