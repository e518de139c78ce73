"""Uploads Python distributions with twine."""

import glob
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator

from .repository import Refused, Repository

_KEPT = ("PATH", "LANG", "REQUESTS_CA_BUNDLE")
_TRIES = 4
_FIRST_WAIT_S = 1.0
_BUSY = "429 "  # an HTTP status that twine itself does not retry
_REFUSALS = ("401 ", "403 ", "Unauthorized", "Forbidden")


def publish(request: dict[str, list[str]], repository: Repository) -> Iterator[tuple[str, str]]:
    """Upload every file that the globs of the request match; yields address and SHA-256 of each.

    All globs must match before anything is sent.
    """
    files: dict[str, None] = {}
    for pattern in request["paths"]:
        found = sorted(filter(os.path.isfile, glob.glob(pattern, recursive=True)))
        if not found:
            raise Refused(f"no file matches {pattern}")
        files.update(dict.fromkeys(found))
    for path in files:
        _upload(path, repository)
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        yield repository.address(os.path.basename(path)), digest


def _upload(path: str, repository: Repository) -> None:
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    environment |= {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "1000"}  # a reason is on one line
    environment["TWINE_USERNAME"] = repository.username or "anonymous"
    environment["TWINE_PASSWORD"] = repository.password or "anonymous"
    argv = ["twine", "upload", "--non-interactive", "--disable-progress-bar", "--config-file"]
    argv += ["/dev/null", "--repository-url", f"{repository.url}/", path]
    wait_s = _FIRST_WAIT_S
    for left in range(_TRIES - 1, -1, -1):
        done = _run(argv, environment)
        if done.returncode == 0:
            return
        said = f"{done.stdout}\n{done.stderr}"
        if _BUSY not in said or not left:
            raise _refusal(path, repository, said)
        sys.stdout.write(f"HTTP 429 for {os.path.basename(path)}: trying again in {wait_s:g} s\n")
        sys.stdout.flush()
        time.sleep(wait_s)
        wait_s *= 2


def _run(argv: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(
            argv, env=environment, cwd="/", check=False, capture_output=True, text=True
        )
    except FileNotFoundError as error:
        raise Refused("the image has no twine in it") from error
    sys.stdout.write(done.stdout)
    return done


def _refusal(path: str, repository: Repository, said: str) -> Refused:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    reason = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "")
    name = os.path.basename(path)
    return Refused(
        f"{repository.url} did not take {name}: {reason.removeprefix('ERROR').strip()}",
        unauthorized=any(word in said for word in _REFUSALS),
    )
