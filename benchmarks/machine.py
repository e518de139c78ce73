"""What the benchmarks need from the machine: an engine, a small image, a folder to work in."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
import uuid
from collections.abc import Iterator

IMAGE = "busybox:latest"


class NotPossible(Exception):
    """The machine lacks something; the message says what."""


def docker(*arguments: str, data: bytes | None = None) -> str:
    """Output of the ``docker`` command, which is the yardstick."""
    done = subprocess.run(["docker", *arguments], input=data, capture_output=True, check=False)
    if done.returncode:
        raise NotPossible(f"docker {arguments[0]}: {done.stderr.decode().strip()}")
    return done.stdout.decode().strip()


def ensure_image() -> None:
    """The engine has busybox afterwards: as it is, pulled, or made from this machine's own."""
    if shutil.which("docker") is None:
        raise NotPossible("there is no docker command, which is what everything is compared with")
    for attempt in (("image", "inspect", IMAGE), ("pull", "-q", IMAGE)):
        with contextlib.suppress(NotPossible):
            docker(*attempt)
            return
    program = shutil.which("busybox")
    if program is None:
        raise NotPossible(f"{IMAGE} can't be pulled, and there is no busybox here to make it of")
    docker("import", "-c", 'CMD ["sh"]', "-", IMAGE, data=_busybox_tar(program))


def _busybox_tar(program: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(program, "bin/busybox")
        for name in subprocess.run(
            [program, "--list"], capture_output=True, text=True, check=True
        ).stdout.split():
            if name != "busybox":
                link = tarfile.TarInfo(f"bin/{name}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(link)
        for name in ("tmp", "etc"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(folder)
    return buffer.getvalue()


@contextlib.contextmanager
def work_folder() -> Iterator[str]:
    """A folder that is gone afterwards; builds are stored in it and not among the user's."""
    with tempfile.TemporaryDirectory(prefix="buildrunner-bench-") as folder:
        before = os.environ.get("XDG_DATA_HOME")
        os.environ["XDG_DATA_HOME"] = os.path.join(folder, "data")
        try:
            yield folder
        finally:
            if before is None:
                del os.environ["XDG_DATA_HOME"]
            else:
                os.environ["XDG_DATA_HOME"] = before


@contextlib.contextmanager
def volume() -> Iterator[str]:
    """A volume that is gone afterwards."""
    name = f"buildrunner-bench-{uuid.uuid4().hex[:12]}"
    docker("volume", "create", name)
    try:
        yield name
    finally:
        docker("volume", "rm", name)


def make_tree(folder: str, files: int) -> None:
    """``files`` small files, 50 in a folder, some 36 MB for 5,000."""
    sizes = (200, 2_000, 7_000, 20_000)
    for number in range(files):
        place = os.path.join(folder, f"d{number // 500}", f"s{number // 50 % 10}")
        os.makedirs(place, exist_ok=True)
        with open(os.path.join(place, f"f{number % 50}.txt"), "wb") as file:
            file.write(os.urandom(sizes[number % 4]))
