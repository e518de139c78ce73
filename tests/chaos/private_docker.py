"""A Docker daemon of a test's own, which may be killed: own network namespace, own disk."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.errors import EngineError
from tests.chaos.kill_bench import until
from tests.conftest import DEADLINE_S, busybox_tar, program


class PrivateDocker:
    """Needs root. `start` and `stop` any number of times; `remove` ends all."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="buildrunner-docker-"))  # a socket's short path
        self._data = self.folder / "data"
        self._data.mkdir()
        options = ["-t", "tmpfs", "-o", "size=300m", "tmpfs", str(self._data)]
        subprocess.run(["mount", *options], check=True)
        self.address = f"unix://{self.folder}/docker.sock"
        self.environ = {"DOCKER_HOST": self.address}
        self.engine = DockerEngine(environ={**os.environ, **self.environ})
        self._process = None

    def start(self):
        argv = [
            program("dockerd", "docker.io"),
            f"--data-root={self._data}",
            f"--exec-root={self.folder}/exec",
            f"--pidfile={self.folder}/pid",
            f"--host={self.address}",
        ]
        # Not a pipe: its containerd writes there too, and outlives it.
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [program("unshare", "util-linux"), "--net", *argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until(self._answers, "the daemon's start")

    def _answers(self):
        assert self._process.poll() is None, (self.folder / "log").read_text()[-3000:]
        try:
            self.engine.label_values("none")
        except EngineError:
            return False
        return True

    def image(self):
        """A small image with a shell."""
        name = "chaos/busybox:1"
        self.engine.import_image(name, [busybox_tar()], cmd=["sh"], env=["PATH=/bin"])
        return name

    def stop(self, number=signal.SIGTERM):
        self._process.send_signal(number)
        self._process.wait(DEADLINE_S)
        self._process = None
        if number == signal.SIGKILL:  # its containerd dies with it, but may stay a zombie
            for pid in (self.folder / "exec").rglob("containerd.pid"):
                pid.unlink()

    def remove(self):
        if self._process is not None:
            self.stop()
        self.engine.close()
        self._end_rest()
        subprocess.run(["umount", "--recursive", str(self._data)], check=True)
        for namespace in (self.folder / "exec").rglob("netns/*"):
            subprocess.run(["umount", str(namespace)], check=False, capture_output=True)
        shutil.rmtree(self.folder)

    def _end_rest(self):
        """A killed daemon leaves its containerd, and that its shims."""
        mark = str(self.folder).encode()
        for place in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if mark in place.read_bytes():
                    os.kill(int(place.parent.name), signal.SIGKILL)
