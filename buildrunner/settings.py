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

    [secret_sources]                       # in config.toml only, never in a project's own file
    google = true                          # ask Google's Secret Manager and Cloud KMS too
    kms_command = ["decrypt", "{key}"]     # ciphertext on stdin, value on stdout
    key = "keyring"                        # key of the local store: "file" (default) or "keyring"

    [artifacts.repositories]               # repository as configs name it -> the one to use
    "https://us-python.pkg.dev/my-project/packages" = "https://pypi.example.com/legacy/"

    [storage.folders]                      # in config.toml only: folders that stand for buckets
    "gs://my-bucket" = "file:///srv/buckets/my-bucket"

    [git]                                  # in config.toml only
    cache_gib = 20                         # what the cache of repositories may take
    tokens = { "git.example.com" = "env:GIT_TOKEN" }
    repositories = { "my-repo" = "https://git.example.com/team/my-repo.git" }

    [registries]                           # in config.toml only
    share_logins = true                    # steps get your logins for the images that a build names
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

import msgspec

from buildrunner.errors import ConfigError, SecretError, StoreError, UsageError
from buildrunner.logs.wording import Look
from buildrunner.settings_git import GIT_KEYS, GitSettings, anchored, git_settings
from buildrunner.spec.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE_NAME = ".buildrunner.toml"
DEFAULT_PROJECT = "local-project"

_KEYS: dict[str, dict[str, type]] = {
    "project": {"id": str},
    "images": {"aliases": dict},
    "sandbox": {"docker_socket": bool, "privileged": bool},
    "artifacts": {"repositories": dict},
    "registries": {"share_logins": bool},
    "storage": {"folders": dict},
    "git": GIT_KEYS,
    "secret_sources": {"google": bool, "kms_command": list, "key": str},
}
_TYPE_NAMES = {
    str: "a string",
    bool: "true or false",
    int: "a whole number",
    dict: "a table of strings",
    list: "a list of strings",
}
# A project's file comes with the project. It must not run commands here, nor spend the user's own
# Google credentials, nor hand out logins and keys, nor say where files are written.
_USER_ONLY = ("secret_sources", "registries", "storage", "git")
_KEY_PLACES = ("file", "keyring")


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the process of one build is told by its server's environment.

    Attributes:
        data: the server's folder.
        database: URL of its database; may hold a password.
        sandbox: ``host`` or ``nested``.
        max_builds: how many builds share the machine; 0 when that is not known.
        sources: where builds may fetch from, as `sources.source_policy.policy_from` reads it.
    """

    data: str
    database: str
    sandbox: str
    max_builds: int = 0
    sources: str = ""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the settings files say, with defaults filled in.

    Attributes:
        project_id: project of builds that name none.
        image_aliases: image as configs name it -> image to run in its place.
        docker_socket: steps get the engine's socket.
        privileged: steps run privileged.
        secrets: secret name -> ``env:NAME`` or ``file:PATH`` (absolute).
        google_secrets: ask Secret Manager and Cloud KMS, with the user's own credentials.
        kms_command: program and arguments that decrypt a KMS ciphertext; empty for none.
        secrets_key: where the key of the local secret store is: ``file`` or ``keyring``.
        share_registry_logins: steps get the user's logins for the registries of the images that
            the build names.
        package_repositories: repository as configs name it -> address of the one to publish to.
        storage_folders: ``gs://BUCKET`` or ``gs://BUCKET/PREFIX`` -> ``file:///FOLDER``.
        git: how Git repositories are fetched.
    """

    project_id: str = DEFAULT_PROJECT
    image_aliases: dict[str, str] = {}
    docker_socket: bool = True
    privileged: bool = False
    secrets: dict[str, str] = {}
    google_secrets: bool = False
    kms_command: tuple[str, ...] = ()
    secrets_key: str = "file"
    share_registry_logins: bool = False
    package_repositories: dict[str, str] = {}
    storage_folders: dict[str, str] = {}
    git: GitSettings = GitSettings()


def data_folder(environ: Mapping[str, str] = os.environ) -> str:
    """Folder of builds and logs: ``$XDG_DATA_HOME/buildrunner``."""
    base = environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return os.path.join(base, "buildrunner")


def config_folder(environ: Mapping[str, str] = os.environ) -> str:
    """Folder of the user's own settings: ``$XDG_CONFIG_HOME/buildrunner``."""
    base = environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return os.path.join(base, "buildrunner")


def cache_folder(environ: Mapping[str, str] = os.environ) -> str:
    """Folder of what can be fetched again: ``$XDG_CACHE_HOME/buildrunner``."""
    base = environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(base, "buildrunner")


def worker_settings(environ: Mapping[str, str] = os.environ) -> WorkerSettings:
    """What a server told the process of a build.

    Raises:
        UsageError: no server started this process.
    """
    data, database = environ.get("BUILDRUNNER_DATA"), environ.get("BUILDRUNNER_DATABASE")
    if not data or not database:
        raise UsageError(
            "BUILDRUNNER_DATA and BUILDRUNNER_DATABASE are not set",
            hint="`buildrunner serve` starts this command; to build a folder use `submit`",
        )
    return WorkerSettings(
        data=data,
        database=database,
        sandbox=environ.get("BUILDRUNNER_SANDBOX", "nested"),
        max_builds=_natural(environ.get("BUILDRUNNER_MAX_BUILDS", "")),
        sources=environ.get("BUILDRUNNER_SOURCES", ""),
    )


def _natural(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0


def server_database(environ: Mapping[str, str] = os.environ) -> str:
    """URL of a server's database, when it is not a file in the server's folder; else empty.

    In the environment, as it may hold a password, which must not be on a command line.
    """
    return environ.get("BUILDRUNNER_DATABASE", "")


class ServerVariables(msgspec.Struct, frozen=True, kw_only=True):
    """What the environment says about the server to use; all may be empty.

    Attributes:
        url: ``BUILDRUNNER_SERVER``.
        token: ``BUILDRUNNER_TOKEN``.
        ca_file: ``BUILDRUNNER_CA_FILE``, certificates to trust.
    """

    url: str = ""
    token: str = ""
    ca_file: str = ""


def server_variables(environ: Mapping[str, str] = os.environ) -> ServerVariables:
    """The server that commands talk to, unless a flag names another."""
    return ServerVariables(
        url=environ.get("BUILDRUNNER_SERVER", ""),
        token=environ.get("BUILDRUNNER_TOKEN", ""),
        ca_file=environ.get("BUILDRUNNER_CA_FILE", ""),
    )


def worker_environment(settings: WorkerSettings) -> dict[str, str]:
    """The variables that `worker_settings` reads."""
    return {
        "BUILDRUNNER_DATA": settings.data,
        "BUILDRUNNER_DATABASE": settings.database,
        "BUILDRUNNER_SANDBOX": settings.sandbox,
        "BUILDRUNNER_MAX_BUILDS": str(settings.max_builds),
        "BUILDRUNNER_SOURCES": settings.sources,
    }


def traces_wanted(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether somebody collects OpenTelemetry traces. The SDK reads the addresses by itself."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    return bool(
        environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        or environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    )


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


def sandbox_folder(environ: Mapping[str, str] = os.environ) -> str:
    """Folder of what nested sandboxes of this user's own builds keep on this machine."""
    return os.path.join(data_folder(environ), "sandboxes")


def secrets_folder(environ: Mapping[str, str] = os.environ) -> str:
    """Folder of the local secret store and its key."""
    return os.path.join(data_folder(environ), "secrets")


def google_endpoint(api: str, default: str, environ: Mapping[str, str] = os.environ) -> str:
    """Where an API of Google is reached.

    Args:
        api: ``SECRETMANAGER`` or ``CLOUDKMS``.
        default: Google's own address of it.
        environ: environment variables.

    Raises:
        SecretError: the address is neither https nor http.

    Source: gcloud's property ``api_endpoint_overrides/NAME`` and its environment variable.
    """
    name = f"CLOUDSDK_API_ENDPOINT_OVERRIDES_{api}"
    url = environ.get(name)
    if not url:
        return default
    if not url.startswith(("https://", "http://")):
        raise SecretError(f"{name} must be an address that starts with https://, not {url}")
    return url


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
    own = os.path.join(config_folder(environ), "config.toml")
    for path in (own, _project_file(folder)):
        if path and os.path.isfile(path):
            _merge(merged, _read(path, is_own=path == own))
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


def _read(path: str, *, is_own: bool) -> dict[str, Any]:
    import tomllib

    try:
        with open(path, "rb") as file:
            tree = tomllib.load(file)
    except OSError as error:
        raise ConfigError([Problem(f"can't be read: {error.strerror}", file=path)]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([Problem(f"is not TOML: {error}", file=path)]) from error
    problems = [*_shape_problems(path, tree), *_secret_problems(path, tree)]
    problems.extend(_source_problems(path, tree, is_own=is_own))
    problems.extend(_git_problems(path, tree))
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
        elif not _is_a(value, kind) or not _all_strings(value):
            problems.append(Problem(f"must be {_TYPE_NAMES[kind]}", path=place, file=path))
    return problems


def _secret_problems(path: str, tree: dict[str, Any]) -> list[Problem]:
    content = tree.get("secrets")
    return _reference_problems(path, "secrets", content if isinstance(content, dict) else {})


def _reference_problems(path: str, table: str, content: dict[str, Any]) -> list[Problem]:
    return [
        Problem(
            "must be a string that starts with env: or file:",
            path=f'{table}."{name}"',
            file=path,
            hint='e.g. "env:API_KEY" or "file:~/api-key"',
        )
        for name, value in content.items()
        if not isinstance(value, str) or not value.startswith(("env:", "file:"))
    ]


def _source_problems(path: str, tree: dict[str, Any], *, is_own: bool) -> list[Problem]:
    problems = []
    if not is_own:
        hint = f"put it into {os.path.join(config_folder(), 'config.toml')}"
        problems = [
            Problem("is not for a project's file", path=table, file=path, hint=hint)
            for table in _USER_ONLY
            if table in tree
        ]
    sources = tree.get("secret_sources")
    if isinstance(sources, dict):
        if sources.get("key", "file") not in _KEY_PLACES:
            places = '"file" or "keyring"'
            problems.append(Problem(f"must be {places}", path="secret_sources.key", file=path))
        if sources.get("kms_command") == []:
            place = "secret_sources.kms_command"
            problems.append(Problem("must name a program", path=place, file=path))
    return problems


def _git_problems(path: str, tree: dict[str, Any]) -> list[Problem]:
    git = tree.get("git")
    if not isinstance(git, dict):
        return []
    tokens = git.get("tokens")
    problems = _reference_problems(path, "git.tokens", tokens if isinstance(tokens, dict) else {})
    if _is_a(git.get("cache_gib"), int) and git["cache_gib"] < 0:
        problems.append(Problem("must not be negative", path="git.cache_gib", file=path))
    return problems


def _fields(path: str, tree: dict[str, Any]) -> dict[str, Any]:
    fields = dict(tree.get("sandbox", {}))
    if "id" in tree.get("project", {}):
        fields["project_id"] = tree["project"]["id"]
    if "share_logins" in tree.get("registries", {}):
        fields["share_registry_logins"] = tree["registries"]["share_logins"]
    sources = tree.get("secret_sources", {})
    names = {"google": "google_secrets", "kms_command": "kms_command", "key": "secrets_key"}
    for key, value in sources.items():
        fields[names[key]] = tuple(value) if isinstance(value, list) else value
    fields["package_repositories"] = tree.get("artifacts", {}).get("repositories", {})
    fields["storage_folders"] = tree.get("storage", {}).get("folders", {})
    if "git" in tree:
        fields["git"] = git_settings(tree["git"], os.path.dirname(path))
    fields["image_aliases"] = tree.get("images", {}).get("aliases", {})
    fields["secrets"] = {
        name: anchored(value, os.path.dirname(path))
        for name, value in tree.get("secrets", {}).items()
    }
    return fields


def _merge(merged: dict[str, Any], fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        merged[name] = {**merged.get(name, {}), **value} if isinstance(value, dict) else value


def _is_a(value: object, kind: type) -> bool:
    # For Python true is a number, for a reader it is not.
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _all_strings(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(entry, str) for entry in value.values())
    return not isinstance(value, list) or all(isinstance(entry, str) for entry in value)


def _unknown(path: str, place: str, known: list[str], what: str) -> Problem:
    from difflib import get_close_matches

    near = get_close_matches(place, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    return Problem(f"there is no such {what}", path=place, file=path, hint=hint)
