"""The environment variables: folders, servers, terminals. The only reader of them."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping

import msgspec

from buildrunner.addresses import Egress
from buildrunner.errors import SecretError, StoreError, UsageError
from buildrunner.logs.console.wording import Look

_NO_HOME = "/nonexistent"


def data_folder(environ: Mapping[str, str] = os.environ) -> str:
    """Return the folder of builds and logs: ``$XDG_DATA_HOME/buildrunner``."""
    return _own_folder(environ, "XDG_DATA_HOME", "~/.local/share")


def config_folder(environ: Mapping[str, str] = os.environ) -> str:
    """Return the folder of the user's own settings: ``$XDG_CONFIG_HOME/buildrunner``."""
    return _own_folder(environ, "XDG_CONFIG_HOME", "~/.config")


def cache_folder(environ: Mapping[str, str] = os.environ) -> str:
    """Return the folder of caches: ``$XDG_CACHE_HOME/buildrunner``."""
    return _own_folder(environ, "XDG_CACHE_HOME", "~/.cache")


def _own_folder(environ: Mapping[str, str], variable: str, usual: str) -> str:
    """Return buildrunner's folder below an XDG base folder.

    Source: the XDG base directory specification, which ignores a relative path in a variable.
    """
    base = environ.get(variable, "")
    if not os.path.isabs(base):
        base = os.path.expanduser(usual)
    if not os.path.isabs(base):
        # A user without a home. Not a folder named ~ in the current one, which the next build
        # would take as source: nothing is read, and a write fails with a message.
        base = os.path.join(_NO_HOME, usual.removeprefix("~/"))
    return os.path.join(base, "buildrunner")


def sandbox_folder(environ: Mapping[str, str] = os.environ) -> str:
    """Return the folder for nested sandboxes of this user's own builds."""
    return os.path.join(data_folder(environ), "sandboxes")


def secrets_folder(environ: Mapping[str, str] = os.environ) -> str:
    """Return the folder of the local secret store and its key."""
    return os.path.join(data_folder(environ), "secrets")


def lock_folder() -> str:
    """Return the folder for locks and logs of one user's processes on this machine.

    The folder does not depend on environment variables: builds from a desktop, from cron and from a
    test must find the same folder. It is used only if this user created it.

    Raises:
        StoreError: another user created the folder.
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
            raise StoreError(f"{folder} belongs to another user", hint="remove it") from None
    return folder


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings that a server passes to a build's process in the environment.

    Attributes:
        data: the server's folder.
        database: URL of its database; may hold a password. Empty for a worker on another host.
        sandbox: ``host``, ``nested``, ``pod``, or ``none`` for a server that runs no builds itself.
        max_builds: number of builds that share the machine; 0 if unknown.
        sources: the source policy, in the form of `sources.policy.policy_text`.
        keep_gib: disk limit of kept workspaces of failed builds, in GiB; 0 keeps none.
        isolation: the required isolation of builds of forks; with ``pod``, how the Pod
            isolates builds. See `sandboxes.protocol.ISOLATIONS`.
        pod_egress_deny, pod_egress_allow: networks that the engine of the Pod may not reach, and
            exceptions, with a space between them.
        disk_gib: disk limit of a nested sandbox, in GiB; 0 sets no limit.
        log_gib: limit of a build's log, in GiB; 0 sets no limit.
        public_url: address of the server, which provenance names as the builder.
        server: address of the server that a worker on another host works for; else empty.
        token_file: file with the token of such a worker.
        ca_file: certificates that such a worker trusts; empty for those of the system.
    """

    data: str
    database: str
    sandbox: str
    server: str = ""
    token_file: str = ""
    ca_file: str = ""
    max_builds: int = 0
    sources: str = ""
    keep_gib: int = 0
    isolation: str = ""
    pod_egress_deny: str = ""
    pod_egress_allow: str = ""
    disk_gib: int = 0
    log_gib: int = 0
    public_url: str = ""

    @property
    def pod_egress(self) -> Egress:
        """Return the networks that the engine of the Pod may not reach."""
        return Egress(
            deny=tuple(self.pod_egress_deny.split()), allow=tuple(self.pod_egress_allow.split())
        )


def worker_settings(environ: Mapping[str, str] = os.environ) -> WorkerSettings:
    """Return the settings that a server passed to this process, which runs a build.

    Raises:
        UsageError: no server started this process.
    """
    data, database = environ.get("BUILDRUNNER_DATA"), environ.get("BUILDRUNNER_DATABASE", "")
    server = environ.get("BUILDRUNNER_WORKER_SERVER", "")
    if not data or not (database or server):
        raise UsageError(
            "BUILDRUNNER_DATA and BUILDRUNNER_DATABASE are not set",
            hint="`buildrunner serve` and `worker` start this command; to build a folder use"
            " `submit`",
        )
    return WorkerSettings(
        data=data,
        database=database,
        sandbox=environ.get("BUILDRUNNER_SANDBOX", "nested"),
        max_builds=_natural(environ.get("BUILDRUNNER_MAX_BUILDS", "")),
        sources=environ.get("BUILDRUNNER_SOURCES", ""),
        keep_gib=_natural(environ.get("BUILDRUNNER_KEEP_GIB", "")),
        isolation=environ.get("BUILDRUNNER_ISOLATION", ""),
        pod_egress_deny=environ.get("BUILDRUNNER_POD_EGRESS_DENY", ""),
        pod_egress_allow=environ.get("BUILDRUNNER_POD_EGRESS_ALLOW", ""),
        disk_gib=_natural(environ.get("BUILDRUNNER_DISK_GIB", "")),
        log_gib=_natural(environ.get("BUILDRUNNER_LOG_GIB", "")),
        public_url=environ.get("BUILDRUNNER_PUBLIC_URL", ""),
        server=server,
        token_file=environ.get("BUILDRUNNER_WORKER_TOKEN_FILE", ""),
        ca_file=environ.get("BUILDRUNNER_WORKER_CA_FILE", ""),
    )


def _natural(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0


def worker_environment(settings: WorkerSettings) -> dict[str, str]:
    """Return the variables that `worker_settings` reads."""
    return {
        "BUILDRUNNER_DATA": settings.data,
        "BUILDRUNNER_DATABASE": settings.database,
        "BUILDRUNNER_SANDBOX": settings.sandbox,
        "BUILDRUNNER_MAX_BUILDS": str(settings.max_builds),
        "BUILDRUNNER_SOURCES": settings.sources,
        "BUILDRUNNER_KEEP_GIB": str(settings.keep_gib),
        "BUILDRUNNER_ISOLATION": settings.isolation,
        "BUILDRUNNER_POD_EGRESS_DENY": settings.pod_egress_deny,
        "BUILDRUNNER_POD_EGRESS_ALLOW": settings.pod_egress_allow,
        "BUILDRUNNER_DISK_GIB": str(settings.disk_gib),
        "BUILDRUNNER_LOG_GIB": str(settings.log_gib),
        "BUILDRUNNER_PUBLIC_URL": settings.public_url,
        "BUILDRUNNER_WORKER_SERVER": settings.server,
        "BUILDRUNNER_WORKER_TOKEN_FILE": settings.token_file,
        "BUILDRUNNER_WORKER_CA_FILE": settings.ca_file,
    }


class ServerVariables(msgspec.Struct, frozen=True, kw_only=True):
    """The environment's choice of a server; all fields may be empty.

    Attributes:
        url: ``BUILDRUNNER_SERVER``.
        token: ``BUILDRUNNER_TOKEN``.
        ca_file: ``BUILDRUNNER_CA_FILE``, certificates to trust.
    """

    url: str = ""
    token: str = ""
    ca_file: str = ""


def server_variables(environ: Mapping[str, str] = os.environ) -> ServerVariables:
    """Return the server for commands, unless a flag names another."""
    return ServerVariables(
        url=environ.get("BUILDRUNNER_SERVER", ""),
        token=environ.get("BUILDRUNNER_TOKEN", ""),
        ca_file=environ.get("BUILDRUNNER_CA_FILE", ""),
    )


def server_database(environ: Mapping[str, str] = os.environ) -> str:
    """Return the URL of a server's database; empty if the database is in the server's folder.

    The URL comes from the environment or a file: it may hold a password, which must not be on a
    command line.

    Raises:
        UsageError: the file can't be read, or is empty.
    """
    path = environ.get("BUILDRUNNER_DATABASE_FILE", "")
    if environ.get("BUILDRUNNER_DATABASE") or not path:
        return environ.get("BUILDRUNNER_DATABASE", "")
    try:
        with open(path, encoding="utf-8") as file:
            url = file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UsageError(f"BUILDRUNNER_DATABASE_FILE {path} can't be read: {why}") from error
    if not url:
        raise UsageError(f"BUILDRUNNER_DATABASE_FILE {path} is empty: write the URL into it")
    return url


def traces_wanted(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether OpenTelemetry traces are collected. The SDK reads the addresses by itself."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    return bool(
        environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        or environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    )


def google_endpoint(api: str, default: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return the address of an API of Google.

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
    """Return the capabilities of the terminal (or the pipe) behind an output.

    ``NO_COLOR`` and ``FORCE_COLOR`` (if not empty) override everything else on colours;
    ``TERM=dumb`` means neither colours nor a status line.
    """
    able = output_is_terminal and environ.get("TERM", "dumb") != "dumb"
    colour = able or bool(environ.get("FORCE_COLOR"))
    return Look(
        colour=colour and not environ.get("NO_COLOR"),
        live=able,
        unicode="utf" in encoding.lower(),
    )
