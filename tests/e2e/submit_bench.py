"""Runs `buildrunner` as a user does: a process of its own, a folder, a data folder."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.containers.protocol import LABEL_BUILD

DEADLINE_S = 90.0


class Done:
    """What a finished command left: exit code, output, error output."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def build_id(self) -> str:
        """Id of the build, from the log's first line."""
        found = re.search(r'starting build "([^"]+)"', self.out) or re.search(
            r"^Build (\S+) [A-Z]", self.err, re.MULTILINE
        )
        assert found, self.out + self.err
        return found[1]


class Bench:
    """A folder with a config, and commands in it.

    Args:
        folder: the source.
        data: data folder of the commands.
        engine: to see what is left behind.
        image: what ``IMAGE`` in configs stands for.
    """

    def __init__(self, folder: Path, data: Path, engine: DockerEngine, image: str) -> None:
        self.folder = folder
        self.engine = engine
        self.image = image
        self.environ = {
            **os.environ,
            "XDG_DATA_HOME": str(data),
            "XDG_CONFIG_HOME": str(data / "config"),
            "DOCKER_CONFIG": str(data / "docker"),
        }
        for name in ("NO_COLOR", "FORCE_COLOR", "GOOGLE_CLOUD_PROJECT", "CLOUDSDK_CORE_PROJECT"):
            self.environ.pop(name, None)

    def write(self, name: str, text: str) -> None:
        """A file in the folder; ``IMAGE`` in it becomes the test image."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("IMAGE", self.image))

    def write_own_settings(self, text: str) -> None:
        """The user's own settings file."""
        path = Path(self.environ["XDG_CONFIG_HOME"]) / "buildrunner" / "config.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command."""
        return subprocess.Popen(
            [sys.executable, "-m", "buildrunner", *arguments],
            cwd=self.folder,
            env={**self.environ, **options.pop("environ", {})},
            stdin=subprocess.DEVNULL,
            stdout=options.pop("stdout", subprocess.PIPE),
            stderr=options.pop("stderr", subprocess.PIPE),
            text=True,
            errors="replace",
            **options,
        )

    def run(self, *arguments: str, **options: Any) -> Done:
        """Run a command to its end."""
        process = self.start(*arguments, **options)
        out, err = process.communicate(timeout=DEADLINE_S)
        return Done(process.returncode, out or "", err or "")

    def builds(self, *arguments: str) -> Any:
        """What ``buildrunner builds ... --format json`` says."""
        done = self.run("builds", *arguments, "--format", "json")
        assert done.code == 0, done.err
        return json.loads(done.out)

    def left_behind(self, build_id: str) -> list[str]:
        """Containers and volumes of a build that are there once its guardian has ended."""
        await_guardian(build_id)
        owned = self.engine.list_owned({LABEL_BUILD: build_id})
        return [*owned.containers, *owned.volumes]


def await_guardian(build_id: str) -> None:
    """Wait for the process that cleans up after a build; it has its id among its arguments."""
    for entry in Path("/proc").iterdir():
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
            process = os.pidfd_open(int(entry.name)) if build_id.encode() in arguments else None
        except (OSError, ValueError):
            continue  # not a process, or one that has just ended
        if process is not None and any(b"guardian_process" in one for one in arguments):
            ended, _, _ = select.select([process], [], [], DEADLINE_S)
            assert ended, f"the guardian of build {build_id} still runs"


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """The output up to and with the line that holds ``text``."""
    assert process.stdout is not None
    watchdog = threading.Timer(DEADLINE_S, process.kill)
    watchdog.start()
    seen = ""
    try:
        for line in process.stdout:
            seen += line
            if text in line:
                return seen
    finally:
        watchdog.cancel()
    complaint = process.stderr.read() if process.stderr else ""
    raise AssertionError(f"it ended without saying {text!r}:\n{seen}{complaint}")


def interrupt(process: subprocess.Popen[str], number: int = signal.SIGINT) -> Done:
    """Send a signal, and wait for the end."""
    process.send_signal(number)
    out, err = process.communicate(timeout=DEADLINE_S)
    return Done(process.returncode, out, err)
