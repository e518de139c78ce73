"""A picture of a build on a terminal, for README: ``python -m tests.web.terminal FILE.svg``.

The picture is the real output of ``buildrunner submit`` on a pseudo-terminal, colours included.
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
import subprocess
import sys
import tempfile
import termios
from html import escape
from pathlib import Path

from buildrunner.containers.docker.engine import DockerEngine
from tests.conftest import busybox_tar, remove_image

IMAGE = "shop/tools"
CONFIG = f"""\
steps:
- id: compile
  name: {IMAGE}
  script: |
    for name in cart catalog checkout; do echo "compiling $name"; sleep 0.2; done
- id: lint
  name: {IMAGE}
  script: sleep 0.8; echo '0 warnings in 214 files'
  waitFor: ['-']
- id: unit-tests
  name: {IMAGE}
  script: sleep 1.2; echo '241 passed'
  waitFor: [compile]
- id: browser-tests
  name: {IMAGE}
  script: echo 'opening the shop in 3 browsers'; sleep 1.5; echo 'all pages answer'
  waitFor: [compile]
- id: package
  name: {IMAGE}
  script: echo 'packed shop-1.4.tar'
  waitFor: [lint, unit-tests, browser-tests]
"""
COLUMNS = 96
COLOURS = {
    "31": "#ff7b72",
    "32": "#7ee787",
    "33": "#e3b341",
    "34": "#79c0ff",
    "35": "#d2a8ff",
    "36": "#76e3ea",
    "90": "#8b949e",
}
LETTER, LINE, MARGIN = 8.0, 18, 16


def output_of(command: list[str], folder: Path) -> bytes:
    """Everything that the command writes to a terminal of `COLUMNS` columns."""
    terminal, other = os.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}
    process = subprocess.Popen(
        command, cwd=folder, stdin=other, stdout=other, stderr=other, env=environment
    )
    os.close(other)
    written = b""
    try:
        while chunk := os.read(terminal, 65536):
            written += chunk
    except OSError:  # the last program has closed the terminal
        pass
    assert process.wait() == 0, written.decode()
    return written


def lines_of(written: bytes) -> list[str]:
    """The lines that stay on the terminal, without status lines that were erased."""
    text = written.decode().replace("\r\n", "\n")
    text = re.sub(r"[^\n]*\r(?:\x1b\[\d+A)?\x1b\[J", "", text)
    return text.rstrip("\n").split("\n")


def picture(lines: list[str]) -> str:
    """The lines as SVG."""
    width = COLUMNS * LETTER + 2 * MARGIN
    height = LINE * len(lines) + 2 * MARGIN
    rows = (_row(line, MARGIN + LINE * (at + 1) - 5) for at, line in enumerate(lines))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height}"'
        f' width="{width:g}" height="{height}" role="img">\n'
        "<title>buildrunner submit, on a terminal</title>\n"
        "<style>text{font:13px ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,monospace;"
        "fill:#e6edf3;white-space:pre}.b{font-weight:700}.d{opacity:.65}</style>\n"
        f'<rect width="{width:g}" height="{height}" rx="8" fill="#0d1117"/>\n'
        + "".join(rows)
        + "</svg>\n"
    )


def _row(line: str, y: float) -> str:
    """One line: a text for each stretch of one colour, placed by its column."""
    found, column, codes = "", 0, set[str]()
    for part in re.split(r"(\x1b\[[0-9;]*m)", line):
        if part.startswith("\x1b"):
            new = {code.lstrip("0") for code in part[2:-1].split(";")}
            codes = set() if "" in new else codes | new
        elif part:
            colour = next((COLOURS[code] for code in codes if code in COLOURS), "")
            looks = " ".join(look for code, look in (("1", "b"), ("2", "d")) if code in codes)
            found += (
                f'<text x="{MARGIN + column * LETTER:g}" y="{y}"'
                f' textLength="{len(part) * LETTER:g}"'
                + (f' class="{looks}"' if looks else "")
                + (f' fill="{colour}" style="fill:{colour}"' if colour else "")
                + f">{escape(part)}</text>"
            )
            column += len(part)
    return f"{found}\n" if found else ""


def main() -> None:
    """See the module."""
    DockerEngine().import_image(IMAGE, [busybox_tar()], cmd=["sh"], env=["PATH=/bin"])
    command = ["buildrunner", "submit", "."]
    try:
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made) / "shop"
            folder.mkdir()
            (folder / "cloudbuild.yaml").write_text(CONFIG)
            program = str(Path(sys.executable).with_name(command[0]))
            lines = lines_of(output_of([program, *command[1:]], folder))
    finally:
        remove_image(IMAGE)
    Path(sys.argv[1]).write_text(picture([f"\x1b[2m$\x1b[0m {' '.join(command)}", *lines]))


if __name__ == "__main__":
    main()
