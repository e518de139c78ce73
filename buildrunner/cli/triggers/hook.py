"""``buildrunner triggers install-hook``: a bare repository reports its pushes to a server.

The command puts our ``post-receive`` hook (`bare_hook`) into the repository. An existing hook
stays: it runs first, with the same input, and is restored when ours is removed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import stat
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec

from buildrunner import wiring
from buildrunner.cli.server.choice import chosen_server
from buildrunner.errors import EXIT_SUCCESS, UsageError

_DEFAULT_SERVER = "http://127.0.0.1:8080"

_MARK: Final = "# installed by buildrunner"
_ORIGINAL: Final = "post-receive.original"
_PROGRAM: Final = "buildrunner_post_receive.py"
SETTINGS_NAME: Final = "buildrunner.json"
"""The file beside the hook that only its owner may read: address, name, secret."""

_SCRIPT: Final = """\
#!/bin/sh
{mark}: tells {server} of pushes. `buildrunner triggers remove-hook` takes it out.
hooks=$(dirname "$0")
for python in {python} python3; do
  command -v "$python" >/dev/null 2>&1 && exec "$python" -I "$hooks/{program}"
done
echo "buildrunner: there is no python3 here: the server is not told of this push" >&2
[ -x "$hooks/{original}" ] && exec "$hooks/{original}"
exit 0
"""


def install(args: argparse.Namespace) -> int:
    """Install or update the hook, and store its secret for the server of this machine.

    Raises:
        UsageError: there is no repository, or it can't be written to.
        SecretError: the secret store can't be used.
    """
    from buildrunner.secrets.secret_name import parse_name
    from buildrunner.server.events.hook_secrets import secret_name
    from buildrunner.settings import own_settings
    from buildrunner.spec.model.git_address import has_password

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
    reason = report_to_server(args.repository)
    if reason:
        sys.stderr.write(
            f"The server does not accept reports of the hook yet ({reason}). Check that it runs at"
            f" {url} and has the secret. Until then, pushes are not reported.\n"
        )
    return EXIT_SUCCESS


def remove(args: argparse.Namespace) -> int:
    """Remove the hook, and restore the previous one.

    Raises:
        UsageError: there is no repository, or it can't be written to.
    """
    before = installed_settings(args.repository)
    done = remove_hook(args.repository)
    if before is not None:
        _register().forget(before.name, repository_folder(args.repository))
    said = "Removed the hook of" if done else "There is no hook of buildrunner in"
    sys.stderr.write(f"{said} [{args.repository}].\n")
    return EXIT_SUCCESS


def _authorities(ca_file: str) -> str:
    """Return the certificates as text, since the hook may run on a machine without their file."""
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
    """Return the repository's name: its folder without ``.git``, in characters valid in URLs."""
    from unicodedata import normalize

    base = os.path.basename(folder.removesuffix("/.git")).removesuffix(".git")
    plain = normalize("NFKD", base).encode("ascii", "ignore").decode()
    return re.sub("[^A-Za-z0-9_-]", "-", plain).strip("-")


def _longer_name(folder: Path) -> str:
    """Return a name with the parent folder, to distinguish repositories of the same name."""
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


class HookSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of the hook.

    Attributes:
        server: address of the server.
        name: of the repository on the server, as in ``/hooks/git/NAME``.
        secret: the key that signs deliveries.
        repository: the address that the server fetches from; empty: the folder itself.
        authorities: certificates (PEM) to trust in place of the system's; empty: the system's.
    """

    server: str
    name: str
    secret: str
    repository: str = ""
    authorities: str = ""


def repository_folder(path: str) -> Path:
    """Return the Git folder of a repository: the folder itself if it is bare, else its ``.git``.

    Raises:
        UsageError: there is no repository.
    """
    command = ["git", "-C", path, "rev-parse", "--absolute-git-dir"]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except OSError as error:
        raise UsageError(f"git can't be run: {error.strerror}") from error
    if done.returncode:
        raise UsageError(
            f"{path} is no Git repository", hint="make one with `git init --bare FOLDER`"
        )
    return Path(done.stdout.rstrip("\n"))


def is_bare(folder: Path) -> bool:
    """Return whether a repository has no work tree."""
    command = ["git", "-C", str(folder), "rev-parse", "--is-bare-repository"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return done.stdout.strip() == "true"


def installed_settings(path: str) -> HookSettings | None:
    """Return the settings of our hook in a repository; None if it is not installed.

    Raises:
        UsageError: the repository does not exist, or its settings can't be read.
    """
    hooks = _hooks(repository_folder(path))
    settings = hooks / SETTINGS_NAME
    if not _is_ours(hooks / "post-receive") or not settings.exists():
        return None
    try:
        return msgspec.json.decode(settings.read_bytes(), type=HookSettings)
    except (OSError, msgspec.MsgspecError) as error:
        raise UsageError(f"{settings} can't be read: {error}") from error


def install_hook(path: str, settings: HookSettings) -> Path:
    """Install or update the hook.

    Returns:
        The hook.

    Raises:
        UsageError: there is no repository, or it can't be written to.
    """
    folder = repository_folder(path)
    hooks = _hooks(folder)
    hook = hooks / "post-receive"
    facts = msgspec.structs.asdict(settings)
    facts["repository"] = settings.repository or f"file://{folder}"
    script = _SCRIPT.format(
        mark=_MARK,
        server=settings.server,
        python=_quoted(sys.executable),
        program=_PROGRAM,
        original=_ORIGINAL,
    )
    program = Path(__file__).with_name("bare_hook.py").read_bytes()
    try:
        hooks.mkdir(exist_ok=True)
        if hook.exists() and not _is_ours(hook):
            hook.rename(hooks / _ORIGINAL)
        _write_secret(hooks / SETTINGS_NAME, json.dumps(facts, indent=1).encode())
        _write(hooks / _PROGRAM, program, 0o644)
        _write(hook, script.encode(), 0o755)
    except OSError as error:
        raise UsageError(f"{hooks} can't be written to: {error.strerror}") from error
    return hook


def report_to_server(path: str) -> str:
    """Report the repository to the server, which then checks it. Returns an error, or nothing.

    Raises:
        UsageError: there is no repository.
    """
    folder = repository_folder(path)
    command = [sys.executable, "-I", str(_hooks(folder) / _PROGRAM), "--installed"]
    done = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout or "the hook can't be run"


def remove_hook(path: str) -> bool:
    """Remove our hook and restore the previous one. Returns whether our hook was installed.

    Raises:
        UsageError: there is no repository, or it can't be written to.
    """
    hooks = _hooks(repository_folder(path))
    hook, original = hooks / "post-receive", hooks / _ORIGINAL
    if not _is_ours(hook):
        return False
    try:
        if original.exists():
            original.rename(hook)
        else:
            hook.unlink()
        for name in (SETTINGS_NAME, _PROGRAM):
            (hooks / name).unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{hooks} can't be written to: {error.strerror}") from error
    return True


def _hooks(folder: Path) -> Path:
    """Return the folder in which Git looks for the repository's hooks."""
    command = ["git", "-C", str(folder), "rev-parse", "--git-path", "hooks"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return folder / done.stdout.rstrip("\n")


def _is_ours(hook: Path) -> bool:
    try:
        return _MARK.encode() in hook.read_bytes()
    except OSError:
        return False


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write a file atomically, never more widely readable than ``mode``."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(descriptor, "wb") as file:
        file.write(content)
    beside.chmod(mode)
    beside.rename(path)


def _write_secret(path: Path, content: bytes) -> None:
    """Write a file for its owner only, and for the group that could read it before."""
    try:
        before = path.stat()
    except FileNotFoundError:
        before = None
    _write(path, content, 0o600)
    if before is not None and before.st_mode & stat.S_IRGRP:
        os.chown(path, -1, before.st_gid)
        path.chmod(0o640)


def _quoted(path: str) -> str:
    import shlex

    return shlex.quote(path)


class HookRegister:
    """A register of hook names: one file per name, which holds the folder of its repository.

    An entry is only a hint: callers check in the repository whether the name still holds.

    Args:
        folder: the folder of the files, created when it is needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def other_repository(self, name: str, server: str, repository: Path) -> Path | None:
        """Return the folder of another repository that reports its pushes under a name."""
        known = self._known(name)
        if known is None or known == repository:
            return None
        try:
            settings = installed_settings(str(known))
        except UsageError:  # the repository is gone
            return None
        is_same = settings is not None and (settings.name, settings.server) == (name, server)
        return known if is_same else None

    def note(self, name: str, repository: Path) -> None:
        """Record the repository of a name.

        Raises:
            UsageError: the entry can't be written.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self._folder / name).write_bytes(bytes(repository))
        except OSError as error:
            raise UsageError(f"{self._folder} can't be written to: {error.strerror}") from error

    def forget(self, name: str, repository: Path) -> None:
        """Delete the entry of a name that the repository no longer has."""
        if self._known(name) == repository:
            (self._folder / name).unlink(missing_ok=True)

    def _known(self, name: str) -> Path | None:

        try:
            return Path((self._folder / name).read_bytes().decode("utf-8", "surrogateescape"))
        except OSError:
            return None
