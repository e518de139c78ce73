"""A container that publishes: it gets files of its own, and leaves some; its output is logged.

Credentials go in as a file: neither an argv nor an environment shows them.
"""

from __future__ import annotations

import io
import os
import tarfile
import threading
from typing import TYPE_CHECKING

from buildrunner.errors import NotFound, PackageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from buildrunner.containers.engine_protocol import ContainerEngine
    from buildrunner.containers.engine_types import ContainerSpec
    from buildrunner.engine.log_pipeline import LogPipeline

FOLDER = "/buildrunner-publish"
"""Where its files are."""

_KEPT_BYTES = 256 * 1024  # of the output: what went wrong is said at its end
_LONGEST_LINE = 64 * 1024


class PublishingContainer:
    """A container with files in `FOLDER`. A context manager; removed at its end."""

    def __init__(
        self, engine: ContainerEngine, spec: ContainerSpec, files: Mapping[str, bytes]
    ) -> None:
        self._engine = engine
        self._id = engine.create_container(spec)
        try:
            engine.put_archive(self._id, "/", [_archive(files)])
        except BaseException:
            engine.remove_container(self._id)
            raise

    def __enter__(self) -> PublishingContainer:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.remove_container(self._id)

    def run(self, log: LogPipeline, cancel: threading.Event) -> tuple[int, str]:
        """Run it to its end; exit code and the end of its output, all of which is in the log."""
        over = threading.Event()

        def watch() -> None:
            while not over.is_set():
                if cancel.wait(0.2):
                    self._engine.kill_container(self._id)
                    return

        output = self._engine.start_container(self._id, attach=True)
        watcher = threading.Thread(target=watch, name="publish-watch", daemon=True)
        watcher.start()
        said = b""
        try:
            rest = b""
            for chunk in output:  # line by line: whoever waits sees why
                said = (said + chunk)[-_KEPT_BYTES:]
                *lines, rest = (rest + chunk).split(b"\n")
                _log_lines(log, lines)
                if len(rest) > _LONGEST_LINE:
                    _log_lines(log, [rest])
                    rest = b""
            _log_lines(log, [rest])
            code = self._engine.wait_container(self._id).code
        finally:
            over.set()
        if cancel.is_set():
            raise PackageError("the build was stopped")
        return code, said.decode(errors="replace")

    def file(self, name: str) -> bytes | None:
        """A file that the container left in the folder."""
        found = self.file_ending(name)
        return found[1] if found else None

    def file_ending(self, ending: str) -> tuple[str, bytes] | None:
        """Name and content of the file in the folder whose name ends so."""
        try:
            data = b"".join(self._engine.get_archive(self._id, FOLDER))
        except NotFound:
            return None
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member in tar:
                if member.isreg() and member.name.endswith(ending):
                    content = tar.extractfile(member)
                    return os.path.basename(member.name), content.read() if content else b""
        return None


def _log_lines(log: LogPipeline, lines: Iterable[bytes]) -> None:
    for line in lines:
        if line.strip():
            log.line(line.decode(errors="replace").rstrip("\r"))


def _archive(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        folder = tarfile.TarInfo(FOLDER.lstrip("/"))
        folder.type = tarfile.DIRTYPE
        folder.mode = 0o700
        tar.addfile(folder)
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{folder.name}/{name}")
            entry.size = len(content)
            entry.mode = 0o600
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
