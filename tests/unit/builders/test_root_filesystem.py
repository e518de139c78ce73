"""What comes of mmdebstrap's archive, and of mmdebstrap itself."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from buildrunner.builders.image_contents import debian_root, write_without_holes
from buildrunner.errors import EngineError
from tests.conftest import DEADLINE_S


def packed(folder: Path, *options: str) -> bytes:
    argv = ["tar", "--create", *options, "--directory", str(folder), "."]
    return subprocess.run(argv, check=True, capture_output=True).stdout


@pytest.mark.parametrize("form", ["--format=pax", "--format=gnu"])
def test_a_sparse_file_is_written_in_full_and_all_else_stays(tmp_path: Path, form: str) -> None:
    with (tmp_path / "holes").open("wb") as file:
        file.write(b"begin")
        file.seek(1_000_000)
        file.write(b"end")
    (tmp_path / "plain").write_bytes(b"plain")
    (tmp_path / "link").symlink_to("plain")
    os.link(tmp_path / "plain", tmp_path / "same")
    (tmp_path / ("long" * 40)).mkdir(mode=0o2750)
    result = io.BytesIO()
    write_without_holes(io.BytesIO(packed(tmp_path, "--sparse", form)), result)
    assert b"GNU.sparse" not in result.getvalue()
    with tarfile.open(fileobj=io.BytesIO(result.getvalue())) as tar:
        members = {member.name: member for member in tar}
        holes = tar.extractfile(members["./holes"])
        assert holes is not None
        assert holes.read() == b"begin" + bytes(999_995) + b"end"
        assert not members["./holes"].issparse()
    expected = io.BytesIO(packed(tmp_path, "--format=pax"))
    with tarfile.open(fileobj=expected) as tar:
        for member in tar:
            kept = members.pop(member.name)
            assert (kept.type, kept.mode, kept.size, kept.linkname, kept.mtime) == (
                member.type,
                member.mode,
                member.size,
                member.linkname,
                pytest.approx(member.mtime, abs=1),
            )
    assert not members


def program(folder: Path, script: str) -> dict[str, str]:
    """An environment in which mmdebstrap is a script."""
    path = folder / "mmdebstrap"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_the_last_line_of_a_failure_is_the_reason(tmp_path: Path) -> None:
    environ = program(tmp_path, "echo first >&2; echo E: no such suite >&2; exit 25")
    with pytest.raises(EngineError, match="could not make a Debian nosuch: E: no such suite"):
        list(debian_root("nosuch", environ))


def test_half_an_archive_is_no_root_file_system(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 10_000)
    environ = program(tmp_path, f"tar -c -C {tmp_path} ./file | head -c 5000")
    with pytest.raises(EngineError, match="its archive can't be read"):
        list(debian_root("half", environ))


def test_what_mmdebstrap_mounts_stays_its_own(tmp_path: Path) -> None:
    """As root it also changes the propagation of all mounts that it finds."""
    mount = f"mount -t tmpfs none {tmp_path} 2> /dev/null"  # only root can
    environ = program(tmp_path, f"{mount}; tar -c -C /etc ./passwd")
    assert b"".join(debian_root("any", environ))
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_mmdebstrap_ends_with_us_and_cleans_up(tmp_path: Path, number: signal.Signals) -> None:
    """It ignores signals itself, and goes on to its cleanup once its programs have ended."""
    begun, cleaned = tmp_path / "begun", tmp_path / "cleaned"
    os.mkfifo(begun)
    os.mkfifo(cleaned)
    # The program itself says that it has begun: it can be ended from then on.
    script = f"trap : TERM; sh -c 'echo yes > {begun}; exec sleep 1000'; echo yes > {cleaned}"
    caller = "from buildrunner.builders.image_contents import debian_root; import os\n"
    caller += "list(debian_root('any', os.environ))"
    with subprocess.Popen(
        [sys.executable, "-c", caller],
        env={**os.environ, **program(tmp_path, script)},
        stderr=subprocess.DEVNULL,
    ) as process:
        assert begun.read_text()
        process.send_signal(number)
        process.wait(DEADLINE_S)
    assert cleaned.read_text()
