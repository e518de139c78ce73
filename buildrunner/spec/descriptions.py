"""What every field means, in one sentence; for the JSON Schema and the documentation.

Kept out of the message classes so that a build never pays for loading it.
"""

from __future__ import annotations

from buildrunner.spec.descriptions_results import RESULTS
from buildrunner.spec.descriptions_triggers import TRIGGERS

_BUILDS: dict[str, dict[str, str]] = {
    "Build": {
        "name": "Full name of the build: project, location and id.",
        "id": "Unique id of the build.",
        "projectId": "Project that the build belongs to.",
        "status": "Where the build stands.",
        "statusDetail": "Why it stands there, for people.",
        "source": "Where the files of /workspace come from; without it the workspace is empty.",
        "steps": "The containers to run, in order unless waitFor says otherwise.",
        "results": "What the build made.",
        "createTime": "When the build was asked for.",
        "startTime": "When the build began to run.",
        "finishTime": "When the build ended.",
        "timeout": "How long the whole build may run, in seconds: '1200s'; at most 24 hours.",
        "images": "Images to push once all steps have succeeded.",
        "queueTtl": "How long the build may wait in the queue before it expires: '3600s'.",
        "artifacts": "What to upload once all steps have succeeded.",
        "logsBucket": "Bucket for the log, with or without a folder in it.",
        "sourceProvenance": "Exactly which source was built.",
        "buildTriggerId": "Id of the trigger that started the build.",
        "options": "How the build as a whole behaves.",
        "logUrl": "Where people can read the log.",
        "substitutions": "Values for the variables ($_NAME) that the config uses.",
        "tags": "Words by which builds can be found again; these are no image tags.",
        "secrets": "Environment variables encrypted with KMS keys (older than availableSecrets).",
        "timing": "When each phase began and ended: BUILD, PUSH, FETCHSOURCE, SETUPBUILD.",
        "approval": "The approval that the build waited for.",
        "serviceAccount": "Account that the build acts as: projects/P/serviceAccounts/A.",
        "availableSecrets": "Secrets that steps may name in their secretEnv.",
        "warnings": "Problems that did not stop the build.",
        "gitConfig": "Settings for the build's Git operations.",
        "failureInfo": "Why the build failed.",
        "dependencies": "Repositories that are fetched before the steps run.",
    },
    "BuildStep": {
        "name": "Image to run; it is pulled unless the engine has it already.",
        "env": "Environment variables, each KEY=VALUE; they win over options.env.",
        "args": "Arguments for the entrypoint; without an entrypoint, the command itself.",
        "dir": "Folder to work in, relative to /workspace or absolute.",
        "id": "Name by which other steps can wait for this one.",
        "waitFor": "Ids of earlier steps to wait for; '-' starts at once, nothing waits for all.",
        "entrypoint": "Program to run instead of the image's own.",
        "secretEnv": "Names of the secret variables that this step gets.",
        "volumes": "Named volumes that this step mounts.",
        "timing": "When the step began and ended.",
        "pullTiming": "When the pull of the step's image began and ended.",
        "timeout": "How long the step may run, in seconds: '120s'.",
        "status": "Where the step stands.",
        "allowFailure": "Let the build go on when this step fails.",
        "exitCode": "Exit code of the container.",
        "allowExitCodes": "Exit codes that count as success; they win over allowFailure.",
        "script": "Script to run instead of entrypoint and args; no substitutions are made in it.",
        "automapSubstitutions": "Give the step all substitutions as environment variables.",
        "results": "Results that the step declares.",
    },
    "BuildOptions": {
        "sourceProvenanceHash": "Hashes to compute of the source.",
        "requestedVerifyOption": "Whether the build fails when its provenance can't be made.",
        "machineType": "Size of the machine to build on.",
        "diskSizeGb": "Least disk to build on, in GB; at most 4000.",
        "substitutionOption": "Whether a variable without a value, or an unused one, is an error.",
        "dynamicSubstitutions": "Resolve variables inside values, with bash-style operators.",
        "automapSubstitutions": "Give every step all substitutions as environment variables.",
        "logStreamingOption": "Whether the stored log grows while the build runs.",
        "workerPool": "Older spelling of pool.name.",
        "pool": "Private pool to build in.",
        "logging": "Where the log is kept; NONE keeps none.",
        "env": "Environment variables of every step, each KEY=VALUE.",
        "secretEnv": "Names of the secret variables that every step gets.",
        "volumes": "Named volumes that every step mounts; needs at least two steps.",
        "defaultLogsBucketBehavior": "Which bucket is taken when logsBucket is not set.",
        "enableStructuredLogging": "Take log lines that are JSON for structured entries.",
        "workerRelease": "Release channel of the workers: rapid, regular or stable.",
        "resolvedWorkerRelease": "Release of the worker that ran the build.",
        "pubsubTopic": "Topic that is told of this build's progress: projects/P/topics/T.",
        "dockerDaemon": "What steps may do with the container engine.",
        "rankedMachineSeries": "Series of machines to build on, the preferred one first.",
    },
    "PoolOption": {
        "name": "Private pool: projects/P/locations/L/workerPools/W.",
        "workerRelease": "Release channel of the pool's workers.",
        "resolvedWorkerRelease": "Release of the worker that ran the build.",
    },
    "Volume": {
        "name": "Name of the volume; steps that use the same name share it.",
        "path": "Absolute path where the step sees it.",
    },
    "TimeSpan": {"startTime": "When it began.", "endTime": "When it ended."},
    "StepResult": {
        "name": "Name of the result.",
        "attestationType": "Type of the attestation.",
        "attestationContent": "Content of the attestation.",
    },
    "Secret": {
        "kmsKeyName": "KMS key that the values are encrypted with.",
        "secretEnv": "Encrypted values (base64) by the name of their variable.",
    },
    "Secrets": {
        "secretManager": "Secrets kept in Secret Manager.",
        "inline": "Secrets that stand encrypted in the config.",
    },
    "SecretManagerSecret": {
        "versionName": "Secret version: projects/P/secrets/S/versions/V; V may be latest.",
        "env": "Name of the variable that carries the value.",
    },
    "InlineSecret": {
        "kmsKeyName": "KMS key: projects/P/locations/L/keyRings/R/cryptoKeys/K.",
        "envMap": "Encrypted values (base64) by the name of their variable.",
    },
    "Source": {
        "storageSource": "An archive in a bucket.",
        "repoSource": "A revision of a Cloud Source Repository.",
        "gitSource": "A revision of any Git repository.",
        "storageSourceManifest": "A list of files in a bucket.",
        "connectedRepository": "A revision of a repository connected to the project.",
    },
    "StorageSource": {
        "bucket": "Bucket that holds the archive.",
        "object": "Name of the archive in it: .tar.gz or .zip.",
        "generation": "Generation of the archive; the newest when not set.",
        "sourceFetcher": "Program with which the archive is fetched.",
    },
    "StorageSourceManifest": {
        "bucket": "Bucket that holds the list.",
        "object": "Name of the list in it: a JSON file.",
        "generation": "Generation of the list; the newest when not set.",
    },
    "RepoSource": {
        "projectId": "Project that owns the repository; the build's own when not set.",
        "repoName": "Name of the repository.",
        "branchName": "Branch to build; a regular expression in a trigger.",
        "tagName": "Tag to build; a regular expression in a trigger.",
        "commitSha": "Commit to build.",
        "dir": "Folder of the repository in which the steps run.",
        "invertRegex": "Fire for the branches or tags that do not match.",
        "substitutions": "Values for variables, for a run of a trigger.",
    },
    "GitSource": {
        "url": "URL of the repository.",
        "dir": "Folder of the repository in which the steps run.",
        "revision": "Branch, tag, commit or ref to build; the default branch when not set.",
    },
    "ConnectedRepository": {
        "repository": "Repository: projects/P/locations/L/connections/C/repositories/R.",
        "dir": "Folder of the repository in which the steps run.",
        "revision": "Branch, tag, commit or ref to build.",
    },
    "GitConfig": {"http": "How Git talks HTTP."},
    "HttpConfig": {"proxySecretVersionName": "Secret version that holds the URL of a proxy."},
    "Dependency": {
        "empty": "true: fetch nothing at all, not even the source.",
        "gitSource": "A Git repository to fetch.",
    },
    "GitSourceDependency": {
        "repository": "Which repository to fetch.",
        "revision": "Branch, tag, commit or ref to fetch.",
        "recurseSubmodules": "Fetch submodules too.",
        "depth": "How many commits of history to fetch; 1 by default, -1 for all.",
        "destPath": "Folder below /workspace to fetch it to.",
        "fetchTags": "Fetch tags too.",
    },
    "GitSourceRepository": {
        "url": "URL of the repository.",
        "developerConnect": "A repository link of Developer Connect.",
    },
    "Artifacts": {
        "images": "Images to push; the same as the build's own images.",
        "objects": "Files to copy to a bucket.",
        "mavenArtifacts": "Files to publish to Maven repositories.",
        "goModules": "Go modules to publish.",
        "pythonPackages": "Python distributions to publish.",
        "npmPackages": "npm packages to publish.",
        "genericArtifacts": "Files to publish as they are.",
    },
    "ArtifactObjects": {
        "location": "Where the files go: gs://BUCKET/FOLDER/, or file:///FOLDER/.",
        "paths": "Which files: globs, relative to /workspace.",
        "timing": "When the upload began and ended.",
    },
    "MavenArtifact": {
        "repository": "URL of the repository: https://REGION-maven.pkg.dev/PROJECT/REPOSITORY.",
        "path": "File to publish, absolute or relative to /workspace.",
        "artifactId": "Maven's artifactId.",
        "groupId": "Maven's groupId.",
        "version": "Maven's version.",
        "deployFolder": "Folder of a repository layout to publish as it is.",
    },
    "GoModule": {
        "repositoryName": "Name of the repository.",
        "repositoryLocation": "Location of the repository; the build's own when not set.",
        "repositoryProjectId": "Project of the repository; the build's own when not set.",
        "sourcePath": "Folder that holds go.mod; /workspace when not set.",
        "modulePath": "Path of the module, as in go.mod.",
        "moduleVersion": "Version to publish: vX.Y.Z.",
    },
    "PythonPackage": {
        "repository": "URL of the repository: https://REGION-python.pkg.dev/PROJECT/REPOSITORY.",
        "paths": "Which files: globs, usually dist/*.",
    },
    "GenericArtifact": {
        "folder": "File or folder to publish, absolute or relative to /workspace.",
        "registryPath": "Where to: projects/.../packages/NAME/versions/VERSION, or a folder's URL.",
    },
    "NpmPackage": {
        "repository": "URL of the repository: https://REGION-npm.pkg.dev/PROJECT/REPOSITORY.",
        "packagePath": "Folder that holds package.json.",
    },
}


def all_descriptions() -> dict[str, str]:
    """Every sentence, by ``Message.field`` with the field's JSON name."""
    return {
        f"{message}.{field}": text
        for group in (_BUILDS, RESULTS, TRIGGERS)
        for message, fields in group.items()
        for field, text in fields.items()
    }
