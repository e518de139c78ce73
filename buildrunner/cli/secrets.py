"""``buildrunner secrets``: sets, scopes, lists and removes the encrypted values for builds."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from buildrunner import wiring
from buildrunner.cli.serve.place import add_place_flags, note_in_audit_log, open_store_if_any
from buildrunner.errors import EXIT_SUCCESS, UsageError
from buildrunner.secrets.local_store import LocalSecretStore
from buildrunner.secrets.secret_name import (
    FORGE_PREFIX,
    OLD_FORGE_PREFIX,
    SecretName,
    forge_host,
    forge_token_name,
    has_project_number,
    is_key_name,
    is_servers_own,
    parse_name,
)
from buildrunner.secrets.secret_scope import (
    EVERY_PROJECT,
    PROJECT_USES,
    Scope,
    Use,
    is_fixed_image,
    scope_text,
)

_EPILOG = """\
NAME is api-key, or projects/P/secrets/api-key as in configs, optionally with /versions/N.
In a config, projects/P/secrets/api-key/versions/latest finds both.

examples:
  buildrunner secrets set api-key                  prompts for the value without showing it
  printf %s "$KEY" | buildrunner secrets set api-key
  buildrunner secrets set deploy-key --file id_ed25519

On a server's machine, as the server's user, also set the scope. A whole name belongs to its
project. A short name belongs to no project until you share it:
  buildrunner secrets set projects/shop/secrets/api-key
  buildrunner secrets set deploy-key --project shop --trigger deploy --branch main
  buildrunner secrets scope api-key --project shop --project web
  buildrunner secrets set --forge github.com       the server's own token for GitHub
"""
_COLUMNS = ("NAME", "VERSIONS", "LATEST", "CREATE_TIME", "SCOPE")
_NEVER_IN_ARGV = "never the value itself: command lines can be read by every user"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the commands below ``secrets`` and their flags."""
    parser.epilog = _EPILOG
    actions = parser.add_subparsers(dest="action", required=True, metavar="COMMAND")
    setting = actions.add_parser("set", help="store a value as a new version")
    setting.add_argument("name", metavar="NAME", nargs="?", default="", help="name of the secret")
    # A further argument may be the value: it is parsed here, to refuse it without showing it.
    setting.add_argument("surplus", nargs="*", default=(), help=_hidden())
    setting.add_argument(
        "--file", metavar="FILE", help="read the value from this file (default: standard input)"
    )
    setting.add_argument(
        "--forge",
        metavar="HOST",
        default="",
        help="instead of NAME: the server's own token for the API of the forge at this host",
    )
    add_scope_flags(setting)
    scoping = actions.add_parser(
        "scope", help="set the scope of a secret; without flags, remove it"
    )
    scoping.add_argument(
        "name",
        metavar="NAME",
        help="name of a secret or a KMS key; Google's need no value on this machine",
    )
    add_scope_flags(scoping)
    listing = actions.add_parser(
        "list", help="list names, versions, dates and scopes, without values"
    )
    listing.add_argument(
        "--format",
        choices=("table", "json", "yaml"),
        default="table",
        help="format of the output (default: table)",
    )
    removing = actions.add_parser("rm", help="delete a secret, or one version of it")
    removing.add_argument(
        "name", metavar="NAME", help="the secret, or NAME/versions/N for one version"
    )
    removing.add_argument("-y", "--yes", action="store_true", help="do not ask for confirmation")
    for action in (setting, scoping, removing):
        add_place_flags(action)


def run(args: argparse.Namespace) -> int:
    """Run one of the commands.

    Raises:
        UsageError: the name is invalid, or there is no value to read.
        NotFound: no such secret.
        SecretError: the store or its key can't be used.
    """
    from buildrunner.settings import own_settings

    store = wiring.secret_store(own_settings())
    if args.action == "list":
        return _list(args, store)
    server = open_store_if_any(args)
    try:
        done = _ACTIONS[args.action](args, store)
        if server is not None and done:
            note_in_audit_log(server, f"secrets.{args.action}", done)
    finally:
        if server is not None:
            server.close()
    return EXIT_SUCCESS


def _hidden() -> str:
    from argparse import SUPPRESS

    return SUPPRESS


def _set(args: argparse.Namespace, store: LocalSecretStore) -> str:

    if args.surplus:
        raise UsageError("`buildrunner secrets set` takes one NAME only", hint=_NEVER_IN_ARGV)
    if "=" in args.name:
        raise UsageError("`buildrunner secrets set` takes a NAME only", hint=_NEVER_IN_ARGV)
    name, scope = _to_set(args)
    value = read_value(name.secret, args.file)
    version = store.put(name, value, scope)
    for note in notes_on(value):
        sys.stderr.write(f"note: {note}\n")
    sys.stderr.write(f"Created version [{version}] of the secret [{name.secret}].\n")
    shown = store.scopes().get(name.secret)
    if shown is not None:
        sys.stderr.write(f"Its scope: {scope_text(name.secret, shown)}.\n")
    return f"{name.secret} version {version} ({scope_text(name.secret, shown)})"


def _to_set(args: argparse.Namespace) -> tuple[SecretName, Scope | None]:
    """Return the secret to set, and its new scope; None keeps its scope.

    Raises:
        UsageError: the name is invalid, or the secret can't have that scope.
    """
    scope = scope_of(args)
    if bool(args.forge) == bool(args.name):
        raise UsageError(
            "`buildrunner secrets set` takes a NAME or --forge HOST",
            hint="`buildrunner secrets set --help`",
        )
    if args.forge:
        if scope is not None:
            raise UsageError("the token of a forge is the server's own and shared with nobody")
        forge_name, scope = forge_secret(args.forge)
        return parse_name(forge_name), scope
    name = parse_name(args.name)
    if name.secret.startswith((FORGE_PREFIX, OLD_FORGE_PREFIX)):
        raise UsageError(
            f"names that begin with {FORGE_PREFIX} or {OLD_FORGE_PREFIX} are for tokens of forges",
            hint="buildrunner secrets set --forge HOST, or another name for another secret",
        )
    check_scope(name.secret, scope)
    return name, scope


def _scope(args: argparse.Namespace, store: LocalSecretStore) -> str:
    name = args.name if is_key_name(args.name) else parse_name(args.name).secret
    if is_servers_own(name):
        raise UsageError(
            f"{name} is the server's own and shared with nobody",
            hint="names of other secrets don't begin with hooks-, forge- or status-",
        )
    scope = scope_of(args)
    check_scope(name, scope)
    store.set_scope(name, scope or Scope())
    text = scope_text(name, scope)
    sys.stderr.write(f"The scope of [{name}]: {text}.\n")
    return f"{name} ({text})"


def _list(args: argparse.Namespace, store: LocalSecretStore) -> int:
    from buildrunner.cli.terminal.listing import formatted, table

    secrets, scopes = store.secrets(), store.scopes()
    found = [
        {
            "name": name,
            "versions": [
                {"version": one.version, "createTime": one.create_time}
                for one in (secrets[name].versions if name in secrets else ())
            ],
            "scope": scope_text(name, scopes.get(name)),
        }
        for name in sorted(secrets.keys() | scopes.keys())
    ]
    if args.format != "table":
        sys.stdout.write(formatted(found, args.format))
        return EXIT_SUCCESS
    sys.stdout.write(table(_COLUMNS, [_row(secret) for secret in found]))
    if not found:
        sys.stderr.write("Listed 0 secrets.\n")
    return EXIT_SUCCESS


def _row(secret: dict[str, Any]) -> tuple[str, ...]:
    versions = secret["versions"]
    latest = versions[-1] if versions else {"version": "-", "createTime": "-"}
    counts = str(len(versions)), str(latest["version"]), str(latest["createTime"])
    return secret["name"], *counts, secret["scope"]


def _remove(args: argparse.Namespace, store: LocalSecretStore) -> str:
    name = parse_name(args.name)
    versions = ", ".join(map(str, store.versions(name)))
    what = f"version [{versions}] of the secret [{name.secret}]"
    if not args.yes and not confirmed(f"Remove {what}?"):
        sys.stderr.write("Nothing was removed.\n")
        return ""
    store.remove(name)
    sys.stderr.write(f"Removed {what}.\n")
    return f"{name.secret} version {versions}"


def confirmed(question: str, flag: str = "--yes") -> bool:
    """Return whether a person confirms.

    Raises:
        UsageError: there is no terminal to ask on.
    """
    if not os.isatty(0):
        raise UsageError("there is nobody to ask whether to remove it", hint=f"add {flag}")
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


# Each changes the store and returns a line for the audit log; empty if nothing changed.
_ACTIONS: dict[str, Callable[[argparse.Namespace, LocalSecretStore], str]] = {
    "set": _set,
    "scope": _scope,
    "rm": _remove,
}


_LIMIT = 65536  # Source: size limit of a secret version's payload in Secret Manager
_MASKED_FROM = 4  # characters; see buildrunner.engine.log.masking


def read_value(name: str, path: str | None) -> str:
    """Read the value, byte for byte; a prompt adds no newline.

    Args:
        name: the secret, for the prompt.
        path: path of a file; None or ``-`` reads standard input.

    Raises:
        UsageError: the value can't be read, is empty or too large, or can't be an environment
            variable.
    """
    if path is not None and path != "-":
        value = _read(path)
    elif os.isatty(0):
        value = _asked(name)
    else:
        value = sys.stdin.buffer.read(_LIMIT + 1)
    if not value:
        raise UsageError("the value is empty: nothing was set")
    if len(value) > _LIMIT:
        raise UsageError(f"the value is larger than {_LIMIT} bytes")
    if b"\0" in value:
        raise UsageError("the value holds a zero byte, which no environment variable can")
    try:
        return value.decode()
    except UnicodeDecodeError:  # the error quotes the value
        raise UsageError(
            "the value is not UTF-8 text, and a secret becomes an environment variable",
            hint="encode it, e.g. with base64, and decode it in the step",
        ) from None


def notes_on(value: str) -> Iterator[str]:
    """Yield remarks for the user about a value."""
    if len(value.strip("\r\n")) < _MASKED_FROM:
        yield f"a value shorter than {_MASKED_FROM} characters can't be hidden in the log of builds"
    if value.endswith("\n") and value.count("\n") == 1:
        yield "the value ends with a newline, which is part of it; printf %s gives none"


def _asked(name: str) -> bytes:
    from getpass import getpass

    try:
        return getpass(f"Value of {name} (not shown): ", sys.stderr).encode("utf-8", "strict")
    except EOFError:
        return b""


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_LIMIT + 1)
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from error


_PROJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}")
_OF_BUILDS = ("trigger", "branch", "tag", "image")


def add_scope_flags(parser: argparse.ArgumentParser) -> None:
    """Add ``--project`` and the flags that narrow it."""
    group = parser.add_argument_group(
        "scope on a server",
        "each may be repeated; together they replace the earlier scope",
    )
    group.add_argument(
        "--project",
        action="append",
        default=[],
        metavar="ID",
        help="this project may read it, besides the project in its name;"
        f" {EVERY_PROJECT}: every project",
    )
    group.add_argument(
        "--trigger",
        action="append",
        default=[],
        metavar="NAME",
        help="only builds of this trigger may read it",
    )
    group.add_argument(
        "--branch",
        action="append",
        default=[],
        metavar="NAME",
        help="only builds that a trigger made of this branch may read it; release/* matches a"
        " prefix",
    )
    group.add_argument(
        "--tag",
        action="append",
        default=[],
        metavar="NAME",
        help="only builds that a trigger made of this tag may read it",
    )
    group.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="IMAGE@DIGEST",
        help="only steps that run this image (or builder image) may read it: without a script,"
        " entrypoint, env or volumes, in builds whose steps have no engine socket",
    )
    group.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME",
        help="with --image: a variable of secretEnv that such a step may have (default: the"
        " secret's name in capitals, API_KEY for api-key)",
    )
    group.add_argument(
        "--for",
        dest="uses",
        action="append",
        default=[],
        choices=[use.value for use in PROJECT_USES],
        help="only these of the project may read it (default: all three)",
    )


def scope_of(args: argparse.Namespace) -> Scope | None:
    """Return the scope that the flags of `add_scope_flags` define; None without such flags.

    Raises:
        UsageError: the flags contradict each other.
    """
    scope = Scope(
        projects=_unique(args.project),
        triggers=_unique(args.trigger),
        refs=(
            *(f"refs/heads/{name}" for name in _unique(args.branch)),
            *(f"refs/tags/{name}" for name in _unique(args.tag)),
        ),
        images=_unique(args.image),
        variables=_unique(args.env),
        uses=_unique(args.uses),
    )
    for project in scope.projects:
        if project != EVERY_PROJECT and not _PROJECT.fullmatch(project):
            raise UsageError(f"{project!r} is no project id")
    for image in scope.images:
        if not is_fixed_image(image):
            raise UsageError(
                f"--image {image} names no digest: whoever pushes that tag would get the secret",
                hint=f"write {image}@sha256:DIGEST; `docker pull {image}` prints the digest",
            )
    if scope.variables and not scope.images:
        raise UsageError("--env limits what steps of --image get, and there is no --image")
    narrowed = next((flag for flag in _OF_BUILDS if getattr(args, flag)), "")
    if narrowed and set(scope.uses) - {Use.BUILD.value}:
        raise UsageError(
            f"--{narrowed} limits builds, and --for names something else",
            hint="keep a secret for builds and one for the others",
        )
    return None if scope == Scope() else scope


def check_scope(name: str, scope: Scope | None) -> None:
    """Refuse a scope that the secret can't have.

    Raises:
        UsageError: the secret is the server's own, or would belong to no project, or its name has
            the number of a project, under which no secret is read.
    """
    if scope is not None and has_project_number(name):
        raise UsageError(
            f"{name} has a project's number, and scopes hold for names with its id",
            hint="write projects/ID/... here, also if configs write the number",
        )
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
    """Return name and scope of the token of a forge.

    Args:
        host: ``git.example.com:8443``, or a URL.

    Raises:
        UsageError: the text is no host.
    """
    found = forge_host(host if "://" in host else f"https://{host}/")
    if not re.fullmatch(r"[a-z0-9._:\[\]-]+", found):
        raise UsageError(f"{host!r} is no host of a forge", hint="for example github.com")
    return forge_token_name(found), Scope(forge=found)


def _unique(values: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))
