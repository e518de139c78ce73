"""``buildrunner triggers install-hook``: a bare repository tells a server of its pushes."""

from __future__ import annotations

import argparse
import os
import re
import secrets
import sys
from pathlib import Path

from buildrunner import wiring
from buildrunner.cli.server.choice import chosen_server
from buildrunner.errors import EXIT_SUCCESS, UsageError
from buildrunner.triggers.hook_installation import HookRegister

_DEFAULT_SERVER = "http://127.0.0.1:8080"


def install(args: argparse.Namespace) -> int:
    """Install the hook, or bring it up to date; its secret is kept for the server of this machine.

    Raises:
        UsageError: there is no repository, or it can't be written to.
        SecretError: the store of secrets can't be used.
    """
    from buildrunner.secrets.secret_name import parse_name
    from buildrunner.server.events.hook_secrets import secret_name
    from buildrunner.settings import own_settings
    from buildrunner.spec.model.git_address import has_password
    from buildrunner.triggers.hook_installation import (
        SETTINGS_NAME,
        HookSettings,
        install_hook,
        installed_settings,
        is_bare,
        repository_folder,
        tell_server,
    )

    folder = repository_folder(args.repository)
    before = installed_settings(args.repository)
    name = args.name or (before.name if before else "") or _name_of(str(folder))
    if not re.fullmatch("[A-Za-z0-9_-]{1,100}", name):
        raise UsageError(f"{name!r} is no name for a hook", hint="--name: letters, digits, - and _")
    server = chosen_server(args)
    url = server.url if server else before.server if before else _DEFAULT_SERVER
    register = _register()
    other = register.other_repository(name, url, folder)
    if other is not None:
        raise UsageError(
            f'{other} is "{name}" on {url} already',
            hint=f"give {args.repository} a name of its own: --name {_longer_name(folder)}",
        )
    secret_of = secret_name(f"git/{name}")
    store = wiring.secret_store(own_settings())
    secret = before.secret if before and before.name == name else secrets.token_urlsafe(32)
    if has_password(args.clone_url):
        raise UsageError(
            "--clone-url holds a password or token",
            hint="the server's settings are the place for it: [git.tokens]",
        )
    clone_url = args.clone_url or (before.repository if before else "")
    settings = HookSettings(
        server=url,
        name=name,
        secret=secret,
        repository=clone_url,
        authorities=_authorities(server.ca_file)
        if server
        else before.authorities
        if before
        else "",
    )
    hook = install_hook(args.repository, settings)
    register.note(name, folder)
    if not _is_stored(secret_of, secret):
        store.put(parse_name(secret_of), secret)
    sys.stderr.write(
        f"Installed [{hook}], which reports pushes to {url}/hooks/git/{name}.\n"
        f"Its secret is {secret_of} in your secret store. If the server runs on another machine or"
        f" as another user, set the secret there: `buildrunner secrets set {secret_of}`. Its value"
        f" is in {hook.with_name(SETTINGS_NAME)}.\n"
        f"In a trigger, write repositoryEventConfig: {{repository: {name}, push: ...}}.\n"
    )
    if not clone_url or clone_url.startswith("file://"):
        sys.stderr.write(
            "The server fetches the repository from its folder. The server must run on this"
            " machine, with --allow-private-sources.\n"
        )
    if not is_bare(folder):
        sys.stderr.write(
            "The repository is not bare: the hook reports pushes to it, and not commits in it.\n"
        )
    reason = tell_server(args.repository)
    if reason:
        sys.stderr.write(
            f"The server does not accept reports of the hook yet ({reason}). Check that it runs at"
            f" {url} and has the secret. Until then, pushes are not reported.\n"
        )
    return EXIT_SUCCESS


def remove(args: argparse.Namespace) -> int:
    """Remove the hook, and restore the hook that was there before.

    Raises:
        UsageError: there is no repository, or it can't be written to.
    """
    from buildrunner.triggers.hook_installation import (
        installed_settings,
        remove_hook,
        repository_folder,
    )

    before = installed_settings(args.repository)
    done = remove_hook(args.repository)
    if before is not None:
        _register().forget(before.name, repository_folder(args.repository))
    said = "Removed the hook of" if done else "There is no hook of buildrunner in"
    sys.stderr.write(f"{said} [{args.repository}].\n")
    return EXIT_SUCCESS


def _authorities(ca_file: str) -> str:
    """The certificates themselves: the hook may run where their file is not."""
    if not ca_file:
        return ""
    import ssl

    try:
        text = Path(ca_file).read_text(encoding="ascii")
        ssl.create_default_context(cadata=text)
    except (ssl.SSLError, ValueError) as error:
        raise UsageError(f"--ca-file {ca_file} holds no certificate in PEM form") from error
    except OSError as error:
        raise UsageError(f"--ca-file {ca_file} can't be read: {error.strerror}") from error
    return text


def _register() -> HookRegister:
    from buildrunner.settings import data_folder

    return HookRegister(Path(data_folder()) / "hooks")


def _name_of(folder: str) -> str:
    """The repository's name: of its folder, without ``.git``, in letters that addresses have."""
    from unicodedata import normalize

    base = os.path.basename(folder.removesuffix("/.git")).removesuffix(".git")
    plain = normalize("NFKD", base).encode("ascii", "ignore").decode()
    return re.sub("[^A-Za-z0-9_-]", "-", plain).strip("-")


def _longer_name(folder: Path) -> str:
    """A name that tells the repository from its namesake: with the folder that it lies in."""
    place = folder.parent if folder.name == ".git" else folder
    return f"{_name_of(str(place.parent))}-{_name_of(str(place))}"


def _is_stored(name: str, secret: str) -> bool:
    from buildrunner.errors import SecretError
    from buildrunner.plan.build_plan import SecretReference
    from buildrunner.settings import own_settings

    resolver = wiring.secret_resolver(own_settings())
    try:
        return resolver.resolve(SecretReference("", "secretManager", name)) == secret
    except SecretError:
        return False
