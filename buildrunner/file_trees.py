"""Folders that others have filled: steps, archives, repositories."""

from __future__ import annotations

import subprocess


def remove_tree(path: str) -> str:
    """Remove a file or a folder with all that is in it, if it is there.

    `shutil.rmtree` calls itself for each level, so it fails on folders of thousands of levels,
    which a step or a repository makes easily. It is for folders of our own only.

    Returns:
        What went wrong; empty if nothing is left.
    """
    done = subprocess.run(
        ["rm", "-rf", "--", path], capture_output=True, text=True, errors="replace", check=False
    )
    return (done.stderr.strip().splitlines() or ["rm failed"])[0] if done.returncode else ""
