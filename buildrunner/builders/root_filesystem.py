"""A Debian root file system from Debian's packages, for machines that can't pull an image."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from typing import TYPE_CHECKING

from buildrunner.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# What Debian's own slim images leave out.
_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
_KEPT = "/usr/share/doc/*/copyright"
_CHUNK = 1 << 20


def debian_root(suite: str, environ: Mapping[str, str]) -> Iterator[bytes]:
    """A minimal Debian of ``suite`` (``bookworm``) as a tar stream, made by ``mmdebstrap``.

    Packages come from where this machine's own apt gets them (``DEBIAN_MIRROR`` when set). It
    takes some 15 s.

    Raises:
        EngineError: mmdebstrap is missing or failed.
    """
    if shutil.which("mmdebstrap", path=environ.get("PATH")) is None:
        raise EngineError(
            f"no image of Debian {suite} can be pulled, and mmdebstrap, which makes one from "
            "Debian's packages, is not installed",
            hint="Install it (Debian: sudo apt-get install mmdebstrap), or name an image that the "
            "engine has: `buildrunner builders install --base IMAGE`.",
        )
    argv = ["mmdebstrap", "--variant=apt", "--format=tar", "--quiet"]
    argv += [f"--dpkgopt=path-exclude={path}" for path in _LEFT_OUT]
    argv += [f"--dpkgopt=path-include={_KEPT}", '--aptopt=Acquire::Languages "none"', suite, "-"]
    if mirror := environ.get("DEBIAN_MIRROR"):
        argv.append(mirror)
    # The archive is made whole before its first byte leaves: an import that was fed half a root
    # file system would succeed.
    with tempfile.TemporaryFile() as archive, tempfile.TemporaryFile() as errors:
        code = subprocess.run(
            argv,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=archive,
            stderr=errors,
            check=False,
        ).returncode
        if code != 0:
            errors.seek(0)
            reason = errors.read().decode("utf-8", "replace").strip().splitlines()
            raise EngineError(
                f"mmdebstrap could not make a Debian {suite}: "
                f"{reason[-1] if reason else f'exit code {code}'}",
                hint="Are Debian's packages reachable (apt-get update)? Another mirror can be "
                "named in the variable DEBIAN_MIRROR.",
            )
        archive.seek(0)
        while chunk := archive.read(_CHUNK):
            yield chunk
