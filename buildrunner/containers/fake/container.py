"""A container in memory: it does what its environment says.

Containers of `FakeEngine` don't run programs. What one does is said by the environment that its
spec gives it, so that a build config can steer it:

    OUTPUT=text       written when it starts (to whoever is attached)
    ERRORS=text       the same, to stderr
    EXIT_CODE=3       how it ends; 0 without
    SLEEP=name        it runs until it is killed or until ``engine.release("name")``
    ON_SIGTERM=5      it ends with 5 on SIGTERM; without, it ignores SIGTERM as process 1 does
    START_FAIL=text   it can't start (127, as for a program that is not there)
    OOM=1             it ends with 137, killed for lack of memory
    WRITE=path=text   it writes this file before it ends (in a volume when one is mounted there)
    READ=path         it writes that file's text to its output (exit code 1 when there is none)
"""

from __future__ import annotations

import io
import posixpath
import tarfile
import threading
from collections.abc import Callable, Iterator

from buildrunner.containers.types import ContainerExit, ContainerSpec, ErrorOutput
from buildrunner.errors import GateRefused, NotFound

KILLED = 137
"""The exit code of whatever gets a SIGKILL."""

NOT_FOUND = 127
"""The exit code of a program that is not there."""


class FakeContainer:
    """What the engine knows of one container. The engine's lock is held around all but `output`.

    Args:
        container_id: its id.
        spec: as created.
        files_of: the files of a volume, by path in it.

    Attributes:
        spec: as created.
        state: ``created``, ``waiting`` (behind its gate), ``running`` or ``exited``.
        is_ahead: it was started ahead of its turn.
        is_refused: its gate did not run its program.
        signals: what was sent to it, in order.
    """

    def __init__(
        self,
        container_id: str,
        spec: ContainerSpec,
        files_of: Callable[[str], dict[str, bytes]],
    ) -> None:
        self.id = container_id
        self.spec = spec
        self.state = "created"
        self.is_ahead = False
        self.is_refused = False
        self.signals: list[str] = []
        self.ended = threading.Event()
        self.exit = ContainerExit(0)
        self.env = dict(entry.partition("=")[::2] for entry in spec.env)
        self._files: dict[str, bytes] = {}
        self._files_of = files_of
        self._written = b""
        self._errors = ErrorOutput()

    # -- its program -----------------------------------------------------------------------------

    def start(self) -> None:
        """It runs, and writes what it writes at first."""
        self.state = "running"
        self._written = self.env.get("OUTPUT", "").encode()
        self._errors = ErrorOutput(self.env.get("ERRORS", "").encode())

    def finish(self) -> None:
        """It does the rest of what its environment says, and ends."""
        env = self.env
        code = int(env.get("EXIT_CODE", "0"))
        if "WRITE" in env:
            path, _, text = env["WRITE"].partition("=")
            files, inside = self._files_at(path)
            files[inside] = text.encode()
        if "READ" in env:
            files, inside = self._files_at(env["READ"])
            code = code if inside in files else 1
            self._written += files.get(inside, b"")
        if env.get("OOM"):
            self.end(KILLED, oom_killed=True)
        else:
            self.end(code)

    def kill(self, signal: str) -> None:
        """It gets a signal."""
        self.signals.append(signal)
        if signal == "SIGKILL":
            self.end(KILLED)
        elif signal == "SIGTERM" and self.state == "running" and "ON_SIGTERM" in self.env:
            self.end(int(self.env["ON_SIGTERM"]))

    def end(self, code: int, *, oom_killed: bool = False) -> None:
        """It ends now, unless it has."""
        if not self.ended.is_set():
            self.exit = ContainerExit(code, oom_killed)
            self.state = "exited"
            self.ended.set()

    def output(self) -> Iterator[bytes]:
        """What is there at the start at once, the rest when it ended."""
        if self.is_refused:
            raise GateRefused("the start gate did not run the step's program")
        first = self._written
        if first:
            yield first
        if self._errors:
            yield self._errors
        self.ended.wait()
        if rest := self._written[len(first) :]:
            yield rest

    # -- its files -------------------------------------------------------------------------------

    def unpack(self, path: str, archive: tarfile.TarFile) -> None:
        """Put the archive's files at ``path``.

        Raises:
            NotFound: there is no such folder.
        """
        if not self._is_folder(path):
            raise NotFound(f"the container has no folder {path}")
        for entry in archive:
            content = archive.extractfile(entry) if entry.isreg() else None
            if content is not None:
                target = posixpath.join(path, posixpath.normpath(entry.name))
                files, inside = self._files_at(target)
                files[inside] = content.read()

    def pack(self, path: str) -> bytes:
        """A tar archive of ``path``.

        Raises:
            NotFound: there is nothing.
        """
        files, inside = self._files_at(path)
        below = f"{inside}/" if inside else ""
        found = {
            name: content
            for name, content in files.items()
            if name == inside or name.startswith(below)
        }
        if not found and not self._is_folder(path):
            raise NotFound(f"the container has no {path}")
        top = posixpath.basename(path.rstrip("/"))
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, content in sorted(found.items()):
                entry = tarfile.TarInfo(
                    posixpath.join(top, name[len(inside) :].lstrip("/")).rstrip("/")
                )
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        return buffer.getvalue()

    def _files_at(self, path: str) -> tuple[dict[str, bytes], str]:
        """The files that hold ``path`` (a volume's or the container's own), and the path there."""
        mounts = sorted(self.spec.mounts, key=lambda mount: -len(mount.target))
        for mount in mounts:
            if path == mount.target or path.startswith(f"{mount.target}/"):
                return self._files_of(mount.source), path[len(mount.target) :].lstrip("/")
        return self._files, path.lstrip("/")

    def _is_folder(self, path: str) -> bool:
        clean = path.rstrip("/")
        if not clean or any(mount.target == clean for mount in self.spec.mounts):
            return True
        files, inside = self._files_at(clean)
        return any(name.startswith(f"{inside}/") for name in files)
