"""The compiled form of a build, with every decision made.

A plan has no templates (``$``), no YAML and no open defaults. It can be converted to JSON and back
(`to_json`, `from_json`), is stored with the build, and has references to secrets, never values.
"""

from __future__ import annotations

import re
import uuid
import zlib
from typing import Final

import msgspec

_CONTROLS: Final = r"[\x00-\x1f\x7f-\x9f\u2028\u2029]"


class SecretReference(msgspec.Struct, frozen=True):
    """The source of one secret environment variable's value.

    Attributes:
        env: the variable's name in the step.
        kind: ``secretManager`` or ``kms``.
        name: secret version name, or KMS key name.
        ciphertext: base64 ciphertext for ``kms``; empty otherwise.
    """

    env: str
    kind: str
    name: str
    ciphertext: str = ""


class VolumeMount(msgspec.Struct, frozen=True):
    """A named volume of the build, mounted at an absolute path of one step."""

    name: str
    path: str


class StepPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One step, ready to run.

    Attributes:
        index: position in the whole build, from 0.
        id: the step's ``id``; empty if it has none.
        image: image to run, after substitution and before aliases.
        entrypoint: program to run; None keeps the image's entrypoint.
        args: arguments; None keeps the image's default command.
        script: text of an inline script, always with a ``#!`` line; None if there is none.
            It excludes ``entrypoint`` and ``args``.
        env: ``KEY=VALUE`` sorted by key, one entry per key, without HOME, BUILDER_OUTPUT and
            secrets (HOME appears only if the user set it).
        secrets: secret variables that this step gets, sorted by name.
        workdir: absolute, lexically clean.
        volumes: named volumes, global ones first.
        depends_on: positions, in the plan, of steps that must have succeeded (or been forgiven),
            ascending.
        timeout_s: limit of the run itself, without the pull; None for no limit.
        allow_failure: any failure is forgiven (unless ``allow_exit_codes`` is set).
        allow_exit_codes: if not empty, only these codes are forgiven.
        pinned_images: images by digest for a rollback; see `pinned_images`.
    """

    index: int
    image: str
    id: str = ""
    entrypoint: str | None = None
    args: tuple[str, ...] | None = None
    script: str | None = None
    env: tuple[str, ...] = ()
    secrets: tuple[SecretReference, ...] = ()
    workdir: str = "/workspace"
    volumes: tuple[VolumeMount, ...] = ()
    depends_on: tuple[int, ...] = ()
    timeout_s: float | None = None
    allow_failure: bool = False
    allow_exit_codes: tuple[int, ...] = ()
    pinned_images: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Return ``Step #0`` or ``Step #0 - "id"``, the step's name in Cloud Build's log."""
        return f'Step #{self.index} - "{self.shown_id}"' if self.id else f"Step #{self.index}"

    @property
    def shown_id(self) -> str:
        """Return the id on one line, without control codes, since every line of the log has it."""
        if self.id.isprintable():
            return self.id
        return re.sub(_CONTROLS, lambda found: found[0].encode("unicode_escape").decode(), self.id)

    def forgives(self, exit_code: int) -> bool:
        """Return whether the build continues after a run with ``exit_code`` (not 0)."""
        if self.allow_exit_codes:
            return exit_code in self.allow_exit_codes
        return self.allow_failure


class ResourceLimits(msgspec.Struct, frozen=True):
    """Limits of one step's use of the machine; None is no limit."""

    cpus: float | None = None
    memory_bytes: int | None = None


class PackageUpload(msgspec.Struct, frozen=True, kw_only=True):
    """A package to publish once all steps have succeeded.

    Attributes:
        kind: ``maven``, ``maven-folder``, ``python``, ``npm``, ``go`` or ``generic``.
        repository: address of the repository, without a slash at its end. For generic files, it
            may be ``projects/P/locations/L/repositories/R``, which is no address.
        paths: absolute, below ``/workspace``: a file (maven), globs (python), a folder (npm, go,
            maven-folder), either (generic).
        group: Maven's group id.
        name: Maven's artifact id, the path of a Go module, or the package of generic files.
        version: version of the Maven artifact, Go module or package of generic files.
    """

    kind: str
    repository: str
    paths: tuple[str, ...]
    group: str = ""
    name: str = ""
    version: str = ""

    @property
    def label(self) -> str:
        """Return the package's name for users: ``maven g:a:1``, ``python dist/*``."""
        if self.kind == "maven":
            return f"maven {self.group}:{self.name}:{self.version}"
        if self.kind == "go":
            return f"go {self.name}@{self.version}"
        if self.kind == "generic" and self.name:
            return f"generic {self.name}@{self.version}"
        kind = "maven" if self.kind == "maven-folder" else self.kind
        return f"{kind} {' '.join(path.removeprefix('/workspace/') for path in self.paths)}"


class BuildOrigin(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about a build's source and config that buildrunner itself found out.

    No caller and no substitution can set these.

    Attributes:
        repository: URL of the Git repository that was fetched; empty for another source.
        commit: SHA of the commit that was fetched.
        ref: ``refs/heads/BRANCH`` or ``refs/tags/TAG`` that named the commit; empty if a SHA did,
            and for the code of a fork.
        config: path of the config file; empty for a config that came in a request.
        config_sha256: SHA-256 of the config file, in hex.
        config_in_source: the config file is one of the repository's, at that commit.
        trigger: id of the trigger; empty for none.
        trigger_name: its name.
        untrusted: the code or the config comes from a fork.
    """

    repository: str = ""
    commit: str = ""
    ref: str = ""
    config: str = ""
    config_sha256: str = ""
    config_in_source: bool = False
    trigger: str = ""
    trigger_name: str = ""
    untrusted: bool = False


class BuildPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A whole build, ready to run.

    Attributes:
        build_id: id of the build.
        project_id: its project.
        steps: the steps, in list order. A resumed build lacks the reused steps. A part of a build
            lacks the steps that the user left out. The other steps keep their indexes.
        images: images to push after the steps, in order, after substitution.
        tags: tags of the build, cleaned.
        timeout_s: limit of the whole build from its start, source fetch included.
        volumes: names of all volumes that the steps mount, each once, in order of first use.
        docker_socket: steps get the engine's socket.
        privileged: steps run privileged.
        limits: limits for each step.
        store_log: False only for ``logging: NONE``.
        substitutions: every known variable with its final value (no secrets); shown by
            ``--dry-run``.
        object_location: ``gs://`` or ``file://`` folder for ``artifacts.objects``; empty for none.
        object_paths: globs of the files to upload there.
        packages: packages to publish, in this order.
        left_out: labels of the steps and uploads that the user chose to leave out; empty for the
            whole build.
        source_dir: ``source.dir``: relative folder in which the work starts; empty for the root.
        origin: the source and the config that the plan was made from.
    """

    build_id: str
    project_id: str
    steps: tuple[StepPlan, ...]
    images: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    timeout_s: float = 3600.0
    volumes: tuple[str, ...] = ()
    docker_socket: bool = True
    privileged: bool = False
    limits: ResourceLimits = ResourceLimits()
    store_log: bool = True
    substitutions: dict[str, str] = {}
    object_location: str = ""
    object_paths: tuple[str, ...] = ()
    packages: tuple[PackageUpload, ...] = ()
    source_dir: str = ""
    left_out: tuple[str, ...] = ()
    origin: BuildOrigin = BuildOrigin()

    @property
    def names_steps(self) -> bool:
        """Return whether the whole build has several steps, so each log line names its step."""
        return len(self.steps) > 1 or any(step.index for step in self.steps)

    def to_json(self) -> bytes:
        """Return the plan as JSON; `from_json` restores an equal plan."""
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, data: bytes) -> BuildPlan:
        """Return the plan from the JSON of `to_json`."""
        return msgspec.json.decode(data, type=cls)


def new_build_id() -> str:
    """Return a random UUID (version 4), the form of ids of builds and triggers."""
    return str(uuid.uuid4())


def project_number(project_id: str) -> str:
    """Return a fixed number for a project: twelve digits, as real ones have."""
    return str(100_000_000_000 + zlib.crc32(project_id.encode()))
