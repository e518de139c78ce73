"""Folders whose content is untrusted: from steps, archives, repositories."""

from __future__ import annotations

import os
import threading

_SAID_BYTES = 1 << 16
_LONGEST = 500
_POLL_S = 0.1


def disk_bytes(path: str, closing: threading.Event | None = None) -> int:
    """Return what a file, or a folder with its content, takes on its disk; 0 if it does not exist.

    `du` counts files with several names once, and enters folders of any depth.

    Args:
        path: the file or folder.
        closing: when set, the measurement stops, and its result is of no use.

    Raises:
        OSError: `du` can't be started.
    """
    import subprocess  # few builds measure a folder

    with subprocess.Popen(
        ["du", "-skx", "--", path],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # files vanish meanwhile
    ) as measuring:
        while True:
            try:
                kib = measuring.communicate(timeout=_POLL_S)[0].partition(b"\t")[0]
                return int(kib) << 10 if kib.isdigit() else 0
            except subprocess.TimeoutExpired:
                if closing is not None and closing.is_set():
                    measuring.kill()


def remove_tree(path: str) -> str:
    """Remove a file, or a folder with its content. Does nothing if the path does not exist.

    Use `shutil.rmtree` only for folders that buildrunner itself has filled: it recurses, so it
    fails on thousands of nested folders, which a step or a repository can easily contain.

    Returns:
        The problem; empty on success.
    """
    import shutil  # few builds leave a folder
    import subprocess

    program = shutil.which("rm", path=os.defpath) or "rm"
    try:
        with subprocess.Popen(
            [program, "-rf", "--", path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as removing:
            assert removing.stderr is not None  # noqa: S101  (a pipe)
            said = removing.stderr.read(_SAID_BYTES)
            while removing.stderr.read(_SAID_BYTES):
                pass  # `rm` names each file that it leaves, by a path of any length
    except OSError as error:
        return f"{program} can't be started: {error.strerror}"
    if not removing.returncode:
        return ""
    first = said.partition(b"\n")[0].decode(errors="replace") or "rm failed"
    return first if len(first) <= _LONGEST else f"{first[:_LONGEST]}…"
