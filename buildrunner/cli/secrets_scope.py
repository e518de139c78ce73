"""The flags of ``buildrunner secrets`` that say who may have a secret."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from buildrunner.errors import UsageError
from buildrunner.secrets.secret_name import forge_host, forge_token_name, is_servers_own
from buildrunner.secrets.secret_scope import EVERY_PROJECT, PROJECT_USES, Scope, Use

if TYPE_CHECKING:
    import argparse

_PROJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}")
_OF_BUILDS = ("trigger", "branch", "tag", "image")


def add_scope_flags(parser: argparse.ArgumentParser) -> None:
    """Add ``--project`` and the flags that narrow it."""
    group = parser.add_argument_group(
        "who may have it, on a server",
        "each may be given several times; together they replace what was said before",
    )
    group.add_argument(
        "--project",
        action="append",
        default=[],
        metavar="ID",
        help="the project's builds, notifiers and webhooks, beside those of the project that the"
        f" secret's name begins with; {EVERY_PROJECT} for every project",
    )
    group.add_argument(
        "--trigger", action="append", default=[], metavar="NAME", help="builds of this trigger only"
    )
    group.add_argument(
        "--branch",
        action="append",
        default=[],
        metavar="NAME",
        help="builds that a trigger makes of this branch only; release/* for all that begin so",
    )
    group.add_argument(
        "--tag", action="append", default=[], metavar="NAME", help="the same, for tags"
    )
    group.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="IMAGE",
        help="steps that run this image as it is, without a script or an entrypoint of their own",
    )
    group.add_argument(
        "--for",
        dest="uses",
        action="append",
        default=[],
        choices=[use.value for use in PROJECT_USES],
        help="only for this (default: for all three)",
    )


def scope_of(args: argparse.Namespace) -> Scope | None:
    """The scope that the flags of `add_scope_flags` say; None if there are none.

    Raises:
        UsageError: they contradict each other.
    """
    scope = Scope(
        projects=_unique(args.project),
        triggers=_unique(args.trigger),
        refs=(
            *(f"refs/heads/{name}" for name in _unique(args.branch)),
            *(f"refs/tags/{name}" for name in _unique(args.tag)),
        ),
        images=_unique(args.image),
        uses=_unique(args.uses),
    )
    for project in scope.projects:
        if project != EVERY_PROJECT and not _PROJECT.fullmatch(project):
            raise UsageError(f"{project!r} is no project id")
    narrowed = next((flag for flag in _OF_BUILDS if getattr(args, flag)), "")
    if narrowed and set(scope.uses) - {Use.BUILD.value}:
        raise UsageError(
            f"--{narrowed} limits builds, and --for names something else",
            hint="keep a secret for builds and one for the others",
        )
    return None if scope == Scope() else scope


def check_scope(name: str, scope: Scope | None) -> None:
    """Refuse a scope that a secret of that name can't have.

    Raises:
        UsageError: it is the server's own, or its scope would let nobody have it.
    """
    if is_servers_own(name):
        if scope is not None:
            raise UsageError(
                f"{name} is the server's own and shared with nobody",
                hint="names of other secrets don't begin with hooks-, forge- or status-",
            )
    elif scope is not None and "/" not in name and not scope.projects:
        raise UsageError(
            f"{name} belongs to no project: say which one gets it",
            hint=f"add --project, or call it projects/PROJECT/secrets/{name}",
        )


def forge_secret(host: str) -> tuple[str, Scope]:
    """Name and scope of the token of a forge.

    Args:
        host: as a person writes it: ``git.example.com:8443``, or a URL.

    Raises:
        UsageError: it is no host.
    """
    found = forge_host(host if "://" in host else f"https://{host}/")
    if not re.fullmatch(r"[a-z0-9._:\[\]-]+", found):
        raise UsageError(f"{host!r} is no host of a forge", hint="for example github.com")
    return forge_token_name(found), Scope(forge=found)


def _unique(values: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))
