"""What the fields of a build's results mean, in one sentence each."""

from __future__ import annotations

_UPLOADED = {
    "uri": "Where it was published.",
    "fileHashes": "Hashes of the file.",
    "pushTiming": "When the upload began and ended.",
    "artifactRegistryPackage": "Full name of the package in the registry.",
}

RESULTS: dict[str, dict[str, str]] = {
    "Results": {
        "images": "Images that were pushed.",
        "buildStepImages": "Digest of each step's image.",
        "artifactManifest": "URL of the list of uploaded files.",
        "numArtifacts": "How many files were uploaded.",
        "buildStepOutputs": "What each step wrote to $BUILDER_OUTPUT/output (base64).",
        "artifactTiming": "When the uploads began and ended.",
        "pythonPackages": "Python distributions that were published.",
        "mavenArtifacts": "Maven artifacts that were published.",
        "goModules": "Go modules that were published.",
        "npmPackages": "npm packages that were published.",
    },
    "BuiltImage": {
        "name": "Name under which the image was pushed.",
        "digest": "Digest by which the registry knows it.",
        "pushTiming": "When the push began and ended.",
        "artifactRegistryPackage": "Full name of the package in the registry.",
    },
    "UploadedPythonPackage": _UPLOADED,
    "UploadedMavenArtifact": _UPLOADED,
    "UploadedGoModule": _UPLOADED,
    "UploadedNpmPackage": _UPLOADED,
    "FileHashes": {"fileHash": "The hashes of the file."},
    "Hash": {"type": "How the hash was computed.", "value": "The hash itself (base64)."},
    "SourceProvenance": {
        "resolvedStorageSource": "The archive, with its generation.",
        "resolvedRepoSource": "The repository, with its commit.",
        "resolvedStorageSourceManifest": "The list of files, with its generation.",
        "resolvedConnectedRepository": "The connected repository, with its commit.",
        "resolvedGitSource": "The Git repository, with its commit.",
        "fileHashes": "Hashes of the source's files, by their path.",
    },
    "Warning_": {"text": "What is the matter.", "priority": "How much it matters."},
    "FailureInfo": {"type": "What kind of thing failed.", "detail": "What failed, for people."},
    "BuildApproval": {
        "state": "Where the approval stands.",
        "config": "Whether approval is needed.",
        "result": "What was decided.",
    },
    "ApprovalConfig": {"approvalRequired": "Builds wait until someone approves them."},
    "ApprovalResult": {
        "approverAccount": "Who decided.",
        "approvalTime": "When it was decided.",
        "decision": "What was decided.",
        "comment": "Why, in the approver's words.",
        "url": "Where to read more about the decision.",
    },
}
