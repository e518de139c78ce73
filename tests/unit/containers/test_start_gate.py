"""The start gate, run for real on this machine: what it runs, and what it refuses to run."""

from __future__ import annotations

import inspect
import os
import platform
import re
import shutil
import struct
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from buildrunner.containers import start_gate
from buildrunner.containers.protocol import ErrorOutput
from buildrunner.containers.start_gate import checked_output, gate_program
from buildrunner.errors import GateRefused
from tests.conftest import program

REFUSAL = "refused\n"


_OWN, *_OTHERS = sorted(("x86_64", "aarch64"), key=lambda one: one != platform.machine())


# The emulator for the other processor is installed by `make test`, and not by `make unit`.
@pytest.fixture(params=[_OWN, *(pytest.param(one, marks=pytest.mark.slow) for one in _OTHERS)])
def gate(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """The beginning of a command that runs the gate on this machine."""
    program = gate_program(request.param)
    assert program is not None
    path = tmp_path / "gate"
    path.write_bytes(program)
    path.chmod(0o755)
    if request.param == platform.machine():
        return [str(path)]
    name = f"qemu-{request.param}"
    emulator = shutil.which(f"{name}-static") or shutil.which(name)
    assert emulator is not None, f"{name} is missing: apt-get install qemu-user-static"
    return [emulator, str(path)]


def run(
    gate: list[str], folder: Path | str, *command: str, word: bytes = b"\n", path: str | None = None
) -> tuple[int, str, str]:
    """Exit code, output and errors of a command behind the gate."""
    done = subprocess.run(
        [*gate, REFUSAL, str(folder), *command],
        input=word,
        capture_output=True,
        check=False,
        timeout=30,
        env={"PATHS": "/nowhere", **({} if path is None else {"PATH": path}), "LAST": "1"},
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def script(path: Path, text: str = "#!/bin/sh\necho $0\n", mode: int = 0o755) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def test_it_becomes_the_program_in_its_folder_without_an_open_input(
    gate: list[str], tmp_path: Path
) -> None:
    code = "read x; echo $? $(pwd) $(readlink /proc/$$/fd/0) $1 $PATHS $LAST; exit 7"
    command = ("/bin/sh", "-c", code, "name", "argument")
    expected = f"1 {tmp_path} /dev/null argument /nowhere 1\n"
    assert run(gate, tmp_path, *command, word=b"\nmore\n") == (7, expected, "")


@pytest.mark.parametrize("path", ["/bin", "/nowhere:/bin", "/nowhere/:/bin/:", "/bin:relative"])
def test_it_looks_on_the_path(gate: list[str], tmp_path: Path, path: str) -> None:
    assert run(gate, tmp_path, "sh", "-c", "echo here", path=path) == (0, "here\n", "")


def test_it_passes_by_what_can_not_be_executed(gate: list[str], tmp_path: Path) -> None:
    script(tmp_path / "first" / "tool", mode=0o644)
    second = script(tmp_path / "second" / "tool")
    path = f"{tmp_path}/first:{tmp_path}/second"
    if os.geteuid() == 0:  # root may enter any folder, and execute no file without an x
        assert not os.access(tmp_path / "first" / "tool", os.X_OK)
    assert run(gate, tmp_path, "tool", path=path) == (0, f"{second}\n", "")


def test_a_name_with_a_slash_counts_from_the_folder(gate: list[str], tmp_path: Path) -> None:
    script(tmp_path / "tool")
    assert run(gate, tmp_path, "./tool") == (0, "./tool\n", "")


def test_a_long_path_and_a_long_name_fit(gate: list[str], tmp_path: Path) -> None:
    path = "/" + "a" * 100_000 + ":/bin"
    assert run(gate, tmp_path, "sh", "-c", "echo here", path=path)[1] == "here\n"
    assert run(gate, tmp_path, "b" * 100_000, path=path)[0] == 127


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("nothing", "/bin:/usr/bin"),
        ("nothing", ""),
        ("nothing", None),
        ("sh", None),
        ("sh", "relative:/bin"),  # the engine has a word to say about these
        ("sh", ":/bin"),
        ("broken", "{here}/broken:{here}/good"),  # the engine would choose the broken one
        ("folder", "{here}/broken:{here}/good"),
        ("./nothing", "/bin"),
        ("/bin", "/bin"),
    ],
)
def test_it_leaves_to_the_engine_what_the_engine_would_refuse(
    gate: list[str], tmp_path: Path, name: str, path: str | None
) -> None:
    script(tmp_path / "broken" / "broken", "#!/nowhere/sh\n")
    (tmp_path / "broken" / "folder").mkdir()
    script(tmp_path / "good" / "broken")
    script(tmp_path / "good" / "folder")
    path = None if path is None else path.replace("{here}", str(tmp_path))
    assert run(gate, tmp_path, name, path=path) == (127, "", REFUSAL)


def test_it_makes_no_folder(gate: list[str], tmp_path: Path) -> None:
    assert run(gate, tmp_path / "new", "/bin/sh", "-c", "true") == (127, "", REFUSAL)
    assert not (tmp_path / "new").exists()


def test_without_a_word_nothing_runs(gate: list[str], tmp_path: Path) -> None:
    assert run(gate, tmp_path, "/bin/sh", "-c", "echo x", word=b"") == (127, "", REFUSAL)


@pytest.mark.slow  # `make test` installs the assemblers, and `make unit` does not
@pytest.mark.parametrize(
    ("table", "architecture", "syntax"),
    [("_X86_64", "x86_64", ".intel_syntax noprefix\n"), ("_AARCH64", "aarch64", "")],
)
def test_its_bytes_are_what_the_listing_says(
    table: str, architecture: str, syntax: str, tmp_path: Path
) -> None:
    package = f"binutils-{architecture.replace('_', '-')}-linux-gnu"
    assembler = program(f"{architecture}-linux-gnu-as", package)
    source = inspect.getsource(start_gate).partition(f"{table} = ")[2].partition("\n)")[0]
    lines = re.findall(r'" {2}# ((?:\w+: )?)(.*?)(?: {2};.*)?$', source, re.MULTILINE)
    text = syntax + "".join(f"{label}\n{line}\n" for label, line in lines)
    done = tmp_path / "gate.o"
    subprocess.run([assembler, "-o", str(done), "-"], input=text.encode(), check=True)
    assert getattr(start_gate, table) in done.read_bytes()


@pytest.mark.parametrize(("architecture", "machine"), [("x86_64", 62), ("aarch64", 183)])
def test_its_header_says_what_the_kernel_needs(architecture: str, machine: int) -> None:
    elf = gate_program(architecture)
    assert elf is not None
    kind, found, _, entry, segments = struct.unpack_from("<HHIQQ", elf, 16)
    assert elf.startswith(b"\x7fELF\x02\x01\x01")
    assert (kind, found) == (2, machine)
    offset, address, _, in_file, in_memory = struct.unpack_from("<QQQQQ", elf, segments + 8)
    assert (offset, in_file, in_memory) == (0, len(elf), len(elf))
    assert address <= entry < address + len(elf)


def test_other_architectures_have_none() -> None:
    assert gate_program("s390x") is None


def chunks(*texts: str) -> Iterator[bytes]:
    """``!`` begins what is written to stderr."""
    return iter(
        ErrorOutput(text[1:].encode()) if text.startswith("!") else text.encode() for text in texts
    )


@pytest.mark.parametrize(
    "output",
    [
        ("out", "!err"),
        ("!ref", "out", "!used\n"),
        ("!ref", "!lex"),
        ("!refused\n", "!more"),
        ("refused\n",),
        ("!ref",),
        (),
    ],
)
def test_the_output_of_a_program_passes_as_it_is(output: Iterable[str]) -> None:
    given = list(checked_output(chunks(*output), REFUSAL.encode()))
    for error in (False, True):
        assert b"".join(_of(given, error)) == b"".join(_of(chunks(*output), error))


def _of(output: Iterable[bytes], error: bool) -> Iterator[bytes]:
    return (chunk for chunk in output if isinstance(chunk, ErrorOutput) is error)


@pytest.mark.parametrize("output", [("!refused\n",), ("!ref", "!used\n")])
def test_a_refusal_is_no_output(output: Iterable[str]) -> None:
    with pytest.raises(GateRefused):
        list(checked_output(chunks(*output), REFUSAL.encode()))
