"""What the user set outside the build config: the only reader of environment and settings files.

Precedence, strongest first: command-line flags (applied by the commands), the nearest
``.buildrunner.toml`` in the current folder or above it, ``config.toml`` in the user's configuration
folder, environment variables, defaults. A project's file may only lower what builds get, unless the
user trusts it (`folder_trust`). A file says::

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

    [server.keep_builds]                   # in config.toml only: which builds `serve` keeps
    "*" = "365d"
    my-project = "30d,500"

    [projects.shop.git]                    # in config.toml only: for builds of one project
    tokens = { "git.example.com/shop" = "env:SHOP_TOKEN" }
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec

from buildrunner.errors import ConfigError
from buildrunner.settings.checks import settings_problems
from buildrunner.settings.environment import config_folder
from buildrunner.settings.folder_trust import (
    ProjectFile,
    TrustedFiles,
    UntrustedFile,
    file_inside,
    needs_of,
)
from buildrunner.settings.git_table import GitSettings, anchored, git_fields, with_fields
from buildrunner.spec.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

FILE_NAME = ".buildrunner.toml"
DEFAULT_PROJECT = "local-project"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the settings files say, with defaults filled in.

    Attributes:
        project_id: project of builds that name none.
        image_aliases: image as configs name it -> image to run in its place.
        untrusted_images: images that builds of untrusted configs may use though not everyone can
            pull them: names, or patterns with ``*``.
        docker_socket: steps get the engine's socket.
        privileged: steps run privileged; None leaves it to the place where the build runs.
        secrets: secret name -> ``env:NAME`` or ``file:PATH`` (absolute).
        google_secrets: ask Secret Manager and Cloud KMS, with the user's own credentials.
        kms_command: program and arguments that decrypt a KMS ciphertext; empty for none.
        secrets_key: where the key of the local secret store is: ``file`` or ``keyring``.
        share_registry_logins: steps get the user's logins for the registries of the images that
            the build names.
        package_repositories: repository as configs name it -> address of the one to publish to.
        storage_folders: ``gs://BUCKET`` or ``gs://BUCKET/PREFIX`` -> ``file:///FOLDER``.
        storage_buckets: names of the buckets that builds may use; None for all.
        git: how Git repositories are fetched.
        egress_allow, egress_deny: IPv4 networks that nested sandboxes reach although, or do not
            reach because, they are named here; the first counts.
        keep_builds: project, or ``*``, -> which of its builds a server keeps; see `keep_rule`.
        projects: for one project, fields that win over the others; see `of_project`.
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
    package_repositories: dict[str, str] = {}
    storage_folders: dict[str, str] = {}
    storage_buckets: tuple[str, ...] | None = None
    git: GitSettings = GitSettings()
    egress_allow: tuple[str, ...] = ()
    egress_deny: tuple[str, ...] = ()
    keep_builds: dict[str, str] = {}
    projects: dict[str, dict[str, Any]] = {}

    def of_project(self, project: str) -> Settings:
        """Return the settings for builds of one project: of tables, its own entries win."""
        changes: dict[str, Any] = {"projects": {}}
        for name, value in self.projects.get(project, {}).items():
            common = getattr(self, name)
            if isinstance(common, GitSettings):
                changes[name] = with_fields(common, value)
            else:
                changes[name] = {**common, **value} if isinstance(value, dict) else value
        return msgspec.structs.replace(self, **changes)


def load_settings(
    folder: str,
    environ: Mapping[str, str] = os.environ,
    *,
    confirm: Callable[[ProjectFile], bool] = lambda _: False,
) -> Settings:
    """The settings that hold in ``folder``.

    Args:
        folder: where the user is, or the source that is built.
        environ: the environment's variables.
        confirm: asked whether to obey a project's file that needs trust and is not trusted.

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
    """The user's own settings, without those of any project.

    Raises:
        ConfigError: see `load_settings`.
    """
    return _settings(_own_fields(environ))


def read_project_file(
    folder: str, environ: Mapping[str, str] = os.environ
) -> tuple[ProjectFile | None, dict[str, Any]]:
    """Read the settings file that holds in ``folder``, once: what it needs, and what it says.

    Returns:
        The file, and fields of `Settings`; None and nothing where there is no such file.

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
    """Where the user's own settings come from: field of `Settings` -> place.

    A field that is not there has its default.

    Raises:
        ConfigError: see `load_settings`.
    """
    origins: dict[str, str] = {}
    for origin, fields in _own_layers(environ):
        for name, value in fields.items():
            if value == {}:
                continue  # the file says nothing of it
            # Tables of several files are put together; of all else the last one counts.
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
    """What each place of the user's says, the weakest first: its name, and fields of `Settings`."""
    for variable in ("CLOUDSDK_CORE_PROJECT", "GOOGLE_CLOUD_PROJECT"):
        if environ.get(variable):
            yield f"${variable}", {"project_id": environ[variable]}
            break
    path = os.path.join(config_folder(environ), "config.toml")
    if os.path.isfile(path):
        yield path, _fields(path, _read(path, _content(path), is_own=True))


def _project_file(folder: str) -> str:
    # A file planted by someone else in a folder above (/tmp, ...) must not steer our builds: it
    # counts only when it belongs to us, to root, or to the owner of the folder we build.
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
    if "share_logins" in tree.get("registries", {}):
        fields["share_registry_logins"] = tree["registries"]["share_logins"]
    sources = tree.get("secret_sources", {})
    names = {"google": "google_secrets", "kms_command": "kms_command", "key": "secrets_key"}
    for key, value in sources.items():
        fields[names[key]] = tuple(value) if isinstance(value, list) else value
    for key in ("egress_allow", "egress_deny"):
        if key in tree.get("sandbox", {}):
            fields[key] = tuple(tree["sandbox"][key])
    fields["package_repositories"] = tree.get("artifacts", {}).get("repositories", {})
    fields["storage_folders"] = tree.get("storage", {}).get("folders", {})
    fields["keep_builds"] = tree.get("server", {}).get("keep_builds", {})
    if "buckets" in tree.get("storage", {}):
        fields["storage_buckets"] = tuple(tree["storage"]["buckets"])
    if "git" in tree:
        fields["git"] = git_fields(tree["git"], os.path.dirname(path))
    fields["image_aliases"] = tree.get("images", {}).get("aliases", {})
    if "untrusted" in tree.get("images", {}):
        fields["untrusted_images"] = tuple(tree["images"]["untrusted"])
    fields["projects"] = {
        project: _fields(path, own) for project, own in tree.get("projects", {}).items()
    }
    fields["secrets"] = {
        name: _secret_place(value, os.path.dirname(path))
        for name, value in tree.get("secrets", {}).items()
    }
    return fields


def _secret_place(source: str, folder: str) -> str:
    """Where a secret is. A link that was judged here is not followed anew when the file is read."""
    kind, _, value = source.partition(":")
    inside = file_inside(folder, value) if kind == "file" else ""
    return f"file:{inside}" if inside else anchored(source, folder)


def _merge(merged: dict[str, Any], fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        merged[name] = {**merged.get(name, {}), **value} if isinstance(value, dict) else value
