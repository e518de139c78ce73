"""``buildrunner secrets``: values for builds, kept encrypted here: set, scope, list, rm."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from buildrunner import wiring
from buildrunner.cli.secrets_scope import add_scope_flags, check_scope, forge_secret, scope_of
from buildrunner.cli.server_place import add_place_flags, note_in_audit_log, open_store_if_any
from buildrunner.errors import EXIT_SUCCESS, UsageError
from buildrunner.secrets.secret_name import (
    FORGE_PREFIX,
    OLD_FORGE_PREFIX,
    SecretName,
    is_key_name,
    is_servers_own,
    parse_name,
)
from buildrunner.secrets.secret_scope import Scope, scope_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from buildrunner.secrets.local_store import LocalSecretStore

_EPILOG = """\
A NAME is api-key, or projects/P/secrets/api-key as configs have it; /versions/N may follow it.
A config's projects/P/secrets/api-key/versions/latest finds either.

examples:
  buildrunner secrets set api-key                  asks for the value, and shows nothing of it
  printf %s "$KEY" | buildrunner secrets set api-key
  buildrunner secrets set deploy-key --file id_ed25519

On a server's machine, as its user, say also who may have it. A whole name is its project's; a short
one nobody's until it is shared:
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
    setting = actions.add_parser("set", help="keep a value, as a new version")
    setting.add_argument("name", metavar="NAME", nargs="?", default="")
    # Whatever else stands there may be a value: taken here, and refused without repeating it.
    setting.add_argument("surplus", nargs="*", default=(), help=_hidden())
    setting.add_argument(
        "--file", metavar="FILE", help="take the value from it, as it is (default: the input)"
    )
    setting.add_argument(
        "--forge",
        metavar="HOST",
        default="",
        help="in place of NAME: the server's own token for the API of the forge at that host",
    )
    add_scope_flags(setting)
    scoping = actions.add_parser("scope", help="say who may have a secret; nobody without flags")
    scoping.add_argument(
        "name",
        metavar="NAME",
        help="of a secret or a KMS key, also of one that is at Google only",
    )
    add_scope_flags(scoping)
    listing = actions.add_parser("list", help="names, versions, dates, scopes; no values")
    listing.add_argument("--format", choices=("table", "json", "yaml"), default="table")
    removing = actions.add_parser("rm", help="remove a secret, or one version of it")
    removing.add_argument("name", metavar="NAME")
    removing.add_argument("-y", "--yes", action="store_true", help="don't ask")
    for action in (setting, scoping, removing):
        add_place_flags(action)


def run(args: argparse.Namespace) -> int:
    """Run one of the commands.

    Raises:
        UsageError: no such name, or no value to be had.
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
    from buildrunner.cli.secrets_value import notes_on, read_value

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
    """The secret to set, and the scope that it gets; None if it keeps the one that it has.

    Raises:
        UsageError: no such name, or a scope that it can't have.
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
    from buildrunner.cli.listing import formatted, table

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
    """Whether a person says yes.

    Raises:
        UsageError: there is nobody to ask.
    """
    if not os.isatty(0):
        raise UsageError("there is nobody to ask whether to remove it", hint=f"add {flag}")
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


# Each changes the store, and says what it changed, for the audit log; empty for nothing.
_ACTIONS: dict[str, Callable[[argparse.Namespace, LocalSecretStore], str]] = {
    "set": _set,
    "scope": _scope,
    "rm": _remove,
}
