"""A build that is requested: its config, its source, and the values that count for it.

The command line makes a request from its flags (`cli.submit.request`), a worker from the stored
build (`worker.program.request_of`). Everything after that is the same: `compile.compile_request`,
then `execution.BuildExecution`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import msgspec
from msgspec.structs import replace

from buildrunner.errors import ConfigError, UsageError
from buildrunner.plan.build_plan import BuildOrigin
from buildrunner.plan.compile import git_source_of
from buildrunner.plan.resolve import PlanContext
from buildrunner.problem import Problem
from buildrunner.spec.model.build import (
    Build,
    BuildOptions,
    BuildStep,
    MachineType,
    PoolOption,
)
from buildrunner.spec.model.source import Source
from buildrunner.spec.reading.decode import LoadedBuild, load_build
from buildrunner.spec.substitutions.variables import BuiltIns
from buildrunner.triggers.labels import AUTODETECT

CONFIG_NAMES = ("cloudbuild.yaml", "cloudbuild.yml", "cloudbuild.json")
DOCKER_IMAGE = "gcr.io/cloud-builders/docker"
_DOCKERFILE_IMAGE = "gcr.io/$PROJECT_ID/$REPO_NAME:$COMMIT_SHA"

Event = Mapping[str, Any]
"""The payload of an event by root name, as `spec.substitutions.payload.bind` takes it."""


class LocalSource(msgspec.Struct, frozen=True, kw_only=True):
    """A source on this machine, in place of the source that the Build names.

    Attributes:
        folder: its path; None if the source is an archive.
        archive: path of an archive; empty for none.
        ignore_file: name of the ignore rules in the folder; empty for the usual ones.
    """

    folder: str | None = None
    archive: str = ""
    ignore_file: str = ""


class Overrides(msgspec.Struct, frozen=True, kw_only=True):
    """Values of a request that override its config. Unset values change nothing.

    Attributes:
        source: the source.
        timeout: the build's timeout.
        service_account: wins over the config's.
        default_service_account: counts if the config has none.
        logs_bucket: where the log is stored.
        machine_type: decides the limits of steps.
        disk_size_gb: recorded with the build.
        pool: name of the pool whose workers run the build.
        tags: added to the config's.
    """

    source: Source | None = None
    timeout: timedelta | None = None
    service_account: str = ""
    default_service_account: str = ""
    logs_bucket: str = ""
    machine_type: MachineType | None = None
    disk_size_gb: int | None = None
    pool: str = ""
    tags: tuple[str, ...] = ()

    def apply(self, build: Build) -> Build:
        """Return ``build`` with these values."""
        changes: dict[str, Any] = {}
        if self.tags:
            changes["tags"] = tuple(dict.fromkeys((*build.tags, *self.tags)))
        account = self.service_account or build.service_account or self.default_service_account
        if account != build.service_account:
            changes["service_account"] = account
        if self.timeout is not None:
            changes["timeout"] = self.timeout
        if self.logs_bucket:
            changes["logs_bucket"] = self.logs_bucket
        if self.source is not None:
            changes["source"] = self.source
        options: dict[str, Any] = {}
        if self.machine_type is not None:
            options["machine_type"] = self.machine_type
        if self.disk_size_gb is not None:
            options["disk_size_gb"] = self.disk_size_gb
        if self.pool:
            options["pool"] = PoolOption(name=self.pool)
        if options:
            changes["options"] = replace(build.options or BuildOptions(), **options)
        return replace(build, **changes) if changes else build


class RepositoryConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A config that is in the repository which the build fetches.

    Attributes:
        names: its path, or paths that are tried in this order. `AUTODETECT` stands for the usual
            names.
        of_trigger: a trigger names the config; otherwise the user does.
    """

    names: tuple[str, ...]
    of_trigger: bool

    def load(self, folder: str) -> tuple[str, LoadedBuild]:
        """Return the config's path in the repository, and the config.

        Args:
            folder: the repository's files.

        Raises:
            ConfigError: the repository has no config that the trigger names.
            UsageError: the repository has no config that the user names.
            SourceError: a path leads out of the folder, or a file can't be read.
        """
        from buildrunner.sources.git.checkout import read_file

        if self.of_trigger:
            return load_trigger_config(folder, self.names[0])
        for name in self.names:
            text = read_file(folder, name)
            if text is not None:
                return name, load_build(text, file=name)
        missing = self.names[0] if len(self.names) == 1 else CONFIG_NAMES[0]
        raise UsageError(
            f"there is no {missing} in the repository, and none in this folder",
            hint="name a config with --config FILE",
        )


class BuildRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A requested build, before its source is here.

    Attributes:
        build: the build as far as it is known, with its id and project. It is kept if the source
            can't be fetched.
        config: the config. A `LoadedBuild` was read from a file, whose stricter rules then apply.
            None if the config is in the repository.
        file: the config's path as messages name it; empty for none.
        repository: where the config is in the repository. Counts if a repository is fetched.
        overrides: values that win over the config's.
        event: returns the event's payload, for bindings in the config's substitutions. None leaves
            bindings as they stand.
        context: variables, rights and selection of steps.
        origin: the trigger and its event, for the provenance of what the build publishes.
        local: a source of this machine; None: ``build.source`` names the source.
        git_folder: the folder for files fetched from Git. Its creator deletes it. Empty: the
            cache, where the next build finds them.
        is_named_commit: the revision of ``build.source`` is a commit, even if a branch or tag has
            its name.
    """

    build: Build
    config: LoadedBuild | Build | None = None
    file: str = ""
    repository: RepositoryConfig | None = None
    overrides: Overrides = Overrides()
    event: Callable[[], Event] | None = None
    context: PlanContext = PlanContext(built_ins=BuiltIns())
    origin: BuildOrigin = BuildOrigin()
    local: LocalSource | None = None
    git_folder: str = ""
    is_named_commit: bool = False

    @property
    def git_source(self) -> Source | None:
        """The source that must be fetched before the build can be planned, or None."""
        return git_source_of(self.build) if self.local is None else None


def load_trigger_config(folder: str, name: str) -> tuple[str, LoadedBuild]:
    """Return the path and the config of a triggered build.

    Args:
        folder: the repository's files.
        name: path of the config; `AUTODETECT`: one of the usual names.

    Raises:
        ConfigError: there is no such file.
        SourceError: the path leads out of the folder, or the file can't be read.

    Source: ``BuildTrigger.filename`` and ``autodetect``: cloudbuild.yaml, .yml, .json, Dockerfile,
        in the repository's root, in whatever case.
    """
    from buildrunner.sources.git.checkout import read_file

    if name != AUTODETECT:
        text = read_file(folder, name)
        if text is None:
            raise ConfigError([Problem("there is no such file in the repository", file=name)])
        return name, load_build(text, file=name)
    there = {entry.lower(): entry for entry in sorted(os.listdir(folder), reverse=True)}
    for wanted in CONFIG_NAMES:
        entry = there.get(wanted)
        text = read_file(folder, entry) if entry else None
        if entry and text is not None:
            return entry, load_build(text, file=entry)
    if "dockerfile" in there:
        text = read_file(folder, there["dockerfile"]) or b""
        build = dockerfile_build(_DOCKERFILE_IMAGE, cache=False)
        sha256 = hashlib.sha256(text).hexdigest()
        return "Dockerfile", LoadedBuild(build, (), file=there["dockerfile"], sha256=sha256)
    listed = ", ".join(CONFIG_NAMES)
    raise ConfigError([Problem(f"the repository has neither {listed} nor a Dockerfile")])


def dockerfile_build(tag: str, *, cache: bool) -> Build:
    """Return the build that gcloud makes of ``--tag``: one ``docker build``, then the push.

    The build differs in two things: it runs the docker builder, not ``gcb-internal``, and keeps the
    layers of earlier builds unless ``cache`` is False (the hosted machine is always new).

    Source: ``gcloud builds submit --tag``.
    """
    arguments = ["build", "--network", "cloudbuild", *([] if cache else ["--no-cache"])]
    step = BuildStep(name=DOCKER_IMAGE, args=(*arguments, "-t", tag, "."))
    return Build(steps=(step,), images=(tag,))
