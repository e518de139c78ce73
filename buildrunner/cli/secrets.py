"""``buildrunner secrets``: values for builds, kept encrypted on this machine: set, list, rm."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from buildrunner import wiring
from buildrunner.errors import EXIT_SUCCESS, UsageError
from buildrunner.secrets.secret_name import parse_name

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
"""
_COLUMNS = ("NAME", "VERSIONS", "LATEST", "CREATE_TIME")
_NEVER_IN_ARGV = "never the value itself: command lines can be read by every user"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the commands below ``secrets`` and their flags."""
    parser.epilog = _EPILOG
    actions = parser.add_subparsers(dest="action", required=True, metavar="COMMAND")
    setting = actions.add_parser("set", help="keep a value, as a new version")
    setting.add_argument("name", metavar="NAME")
    # Whatever else stands there may be a value: taken here, and refused without repeating it.
    setting.add_argument("surplus", nargs="*", default=(), help=_hidden())
    setting.add_argument(
        "--file", metavar="FILE", help="take the value from it, as it is (default: the input)"
    )
    listing = actions.add_parser("list", help="names, versions and dates; no values")
    listing.add_argument("--format", choices=("table", "json", "yaml"), default="table")
    removing = actions.add_parser("rm", help="remove a secret, or one version of it")
    removing.add_argument("name", metavar="NAME")
    removing.add_argument("-y", "--yes", action="store_true", help="don't ask")


def run(args: argparse.Namespace) -> int:
    """Run one of the commands.

    Raises:
        UsageError: no such name, or no value to be had.
        NotFound: no such secret.
        SecretError: the store or its key can't be used.
    """
    from buildrunner.settings import load_settings

    store = wiring.secret_store(load_settings("."))
    return _ACTIONS[args.action](args, store)


def _hidden() -> str:
    from argparse import SUPPRESS

    return SUPPRESS


def _set(args: argparse.Namespace, store: LocalSecretStore) -> int:
    from buildrunner.cli.secrets_value import notes_on, read_value

    if args.surplus:
        raise UsageError("`buildrunner secrets set` takes one NAME only", hint=_NEVER_IN_ARGV)
    if "=" in args.name:
        raise UsageError("`buildrunner secrets set` takes a NAME only", hint=_NEVER_IN_ARGV)
    name = parse_name(args.name)
    value = read_value(name.secret, args.file)
    version = store.put(name, value)
    for note in notes_on(value):
        sys.stderr.write(f"note: {note}\n")
    sys.stderr.write(f"Created version [{version}] of the secret [{name.secret}].\n")
    return EXIT_SUCCESS


def _list(args: argparse.Namespace, store: LocalSecretStore) -> int:
    from buildrunner.cli.listing import formatted, table

    found = [
        {
            "name": name,
            "versions": [
                {"version": one.version, "createTime": one.create_time} for one in secret.versions
            ],
        }
        for name, secret in store.secrets().items()
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
    latest = versions[-1]
    return secret["name"], str(len(versions)), str(latest["version"]), latest["createTime"]


def _remove(args: argparse.Namespace, store: LocalSecretStore) -> int:
    name = parse_name(args.name)
    versions = ", ".join(map(str, store.versions(name)))
    what = f"version [{versions}] of the secret [{name.secret}]"
    if not args.yes and not confirmed(f"Remove {what}?"):
        sys.stderr.write("Nothing was removed.\n")
        return EXIT_SUCCESS
    store.remove(name)
    sys.stderr.write(f"Removed {what}.\n")
    return EXIT_SUCCESS


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


_ACTIONS: dict[str, Callable[[argparse.Namespace, LocalSecretStore], int]] = {
    "set": _set,
    "list": _list,
    "rm": _remove,
}
