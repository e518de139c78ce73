"""What the command line asks to build: which config, on which source."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import msgspec

from buildrunner.errors import UsageError
from buildrunner.spec import git_address

if TYPE_CHECKING:
    import argparse

    # TC004: the struct below only holds them, and is never decoded.
    from buildrunner.cli.submit_trigger import TriggerFile, TriggerValues  # noqa: TC004
    from buildrunner.spec.model_source import Source  # noqa: TC004

CONFIG_NAMES = ("cloudbuild.yaml", "cloudbuild.yml", "cloudbuild.json")
_STDIN = "/dev/stdin"
_CONFIG_ENDINGS = (".yaml", ".yml", ".json")
_ARCHIVE_ENDINGS = (".tgz", ".gz", ".tar", ".zip")
_OBJECT = "gs://"
_GIT = ("http://", "https://", "ssh://", "git://", "git+ssh://", "file://")
_SCP_FORM = re.compile(r"[\w.-]+@[\w.-]+:.+")
_CONNECTED = re.compile(r"projects/[^/]+/locations/[^/]+/connections/[^/]+/repositories/[^/]+")
_LINK = re.compile(r"projects/[^/]+/locations/[^/]+/connections/[^/]+/gitRepositoryLinks/.+")


class BuildRequest(msgspec.Struct, frozen=True, kw_only=True):
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
        note: what a user of gcloud might not expect; empty mostly.
        trigger: the trigger that says what is built; None: the config does.
        triggered: what the build gets because a trigger makes it; None: no trigger does.
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


def find_request(args: argparse.Namespace) -> BuildRequest:
    """What ``[CONFIG | SOURCE] --config --source --git-source --no-source --tag`` ask for together.

    With ``--trigger`` the trigger says which config is built.

    Raises:
        ConfigError: the trigger is wrong.
        UsageError: they contradict each other, or name what is not there.
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
    place = BuildRequest(folder=None) if args.no_source else _place(source or ".", args)
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


def _place(source: str, args: argparse.Namespace) -> BuildRequest:
    """A request with nothing but the source."""
    git = _git_source(source, args)
    if git is not None:
        return BuildRequest(folder=None, git=git)
    if source.startswith(_OBJECT):
        return BuildRequest(folder=None, object_url=source)
    if source.endswith(_ARCHIVE_ENDINGS) and not os.path.isdir(source):
        if not os.path.exists(source):
            raise _no_source(source)
        return BuildRequest(folder=None, archive=source)
    return BuildRequest(folder=source)


def _git_source(source: str, args: argparse.Namespace) -> Source | None:
    """The message for a Git repository; None for anything else.

    Source: gcloud takes http(s) URLs for ``gitSource``, resource names for
        ``connectedRepository``; the other transports of Git are ours.
    """
    from buildrunner.spec.model_source import ConnectedRepository, GitSource, Source

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


def _with_git_config(place: BuildRequest, config: str | None) -> BuildRequest:
    """The request, with a config of this machine or else of the repository.

    Source: gcloud reads the config of the folder it is called in; that the repository's own counts
        where there is none is ours, and what triggers do.
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
    from difflib import get_close_matches

    folder = os.path.dirname(config)
    try:
        names = [name for name in os.listdir(folder or ".") if name.endswith(_CONFIG_ENDINGS)]
    except OSError:
        names = []
    near = get_close_matches(os.path.basename(config), names, n=1)
    hint = f"did you mean {os.path.join(folder, near[0])}?" if near else ""
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


def _tag_request(args: argparse.Namespace, config: str | None, place: BuildRequest) -> BuildRequest:
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
    args: argparse.Namespace, config: str | None, place: BuildRequest, *, is_default: bool
) -> BuildRequest:
    """The request for a trigger's build; its own source counts where no other is named."""
    from buildrunner.cli.submit_trigger import read_trigger

    if config is not None or args.tag:
        other = config or f"--tag {args.tag}"
        raise UsageError(f"the trigger says what is built, and so does {other}: leave one out")
    found = read_trigger(args.trigger)
    if found.build is not None:
        if found.build.value.source is not None and is_default:
            place = BuildRequest(folder=None)
        return msgspec.structs.replace(place, config=found.file, trigger=found)
    return msgspec.structs.replace(
        place, config=found.config, in_repository=place.git is not None, trigger=found
    )


def _named(folder: str) -> str:
    return "this folder" if folder == "." else folder
