"""Flags and settings of ``serve``, and their origins for the server's settings page."""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from buildrunner import wiring
from buildrunner.cli.serve.place import add_place_flags
from buildrunner.cli.serve.worker import spare_sandboxes
from buildrunner.errors import BuildrunnerError, UsageError
from buildrunner.server.context import ServerSettings, ShownSetting
from buildrunner.settings import Settings, WorkerSettings, server_database, setting_origins

_LEAST_BUILDS = 2

EPILOG = """\
examples:
  buildrunner serve                                  SQLite, tokens, http://127.0.0.1:8080
  buildrunner serve --auth none                      no tokens; on this machine only
  buildrunner serve --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem

The server stores all its data in one folder (--data). After SIGTERM or Ctrl-C it starts no more
builds. Running builds continue in their own processes, and the next server on the folder adopts
them.
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``serve``."""
    parser.epilog = EPILOG
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)"
    )
    parser.add_argument(
        "--port",
        type=int,
        default=8080,
        help="port to listen on; 0 chooses a free one (default: 8080)",
    )
    add_place_flags(parser)
    parser.add_argument(
        "--sandbox",
        choices=("nested", "host", "none"),
        default="nested",
        help="nested: each build gets a container engine of its own; host: builds share this"
        " machine's engine; none: builds run on other workers only (default: nested)",
    )
    parser.add_argument(
        "--require-isolation",
        choices=("capabilities", "user-namespace"),
        default="",
        help="builds of forks wait unless this machine isolates sandboxes at least this strongly"
        " (default: no requirement)",
    )
    _add_access(parser)
    _add_limits(parser)
    parser.add_argument(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="format of the server's own log (default: text)",
    )


def _add_access(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--auth",
        choices=("tokens", "none"),
        default="tokens",
        help="tokens: every request needs a token; none: every user of this machine has all rights"
        " (default: tokens)",
    )
    parser.add_argument(
        "--public-project",
        action="append",
        default=[],
        metavar="ID",
        help="let everyone read this project's builds, logs and triggers without a token; may be"
        " repeated",
    )
    parser.add_argument(
        "--tls-cert", metavar="FILE", default="", help="certificate for https (PEM)"
    )
    parser.add_argument("--tls-key", metavar="FILE", default="", help="private key of --tls-cert")
    parser.add_argument(
        "--public-url",
        metavar="URL",
        default="",
        help="address of the server in links (default: the address it listens on)",
    )
    parser.add_argument(
        "--internal-url",
        metavar="URL",
        default="",
        help="address at which other servers of the same database reach this one"
        " (default: the address it listens on)",
    )
    parser.add_argument(
        "--trusted-proxy",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="IP address or network of a proxy in front of the server, whose X-Forwarded-For and"
        " X-Forwarded-Proto headers are trusted; may be repeated",
    )
    parser.add_argument(
        "--allow-source-host",
        action="append",
        default=[],
        metavar="HOST",
        help="let builds fetch from this host, even at a private address; .example.com stands for"
        " all hosts below it; may be repeated",
    )
    parser.add_argument(
        "--allow-private-sources",
        action="store_true",
        help="let builds fetch from any address, and from repositories on the server's disk",
    )
    parser.add_argument(
        "--allow-notify-host",
        action="append",
        default=[],
        metavar="HOST",
        help="let notifications go to this host, even at a private address; .example.com stands"
        " for all hosts below it; may be repeated",
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-builds",
        type=int,
        default=0,
        metavar="N",
        help="maximum number of running builds (default: one for each processor, at least two)",
    )
    parser.add_argument(
        "--spare-sandboxes",
        type=int,
        default=None,
        metavar="N",
        help="number of nested sandboxes to start ahead of builds; each takes about 50 MiB"
        " (default: 1, or 0 with less than 2 GiB of memory)",
    )
    parser.add_argument(
        "--reconcile-every",
        type=int,
        default=300,
        metavar="SECONDS",
        help="how often to check repositories for pushes whose webhook was missed; 0: never"
        " (default: 300)",
    )
    parser.add_argument(
        "--max-builds-per-trigger",
        type=int,
        default=0,
        metavar="N",
        help="maximum number of running builds of one trigger (default: no limit)",
    )
    parser.add_argument(
        "--max-waiting-builds",
        type=int,
        default=5000,
        metavar="N",
        help="number of builds of one project that may wait in the queue, and as many for an"
        " approval; 0: no limit (default: 5000)",
    )
    parser.add_argument(
        "--drain",
        type=int,
        default=0,
        metavar="SECONDS",
        help="after SIGTERM, wait this long for running builds, then leave them to the next server"
        " (default: 0)",
    )
    parser.add_argument(
        "--max-build-disk-gib",
        type=int,
        default=100,
        metavar="N",
        help="fail a build whose nested sandbox, or source, uses more disk space; 0: no limit"
        " (default: 100)",
    )
    parser.add_argument(
        "--max-build-log-gib",
        type=int,
        default=1,
        metavar="N",
        help="fail a build whose log is larger; 0: no limit (default: 1)",
    )
    parser.add_argument(
        "--max-uploads-gib",
        type=int,
        default=100,
        metavar="N",
        help="disk space for the uploaded sources of one project; 0: no limit (default: 100)",
    )
    parser.add_argument(
        "--keep-workspaces-gib",
        type=int,
        default=10,
        metavar="N",
        help="disk space for workspaces of builds that failed or deployed, to resume them or roll"
        " back to them; 0: keep none (default: 10)",
    )
    parser.add_argument(
        "--keep-builds",
        action="append",
        default=[],
        metavar="[PROJECT=]RULE",
        help="delete older builds and their logs; RULE is an age like 90d, a number per project"
        " like 1000, or 90d,1000; may be repeated (default: keep all)",
    )
    parser.add_argument(
        "--keep-audit-days",
        type=int,
        default=365,
        metavar="N",
        help="delete entries of the audit log after so many days; 0: keep all (default: 365)",
    )
    parser.add_argument(
        "--keep-logs-days",
        type=int,
        default=0,
        metavar="N",
        help="delete logs after so many days (default: keep all)",
    )
    parser.add_argument(
        "--keep-logs-gib",
        type=int,
        default=0,
        metavar="N",
        help="delete the oldest logs once all logs together are larger (default: keep all)",
    )


def max_builds(args: argparse.Namespace) -> int:
    """Return how many builds this server runs at once: 0 if it runs none."""
    if args.sandbox == "none":
        return 0
    return int(args.max_builds) or max(_LEAST_BUILDS, os.cpu_count() or 1)


def keep_builds(given: str) -> tuple[str, str]:
    """Return project and rule of one ``--keep-builds``.

    Raises:
        UsageError: the rule or the project id is invalid.
    """
    from buildrunner.server.http.tokens import PROJECT_ID
    from buildrunner.store.keep_rule import ALL_PROJECTS, parse_keep_rule

    project, equals, rule = given.rpartition("=")
    if equals and not PROJECT_ID.fullmatch(project):
        raise UsageError(f"--keep-builds takes PROJECT=RULE, and {project!r} is no project id")
    parse_keep_rule(rule)
    return project or ALL_PROJECTS, rule


def trusted_networks(proxy: str) -> tuple[str, ...]:
    """Return the networks that one ``--trusted-proxy`` names.

    Raises:
        UsageError: the value is neither an IP address nor a network.
    """
    import ipaddress

    try:
        network = ipaddress.ip_network(proxy, strict=False)
    except ValueError:
        raise UsageError(
            f"--trusted-proxy takes an IP address or a network such as 10.0.0.0/8, not {proxy}"
        ) from None
    if network.version == 6:
        return (str(network),)
    # A server that listens on :: sees IPv4 addresses in this form.
    mapped = f"::ffff:{network.network_address}/{96 + network.prefixlen}"
    return str(network), mapped


def check_flags(args: argparse.Namespace) -> None:
    """Refuse invalid flags before anything is changed.

    Raises:
        UsageError: a value is out of bounds, or flags don't go together.
    """
    from buildrunner.addresses import is_loopback_host

    if not 0 <= args.port <= 65535:
        raise UsageError(f"--port takes a number up to 65535, not {args.port}")
    for name in (
        "max_builds",
        "max_builds_per_trigger",
        "max_waiting_builds",
        "drain",
        "keep_audit_days",
        "keep_logs_days",
        "reconcile_every",
        "keep_workspaces_gib",
        "spare_sandboxes",
    ):
        if (getattr(args, name) or 0) < 0:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} takes a number from 0 on, not {getattr(args, name)}")
    if args.sandbox == "none" and args.max_builds:
        raise UsageError("--sandbox none runs no builds: leave out --max-builds")
    _check_repeated(args)
    if args.auth == "none" and not is_loopback_host(args.host):
        raise UsageError(
            f"--auth none on {args.host}: every user who can connect could run any program here",
            hint="leave out --host, or leave out --auth none",
        )
    if bool(args.tls_cert) is not bool(args.tls_key):
        raise UsageError("--tls-cert and --tls-key go together")
    for flag, url in (("--public-url", args.public_url), ("--internal-url", args.internal_url)):
        if url and not url.startswith(("https://", "http://")):
            raise UsageError(f"{flag} takes https://HOST, not {url}")


def _check_repeated(args: argparse.Namespace) -> None:
    from buildrunner.server.http.tokens import PROJECT_ID

    for project in args.public_project:
        if not PROJECT_ID.fullmatch(project):
            raise UsageError(f"--public-project takes the id of a project, not {project}")
    for given in args.keep_builds:
        keep_builds(given)
    for proxy in args.trusted_proxy:
        trusted_networks(proxy)


# Key of the settings files -> field of `Settings`.
_KEYS = {
    "project.id": "project_id",
    "images.aliases": "image_aliases",
    "images.untrusted": "untrusted_images",
    "sandbox.docker_socket": "docker_socket",
    "sandbox.privileged": "privileged",
    "sandbox.egress_allow": "egress_allow",
    "sandbox.egress_deny": "egress_deny",
    "secrets": "secrets",
    "secret_sources.google": "google_secrets",
    "secret_sources.kms_command": "kms_command",
    "secret_sources.key": "secrets_key",
    "registries.share_logins": "share_registry_logins",
    "artifacts.repositories": "package_repositories",
    "storage.folders": "storage_folders",
    "storage.buckets": "storage_buckets",
    "git": "git",
    "server.keep_builds": "keep_builds",
    "identity.kms_key": "identity_key",
    "policy.rules": "policy",
    "pools": "pools",
    "projects": "projects",
}
_ENGINE_S = 15.0


def shown_settings(
    args: argparse.Namespace,
    argv: Sequence[str],
    worker: WorkerSettings,
    server: ServerSettings,
    settings: Settings,
) -> tuple[ShownSetting, ...]:
    """Return the effective values of the flags of ``serve`` and of the settings files.

    No secret is shown: secrets and tokens appear as references, as in the files.

    Args:
        args: the flags.
        argv: the command line, which shows the flags that were given.
        worker: names the data folder and the database.
        server: the options that the flags led to.
        settings: the settings of files.
    """
    effective = {
        "data": worker.data,
        "database": _without_password(worker.database),
        "max_builds": server.max_builds,
        "public_url": server.public_url,
        "spare_sandboxes": spare_sandboxes(args.sandbox, args.spare_sandboxes),
    }
    shown = []
    parser = argparse.ArgumentParser(add_help=False)
    add_flags(parser)
    for name in vars(parser.parse_args([])):
        flag = f"--{name.replace('_', '-')}"
        given = any(word == flag or word.startswith(f"{flag}=") for word in argv)
        origin = flag if given else "default"
        if name == "database" and not given and server_database():
            origin = "$BUILDRUNNER_DATABASE"
        value = effective.get(name, getattr(args, name))
        shown.append(ShownSetting(flag.removeprefix("--"), _text(value), origin))
    origins = setting_origins()
    for key, field in _KEYS.items():
        shown.append(
            ShownSetting(key, _text(getattr(settings, field)), origins.get(field, "default"))
        )
    return tuple(shown)


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    if parts.password is None:
        return url
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{parts.username or ''}:***@{host}", query="").geturl()


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return ", ".join(f"{key} = {_text(one)}" for key, one in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    fields = getattr(value, "__struct_fields__", ())
    if fields:
        return "; ".join(f"{name}: {_text(getattr(value, name))}" for name in fields)
    return str(value) if value not in ("", None) else "none"


class EngineFacts:
    """Queries facts about the engine, at most once in 15 seconds."""

    def __init__(self) -> None:
        self._asked_at = float("-inf")
        self._facts: dict[str, str] = {}

    def __call__(self) -> Mapping[str, str]:
        """Return facts for the page. An engine that does not answer is reported as such."""
        now = time.monotonic()
        if now - self._asked_at >= _ENGINE_S:
            self._asked_at = now
            self._facts = _asked()
        return self._facts


def _asked() -> dict[str, str]:
    try:
        engine = wiring.container_engine()
        try:
            info = engine.info()
        finally:
            engine.close()
    except BuildrunnerError as error:
        return {"Engine": str(error)}
    facts = {
        "Engine": f"{info.name} {info.version} (API {info.api_version}), {info.storage_driver}"
        f"{', rootless' if info.rootless else ''}",
        "Engine's machine": f"{info.cpus} processors, {_gib(info.memory_bytes)} memory",
    }
    if info.local:
        try:
            disk = shutil.disk_usage(info.data_root)
        except OSError:
            return facts
        facts["Engine's disk"] = f"{info.data_root}: {_gib(disk.free)} of {_gib(disk.total)} free"
    return facts


def _gib(count: float) -> str:
    return f"{count / (1 << 30):.1f} GiB"
