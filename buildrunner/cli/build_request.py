"""What the command line asks to build: which config, on which source."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from buildrunner.errors import UsageError

if TYPE_CHECKING:
    import argparse

CONFIG_NAMES = ("cloudbuild.yaml", "cloudbuild.yml", "cloudbuild.json")
_CONFIG_ENDINGS = (".yaml", ".yml", ".json")
_ARCHIVE_ENDINGS = (".tgz", ".gz", ".tar", ".zip")
_OBJECT = "gs://"
_REMOTE = {
    "http://": "git repositories are",
    "https://": "git repositories are",
    "ssh://": "git repositories are",
    "git@": "git repositories are",
    "projects/": "connected repositories are",
}


class BuildRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A config and a source.

    Attributes:
        config: path of the config, as messages name it; empty with ``tag``.
        tag: image to build from the folder's Dockerfile; empty with a config.
        folder: the source; None for an empty workspace, or a source of another kind.
        archive: path of an archive that is the source; empty for none.
        object_url: ``gs://`` URL of an archive or manifest that is the source; empty for none.
        note: what a user of gcloud might not expect; empty mostly.
    """

    config: str = ""
    tag: str = ""
    folder: str | None = "."
    archive: str = ""
    object_url: str = ""
    note: str = ""


def find_request(args: argparse.Namespace) -> BuildRequest:
    """What ``[CONFIG | SOURCE] --config --source --no-source --tag`` ask for together.

    Raises:
        UsageError: they contradict each other, or name what is not there.
    """
    config, source = _split_subject(args.subject, args.config, args.source)
    if args.no_source and source is not None:
        raise UsageError(
            f"--no-source and the source {source} contradict each other", hint="leave one out"
        )
    place = BuildRequest(folder=None) if args.no_source else _place(source or ".")
    if args.tag:
        return _tag_request(args, config, place)
    note = ""
    if config is not None:
        _check_config(config)
    else:
        config, note = _find_config(place.folder or ".")
    return msgspec.structs.replace(place, config=config, note=note)


def _place(source: str) -> BuildRequest:
    """A request with nothing but the source."""
    if source.startswith(_OBJECT):
        return BuildRequest(folder=None, object_url=source)
    if source.endswith(_ARCHIVE_ENDINGS) and not os.path.isdir(source):
        if not os.path.exists(source):
            raise _no_source(source)
        return BuildRequest(folder=None, archive=source)
    return BuildRequest(folder=source)


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
    for start, what in _REMOTE.items():
        if subject.startswith(start) and not os.path.exists(subject):
            raise UsageError(
                f"{what} not read as a source yet: {subject}",
                hint="fetch it, and submit the folder",
            )
    archive = subject.startswith(_OBJECT) or subject.endswith(_ARCHIVE_ENDINGS)
    if archive or os.path.isdir(subject):
        if source is not None:
            raise UsageError(f"two sources: {subject} and --source {source}")
        return config, subject
    if not subject.endswith(_CONFIG_ENDINGS) and not os.path.exists(subject):
        raise _no_source(subject)
    if config is not None:
        raise UsageError(f"two configs: {subject} and --config {config}")
    return subject, source


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


def _named(folder: str) -> str:
    return "this folder" if folder == "." else folder
