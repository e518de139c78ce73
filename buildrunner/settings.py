"""What the user set outside the build config: the only reader of environment and settings files.

Precedence, strongest first: command-line flags (applied by the commands), the nearest
``.buildrunner.toml`` in the current folder or above it, ``config.toml`` in the user's configuration
folder, environment variables, defaults. A file says::

    [project]
    id = "my-project"                      # $PROJECT_ID

    [images]
    aliases = { "gcr.io/cloud-builders/docker" = "buildrunner/docker" }

    [sandbox]
    docker_socket = true                   # steps get the engine's socket
    privileged = false                     # steps run privileged

    [secrets]                              # secret name or version name -> where its value is
    "projects/my-project/secrets/api-key/versions/latest" = "env:API_KEY"
    db-password = "file:~/.config/db-password"
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

import msgspec

from buildrunner.errors import ConfigError, StoreError
from buildrunner.logs.wording import Look
from buildrunner.spec.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE_NAME = ".buildrunner.toml"
DEFAULT_PROJECT = "local-project"

_KEYS: dict[str, dict[str, type]] = {
    "project": {"id": str},
    "images": {"aliases": dict},
    "sandbox": {"docker_socket": bool, "privileged": bool},
}
_TYPE_NAMES = {str: "a string", bool: "true or false", dict: "a table of strings"}


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the settings files say, with defaults filled in.

    Attributes:
        project_id: project of builds that name none.
        image_aliases: image as configs name it -> image to run in its place.
        docker_socket: steps get the engine's socket.
        privileged: steps run privileged.
        secrets: secret name -> ``env:NAME`` or ``file:PATH`` (absolute).
    """

    project_id: str = DEFAULT_PROJECT
    image_aliases: dict[str, str] = {}
    docker_socket: bool = True
    privileged: bool = False
    secrets: dict[str, str] = {}


def data_folder(environ: Mapping[str, str] = os.environ) -> str:
    """Folder of builds and logs: ``$XDG_DATA_HOME/buildrunner``."""
    base = environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return os.path.join(base, "buildrunner")


def config_folder(environ: Mapping[str, str] = os.environ) -> str:
    """Folder of the user's own settings: ``$XDG_CONFIG_HOME/buildrunner``."""
    base = environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return os.path.join(base, "buildrunner")


def lock_folder() -> str:
    """Folder for locks and notes of one user's processes on this machine.

    Not a matter of environment variables: builds from a desktop, from cron and from a test must
    find the same one. Made by us alone, or not used.

    Raises:
        StoreError: somebody else made it.
    """
    uid = os.geteuid()
    session = f"/run/user/{uid}"
    base = session if os.path.isdir(session) else "/tmp"  # noqa: S108  (checked below)
    folder = os.path.join(base, f"buildrunner-{uid}")
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        status = os.lstat(folder)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != uid:
            raise StoreError(f"{folder} belongs to somebody else", hint="remove it") from None
    return folder


def terminal(
    *, output_is_terminal: bool, encoding: str, environ: Mapping[str, str] = os.environ
) -> Look:
    """What the terminal (or the pipe) behind an output can show.

    ``NO_COLOR`` and ``FORCE_COLOR`` (set and not empty) decide on colours before anything else;
    ``TERM=dumb`` means neither colours nor a status line.
    """
    able = output_is_terminal and environ.get("TERM", "dumb") != "dumb"
    colour = able or bool(environ.get("FORCE_COLOR"))
    return Look(
        colour=colour and not environ.get("NO_COLOR"),
        live=able,
        unicode="utf" in encoding.lower(),
    )


def load_settings(folder: str, environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings that hold in ``folder``.

    Raises:
        ConfigError: a file is not TOML, or has an unknown key or a value of the wrong type.
    """
    merged: dict[str, Any] = {}
    project = environ.get("CLOUDSDK_CORE_PROJECT") or environ.get("GOOGLE_CLOUD_PROJECT")
    if project:
        merged["project_id"] = project
    for path in (os.path.join(config_folder(environ), "config.toml"), _project_file(folder)):
        if path and os.path.isfile(path):
            _merge(merged, _read(path))
    return Settings(**merged)


def _project_file(folder: str) -> str:
    # A file planted by someone else in a folder above (/tmp, ...) must not steer our builds: it
    # counts only when it belongs to us, to root, or to the owner of the folder we build.
    folder = os.path.abspath(folder)
    try:
        trusted = {0, os.geteuid(), os.stat(folder).st_uid}
    except OSError:
        return ""
    while True:
        path = os.path.join(folder, FILE_NAME)
        try:
            if os.stat(path).st_uid in trusted:
                return path
        except OSError:
            pass
        parent = os.path.dirname(folder)
        if parent == folder:
            return ""
        folder = parent


def _read(path: str) -> dict[str, Any]:
    import tomllib

    try:
        with open(path, "rb") as file:
            tree = tomllib.load(file)
    except OSError as error:
        raise ConfigError([Problem(f"can't be read: {error.strerror}", file=path)]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([Problem(f"is not TOML: {error}", file=path)]) from error
    problems = [*_shape_problems(path, tree), *_secret_problems(path, tree)]
    if problems:
        raise ConfigError(problems)
    return _fields(path, tree)


def _shape_problems(path: str, tree: dict[str, Any]) -> list[Problem]:
    problems = []
    for table, content in tree.items():
        if table not in _KEYS and table != "secrets":
            problems.append(_unknown(path, table, [*_KEYS, "secrets"], "table"))
        elif not isinstance(content, dict):
            problems.append(Problem("must be a table", path=table, file=path))
        elif table != "secrets":
            problems.extend(_key_problems(path, table, content))
    return problems


def _key_problems(path: str, table: str, content: dict[str, Any]) -> list[Problem]:
    problems = []
    for key, value in content.items():
        place = f"{table}.{key}"
        kind = _KEYS[table].get(key)
        if kind is None:
            problems.append(_unknown(path, place, [f"{table}.{k}" for k in _KEYS[table]], "key"))
        elif not isinstance(value, kind) or not _all_strings(value):
            problems.append(Problem(f"must be {_TYPE_NAMES[kind]}", path=place, file=path))
    return problems


def _secret_problems(path: str, tree: dict[str, Any]) -> list[Problem]:
    content = tree.get("secrets")
    if not isinstance(content, dict):
        return []
    return [
        Problem(
            "must be a string that starts with env: or file:",
            path=f'secrets."{name}"',
            file=path,
            hint='e.g. "env:API_KEY" or "file:~/api-key"',
        )
        for name, value in content.items()
        if not isinstance(value, str) or not value.startswith(("env:", "file:"))
    ]


def _fields(path: str, tree: dict[str, Any]) -> dict[str, Any]:
    fields = dict(tree.get("sandbox", {}))
    if "id" in tree.get("project", {}):
        fields["project_id"] = tree["project"]["id"]
    fields["image_aliases"] = tree.get("images", {}).get("aliases", {})
    fields["secrets"] = {
        name: _anchored(value, os.path.dirname(path))
        for name, value in tree.get("secrets", {}).items()
    }
    return fields


def _anchored(source: str, folder: str) -> str:
    # A relative path in a settings file means: beside that file, whoever reads it from where.
    kind, _, value = source.partition(":")
    if kind != "file":
        return source
    return f"file:{os.path.join(folder, os.path.expanduser(value))}"


def _merge(merged: dict[str, Any], fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        merged[name] = {**merged.get(name, {}), **value} if isinstance(value, dict) else value


def _all_strings(value: object) -> bool:
    return not isinstance(value, dict) or all(isinstance(v, str) for v in value.values())


def _unknown(path: str, place: str, known: list[str], what: str) -> Problem:
    from difflib import get_close_matches

    near = get_close_matches(place, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    return Problem(f"there is no such {what}", path=place, file=path, hint=hint)
