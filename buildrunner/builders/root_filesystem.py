"""A Debian root file system from Debian's packages, for machines that can't pull an image."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from typing import IO

from buildrunner.errors import EngineError

# What Debian's own slim images leave out; like them, the image's dpkg does not wait for the disk.
_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
_KEPT = "/usr/share/doc/*/copyright"
_CHUNK = 1 << 20
# Runs a command until its standard input is closed, as when this process dies in whatever way.
# mmdebstrap itself ignores SIGTERM, and cleans up once the programs that it runs have ended.
_TIED = """
exec 3<&0
"$@" < /dev/null 3<&- &
command=$!
(cat <&3; kill -TERM 0) > /dev/null &
wait $command
"""


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
    argv += [f"--dpkgopt=path-include={_KEPT}", "--dpkgopt=force-unsafe-io"]
    argv += ['--aptopt=Acquire::Languages "none"', suite, "-"]
    if mirror := environ.get("DEBIAN_MIRROR"):
        argv.append(mirror)
    if os.geteuid() == 0:
        # As root, mmdebstrap makes all mounts private: not those of this machine, then.
        argv = ["unshare", "--mount", *argv]
    # The archive is made whole before its first byte leaves: an import that was fed half a root
    # file system would succeed.
    with tempfile.TemporaryFile() as archive, tempfile.TemporaryFile() as errors:
        failure = _make(argv, environ, archive, errors)
        if failure:
            errors.seek(0)
            reason = errors.read().decode("utf-8", "replace").strip().splitlines()
            raise EngineError(
                f"mmdebstrap could not make a Debian {suite}: {reason[-1] if reason else failure}",
                hint="Are Debian's packages reachable (apt-get update)? Another mirror can be "
                "named in the variable DEBIAN_MIRROR.",
            )
        archive.seek(0)
        while chunk := archive.read(_CHUNK):
            yield chunk


def _make(
    argv: list[str], environ: Mapping[str, str], archive: IO[bytes], errors: IO[bytes]
) -> str:
    """Write what a command packs into ``archive``; return what went wrong, or an empty string."""
    failure = ""
    with subprocess.Popen(
        ["sh", "-c", _TIED, "sh", *argv],
        env=dict(environ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None  # noqa: S101  (it is a pipe)
        try:
            write_without_holes(process.stdout, archive)
        except tarfile.TarError as error:
            failure = f"its archive can't be read: {error}"
        process.stdout.close()
        process.wait()  # before its standard input is closed, which would end it
    return f"exit code {process.returncode}" if process.returncode else failure


def write_without_holes(source: IO[bytes], target: IO[bytes]) -> None:
    """Copy a tar archive, sparse files written in full.

    mmdebstrap makes sparse files since version 1.6. An engine that imports them can't push the
    image: it packs the layer again from its files, and gets another digest.

    Raises:
        tarfile.TarError: ``source`` is no archive, or its end is missing.
    """
    with (
        tarfile.open(fileobj=source, mode="r|") as packed,
        tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as plain,
    ):
        for member in packed:
            content = packed.extractfile(member) if member.isreg() else None
            if member.issparse():
                member.type, member.sparse = tarfile.REGTYPE, None
                member.pax_headers = {
                    key: value
                    for key, value in member.pax_headers.items()
                    if not key.startswith("GNU.sparse.")
                }
            plain.addfile(member, content)
