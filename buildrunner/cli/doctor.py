"""``buildrunner doctor``: checks whether this machine can run builds, and gives advice."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal

import msgspec

from buildrunner.cli.serve.place import add_place_flags, data_of, database_of, has_database
from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.containers.protocol import EngineInfo
from buildrunner.errors import EXIT_BUILD_FAILED, EXIT_SUCCESS, BuildrunnerError


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``doctor``."""
    parser.epilog = (
        "exit codes: 0 no problem (warnings are possible), 1 a problem must be fixed first"
    )
    parser.add_argument(
        "--format",
        choices=("text", "json"),
        default="text",
        help="format of the output (default: text)",
    )
    parser.add_argument(
        "--clean",
        action="store_true",
        help="first remove leftovers of ended builds from the engine",
    )
    add_place_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Run all checks and print the findings.

    Returns:
        0, or 1 when a check failed.
    """
    if args.clean:
        _clean()
    findings = check_machine(os.environ, os.getcwd())
    findings += check_triggers(database_of(args, data_of(args)), os.getcwd())
    if args.format == "json":
        import json

        shown = [finding.as_dict() for finding in findings]
        print(json.dumps(shown, indent=2))
    else:
        print("\n".join(_lines(findings)))
    failed = any(finding.verdict == "fail" for finding in findings)
    return EXIT_BUILD_FAILED if failed else EXIT_SUCCESS


def _clean() -> None:
    from buildrunner import wiring
    from buildrunner.containers.cleanup import sweep
    from buildrunner.containers.process_owner import is_alive
    from buildrunner.sandboxes.nested.spare import sweep_spares
    from buildrunner.settings import lock_folder

    engine = wiring.container_engine()
    found, problems = sweep(
        engine, is_alive, state_dir=lock_folder(), address=engine.endpoint.address
    )
    spares, spare_problems = sweep_spares(engine, is_alive)
    engine.close()
    for name in (*found.containers, *found.volumes, *found.networks, *spares):
        sys.stderr.write(f"removed {name}\n")
    for problem in (*problems, *spare_problems):
        sys.stderr.write(f"warning: {problem}\n")


def _lines(findings: Iterable[Finding]) -> Iterator[str]:
    for finding in findings:
        yield f"{finding.verdict:<4}  {finding.subject:<14}  {finding.text}"
        if finding.advice:
            yield f"{'':<22}-> {finding.advice}"


Verdict = Literal["ok", "warn", "fail"]

ENGINE_DISK_WARN = 5 * 10**9
ENGINE_DISK_FAIL = 10**9
DATA_DISK_FAIL = 10**8
"""Fewer free bytes than this soon leave no room for images, or logs."""

# Storage drivers that copy whole images, or that current engines have dropped.
_SLOW_STORAGE = frozenset({"vfs", "devicemapper"})


class Finding(msgspec.Struct, frozen=True):
    """The result of one check.

    Attributes:
        verdict: ``ok``; ``warn``: builds run, some things don't; ``fail``: builds can't run.
        subject: the checked thing, in a word or two.
        text: the result, in a sentence.
        advice: the remedy; empty if none is needed.
    """

    verdict: Verdict
    subject: str
    text: str
    advice: str = ""

    def as_dict(self) -> dict[str, str]:
        """For ``--format json``."""
        return {
            "verdict": self.verdict,
            "subject": self.subject,
            "text": self.text,
            "advice": self.advice,
        }


def check_machine(environ: Mapping[str, str], folder: str) -> list[Finding]:
    """Run all checks.

    Args:
        environ: the process's environment.
        folder: the current folder, for its settings.
    """
    findings = [check_settings(folder, environ)]
    try:
        from buildrunner import wiring

        engine = wiring.container_engine()
        info = engine.info()
    except BuildrunnerError as error:
        findings.append(Finding("fail", "engine", str(error), error.hint))
    else:
        findings += check_engine(info)
        if info.supports_nested:
            isolation = _isolation(environ)
            findings.append(check_isolation(isolation))
            if isolation:
                findings.append(check_disk_limit(isolation, _why_no_own_disk(info, environ)))
        findings.append(check_builders(lambda name: engine.find_image(name) is not None))
        findings.append(check_leftovers(engine))
        engine.close()
    findings.append(check_data_folder(environ))
    findings.append(check_credentials(environ))
    findings.append(check_git(environ))
    return findings


def check_settings(folder: str, environ: Mapping[str, str]) -> Finding:
    """Report whether the settings files of ``folder`` can be read."""
    from buildrunner.settings import UntrustedFile, load_settings

    try:
        settings = load_settings(folder, environ)
    except UntrustedFile as error:
        return Finding(
            "warn",
            "settings",
            error.problems[0].text(),
            "Builds of this folder are refused until then.",
        )
    except BuildrunnerError as error:
        return Finding("fail", "settings", str(error), "Correct that file.")
    aliases = len(settings.image_aliases)
    return Finding("ok", "settings", f"project {settings.project_id}, {aliases} image aliases")


def check_engine(info: EngineInfo) -> list[Finding]:
    """Report the kind of the engine, and whether its disk has room."""
    where = "on this machine's files" if info.local else "elsewhere (sources are copied to it)"
    text = (
        f"{info.name} {info.version}, API {info.api_version}, {info.cpus} processors, "
        f"{info.memory_bytes / 2**30:.1f} GiB, {where}{', rootless' if info.rootless else ''}"
    )
    findings = [Finding("ok", "engine", text)]
    store = "containerd image store" if info.containerd_images else info.storage_driver
    storage = f"{store} in {info.data_root}"
    if info.storage_driver in _SLOW_STORAGE:
        advice = "Use overlay2: every layer is a full copy with this driver."
        findings.append(Finding("warn", "engine storage", storage, advice))
    elif not info.local:
        findings.append(Finding("ok", "engine storage", storage))
    else:
        findings.append(_disk("engine storage", storage, info.data_root))
    limits = _limits_of(info)
    return findings + [Finding("warn", "engine limits", text, cure) for text, cure in limits]


def _limits_of(info: EngineInfo) -> list[tuple[str, str]]:
    """Features that do not work on the engine, each with a workaround."""
    limits = []
    if info.no_socket:
        limits.append(
            ("steps can't use the engine", f"{info.no_socket[0].upper()}{info.no_socket[1:]}")
        )
    if not info.limits_resources:
        limits.append(
            (
                "limits of memory and processors have no effect",
                "Delegate control groups (version 2) to the engine's user, or use an engine that "
                "runs as root.",
            )
        )
    if not info.supports_nested:
        limits.append(
            (
                "--sandbox nested is not possible",
                "It needs an engine that runs as root on this machine; --sandbox host works.",
            )
        )
    if not info.has_buildkit:
        limits.append(
            (
                "steps can't build with BuildKit (docker buildx, DOCKER_BUILDKIT=1)",
                "Plain `docker build` works; for BuildKit use a Docker engine.",
            )
        )
    return limits


def _isolation(environ: Mapping[str, str]) -> str:
    from buildrunner import wiring
    from buildrunner.settings import Settings, sandbox_folder

    folder = sandbox_folder(environ)
    sandbox = wiring.sandbox("nested", data_folder=folder, labels={}, settings=Settings())
    try:
        return sandbox.isolation()
    finally:
        sandbox.close()


def check_isolation(isolation: str) -> Finding:
    """Report the isolation of nested sandboxes.

    Args:
        isolation: one of `worker.sandbox.ISOLATIONS`; empty while it is not known.
    """
    subject = "isolation"
    if not isolation:
        text = "not known yet: the first build with --sandbox nested finds out"
        return Finding("ok", subject, text)
    if isolation == "user-namespace":
        return Finding("ok", subject, "user-namespace: steps have no rights on this machine")
    return Finding(
        "warn",
        subject,
        f"{isolation}: a malicious step can become root of this machine, and change the images "
        "that all sandboxes share",
        "Linux 5.19 and a file system with ID-mapped mounts (ext4, xfs, btrfs) isolate steps by "
        "user namespaces. After a change remove nested.json of the data folder.",
    )


def _why_no_own_disk(info: EngineInfo, environ: Mapping[str, str]) -> str:
    from buildrunner.sandboxes.nested.disk import why_no_own_disk
    from buildrunner.settings import sandbox_folder

    return why_no_own_disk((info.data_root, sandbox_folder(environ)))


def check_disk_limit(isolation: str, why_no_own_disk: str) -> Finding:
    """Report how ``serve --max-build-disk-gib`` is enforced.

    Args:
        isolation: of nested sandboxes.
        why_no_own_disk: why this user can make no file system for a sandbox; empty if they can.
    """
    subject = "disk limit"
    if isolation != "user-namespace":
        why_no_own_disk = f"sandboxes are isolated by {isolation} only"
    if not why_no_own_disk:
        return Finding("ok", subject, "each nested sandbox of a server has its own file system")
    return Finding(
        "warn",
        subject,
        "the disk use of nested sandboxes is measured only, and a malicious step can hide files: "
        f"{why_no_own_disk}",
        "Install e2fsprogs, and run `buildrunner serve` as root or as a user of the group disk. "
        "Otherwise, give the engine's data a file system of its own.",
    )


def _disk(subject: str, text: str, path: str) -> Finding:
    try:
        free = shutil.disk_usage(path).free
    except OSError:  # only root may read the folder
        return Finding("ok", subject, text)
    text = f"{text}, {free / 1e9:.1f} GB free"
    advice = "Free space there: docker system df shows what uses it."
    if free < ENGINE_DISK_FAIL:
        return Finding("fail", subject, text, advice)
    return (
        Finding("warn", subject, text, advice)
        if free < ENGINE_DISK_WARN
        else Finding("ok", subject, text)
    )


def check_builders(has_image: Callable[[str], bool]) -> Finding:
    """Report whether the builder images are installed."""
    from buildrunner.builders.catalog import BUILDERS

    common = [builder for builder in BUILDERS if builder.common]
    missing = [builder.name for builder in common if not has_image(builder.image)]
    if not missing:
        return Finding("ok", "builder images", f"the {len(common)} common ones are installed")
    text = f"{len(missing)} of the {len(common)} common ones not installed: {', '.join(missing)}"
    advice = "buildrunner builders install (needed where gcr.io can't be reached)"
    return Finding("warn", "builder images", text, advice)


def check_leftovers(engine: DockerEngine) -> Finding:
    """Report whether ended builds left anything on the engine."""
    from buildrunner.containers.cleanup import find_leftovers
    from buildrunner.containers.process_owner import is_alive
    from buildrunner.sandboxes.nested.spare import left_spares

    left = find_leftovers(engine, is_alive)
    spares = left_spares(engine, is_alive)
    counts = {
        "container": len(left.containers) + len(spares.containers),
        "volume": len(left.volumes) + len(spares.volumes),
        "network": len(left.networks),
    }
    found = ", ".join(
        f"{count} {what}{'s' if count > 1 else ''}" for what, count in counts.items() if count
    )
    if not found:
        return Finding("ok", "leftovers", "none")
    advice = "buildrunner doctor --clean removes them"
    return Finding("warn", "leftovers", f"{found} of builds that no longer run", advice)


def check_data_folder(environ: Mapping[str, str]) -> Finding:
    """Report whether builds and logs can be stored."""
    from buildrunner.settings import data_folder

    folder = data_folder(environ)
    existing = folder
    while not os.path.isdir(existing):
        existing = os.path.dirname(existing) or "/"
    if not os.access(existing, os.W_OK | os.X_OK):
        advice = f"Make {existing} writable, or set XDG_DATA_HOME to a folder that is."
        return Finding("fail", "data folder", f"{folder} can't be written", advice)
    free = shutil.disk_usage(existing).free
    text = f"{folder}, {free / 1e9:.1f} GB free"
    if free < DATA_DISK_FAIL:
        advice = "Free space there, or set XDG_DATA_HOME to another disk."
        return Finding("fail", "data folder", text, advice)
    return Finding("ok", "data folder", text)


class _DockerConfig(msgspec.Struct):
    auths: dict[str, msgspec.Raw] = {}
    store: str = msgspec.field(name="credsStore", default="")
    helpers: dict[str, str] = msgspec.field(name="credHelpers", default_factory=dict)


def check_credentials(environ: Mapping[str, str]) -> Finding:
    """Report registries with credentials, and whether their helpers are installed."""
    from buildrunner.containers.docker.endpoint import docker_config_dir

    subject = "credentials"
    path = os.path.join(docker_config_dir(environ), "config.json")
    try:
        with open(path, "rb") as file:
            config = msgspec.json.decode(file.read(), type=_DockerConfig)
    except FileNotFoundError:
        return Finding("ok", subject, f"none (no {path}): public registries only")
    except (OSError, msgspec.DecodeError) as error:
        return Finding("fail", subject, f"{path}: {error}", "Correct or remove it.")
    needed = {*config.helpers.values(), config.store} - {""}
    missing = sorted(
        name
        for name in needed
        if not shutil.which(f"docker-credential-{name}", path=environ.get("PATH"))
    )
    if missing:
        programs = ", ".join(f"docker-credential-{name}" for name in missing)
        text = f"{path} names {programs}, which PATH does not have"
        advice = "Install it, or take it out of that file: pulls and pushes fail without it."
        return Finding("fail" if config.store in missing else "warn", subject, text, advice)
    registries = sorted({*config.auths, *config.helpers})
    text = f"for {', '.join(registries)}" if registries else "none: public registries only"
    return Finding("ok", subject, text)


def check_git(environ: Mapping[str, str]) -> Finding:
    """Report whether git is installed."""
    path = shutil.which("git", path=environ.get("PATH"))
    if path is None:
        advice = "Install it (Debian: apt-get install git): sources can't be fetched from Git."
        return Finding("warn", "git", "not installed", advice)
    import subprocess

    answer = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    version = answer.stdout.strip().removeprefix("git version ")
    return Finding("ok", "git", f"{version} ({path})")


_SUBJECT = "triggers"


def check_triggers(database: str, folder: str) -> list[Finding]:
    """Report triggers and hooks that need their administrator; nothing without a server.

    Args:
        database: URL of the server's database; it is not changed.
        folder: the current folder, for its settings.
    """
    if not has_database(database):
        return []  # imports nothing of the server, whose packages may not be installed
    from buildrunner import wiring
    from buildrunner.server.services.triggers import trigger_problems
    from buildrunner.settings import load_settings
    from buildrunner.triggers.repository import RepositoryNames

    try:
        repositories = RepositoryNames(connected=load_settings(folder).repositories)
        store = wiring.current_server_store(database)
        if store is None:
            text = "the server's database is of an older version: `buildrunner serve` upgrades it"
            return [Finding("warn", _SUBJECT, text)]
        try:
            problems = trigger_problems(store, repositories)
        finally:
            store.close()
    except BuildrunnerError as error:
        return [Finding("warn", _SUBJECT, str(error), error.hint)]
    if not problems:
        return [Finding("ok", _SUBJECT, "all can fire, and all hooks are bound")]
    return [Finding("warn", _SUBJECT, problem) for problem in problems]
