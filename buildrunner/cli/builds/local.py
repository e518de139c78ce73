"""Cancels a build of this machine, prints its log, and formats tables of builds."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence

from buildrunner.cli.terminal.listing import table
from buildrunner.containers.process_owner import is_alive, pid_of
from buildrunner.errors import EXIT_SUCCESS, Conflict, NotFound, StoreError
from buildrunner.logs.console.outputs import coloured, without_controls, write_all
from buildrunner.logs.files.log_file import log_folder
from buildrunner.logs.files.reader import LogFileReader
from buildrunner.settings import terminal
from buildrunner.spec.model.build import FINAL_STATUSES
from buildrunner.store.build_store import BuildStore, Document

_POLL_S = 0.05
_LIMIT_S = 60.0


def cancel_build(store: BuildStore, document: Document) -> None:
    """Send SIGTERM to the build's process, as Ctrl-C does, and wait until it has ended.

    Raises:
        Conflict: the build has ended already.
        StoreError: the process belongs to another user, or does not end.
    """
    import time

    build_id = document["id"]
    owner = store.owner_of(build_id)
    if document["status"] in FINAL_STATUSES or not owner:
        raise Conflict(
            f"build {build_id} has ended already, with status {document['status']}",
            hint="only a build that runs can be cancelled",
        )
    try:
        os.kill(pid_of(owner), signal.SIGTERM)
    except ProcessLookupError:
        return  # it ended just now
    except PermissionError as error:
        raise StoreError(f"build {build_id} is run by another user's process") from error
    deadline = time.monotonic() + _LIMIT_S
    while is_alive(owner):
        if time.monotonic() > deadline:
            raise StoreError(
                f"the process {pid_of(owner)} of build {build_id} does not end",
                hint=f"kill -9 {pid_of(owner)}: its guardian removes what it made",
            )
        time.sleep(_POLL_S)


_POLL_S_BUILD_LOG = 0.1
_OUTPUT = 1


def show_log(store: BuildStore, data_folder: str, build_id: str, *, follow: bool) -> int:
    """Write the log to standard output.

    Args:
        store: the store of the build.
        data_folder: folder of the logs.
        build_id: id of the build, or its first characters.
        follow: continue until the build has ended.

    Returns:
        The exit code.

    Raises:
        NotFound: the build does not exist, or has no log (``logging: NONE``).
        Conflict: several ids begin with these characters.
    """
    document = store.get(build_id)
    full_id = document["id"]
    reader = LogFileReader(log_folder(data_folder, full_id))
    ended = document["status"] in FINAL_STATUSES
    if ended and not reader.size():
        raise NotFound(
            f"build {full_id} has no log", hint="logging: NONE in its options keeps none"
        )
    show = log_shower()
    offset = _copy(reader, 0, show)
    while follow and not ended:
        _pause(_POLL_S_BUILD_LOG)
        # The status is read first: after the end, all of the log can be read.
        ended = store.get(full_id)["status"] in FINAL_STATUSES
        offset = _copy(reader, offset, show)
    return EXIT_SUCCESS


def print_provenance(attestations: bytes, *, statement: bool) -> int:
    """Print attestations unchanged, or their statements as indented JSON."""
    if not statement:
        sys.stdout.write(attestations.decode())
        return EXIT_SUCCESS
    import base64
    import json

    from buildrunner.provenance.signing import envelope_in

    for attestation in attestations.splitlines():
        payload = base64.b64decode(envelope_in(attestation)["payload"])
        sys.stdout.write(json.dumps(json.loads(payload), indent=2) + "\n")
    return EXIT_SUCCESS


def _copy(reader: LogFileReader, offset: int, show: Callable[[bytes], None]) -> int:
    while lines := _whole_lines(reader.read(offset)):
        show(lines)
        offset += len(lines)
    return offset


def _whole_lines(block: bytes) -> bytes:
    # A line longer than a block is shown in pieces.
    return block[: block.rfind(b"\n") + 1] or block


def log_shower() -> Callable[[bytes], None]:
    """Return a function that writes pieces of a log to standard output, coloured on a terminal."""
    is_terminal = os.isatty(_OUTPUT)
    look = terminal(output_is_terminal=is_terminal, encoding=sys.stdout.encoding or "ascii")

    def show(lines: bytes) -> None:
        if is_terminal:
            lines = without_controls(lines)
        write_all(_OUTPUT, coloured(lines) if look.colour else lines)

    return show


def _pause(duration_s: float) -> None:
    import time

    time.sleep(duration_s)


_COLUMNS = ("ID", "CREATE_TIME", "DURATION", "SOURCE", "IMAGES", "STATUS")


def build_table(builds: Sequence[Document]) -> str:
    """Format builds as a table; empty without builds."""
    return table(_COLUMNS, [_row(build) for build in builds])


def _row(document: Document) -> tuple[str, ...]:
    return (
        document["id"],
        _instant(document.get("createTime", "")),
        _duration(document),
        _source(document.get("source", {})),
        _images(document.get("results", {}).get("images", ())),
        document["status"],
    )


def _instant(text: str) -> str:
    return f"{text[:19]}+00:00" if text else "-"


def _duration(document: Document) -> str:
    start, finish = document.get("startTime"), document.get("finishTime")
    if not start or not finish:
        return "-"
    from datetime import datetime

    elapsed = datetime.fromisoformat(finish) - datetime.fromisoformat(start)
    whole = int(elapsed.total_seconds())
    hours, minutes, left = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours}H{minutes}M{left}S"
    return f"{minutes}M{left}S" if minutes else f"{left}S"


def _source(source: Document) -> str:
    if storage := source.get("storageSource"):
        return f"gs://{storage.get('bucket', '')}/{storage.get('object', '')}"
    if repo := source.get("repoSource"):
        revision = repo.get("branchName") or repo.get("tagName") or repo.get("commitSha", "")
        return f"{repo.get('repoName', '')}@{revision}"
    if git := source.get("gitSource"):
        return f"{git.get('url', '')}@{git.get('revision', '')}".rstrip("@")
    if connected := source.get("connectedRepository"):
        name = connected.get("repository", "").rpartition("/repositories/")[2]
        return f"{name}@{connected.get('revision', '')}".rstrip("@")
    return "-"


def _images(images: Sequence[Document]) -> str:
    if not images:
        return "-"
    first: str = images[0].get("name", "")
    return f"{first} (+{len(images) - 1} more)" if len(images) > 1 else first
