"""Make every builder image, run its tests, and write docs/builder-images.toml.

``python scripts/builders-test.py [FOLDER...]``: folders of steps/; without any, all of them. The
results of other folders stay as they are. Exit code 1 if an image can't be made or a test fails.
"""

from __future__ import annotations

import datetime
import json
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "builder-images.toml"
_HEAD = "# Written by `make builders-test`; the notes are kept. docs/generate.py reads it.\n"


def main(folders: list[str]) -> int:
    """Try the folders one after the other."""
    from buildrunner.builders.catalog import BUILDERS
    from buildrunner.builders.image_contents import content_hash, read_step_files

    every = list(dict.fromkeys(builder.folder for builder in BUILDERS))
    failed = []
    for folder in folders or every:
        result = dict(results()["folders"].get(folder, {}))
        names = [builder.name for builder in BUILDERS if builder.folder == folder]
        made = run("builders", "install", *dict.fromkeys((*names, "docker")))  # docker is for use()
        start = time.monotonic()
        tested = made if made.returncode else use(folder)
        result["tests"] = (
            f"passed in {time.monotonic() - start:.0f} s"
            if tested.returncode == 0
            else f"failed: {reason(tested.stdout + tested.stderr)}"
        )
        sys.stdout.write(f"{folder}: {result['tests']}\n")
        sys.stdout.flush()
        if tested.returncode:
            failed.append(folder)
            sys.stdout.write((tested.stdout + tested.stderr)[-4000:])
        known = results()  # another run of this script may have written meanwhile
        result["date"] = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
        result["engine"] = engine()
        result["files"] = content_hash(read_step_files(folder), {})[:12]
        known["folders"][folder] = result
        write(known, every)
    return 1 if failed else 0


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of buildrunner, from the root of the source tree."""
    command = [sys.executable, "-m", "buildrunner", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def results() -> dict[str, Any]:
    """What the file says."""
    return tomllib.loads(RESULTS.read_text()) if RESULTS.exists() else {"folders": {}}


def reason(output: str) -> str:
    """The line of the output that says why it failed."""
    lines = [line for line in output.splitlines() if line.lower().startswith("error: ")]
    return lines[-1][len("error: ") :] if lines else "no reason given"


def use(folder: str) -> subprocess.CompletedProcess[str]:
    """Build the folder's images by its own config, under names for this test, and use them."""
    config = (ROOT / "steps" / folder / "cloudbuild.yaml").read_text()
    variables = sorted(set(re.findall(r"^  (_(?:\w+_)?IMAGE): ", config, re.MULTILINE)))
    images = {name: f"buildrunner-tests/{folder}{name.lower()}" for name in variables}
    values = images | ({"_BASE": root_image()} if folder == "base" else {})
    substitutions = ",".join(f"{name}={value}" for name, value in values.items())
    try:
        return run("submit", f"steps/{folder}", "--substitutions", substitutions)
    finally:
        subprocess.run(["docker", "rmi", "--force", *images.values()], capture_output=True)


def root_image() -> str:
    """The Debian that the lowest image stands on, here."""
    for image in ("debian:bookworm-slim", "buildrunner/debian:bookworm-slim"):
        if subprocess.run(["docker", "inspect", image], capture_output=True).returncode == 0:
            return image
    raise SystemExit("no Debian image is installed")


def engine() -> str:
    """The engine that the images were made on."""
    version = subprocess.check_output(
        ["docker", "version", "--format", "{{.Server.Version}}"], text=True
    )
    return f"Docker {version.strip()}"


def write(known: dict[str, Any], order: list[str]) -> None:
    """Write the results."""
    lines = [_HEAD]
    for folder in order:
        if result := known["folders"].get(folder):
            keys = [key for key in ("tests", "date", "engine", "files", "note") if key in result]
            lines.append(f"[folders.{folder}]")
            lines += [f"{key} = {json.dumps(result[key])}" for key in keys]
            lines.append("")
    RESULTS.write_text("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
