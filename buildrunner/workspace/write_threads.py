"""A few threads that write files, and never have more to write than fits in little memory.

The kernel lets one thread at a time make a file in a folder, or write to a file. So a thread takes,
if there are any, jobs for folders and files that no other thread is busy with.
"""

from __future__ import annotations

import fcntl
import marshal
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import IO, NamedTuple, cast

from buildrunner.archives.members import Member
from buildrunner.errors import SourceError
from buildrunner.workspace import write_process
from buildrunner.workspace.file_writes import file_time, write_file, writing

_THREADS = max(2, min(4, os.cpu_count() or 1))
_WAITING_BYTES = 8 * 1024 * 1024
# Jobs are handed on in bundles: waking a thread takes as long as writing a small file.
_BUNDLE_BYTES = 256 * 1024
_BUNDLE_JOBS = 25
_HELP_FROM_BUNDLES = 10  # a process takes as long to start as some hundred files to make
_JOB_BYTES = 1024  # what a job itself takes, and more


class _Bundle:
    """What one thread does, one after another."""

    def __init__(self) -> None:
        self.files: list[NewFile] = []
        self.jobs: list[Callable[[], None]] = []
        self.places: set[int] = set()
        self.size_bytes = 0


class WriteThreads:
    """Threads that make files and do other jobs in any order, from ``with`` to its end.

    One thread gives the work. The first exception comes out of the next `put` or `settle`; what
    was not begun by then never is. When there are many small files, each thread has a process of
    its own make them (write_process.py).

    Args:
        root: descriptor of the folder below which everything lies.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._generation = 0
        self._bundles = 0
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._done = threading.Condition(self._lock)
        self._filling = _Bundle()
        self._waiting: deque[_Bundle] = deque()
        self._running: list[_Bundle] = []
        self._held_bytes = 0
        self._error: BaseException | None = None
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._run, name=f"write-{number}", daemon=True)
            for number in range(_THREADS)
        ]

    def __enter__(self) -> WriteThreads:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            self._stopping = True
            self._work.notify_all()
        for thread in self._threads:
            thread.join()

    def put_file(self, file: NewFile) -> None:
        """Have a small file made, soon; waits while too much is waiting already."""
        self._filling.files.append(file)
        self._filled(file.folder, len(file.content))

    def put(self, job: Callable[[], None], place: int, size_bytes: int) -> None:
        """Have a job done, soon; waits while too much is waiting already.

        Args:
            job: writes; called in another thread.
            place: stands for the folder or file to which it writes.
            size_bytes: what it holds in memory.
        """
        self._filling.jobs.append(job)
        self._filled(place, size_bytes)

    def _filled(self, place: int, size_bytes: int) -> None:
        bundle = self._filling
        bundle.places.add(place)
        bundle.size_bytes += size_bytes + _JOB_BYTES
        if bundle.size_bytes >= _BUNDLE_BYTES or len(bundle.files) >= _BUNDLE_JOBS:
            self._hand_on()

    def folders_removed(self) -> None:
        """Know that folders are no longer what they were. All that was put is done."""
        self._generation += 1

    def settle(self) -> None:
        """Wait until every job is done."""
        if self._filling.size_bytes:
            self._hand_on()
        with self._lock:
            while self._held_bytes and self._error is None:
                self._done.wait()
            self._raise()

    def _hand_on(self) -> None:
        with self._lock:
            while self._held_bytes > _WAITING_BYTES and self._error is None:
                self._done.wait()
            self._raise()
            self._bundles += 1
            self._waiting.append(self._filling)
            self._held_bytes += self._filling.size_bytes
            self._work.notify()
        self._filling = _Bundle()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        helper: WriteHelper | None = None
        try:
            while (bundle := self._next()) is not None:
                error = None
                try:
                    if helper is None and bundle.files and self._bundles > _HELP_FROM_BUNDLES:
                        helper = self._start_helper()
                    self._do(bundle, helper)
                except BaseException as raised:  # noqa: BLE001  (it is raised where work comes from)
                    error = raised
                self._finished(bundle, error)
        finally:
            if helper is not None:
                helper.close()

    def _start_helper(self) -> WriteHelper | None:

        with suppress(OSError):  # no room for processes; it goes without
            return WriteHelper(self._root)
        return None

    def _do(self, bundle: _Bundle, helper: WriteHelper | None) -> None:
        for job in bundle.jobs:
            job()
        if helper is not None and bundle.files:
            helper.write(self._generation, bundle.files)
            return
        for file in bundle.files:
            write_file(file.folder, file.name, file.member, file.content)

    def _finished(self, bundle: _Bundle, error: BaseException | None) -> None:
        with self._lock:
            self._running.remove(bundle)
            self._held_bytes -= bundle.size_bytes
            if self._error is None:
                self._error = error
            self._done.notify()

    def _next(self) -> _Bundle | None:
        with self._lock:
            while not self._waiting and not self._stopping:
                self._work.wait()
            if self._stopping or self._error is not None:
                return None
            busy = set().union(*(bundle.places for bundle in self._running))
            found = next(
                (bundle for bundle in self._waiting if busy.isdisjoint(bundle.places)),
                self._waiting[0],
            )
            self._waiting.remove(found)
            self._running.append(found)
            return found


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
