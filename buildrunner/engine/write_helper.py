"""A process that makes small files for a thread of write_threads.py: the end that gives work."""

from __future__ import annotations

import fcntl
import marshal
import os
import subprocess
import sys
from contextlib import suppress
from typing import IO, TYPE_CHECKING, NamedTuple, cast

from buildrunner.engine import write_process
from buildrunner.engine.file_writes import file_time, writing
from buildrunner.errors import SourceError

if TYPE_CHECKING:
    from buildrunner.sources.archive_member import Member

_PIPE_BYTES = 512 * 1024


class NewFile(NamedTuple):
    """A file to make.

    Attributes:
        folder: descriptor of the folder in which it will be.
        folder_path: of that folder, below the root; empty for the root itself.
        name: in that folder.
        member: says its mode and time.
        content: all of it.
    """

    folder: int
    folder_path: str
    name: str
    member: Member
    content: bytes


class WriteHelper:
    """Runs write_process.py until it is closed.

    Args:
        root: descriptor of the folder below which everything lies.

    Raises:
        OSError: no process can be started.
    """

    def __init__(self, root: int) -> None:
        argv = [sys.executable, "-I", "-S", write_process.__file__, str(root)]
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=(root,),
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for us, who end it
        )
        self._to = cast("IO[bytes]", self._process.stdin)
        self._from = cast("IO[bytes]", self._process.stdout)
        with suppress(OSError):  # it is only faster
            fcntl.fcntl(self._to, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def write(self, generation: int, files: list[NewFile]) -> None:
        """Make files whose folders are there.

        Args:
            generation: another number than before when folders were removed since.
            files: what to make.

        Raises:
            SourceError: one of them can't be made.
        """
        descriptions = [
            (
                os.fsencode(file.folder_path),
                os.fsencode(file.name),
                file.member.mode,
                file_time(file.member),
                file.content,
            )
            for file in files
        ]
        answer = self._ask(marshal.dumps((generation, descriptions)))
        if answer is not None:
            number, code = answer
            with writing(files[number].member):
                raise OSError(code, os.strerror(code))

    def _ask(self, request: bytes) -> tuple[int, int] | None:
        data = memoryview(len(request).to_bytes(4, "big") + request)
        try:
            while data:
                data = data[os.write(self._to.fileno(), data) :]
            answer: tuple[int, int] | None = marshal.loads(self._answer())  # noqa: S302  (ours)
        except (OSError, EOFError) as error:
            raise SourceError(
                "the source can't be unpacked: a process that writes files died"
            ) from error
        return answer

    def _answer(self) -> bytes:
        """An answer is short: it comes in one piece, but for its length."""
        return self._from.read(int.from_bytes(self._from.read(4), "big"))

    def close(self) -> None:
        """End the process, which has nothing left to do."""
        self._to.close()
        self._process.wait()
        self._from.close()
