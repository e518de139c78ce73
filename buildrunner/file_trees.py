"""Folders that others have filled: steps, archives, repositories."""

from __future__ import annotations

import os


def remove_tree(path: str) -> str:
    """Remove a file or a folder with all that is in it, if it is there.

    `shutil.rmtree` calls itself for each level, so it fails on folders of thousands of levels,
    which a step or a repository makes easily. It is for folders of our own only.

    Returns:
        The problem; empty if nothing is left.
    """
    import shutil  # few builds leave a folder
    import subprocess

    program = shutil.which("rm", path=os.defpath) or "rm"
    try:
        done = subprocess.run(
            [program, "-rf", "--", path],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        return f"{program} can't be started: {error.strerror}"
    return (done.stderr.strip().splitlines() or ["rm failed"])[0] if done.returncode else ""
