"""``submit --triggered`` and ``submit --trigger FILE``: a build as a trigger would make it.

The values that an event would bring come from the Git repository that the source folder lies in.

Source: semantics 4.7 (triggered builds are loose and dynamic) and 9.5 (what each event sets).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec.structs import replace

from buildrunner.errors import ConfigError, SourceError, UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from buildrunner.cli.build_request import BuildRequest
    from buildrunner.sources.git_folder import FolderCommit
    from buildrunner.spec.decode import Loaded, LoadedBuild  # noqa: TC004  (never decoded)
    from buildrunner.spec.model import Build
    from buildrunner.spec.trigger import BuildTrigger  # noqa: TC004
    from buildrunner.spec.variables import BuiltIns

# With this rules file, a folder is sent whole, with its .git, as a trigger's checkout has it.
_NO_RULES: Final = os.devnull
_GIT_RULES: Final = ".gitignore"


class TriggerFile(msgspec.Struct, frozen=True, kw_only=True):
    """A trigger of a file.

    Attributes:
        trigger: the trigger.
        file: path of the file.
        build: the trigger's inline build with its places in the file; None: its config is a file.
    """

    trigger: BuildTrigger
    file: str
    build: LoadedBuild | None = None

    @property
    def config(self) -> str:
        """Path of the config in the repository; empty for an inline build, or the usual names."""
        file = self.trigger.git_file_source
        return file.path if file is not None else self.trigger.filename or ""


class TriggerValues(msgspec.Struct, frozen=True, kw_only=True):
    """What a build gets because a trigger makes it.

    Attributes:
        facts: values of `BuiltIns` by field name.
        substitutions: the trigger's own; values of ``--substitutions`` win.
        tags: the trigger's tags.
        service_account: the trigger's account.
        source_dir: folder of the source that the work starts in.
        warnings: sentences about what an event would have brought.
    """

    facts: dict[str, Any] = {}
    substitutions: dict[str, str] = {}
    tags: tuple[str, ...] = ()
    service_account: str = ""
    source_dir: str = ""
    warnings: tuple[str, ...] = ()

    def apply(self, build: Build) -> Build:
        """The build with what the trigger adds to its config."""
        return replace(
            build,
            substitutions=without_event(build.substitutions, {})[0],
            tags=tuple(dict.fromkeys((*build.tags, *self.tags))),
            service_account=build.service_account or self.service_account,
        )


def read_trigger(path: str) -> TriggerFile:
    """The trigger that ``--trigger FILE`` or ``--trigger FILE#NAME`` names.

    Raises:
        UsageError: the file can't be read, or does not hold exactly one such trigger.
        ConfigError: the trigger is wrong; holds all problems.
    """
    from buildrunner.cli.trigger_files import load_trigger_file
    from buildrunner.spec.validate import errors_of

    file, name = path, ""
    if not os.path.exists(path) and "#" in path:
        file, _, name = path.rpartition("#")
    loaded, problems = load_trigger_file(file)
    if any((problem.rule, problem.path) == ("unknown-field", "steps") for problem in problems):
        raise UsageError(
            f"{file} is a build config, not a trigger",
            hint=f"--config {file} --triggered builds it as a trigger would",
        )
    if errors_of(problems):
        raise ConfigError(problems)
    names = ", ".join(one.value.name for one in loaded)
    chosen = [one for one in loaded if not name or one.value.name == name]
    if not chosen:
        raise UsageError(f"{file} has no trigger {name}", hint=f"it has {names}")
    if len(chosen) > 1:
        hint = f"name one of {names}: --trigger {file}#NAME"
        raise UsageError(f"{file} holds {len(chosen)} triggers", hint=hint)
    return TriggerFile(trigger=chosen[0].value, file=file, build=_inline_build(chosen[0]))


def _inline_build(loaded: Loaded[BuildTrigger]) -> LoadedBuild | None:
    from buildrunner.spec.decode import LoadedBuild

    if loaded.value.build is None:
        return None
    nodes = {key.value: value for key, value in loaded.root.value}
    return LoadedBuild(loaded.value.build, (), nodes["build"])


def trigger_values(
    request: BuildRequest, found: TriggerFile | None, given: dict[str, str]
) -> TriggerValues:
    """What the build gets from the trigger, and from the repository in place of an event.

    Args:
        request: which source.
        found: the trigger; None for any.
        given: ``--substitutions``. A branch or tag among them says which of the two is built.

    Raises:
        UsageError: the trigger's config lies in another repository.
    """
    from buildrunner.spec.trigger import BuildTrigger

    trigger = found.trigger if found else BuildTrigger()
    warnings: list[str] = []
    commit = _commit(request, warnings)
    _check_config_source(trigger, commit)
    facts = _revision_facts(trigger, commit, given, warnings) if commit else {}
    facts["trigger_name"] = trigger.name
    facts["config_path"] = _config_path(request, found, commit)
    if trigger.github is not None:
        facts["repo_full_name"] = f"{trigger.github.owner}/{trigger.github.name}"
    facts["service_account_email"] = trigger.service_account.rpartition("/")[2]
    bound, unbound = without_event(trigger.substitutions, given)
    warnings += unbound
    return TriggerValues(
        facts=facts,
        substitutions=bound,
        tags=trigger.tags,
        service_account=trigger.service_account,
        source_dir=trigger.trigger_template.dir if trigger.trigger_template else "",
        warnings=tuple(warnings),
    )


def _commit(request: BuildRequest, warnings: list[str]) -> FolderCommit | None:
    """The commit that the source folder is at; None when the source is something else."""
    from buildrunner.sources.git_folder import commit_of_folder

    if request.folder is None:
        return None
    try:
        commit = commit_of_folder(request.folder)
    except SourceError as error:
        advice = f"; {error.hint}" if error.hint else ""
        warnings.append(f"$COMMIT_SHA, $BRANCH_NAME and the like are empty: {error}{advice}")
        return None
    if commit is None:
        warnings.append(
            f"{os.path.abspath(request.folder)} is at no commit of a Git repository: "
            "$COMMIT_SHA, $BRANCH_NAME and the like are empty"
        )
    elif commit.changed:
        warnings.append(
            f"the source holds changes that commit {commit.commit_sha[:7]} has not: "
            "$COMMIT_SHA names that commit all the same"
        )
    if commit and os.path.realpath(request.folder) != commit.root:
        warnings.append(
            f"a trigger builds the whole repository, and the source is a folder of {commit.root}"
        )
    return commit


def _check_config_source(trigger: BuildTrigger, commit: FolderCommit | None) -> None:
    """Refuse a config of a repository that is not the source."""
    from buildrunner.triggers.forge_host import repository_key

    file = trigger.git_file_source
    place = (file.uri or file.repository or "") if file is not None else ""
    if place and repository_key(place) != repository_key(commit.url if commit else ""):
        raise UsageError(
            f"trigger {trigger.name} takes its config from another repository: {place}",
            hint="fetch that config, and build with --config FILE --triggered",
        )


def _revision_facts(
    trigger: BuildTrigger, commit: FolderCommit, given: dict[str, str], warnings: list[str]
) -> dict[str, Any]:
    """Commit, and the branch, tag or pull request that an event would name."""
    from buildrunner.triggers.trigger_repository import event_config
    from buildrunner.triggers.trigger_source import literal_name

    config, template = event_config(trigger), trigger.trigger_template
    push = config.push if config else None
    branch, tag = given.get("BRANCH_NAME", commit.branch), given.get("TAG_NAME", commit.tag)
    wants_tag = bool(push and push.tag) or bool(template and template.tag_name)
    if "BRANCH_NAME" not in given and (wants_tag or "TAG_NAME" in given or not branch):
        branch = ""
    else:
        tag = ""
    if wants_tag and not tag:
        warnings.append(
            f"the trigger builds tags, and commit {commit.commit_sha[:7]} has none: $TAG_NAME is "
            "empty; --substitutions=TAG_NAME=... names one"
        )
    facts: dict[str, Any] = {
        "commit_sha": commit.commit_sha,
        "branch": branch,
        "tag": tag,
        "repo_full_name": commit.full_name,
    }
    if config is not None and config.pull_request is not None:
        facts["pull_request"] = {
            "_HEAD_BRANCH": branch,
            "_BASE_BRANCH": literal_name(config.pull_request.branch or ""),
            "_HEAD_REPO_URL": _page(commit.url),
            "_PR_NUMBER": "",
        }
    return facts


def _page(url: str) -> str:
    """The address of a repository as people know it: https://HOST/OWNER/NAME."""
    from buildrunner.sources.git_url import parse_git_url

    if not url:
        return ""
    parsed = parse_git_url(url)
    path = parsed.path.removesuffix(".git")
    return (
        f"https://{parsed.host}/{path}" if parsed.transport == "ssh" else url.removesuffix(".git")
    )


def _config_path(
    request: BuildRequest, found: TriggerFile | None, commit: FolderCommit | None
) -> str:
    """``$TRIGGER_BUILD_CONFIG_PATH``: the config's path in the repository."""
    if found is not None:
        return found.config
    if request.tag or not request.config:
        return ""
    if commit is None:
        return request.config
    path = os.path.relpath(os.path.realpath(request.config), commit.root)
    return "" if path.startswith("..") else path


def without_event(
    substitutions: Mapping[str, str], given: Mapping[str, str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Substitutions whose bindings to an event are empty, and a warning for each binding.

    Args:
        substitutions: of a trigger, or of its config.
        given: values that win over them.
    """
    from buildrunner.spec.bindings import ROOTS, bind

    bound = bind(substitutions, {root: {} for root in ROOTS})
    warnings = []
    for binding in bound.missing:
        name = next(
            (
                name
                for name, value in substitutions.items()
                if binding in value and name not in given
            ),
            "",
        )
        if name:
            warnings.append(
                f"{binding} comes from the event that fires the trigger and is empty here: "
                f"--substitutions={name}=... gives a value"
            )
    return bound.values, tuple(warnings)


def ignore_file_of(request: BuildRequest, args: argparse.Namespace) -> str:
    """The rules for what a triggered build is not sent: those of Git, since a trigger fetches.

    ``.gcloudignore`` is for ``gcloud builds submit``: a trigger's checkout has what it leaves out,
    and ``.git``.
    """
    folder = request.folder
    if args.ignore_file or folder is None or not os.path.exists(os.path.join(folder, ".git")):
        return str(args.ignore_file)
    return _GIT_RULES if os.path.exists(os.path.join(folder, _GIT_RULES)) else _NO_RULES


def substitutions_of(built_ins: BuiltIns) -> dict[str, str]:
    """The built-in variables that a caller may set: for a server, which knows no trigger."""
    from buildrunner.spec.variables import may_be_set

    return {name: value for name, value in built_ins.values().items() if value and may_be_set(name)}
