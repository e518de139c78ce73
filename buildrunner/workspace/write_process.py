"""Makes small files in a process of its own: a script that imports nothing of ours.

In one process, threads that make files wait for the interpreter's lock after each of five system
calls a file. Where a file system is fast, that takes longer than the calls.

It is told the descriptor of the folder below which all lies. It takes bundles from standard input:
four bytes of length, then, by `marshal`, a generation and a list of (folder, name, mode, time,
content). It answers each with four bytes of length and, by `marshal`, None or (number of the file
in the list, errno). The end of its input ends it, also in the middle of a bundle.
"""

from __future__ import annotations

import errno
import marshal
import os
import sys

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FOLDERS = 64


class _Folders:
    """Folders that are open, by path. Whoever sends a file has made its folder."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._open: dict[bytes, int] = {}
        self._generation = 0

    def begin(self, generation: int) -> None:
        """Know that folders may have been replaced since the last generation."""
        if generation != self._generation:
            self._generation = generation
            self._close()

    def find(self, path: bytes) -> int:
        """Descriptor of a folder."""
        if not path:
            return self._root
        found = self._open.get(path)
        if found is None:
            if len(self._open) >= _OPEN_FOLDERS:
                self._close()
            found = self._open[path] = self._opened(path)
        return found

    def _close(self) -> None:
        for folder in self._open.values():
            os.close(folder)
        self._open.clear()

    def _opened(self, path: bytes) -> int:
        folder = self._root
        for name in path.split(b"/"):
            below = os.open(name, _FOLDER, dir_fd=folder)
            if folder != self._root:
                os.close(folder)
            folder = below
        return folder


def _write(folder: int, name: bytes, mode: int, time_ns: int, content: bytes) -> None:
    file = os.open(name, _NEW_FILE, 0o600, dir_fd=folder)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(file, rest) :]
        os.fchmod(file, mode)
        os.utime(file, ns=(time_ns, time_ns))
    finally:
        os.close(file)


def main() -> None:
    """Serve until the input ends."""
    folders = _Folders(int(sys.argv[1]))
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while length := int.from_bytes(source.read(4), "big"):
        request = source.read(length)
        if len(request) < length:
            return
        generation, files = marshal.loads(request)  # noqa: S302  (from our own process)
        folders.begin(generation)
        answer = marshal.dumps(_make(folders, files))
        sink.write(len(answer).to_bytes(4, "big") + answer)
        sink.flush()


def _make(
    folders: _Folders, files: list[tuple[bytes, bytes, int, int, bytes]]
) -> tuple[int, int] | None:
    for number, (folder, name, mode, time_ns, content) in enumerate(files):
        try:
            _write(folders.find(folder), name, mode, time_ns, content)
        except OSError as error:
            return number, error.errno or errno.EIO
    return None


if __name__ == "__main__":
    main()
