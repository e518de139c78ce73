"""What is to be built, what it becomes once it is planned, and what came of it.

Said between whoever wants a build (the command line, a server's process for one build) and
`build_execution`, which executes it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from buildrunner.engine.namespaces import NamespacePool
from buildrunner.engine.outcome import BuildOutcome
from buildrunner.engine.protocols import Attester, PackagePublisher
from buildrunner.engine.run_options import RunOptions
from buildrunner.errors import BuildrunnerError
from buildrunner.plan.build_plan import BuildOrigin, BuildPlan
from buildrunner.plan.compile import git_source_of
from buildrunner.spec.model.build import Build
from buildrunner.spec.model.source import Source
from buildrunner.spec.reading.decode import LoadedBuild
from buildrunner.spec.substitutions.variables import BuiltIns
from buildrunner.workspace.protocol import Workspace

if TYPE_CHECKING:
    from buildrunner.sources.git.source import GitCheckout


class LocalSource(msgspec.Struct, frozen=True, kw_only=True):
    """A source of this machine, in place of what the Build names.

    Attributes:
        folder: its path; None for none.
        archive: path of an archive; empty for none.
        ignore_file: name of the ignore rules in the folder; empty for the usual ones.
    """

    folder: str | None = None
    archive: str = ""
    ignore_file: str = ""


class PlannedBuild(msgspec.Struct, frozen=True, kw_only=True):
    """A build that can run.

    Attributes:
        build: what is kept: with its id, substitutions made.
        plan: its plan.
        options: how it is run.
        publisher: publishes its packages; None for a plan without any.
        attester: attests what it publishes; None attests nothing.
        workspace: fills ``/workspace``; None: with what the order says.
        namespaces: see `run_build`.
    """

    build: Build
    plan: BuildPlan
    options: RunOptions = RunOptions()
    publisher: PackagePublisher | None = None
    attester: Attester | None = None
    workspace: Workspace | None = None
    namespaces: NamespacePool | None = None


Planner = Callable[["GitCheckout | None"], PlannedBuild]
"""Plans a build once its source is known: the fetched commit, or None for any other source. Raises
`ConfigError` or `UsageError` when it can't be planned."""


class BuildOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be built, and on what.

    Attributes:
        build: as asked for; its id, timeout and source count before there is a plan, and it is
            what is kept when the source can't be had.
        local: a source of this machine; None: ``build.source`` says what is fetched.
        git_folder: what is fetched from Git goes there, and not into the cache; whoever made the
            folder removes it. Empty: into the cache, for the next build.
    """

    build: Build
    local: LocalSource | None = None
    git_folder: str = ""

    @property
    def git_source(self) -> Source | None:
        """The source that must be fetched before the build can be planned; None: there is none."""
        return git_source_of(self.build) if self.local is None else None


class ExecutedBuild(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it.

    Attributes:
        outcome: goes into the Build with `engine.results.apply_outcome`.
        error: why the build could not be planned on its source; None mostly.
    """

    outcome: BuildOutcome
    error: BuildrunnerError | None = None


def origin_of(
    loaded: LoadedBuild, checkout: GitCheckout | None, *, config_in_source: bool
) -> BuildOrigin:
    """The config and the commit of a build, as they were read and fetched.

    Args:
        loaded: the config.
        checkout: the fetched source; None for a source that is no Git repository.
        config_in_source: the config was read from that source.
    """
    # An absolute path says nothing about the source, but much about the user's machine.
    file = os.path.basename(loaded.file) if os.path.isabs(loaded.file) else loaded.file
    origin = BuildOrigin(config=file, config_sha256=loaded.sha256)
    if checkout is None:
        return origin
    found = checkout.resolved
    branch = found.branch and f"refs/heads/{found.branch}"
    tag = found.tag and f"refs/tags/{found.tag}"
    return msgspec.structs.replace(
        origin,
        repository=found.url,
        commit=found.commit_sha,
        ref=branch or tag,
        config_in_source=config_in_source,
    )


def with_commit(built_ins: BuiltIns, checkout: GitCheckout | None) -> BuiltIns:
    """The built-in variables, with what the commit says where nobody (a trigger) has said more."""
    if checkout is None:
        return built_ins
    found = checkout.resolved
    named = built_ins.branch or built_ins.tag
    return msgspec.structs.replace(
        built_ins,
        commit_sha=found.commit_sha,
        branch=built_ins.branch if named else found.branch,
        tag=built_ins.tag if named else found.tag,
        repo_full_name=built_ins.repo_full_name or found.repo_full_name,
    )
