"""What the server's own page shows of its settings and its engine: each with where it came from."""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from buildrunner import wiring
from buildrunner.cli.serve import flags as serve_flags
from buildrunner.errors import BuildrunnerError
from buildrunner.server.context import ServerSettings, ShownSetting
from buildrunner.settings import Settings, WorkerSettings, server_database, setting_origins

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
    """The flags of ``serve`` and the settings of files, as they hold.

    No secret is among them: secrets and tokens are told by where they are, as the files say it.

    Args:
        args: the flags.
        argv: the command line, which tells what was given.
        worker: where data and database are.
        server: what flags came to.
        settings: what files say.
    """
    effective = {
        "data": worker.data,
        "database": _without_password(worker.database),
        "max_builds": server.max_builds,
        "public_url": server.public_url,
        "spare_sandboxes": serve_flags.spare_sandboxes(args),
    }
    shown = []
    parser = argparse.ArgumentParser(add_help=False)
    serve_flags.add_flags(parser)
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
    """Asks the engine what it is, not more often than every quarter of a minute."""

    def __init__(self) -> None:
        self._asked_at = float("-inf")
        self._facts: dict[str, str] = {}

    def __call__(self) -> Mapping[str, str]:
        """Facts for the page; that the engine does not answer is one, too."""
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
