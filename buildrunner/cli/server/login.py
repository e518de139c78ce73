"""``buildrunner login``: saves a server and its token for later commands."""

from __future__ import annotations

import argparse
import os
import sys

from buildrunner.cli.server.choice import SavedServer, load_logins, save_logins
from buildrunner.client.client import Document
from buildrunner.errors import EXIT_SUCCESS, AuthError, UsageError

_EPILOG = """\
login prompts for the token without showing it, or reads it from standard input. A server without
authentication needs no token. login stores the token in servers.json in your configuration folder,
which only you can read. Afterwards `submit` and `builds` use the server; with --local they use this
machine.

examples:
  buildrunner login https://builds.example.com --project my-project
  buildrunner login http://127.0.0.1:8080 < token
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``login``."""
    parser.epilog = _EPILOG
    parser.add_argument("url", metavar="URL", help="address of the server: https://HOST[:PORT]")
    parser.add_argument("--project", default="", metavar="ID", help="default project of commands")
    parser.add_argument("--ca-file", default="", metavar="FILE", help="certificates (PEM) to trust")


def run(args: argparse.Namespace) -> int:
    """Check the token and save it.

    Raises:
        AuthError: the server refuses the token.
        ServerUnavailable: the server does not answer.
    """
    from buildrunner.client.client import checked_url

    url = checked_url(args.url)
    ca_file = os.path.abspath(args.ca_file) if args.ca_file else ""
    token = ""
    try:
        who = _who(url, "", ca_file)
    except AuthError:
        token = _read_token(url)
        who = _who(url, token, ca_file)
    server = SavedServer(url=url, token=token, ca_file=ca_file, project=args.project)
    save_logins(load_logins().with_login(server))
    if token and not _is_safe(url):
        sys.stderr.write("warning: the token travels in clear: use https\n")
    sys.stderr.write(f"Logged in to [{url}] as [{who.get('name', 'nobody')}].\n")
    return EXIT_SUCCESS


def _is_safe(url: str) -> bool:
    from urllib.parse import urlsplit

    from buildrunner.addresses import is_loopback_host

    parts = urlsplit(url)
    return parts.scheme == "https" or is_loopback_host(parts.hostname or "")


def _who(url: str, token: str, ca_file: str) -> Document:
    from buildrunner.client.client import ServerClient

    client = ServerClient(url, token=token, ca_file=ca_file)
    try:
        return client.whoami()
    finally:
        client.close()


def _read_token(url: str) -> str:
    if sys.stdin.isatty():
        import getpass

        token = getpass.getpass(f"Token for {url}: ")
    else:
        token = sys.stdin.readline()
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable():
        raise UsageError(
            "that is no token", hint="`buildrunner tokens create NAME` on the server makes one"
        )
    return token
