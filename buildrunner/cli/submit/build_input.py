"""The config and the source that a command line of ``submit`` names."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from buildrunner.build_run.request import CONFIG_NAMES
from buildrunner.errors import ConfigError, SourceError, StorageError, UsageError
from buildrunner.problem import nearest
from buildrunner.sources.git.folder import FolderCommit
from buildrunner.spec.model import git_address
from buildrunner.spec.model.source import Source, StorageSource, StorageSourceManifest
from buildrunner.spec.model.trigger import BuildTrigger
from buildrunner.spec.reading.decode import Loaded, LoadedBuild
from buildrunner.spec.substitutions.variables import BuiltIns
from buildrunner.storage.object_store import ObjectUrl, parse_object_url

_STDIN = "/dev/stdin"
_CONFIG_ENDINGS = (".yaml", ".yml", ".json")
_ARCHIVE_ENDINGS = (".tgz", ".gz", ".tar", ".zip")
_OBJECT = "gs://"
_GIT = ("http://", "https://", "ssh://", "git://", "git+ssh://", "file://")
_SCP_FORM = re.compile(r"[\w.-]+@[\w.-]+:.+")
_CONNECTED = re.compile(r"projects/[^/]+/locations/[^/]+/connections/[^/]+/repositories/[^/]+")
_LINK = re.compile(r"projects/[^/]+/locations/[^/]+/connections/[^/]+/gitRepositoryLinks/.+")


class BuildInput(msgspec.Struct, frozen=True, kw_only=True):
    """A config and a source.

    Attributes:
        config: path of the config, as messages name it; empty with ``tag``, and where the
            repository has one under a usual name.
        in_repository: the config is in the Git source, not on this machine.
        tag: image to build from the folder's Dockerfile; empty with a config.
        folder: the source; None for an empty workspace, or a source of another kind.
        archive: path of an archive that is the source; empty for none.
        object_url: ``gs://`` URL of an archive or manifest that is the source; empty for none.
        git: a Git repository that is the source.
        note: a sentence for users of gcloud, who might expect another config; mostly empty.
        trigger: the trigger whose build is run; None: the config's.
        triggered: values that the build gets because a trigger makes it; None: no trigger does.
    """

    config: str = ""
    in_repository: bool = False
    tag: str = ""
    folder: str | None = "."
    archive: str = ""
    object_url: str = ""
    git: Source | None = None
    note: str = ""
    trigger: TriggerFile | None = None
    triggered: TriggerValues | None = None


def find_input(args: argparse.Namespace) -> BuildInput:
    """Return the input that ``[CONFIG | SOURCE]`` and the flags of sources choose together.

    With ``--trigger``, the trigger names the config.

    Raises:
        ConfigError: the trigger is wrong.
        UsageError: the arguments contradict each other, or name something that does not exist.
    """
    for address in (args.subject, args.source, args.git_source):
        if address and git_address.has_password(address):
            raise UsageError(git_address.MESSAGE, hint=git_address.HINT)
    subject, flag = args.subject, args.config
    if subject == "-" and flag is None:
        subject, flag = None, "-"
    config, source = _split_subject(subject, _STDIN if flag == "-" else flag, _source_flag(args))
    if args.no_source and source is not None:
        raise UsageError(
            f"--no-source and the source {source} contradict each other", hint="leave one out"
        )
    place = BuildInput(folder=None) if args.no_source else _place(source or ".", args)
    if place.git is None and (args.git_source_revision or args.git_source_dir):
        flag = "--git-source-revision" if args.git_source_revision else "--git-source-dir"
        raise UsageError(f"{flag} goes with a Git source", hint="name one with --git-source URL")
    if args.trigger:
        return _trigger_request(args, config, place, is_default=source is None)
    if args.tag:
        return _tag_request(args, config, place)
    if place.git is not None:
        return _with_git_config(place, config)
    note = ""
    if config is not None:
        _check_config(config)
    else:
        config, note = _find_config(place.folder or ".")
    return msgspec.structs.replace(place, config=config, note=note)


def _source_flag(args: argparse.Namespace) -> str | None:
    if args.source and args.git_source:
        raise UsageError(f"two sources: --source {args.source} and --git-source {args.git_source}")
    flag: str | None = args.git_source or args.source
    return flag


def _is_git(source: str) -> bool:
    return source.startswith(_GIT) or (
        _SCP_FORM.fullmatch(source) is not None and not os.path.exists(source)
    )


def _place(source: str, args: argparse.Namespace) -> BuildInput:
    """Return an input with nothing but the source."""
    git = _git_source(source, args)
    if git is not None:
        return BuildInput(folder=None, git=git)
    if source.startswith(_OBJECT):
        return BuildInput(folder=None, object_url=source)
    if source.endswith(_ARCHIVE_ENDINGS) and not os.path.isdir(source):
        if not os.path.exists(source):
            raise _no_source(source)
        return BuildInput(folder=None, archive=source)
    return BuildInput(folder=source)


def _git_source(source: str, args: argparse.Namespace) -> Source | None:
    """Return the source if it is a Git repository; None for anything else.

    Source: gcloud takes http(s) URLs for ``gitSource``, resource names for
        ``connectedRepository``; the other transports of Git are an extension.
    """
    from buildrunner.spec.model.source import ConnectedRepository, GitSource

    revision, folder = args.git_source_revision, args.git_source_dir
    if _LINK.fullmatch(source):
        raise UsageError(
            "Developer Connect links exist only inside Google Cloud",
            hint="name the repository's URL",
        )
    if folder.startswith("/") or ".." in folder.split("/"):
        raise UsageError(f"--git-source-dir {folder} is not a folder of the repository")
    if _CONNECTED.fullmatch(source) and not os.path.exists(source):
        return Source(
            connected_repository=ConnectedRepository(
                repository=source, revision=revision, dir=folder
            )
        )
    if source == args.git_source or _is_git(source):
        return Source(git_source=GitSource(url=source, revision=revision, dir=folder))
    return None


def _with_git_config(place: BuildInput, config: str | None) -> BuildInput:
    """Return the input with a config of this machine, or else of the repository.

    Source: gcloud reads the config of the current folder. The repository's own config as the
        fallback is an extension, and is what triggers do.
    """
    if config is None:
        here = _first_config(".")
        note = (
            f"building with {here} of this folder, not with one of the repository" if here else ""
        )
        return msgspec.structs.replace(place, config=here, in_repository=not here, note=note)
    if os.path.exists(config):
        _check_config(config)
        return msgspec.structs.replace(place, config=config)
    if os.path.isabs(config) or ".." in config.split("/"):
        raise UsageError(f"there is no config {config}, and it is no path in the repository")
    return msgspec.structs.replace(place, config=os.path.normpath(config), in_repository=True)


def _no_source(source: str) -> UsageError:
    return UsageError(
        f"could not find source [{source}]",
        hint="name a folder, an archive, or a config that ends in .yaml, .yml or .json",
    )


def _split_subject(
    subject: str | None, config: str | None, source: str | None
) -> tuple[str | None, str | None]:
    if subject is None:
        return config, source
    if _is_source(subject):
        if source is not None:
            raise UsageError(f"two sources: {subject} and {source}")
        return config, subject
    if not subject.endswith(_CONFIG_ENDINGS) and not os.path.exists(subject):
        raise _no_source(subject)
    if config is not None:
        raise UsageError(f"two configs: {subject} and --config {config}")
    return subject, source


def _is_source(subject: str) -> bool:
    return (
        subject.startswith(_OBJECT)
        or _is_git(subject)
        or subject.endswith(_ARCHIVE_ENDINGS)
        or os.path.isdir(subject)
        or _CONNECTED.fullmatch(subject) is not None
        or _LINK.fullmatch(subject) is not None
    )


def _check_config(config: str) -> None:
    if os.path.isdir(config):
        raise UsageError(f"{config} is a folder, but --config takes a file")
    if os.path.exists(config):
        return
    folder = os.path.dirname(config)
    try:
        names = [name for name in os.listdir(folder or ".") if name.endswith(_CONFIG_ENDINGS)]
    except OSError:
        names = []
    near = nearest(os.path.basename(config), names)
    hint = f"did you mean {os.path.join(folder, near)}?" if near else ""
    raise UsageError(f"there is no config {config}", hint=hint)


def _find_config(folder: str) -> tuple[str, str]:
    found = _first_config(folder)
    here = _first_config(".")
    if not found and not here:
        raise UsageError(
            f"there is no {CONFIG_NAMES[0]} in {_named(folder)}",
            hint="name a config with --config FILE, or build a Dockerfile with --tag IMAGE",
        )
    if found and here and not os.path.samefile(found, here):
        return found, f"building with {found}, not with ./{here}; --config FILE chooses"
    return found or here, ""


def _first_config(folder: str) -> str:
    for name in CONFIG_NAMES:
        path = os.path.normpath(os.path.join(folder, name))
        if os.path.isfile(path):
            return path
    return ""


def _tag_request(args: argparse.Namespace, config: str | None, place: BuildInput) -> BuildInput:
    # Source: `gcloud builds submit --tag`: the folder must hold a file named exactly Dockerfile.
    if config is not None:
        raise UsageError(f"--tag builds without a config, but {config} is one")
    if args.no_source:
        raise UsageError("--tag builds the Dockerfile of a folder: --no-source leaves none")
    if place.folder is not None and "Dockerfile" not in os.listdir(place.folder):
        raise UsageError(
            f"there is no Dockerfile in {_named(place.folder)}",
            hint="the name must be exactly that",
        )
    return msgspec.structs.replace(place, tag=args.tag)


def _trigger_request(
    args: argparse.Namespace, config: str | None, place: BuildInput, *, is_default: bool
) -> BuildInput:
    """Return the input for a trigger's build, with its own source unless another is named."""
    if config is not None or args.tag:
        other = config or f"--tag {args.tag}"
        raise UsageError(f"the trigger says what is built, and so does {other}: leave one out")
    found = read_trigger(args.trigger)
    if found.build is not None:
        if found.build.value.source is not None and is_default:
            place = BuildInput(folder=None)
        return msgspec.structs.replace(place, config=found.file, trigger=found)
    return msgspec.structs.replace(
        place, config=found.config, in_repository=place.git is not None, trigger=found
    )


def _named(folder: str) -> str:
    return "this folder" if folder == "." else folder


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
    """Values that a trigger adds to its build.

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


def read_trigger(path: str) -> TriggerFile:
    """Read the trigger that ``--trigger FILE`` or ``--trigger FILE#NAME`` names.

    Raises:
        UsageError: the file can't be read, or does not hold exactly one matching trigger.
        ConfigError: the trigger is wrong; holds all problems.
    """
    from buildrunner.spec.validation.check import errors_of
    from buildrunner.triggers.check import load_trigger_file

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

    if loaded.value.build is None:
        return None
    nodes = {key.value: value for key, value in loaded.root.value}
    return LoadedBuild(loaded.value.build, (), nodes["build"])


def trigger_values(
    request: BuildInput, found: TriggerFile | None, given: dict[str, str]
) -> TriggerValues:
    """Return values from the trigger, and from the repository in place of an event.

    Args:
        request: names the source.
        found: the trigger; None for any.
        given: ``--substitutions``. They may name the branch or tag that is built.

    Raises:
        UsageError: the trigger's config lies in another repository.
    """
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


def _commit(request: BuildInput, warnings: list[str]) -> FolderCommit | None:
    """Return the commit of the source folder; None for other sources."""
    from buildrunner.sources.git.folder import commit_of_folder

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
    """Return the commit, and the branch, tag or pull request that an event would name."""
    from buildrunner.triggers.repository import event_config, literal_name

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
    """Return the address of a repository's web page: https://HOST/OWNER/NAME."""
    from buildrunner.sources.git.url import parse_git_url

    if not url:
        return ""
    parsed = parse_git_url(url)
    path = parsed.path.removesuffix(".git")
    return (
        f"https://{parsed.host}/{path}" if parsed.transport == "ssh" else url.removesuffix(".git")
    )


def _config_path(
    request: BuildInput, found: TriggerFile | None, commit: FolderCommit | None
) -> str:
    """Return ``$TRIGGER_BUILD_CONFIG_PATH``: the config's path in the repository."""
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
    """Return substitutions whose bindings to an event are empty, and a warning for each binding.

    Args:
        substitutions: of a trigger.
        given: values that win over them.
    """
    from buildrunner.spec.substitutions.payload import bind

    bound = bind(substitutions, no_event())
    users = {
        binding: [name for name, value in substitutions.items() if binding in value]
        for binding in bound.missing
    }
    return bound.values, unbound_warnings(users, given)


def no_event() -> dict[str, Any]:
    """Return the payload of a build that no event has fired: every binding is empty."""
    from buildrunner.spec.substitutions.payload import ROOTS

    return {root: {} for root in ROOTS}


def unbound_warnings(
    unbound: Mapping[str, Sequence[str]], given: Mapping[str, str]
) -> tuple[str, ...]:
    """Return a warning for each binding that leaves a variable without a value.

    Args:
        unbound: bindings, each with the variables that use it.
        given: values of variables that need no binding.
    """
    warnings = []
    for binding, names in unbound.items():
        name = next((name for name in names if name not in given), "")
        if name:
            warnings.append(
                f"{binding} comes from the event that fires the trigger and is empty here: "
                f"--substitutions={name}=... gives a value"
            )
    return tuple(warnings)


def ignore_file_of(request: BuildInput, args: argparse.Namespace) -> str:
    """Return the ignore file of a triggered build: Git's own rules, since a trigger fetches.

    ``.gcloudignore`` is for ``gcloud builds submit``: a trigger's checkout has the ignored files,
    and ``.git``.
    """
    folder = request.folder
    if args.ignore_file or folder is None or not os.path.exists(os.path.join(folder, ".git")):
        return str(args.ignore_file)
    return _GIT_RULES if os.path.exists(os.path.join(folder, _GIT_RULES)) else _NO_RULES


def substitutions_of(built_ins: BuiltIns) -> dict[str, str]:
    """Return the built-in variables that a caller may set, for a server without a trigger."""
    from buildrunner.spec.substitutions.variables import may_be_set

    return {name: value for name, value in built_ins.values().items() if value and may_be_set(name)}


def source_of(url: str) -> Source:
    """Return the source that ``gs://bucket/object`` names: a manifest if it ends in ``.json``.

    Raises:
        UsageError: the URL names no object.

    Source: gcloud takes a ``.json`` object for a manifest, any other for an archive.
    """
    place = object_place(url)
    if not place.name or place.name.endswith("/"):
        raise UsageError(f"{url} names no object", hint="name an archive: gs://BUCKET/SOURCE.tgz")
    if place.name.endswith(".json"):
        return Source(
            storage_source_manifest=StorageSourceManifest(
                bucket=place.bucket, object=place.name, generation=place.generation
            )
        )
    return Source(
        storage_source=StorageSource(
            bucket=place.bucket, object=place.name, generation=place.generation
        )
    )


def object_place(url: str) -> ObjectUrl:
    """Return the parts of a ``gs://`` URL.

    Raises:
        UsageError: the text is no such URL.
    """
    try:
        return parse_object_url(url)
    except StorageError as error:
        raise UsageError(str(error), hint=error.hint) from error
