"""Settings files: their tables, their checks, and the `Settings` that result from them.

`load_settings` reads the file of the user and that of the project. `settings_problems` checks one
file.

Workers on other hosts get the settings of the build's project on the server: aliases of images,
privileges, the policy (`settings_for_workers`). Settings that name something on the server's own
machine are not sent: places of secrets, keys, logins and folders. For these, the settings of the
worker's own machine count. Provenance is off, since its signing key does not leave the server.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec

from buildrunner.addresses import Egress
from buildrunner.errors import ConfigError, UsageError
from buildrunner.kubernetes.pool import Pool, pool_problems
from buildrunner.problem import Problem, nearest
from buildrunner.settings.environment import config_folder
from buildrunner.settings.folder_trust import (
    ProjectFile,
    TrustedFiles,
    UntrustedFile,
    file_inside,
    needs_of,
)
from buildrunner.spec.model.git_address import HINT, MESSAGE, has_password
from buildrunner.store.keep_rule import parse_keep_rule

GIT_KEYS: dict[str, type] = {
    "cache": str,
    "cache_gib": int,
    "submodules": bool,
    "lfs": bool,
    "repositories": dict,
    "tokens": dict,
    "ssh_keys": dict,
    "known_hosts": str,
    "host_keys": dict,
}

_OF_SERVER: Final = (
    "project_id",
    "image_aliases",
    "untrusted_images",
    "docker_socket",
    "privileged",
    "package_repositories",
    "storage_buckets",
    "egress_allow",
    "egress_deny",
    "policy",
)
_GIT_OF_SERVER: Final = ("submodules", "lfs", "repositories", "host_keys")


class GitSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings for fetches of Git repositories. Paths are absolute.

    Attributes:
        cache: folder of the cache; empty for `cache_folder`.
        cache_gib: limit of the cache, in GiB.
        submodules: fetch submodules, too.
        lfs: fetch the content of Git LFS files, too.
        repositories: name of a ``repoSource`` or ``connectedRepository`` -> URL.
        tokens: host -> ``env:NAME`` or ``file:PATH``; for the keys see `GitAccess`.
        ssh_keys: host -> path of a private key.
        known_hosts: path of a file of ssh host keys, besides the user's own; empty for none.
        host_keys: host -> fingerprints of its ssh host keys, separated by spaces.
        project: project whose builds fetch; empty for a build without a server. Not set in files.
    """

    cache: str = ""
    cache_gib: int = 20
    submodules: bool = False
    lfs: bool = False
    repositories: dict[str, str] = {}
    tokens: dict[str, str] = {}
    ssh_keys: dict[str, str] = {}
    known_hosts: str = ""
    host_keys: dict[str, str] = {}
    project: str = ""


def git_fields(table: dict[str, Any], folder: str) -> dict[str, Any]:
    """Return the fields of `GitSettings` that a table sets, with absolute paths.

    Args:
        table: the table, with valid keys and types.
        folder: folder of the settings file.
    """
    fields = dict(table)
    for name in ("cache", "known_hosts"):
        if table.get(name):
            fields[name] = os.path.join(folder, os.path.expanduser(table[name]))
    keys = table.get("ssh_keys", {})
    fields["ssh_keys"] = {
        host: os.path.join(folder, os.path.expanduser(key)) for host, key in keys.items()
    }
    tokens = table.get("tokens", {})
    fields["tokens"] = {host: anchored(source, folder) for host, source in tokens.items()}
    return fields


def with_fields(git: GitSettings, fields: dict[str, Any]) -> GitSettings:
    """Return ``git`` with overriding fields; tables are merged by entry."""
    changes = {
        name: {**getattr(git, name), **value} if isinstance(value, dict) else value
        for name, value in fields.items()
    }
    return msgspec.structs.replace(git, **changes)


def anchored(source: str, folder: str) -> str:
    """Return a reference with an absolute path: ``file:x`` is relative to the settings file."""
    kind, _, value = source.partition(":")
    if kind != "file":
        return source
    return f"file:{os.path.join(folder, os.path.expanduser(value))}"


KEYS: dict[str, dict[str, type]] = {
    "project": {"id": str},
    "images": {"aliases": dict, "untrusted": list},
    "sandbox": {
        "docker_socket": bool,
        "privileged": bool,
        "egress_allow": list,
        "egress_deny": list,
    },
    "artifacts": {"repositories": dict},
    "registries": {"share_logins": bool, "logins": str},
    "storage": {"folders": dict, "buckets": list},
    "git": GIT_KEYS,
    "secret_sources": {"google": bool, "kms_command": list, "key": str},
    "server": {"keep_builds": dict},
    "identity": {"kms_key": str},
    "policy": {"rules": dict},
    "provenance": {
        "enabled": bool,
        "push": bool,
        "sbom": list,
        "sbom_wait": bool,
        "builder": str,
        "key": str,
        "certificate": str,
        "sigstore": str,
        "identity_token": str,
    },
}
_POOL_TYPES: dict[str, type] = {
    "max_builds": int,
    "spare": int,
    "cpu_request_percent": int,
    "node_selector": dict,
    "tolerations": list,
    "projects": list,
    "pull_secrets": list,
}
POOL_KEYS: dict[str, type] = {
    name: _POOL_TYPES.get(name, str) for name in Pool.__struct_fields__ if name != "name"
}
"""The keys of a table ``[pools.NAME]``."""

_POOL_NEEDS = ("server", "worker_image", "engine_image")
TYPE_NAMES = {
    str: "a string",
    bool: "true or false",
    int: "a whole number",
    dict: "a table of strings",
    list: "a list of strings",
}
PROJECT_TABLES = (
    "images",
    "sandbox",
    "artifacts",
    "registries",
    "storage",
    "git",
    "policy",
    "provenance",
)
"""The tables that may also be below ``[projects.NAME]``, for one project."""

# A project's file comes with the project. It must not run commands here, nor use the user's own
# Google credentials, nor give out logins and keys, nor decide where files are written.
_USER_ONLY = (
    "secret_sources",
    "registries",
    "storage",
    "git",
    "server",
    "identity",
    "policy",
    "provenance",
    "projects",
    "pools",
    "images.untrusted",
)
_KEY_PLACES = ("file", "keyring")
SBOM_FORMATS = ("spdx", "cyclonedx")
_SBOM_HINT = f"formats are {' and '.join(SBOM_FORMATS)}"
_URI = re.compile(r"[a-z][a-z0-9+.-]*:")


def settings_problems(path: str, tree: dict[str, Any], *, is_own: bool) -> list[Problem]:
    """Return all problems of a settings file.

    Args:
        path: path of the file.
        tree: the file's content.
        is_own: the file is the user's own, not a project's.
    """
    return [
        *_shape_problems(path, tree),
        *_secret_problems(path, tree),
        *_source_problems(path, tree, is_own=is_own),
        *_git_problems(path, tree),
        *_server_problems(path, tree),
        *_login_problems(path, tree),
        *_projects_problems(path, tree.get("projects", {})),
        *_pools_problems(path, tree.get("pools", {})),
        *_egress_problems(path, tree, is_own=is_own),
        *_provenance_problems(path, tree),
    ]


def _shape_problems(path: str, tree: dict[str, Any]) -> list[Problem]:
    problems = []
    known = [*KEYS, "secrets", "projects", "pools"]
    for table, content in tree.items():
        if table not in known:
            problems.append(_unknown(path, table, known, "table"))
        elif not isinstance(content, dict):
            problems.append(Problem("must be a table", path=table, file=path))
        elif table in KEYS:
            problems.extend(_key_problems(path, table, content))
    return problems


def _projects_problems(path: str, projects: Any) -> list[Problem]:
    """Return problems below ``[projects.NAME]``, which has some of the tables for one project."""
    problems = []
    for project, tree in projects.items() if isinstance(projects, dict) else ():
        place = f"projects.{project}"
        if not isinstance(tree, dict):
            problems.append(Problem("must be a table of tables", path=place, file=path))
            continue
        for table, content in tree.items():
            below = f"{place}.{table}"
            if table not in PROJECT_TABLES:
                known = [f"{place}.{name}" for name in PROJECT_TABLES]
                problems.append(_unknown(path, below, known, "table"))
            elif not isinstance(content, dict):
                problems.append(Problem("must be a table", path=below, file=path))
            else:
                problems.extend(_key_problems(path, table, content, f"{place}."))
        problems.extend(_git_problems(path, tree, f"{place}."))
        problems.extend(_provenance_problems(path, tree, f"{place}."))
        problems.extend(_egress_problems(path, tree, f"{place}.", is_own=True))
    return problems


def _pools_problems(path: str, pools: Any) -> list[Problem]:
    """Return problems of the tables ``[pools.NAME]``."""
    problems = []
    for name, table in pools.items() if isinstance(pools, dict) else ():
        place = f"pools.{name}"
        if not isinstance(table, dict):
            problems.append(Problem("must be a table", path=place, file=path))
            continue
        found = _key_problems(path, place, table, keys=POOL_KEYS)
        found += [
            Problem("is missing", path=f"{place}.{key}", file=path, hint="every pool needs it")
            for key in _POOL_NEEDS
            if key not in table
        ]
        if not found:
            found = [
                Problem(text, path=place if key == "name" else f"{place}.{key}", file=path)
                for key, text in pool_problems(_pool(name, table))
            ]
        problems += found
    return problems


def _pool(name: str, table: dict[str, Any]) -> Pool:
    return msgspec.convert({**table, "name": name}, type=Pool)


def _key_problems(
    path: str,
    table: str,
    content: dict[str, Any],
    above: str = "",
    *,
    keys: Mapping[str, type] | None = None,
) -> list[Problem]:
    keys = KEYS[table] if keys is None else keys
    problems = []
    for key, value in content.items():
        place = f"{above}{table}.{key}"
        kind = keys.get(key)
        if kind is None:
            known = [f"{above}{table}.{name}" for name in keys]
            problems.append(_unknown(path, place, known, "key"))
        elif not _is_a(value, kind) or not _all_strings(value):
            problems.append(Problem(f"must be {TYPE_NAMES[kind]}", path=place, file=path))
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
            if _has(tree, table)
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


def _has(tree: dict[str, Any], place: str) -> bool:
    table, _, key = place.partition(".")
    content = tree.get(table)
    return content is not None and (not key or (isinstance(content, dict) and key in content))


def _git_problems(path: str, tree: dict[str, Any], above: str = "") -> list[Problem]:
    git = tree.get("git")
    if not isinstance(git, dict):
        return []
    tokens = git.get("tokens")
    problems = _reference_problems(
        path, f"{above}git.tokens", tokens if isinstance(tokens, dict) else {}
    )
    repositories = git.get("repositories")
    problems += [
        Problem(MESSAGE, path=f'{above}git.repositories."{name}"', file=path, hint=HINT)
        for name, url in (repositories.items() if isinstance(repositories, dict) else ())
        if has_password(str(url))
    ]
    if _is_a(git.get("cache_gib"), int) and git["cache_gib"] < 0:
        problems.append(Problem("must not be negative", path=f"{above}git.cache_gib", file=path))
    return problems


def _server_problems(path: str, tree: dict[str, Any]) -> list[Problem]:
    server = tree.get("server")
    rules = server.get("keep_builds") if isinstance(server, dict) else None
    problems = []
    for project, rule in rules.items() if isinstance(rules, dict) else ():
        try:
            parse_keep_rule(str(rule))
        except UsageError as error:
            place = f'server.keep_builds."{project}"'
            problems.append(Problem(str(error), path=place, file=path, hint=error.hint))
    return problems


def _login_problems(path: str, tree: dict[str, Any]) -> list[Problem]:
    registries = tree.get("registries")
    if not isinstance(registries, dict) or "logins" not in registries:
        return []
    hint = "put it into [projects.NAME.registries]; other builds act with the logins of the user"
    place = "registries.logins"
    return [Problem("is for one project of a server", path=place, file=path, hint=hint)]


def _egress_problems(
    path: str, tree: dict[str, Any], above: str = "", *, is_own: bool
) -> list[Problem]:
    sandbox = tree.get("sandbox")
    if not isinstance(sandbox, dict):
        return []
    problems = []
    for key in ("egress_allow", "egress_deny"):
        place = f"{above}sandbox.{key}"
        if key in sandbox and not is_own:
            hint = f"put it into {os.path.join(config_folder(), 'config.toml')}"
            text = "is not for a project's file"
            problems.append(Problem(text, path=place, file=path, hint=hint))
        networks = sandbox.get(key)
        for network in networks if isinstance(networks, list) else ():
            try:
                ipaddress.IPv4Network(network)
            except (ValueError, TypeError):
                text = f"{network!r} is not an IPv4 network"
                hint = "write an address, or a block such as 10.0.0.0/8"
                problems.append(Problem(text, path=place, file=path, hint=hint))
    return problems


def _provenance_problems(path: str, tree: dict[str, Any], above: str = "") -> list[Problem]:
    table = tree.get("provenance")
    formats = table.get("sbom") if isinstance(table, dict) else None
    return [
        Problem(
            f"{one!r} is no format of an SBOM",
            f"{above}provenance.sbom",
            file=path,
            hint=_SBOM_HINT,
        )
        for one in (formats if isinstance(formats, list) else ())
        if one not in SBOM_FORMATS
    ]


def _is_a(value: object, kind: type) -> bool:
    # In Python, bool is a subclass of int.
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _all_strings(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(entry, str) for entry in value.values())
    return not isinstance(value, list) or all(isinstance(entry, str) for entry in value)


def _unknown(path: str, place: str, known: list[str], what: str) -> Problem:
    near = nearest(place, known)
    hint = f"did you mean {near}?" if near else f"known: {', '.join(known)}"
    return Problem(f"there is no such {what}", path=place, file=path, hint=hint)


FILE_NAME = ".buildrunner.toml"
DEFAULT_PROJECT = "local-project"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of all files, with defaults.

    Attributes:
        project_id: project of builds that name no project.
        image_aliases: image in configs -> image to run instead.
        untrusted_images: images that builds of untrusted configs may use although not everyone can
            pull them: names, or patterns with ``*``.
        docker_socket: steps get the engine's socket.
        privileged: steps run privileged; None leaves it to the place where the build runs.
        secrets: secret name -> ``env:NAME`` or ``file:PATH`` (absolute).
        google_secrets: use Secret Manager and Cloud KMS, with the user's own credentials.
        kms_command: program and arguments that decrypt a KMS ciphertext; empty for none.
        secrets_key: place of the local secret store's key: ``file`` or ``keyring``.
        logins_folder: replaces the home folder as the place of logins for registries and packages;
            empty for the user's own. Builds with it share no images with others.
        share_registry_logins: steps get the user's logins for the registries of the images that
            the build names.
        package_repositories: repository in configs -> address of the repository to publish to.
        storage_folders: ``gs://BUCKET`` or ``gs://BUCKET/PREFIX`` -> ``file:///FOLDER``.
        storage_buckets: names of the buckets that builds may use; None for all.
        git: settings of Git repositories.
        egress_allow, egress_deny: IPv4 networks that nested sandboxes may, or may not, reach;
            ``egress_allow`` wins.
        provenance: make provenance for builds that publish images, files or packages.
        provenance_push: also attach provenance to images in their registry.
        provenance_sbom: formats of bills of materials of pushed images.
        provenance_sbom_wait: builds wait for their bills of materials.
        provenance_builder: URI of the builder in provenance; empty for the server's own address.
        provenance_key: path or KMS URI of the key that signs provenance; empty for the key that is
            made in ``provenance_folder``.
        provenance_certificate: path of the key's certificate and its chain.
        provenance_sigstore: sign by Sigstore instead of a key: ``public``, or the path of the trust
            config of another instance; empty to sign with the key.
        provenance_identity_token: path of an identity token for Sigstore; empty for the token of
            the server, or of the CI service or cloud that `submit` runs on.
        provenance_folder: data folder of the server; empty for that of the user. Not in files.
        identity_key: URI of the KMS key that signs identity tokens; empty for keys in files, which
            the server makes and rotates.
        policy: CEL rules for the builds of a server, by name; see `worker.policy`.
        keep_builds: project, or ``*`` -> retention of its builds; see `keep_rule`.
        pools: name -> the pool on a Kubernetes cluster.
        projects: overriding fields for one project; see `of_project`.
    """

    project_id: str = DEFAULT_PROJECT
    image_aliases: dict[str, str] = {}
    untrusted_images: tuple[str, ...] = ()
    docker_socket: bool = True
    privileged: bool | None = None
    secrets: dict[str, str] = {}
    google_secrets: bool = False
    kms_command: tuple[str, ...] = ()
    secrets_key: str = "file"
    share_registry_logins: bool = False
    logins_folder: str = ""
    package_repositories: dict[str, str] = {}
    storage_folders: dict[str, str] = {}
    storage_buckets: tuple[str, ...] | None = None
    git: GitSettings = GitSettings()
    egress_allow: tuple[str, ...] = ()
    egress_deny: tuple[str, ...] = ()
    provenance: bool = True
    provenance_push: bool = False
    provenance_sbom: tuple[str, ...] = ()
    provenance_sbom_wait: bool = False
    provenance_builder: str = ""
    provenance_key: str = ""
    provenance_certificate: str = ""
    provenance_sigstore: str = ""
    provenance_identity_token: str = ""
    provenance_folder: str = ""
    identity_key: str = ""
    policy: dict[str, str] = {}
    keep_builds: dict[str, str] = {}
    pools: dict[str, Pool] = {}
    projects: dict[str, dict[str, Any]] = {}

    def logins_environ(self, environ: Mapping[str, str]) -> Mapping[str, str]:
        """Return the variables that name the places of logins for registries and packages."""
        if not self.logins_folder:
            return environ
        elsewhere = ("DOCKER_CONFIG", "NETRC", "NPM_CONFIG_USERCONFIG")
        kept = {name: value for name, value in environ.items() if name not in elsewhere}
        return {**kept, "HOME": self.logins_folder}

    @property
    def egress(self) -> Egress:
        """Return the networks that builds may not reach."""
        return Egress(deny=(*Egress().deny, *self.egress_deny), allow=self.egress_allow)

    def of_server(self, data: str, public_url: str) -> Settings:
        """Return the settings for builds of a server, which has a data folder and an address."""
        return msgspec.structs.replace(
            self,
            provenance_folder=data,
            provenance_builder=self.provenance_builder or public_url,
        )

    @property
    def signs_by_sigstore(self) -> bool:
        """Return whether Sigstore signs the provenance of any project."""
        return bool(self.provenance_sigstore) or any(
            project.get("provenance_sigstore") for project in self.projects.values()
        )

    @property
    def repositories(self) -> dict[str, dict[str, str]]:
        """Return the URLs of connected repositories: project -> name -> URL.

        The entry of the empty name is for projects without settings of their own.
        """
        own = {name: self.of_project(name).git.repositories for name in self.projects}
        return {**own, "": self.git.repositories}

    def of_project(self, project: str) -> Settings:
        """Return the settings for builds of one project; in tables, its own entries win."""
        git = with_fields(self.git, {"project": project})
        changes: dict[str, Any] = {"projects": {}, "git": git}
        for name, value in self.projects.get(project, {}).items():
            common = getattr(self, name)
            if isinstance(common, GitSettings):
                changes[name] = with_fields(git, value)
            else:
                changes[name] = {**common, **value} if isinstance(value, dict) else value
        return msgspec.structs.replace(self, **changes)


def load_settings(
    folder: str,
    environ: Mapping[str, str] = os.environ,
    *,
    confirm: Callable[[ProjectFile], bool] = lambda _: False,
) -> Settings:
    """Return the effective settings of ``folder``.

    Args:
        folder: the current folder, or the folder of the source.
        environ: environment variables.
        confirm: called to confirm a project's file that needs trust and is not trusted.

    Raises:
        ConfigError: a file is not TOML, or has an unknown key or a value of the wrong type.
        UntrustedFile: the project's file needs trust.
    """
    merged = _own_fields(environ)
    file, fields = read_project_file(folder, environ)
    if file is not None:
        if file.needs and not TrustedFiles(environ).has(file) and not confirm(file):
            raise UntrustedFile(file)
        _merge(merged, fields)
    return _settings(merged)


def own_settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """Return the user's own settings, without those of any project.

    Raises:
        ConfigError: see `load_settings`.
    """
    return _settings(_own_fields(environ))


def read_project_file(
    folder: str, environ: Mapping[str, str] = os.environ
) -> tuple[ProjectFile | None, dict[str, Any]]:
    """Read the project's settings file for ``folder``, once.

    Returns:
        The file, and its fields of `Settings`; None and no fields without a file.

    Raises:
        ConfigError: see `load_settings`.
    """
    path = _project_file(folder)
    if not path or not os.path.isfile(path):
        return None, {}
    content = _content(path)
    tree = _read(path, content, is_own=False)
    file = ProjectFile(
        path=path,
        content=content,
        needs=needs_of(path, tree, own=_own_fields(environ)),
    )
    return file, _fields(path, tree)


def setting_origins(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the origins of the user's own settings: field of `Settings` -> place.

    A missing field has its default.

    Raises:
        ConfigError: see `load_settings`.
    """
    origins: dict[str, str] = {}
    for origin, fields in _own_layers(environ):
        for name, value in fields.items():
            if value == {}:
                continue  # not set in the file
            # Tables of several files are merged; for other values the last file counts.
            before = f"{origins[name]}, " if isinstance(value, dict) and name in origins else ""
            origins[name] = f"{before}{origin}"
    return origins


def _settings(fields: dict[str, Any]) -> Settings:
    return Settings(**{**fields, "git": GitSettings(**fields.get("git", {}))})


def _own_fields(environ: Mapping[str, str]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for _, fields in _own_layers(environ):
        _merge(merged, fields)
    return merged


def _own_layers(environ: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the user's own settings, weakest first: origin, and fields of `Settings`.

    The origin is the name of a variable or of a file.
    """
    for variable in ("CLOUDSDK_CORE_PROJECT", "GOOGLE_CLOUD_PROJECT"):
        if environ.get(variable):
            yield f"${variable}", {"project_id": environ[variable]}
            break
    path = os.path.join(config_folder(environ), "config.toml")
    if os.path.isfile(path):
        yield path, _fields(path, _read(path, _content(path), is_own=True))


def _project_file(folder: str) -> str:
    # A file planted by another user in a parent folder (/tmp, ...) must not control our builds: it
    # counts only if it belongs to this user, to root, or to the owner of the source folder.
    folder = os.path.realpath(folder)
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


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ConfigError([Problem(f"can't be read: {error.strerror}", file=path)]) from error


def _read(path: str, content: bytes, *, is_own: bool) -> dict[str, Any]:
    import tomllib

    try:
        tree = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([Problem(f"is not TOML: {error}", file=path)]) from error
    if problems := settings_problems(path, tree, is_own=is_own):
        raise ConfigError(problems)
    return tree


def _fields(path: str, tree: dict[str, Any]) -> dict[str, Any]:
    fields = dict(tree.get("sandbox", {}))
    if "id" in tree.get("project", {}):
        fields["project_id"] = tree["project"]["id"]
    fields.update(_registry_fields(tree.get("registries", {}), os.path.dirname(path)))
    sources = tree.get("secret_sources", {})
    names = {"google": "google_secrets", "kms_command": "kms_command", "key": "secrets_key"}
    for key, value in sources.items():
        fields[names[key]] = tuple(value) if isinstance(value, list) else value
    for key in ("egress_allow", "egress_deny"):
        if key in tree.get("sandbox", {}):
            fields[key] = tuple(tree["sandbox"][key])
    fields.update(_provenance_fields(tree.get("provenance", {}), os.path.dirname(path)))
    fields["package_repositories"] = tree.get("artifacts", {}).get("repositories", {})
    fields["storage_folders"] = tree.get("storage", {}).get("folders", {})
    if "kms_key" in tree.get("identity", {}):
        fields["identity_key"] = tree["identity"]["kms_key"]
    fields["policy"] = tree.get("policy", {}).get("rules", {})
    fields["keep_builds"] = tree.get("server", {}).get("keep_builds", {})
    if "buckets" in tree.get("storage", {}):
        fields["storage_buckets"] = tuple(tree["storage"]["buckets"])
    if "git" in tree:
        fields["git"] = git_fields(tree["git"], os.path.dirname(path))
    fields["image_aliases"] = tree.get("images", {}).get("aliases", {})
    if "untrusted" in tree.get("images", {}):
        fields["untrusted_images"] = tuple(tree["images"]["untrusted"])
    fields["pools"] = {name: _pool(name, table) for name, table in tree.get("pools", {}).items()}
    fields["projects"] = {
        project: _fields(path, own) for project, own in tree.get("projects", {}).items()
    }
    fields["secrets"] = {
        name: _secret_place(value, os.path.dirname(path))
        for name, value in tree.get("secrets", {}).items()
    }
    return fields


def _registry_fields(table: dict[str, Any], folder: str) -> dict[str, Any]:
    fields = {}
    if "logins" in table:
        fields["logins_folder"] = os.path.join(folder, os.path.expanduser(table["logins"]))
    if "share_logins" in table:
        fields["share_registry_logins"] = table["share_logins"]
    return fields


def _provenance_fields(table: dict[str, Any], folder: str) -> dict[str, Any]:
    names = {"enabled": "provenance"}
    fields = {names.get(key, f"provenance_{key}"): value for key, value in table.items()}
    if "sbom" in table:
        fields["provenance_sbom"] = tuple(table["sbom"])
    paths = ["provenance_certificate", "provenance_identity_token"]
    if not _URI.match(fields.get("provenance_key", "")):
        paths.append("provenance_key")
    if fields.get("provenance_sigstore", "public") not in ("", "public"):
        paths.append("provenance_sigstore")
    for name in paths:
        if path := fields.get(name, ""):
            fields[name] = os.path.join(folder, os.path.expanduser(path))
    return fields


def _secret_place(source: str, folder: str) -> str:
    """Return the source of a secret with links resolved, so that a later link has no effect."""
    kind, _, value = source.partition(":")
    inside = file_inside(folder, value) if kind == "file" else ""
    return f"file:{inside}" if inside else anchored(source, folder)


def _merge(merged: dict[str, Any], fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        merged[name] = {**merged.get(name, {}), **value} if isinstance(value, dict) else value


def settings_for_workers(settings: Settings, project: str) -> dict[str, Any]:
    """Return the fields of a server's settings that workers get for builds of a project."""
    of_project = settings.of_project(project)
    fields = {name: getattr(of_project, name) for name in _OF_SERVER}
    git = {name: getattr(of_project.git, name) for name in _GIT_OF_SERVER}
    return {**fields, "git": git}


def settings_of_worker(own: Settings, fields: dict[str, Any], logins_folder: str = "") -> Settings:
    """Return the settings of a worker for one build.

    Args:
        own: the settings of the worker's machine.
        fields: result of `settings_for_workers` on the server.
        logins_folder: folder with the logins of the build's project; empty if the project has
            none, and those of the worker's own user count.

    Raises:
        msgspec.ValidationError: a field has another type.
    """
    known = {name: value for name, value in fields.items() if name in _OF_SERVER}
    git = {name: value for name, value in fields.get("git", {}).items() if name in _GIT_OF_SERVER}
    common = {**msgspec.to_builtins(own), **known, "projects": {}, "provenance": False}
    if logins_folder:
        common["logins_folder"] = logins_folder
    common["git"] = {**msgspec.to_builtins(own.git), **git}
    return msgspec.convert(common, type=Settings)
