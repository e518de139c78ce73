"""The program of the guardian's process (see guardian.py). No other module imports it.

It is started as ``python -I -S guardian_process.py BUILD_ID``. At first it imports only modules
that the interpreter has loaded already, and sleeps in a read. It imports the clean-up only when
the build has ended.

It reads lines ``KIND<tab>VALUE`` from descriptor 0, writes one problem per line to descriptor 3,
and holds the network's lock on descriptor 4 (it shares the open file with the build).
"""

import os
import sys

_REPORT_FD = 3
_LOCK_FD = 4
_LIFETIME_S = 900  # a clean-up that takes longer than this never ends
_RETRY_PAUSES_S = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)


def listen() -> tuple[dict[str, list[str]], bool]:
    """Read the build's messages until ``finish``, or until the end of the build's process.

    Returns:
        The values of messages by kind, and whether the process ended without ``finish``.
    """
    text = b""
    while not text.endswith(b"\nfinish\t\n"):
        piece = os.read(0, 65536)
        if not piece:
            break
        text += piece
    received: dict[str, list[str]] = {}
    for line in text.decode("utf-8", "surrogateescape").splitlines():
        kind, _, value = line.partition("\t")
        received.setdefault(kind, []).append(value)
    return received, "finish" not in received


def clean_up(build_id: str, received: dict[str, list[str]], *, abandoned: bool) -> list[str]:
    """Remove all resources of the build. Returns the problems."""
    import time

    import msgspec

    from buildrunner.containers import cleanup
    from buildrunner.containers.docker.endpoint import Endpoint
    from buildrunner.containers.docker.engine import DockerEngine
    from buildrunner.errors import EngineError

    engine = DockerEngine(msgspec.json.decode(received["endpoint"][0], type=Endpoint))
    directories = received.get("directory", [])
    problems: list[str] = []
    for pause in _RETRY_PAUSES_S:  # the engine may be restarting, which may have killed the build
        time.sleep(pause)
        try:
            problems = cleanup.clean_build(engine, build_id, directories, abandoned=abandoned)
            break
        except EngineError as error:
            problems = [str(error)]
    for network in received.get("network", []):
        try:
            cleanup.release_network(engine, network, _LOCK_FD)
        except EngineError as error:
            problems.append(str(error))
    return problems


def cache_images(received: dict[str, list[str]]) -> None:
    """Add the images that the build used to the image cache; errors go to the guardians' log."""
    if "cache" not in received:
        return
    import msgspec

    from buildrunner.containers.docker.endpoint import Endpoint
    from buildrunner.errors import EngineError
    from buildrunner.sandboxes.nested.daemon import NestedDaemons
    from buildrunner.sandboxes.nested.folders import SandboxFolders
    from buildrunner.sandboxes.nested.image_cache import ImageCache

    host = msgspec.json.decode(received["endpoint"][0], type=Endpoint)
    daemons = NestedDaemons(host)
    cache = ImageCache(daemons, host, received["cache"][0], received["cache image"][0])
    try:
        cache.mode = SandboxFolders(received["sandboxes"][0]).mode(daemons.facts().identity)
        if cache.mode:  # otherwise no sandbox was ever started here
            cache.update()
    except (EngineError, OSError) as error:
        report([str(error)], received["log"][0])


def report(problems: list[str], log_path: str) -> None:
    """Report problems to the build if it still listens, and to the guardians' log."""
    import contextlib

    text = "".join(f"{' '.join(problem.split())}\n" for problem in problems)
    if not text:
        return
    with contextlib.suppress(OSError):  # the build does not listen any more
        os.write(_REPORT_FD, text.encode("utf-8", "replace"))
    with open(log_path, "a", encoding="utf-8") as log:
        log.write(text)


def main() -> None:
    """Listen, clean up, report."""
    import signal

    os.chdir("/")  # don't keep the current folder busy
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    received, abandoned = listen()
    signal.alarm(_LIFETIME_S)
    if "path" not in received:
        return  # the build died before its first message, and so before it made anything
    sys.path[:] = received["path"][0].split(os.pathsep)
    try:
        problems = clean_up(sys.argv[1], received, abandoned=abandoned)
    except Exception as error:  # noqa: BLE001  (no caller could report it)
        problems = [f"the clean-up of build {sys.argv[1]} failed: {error!r}"]
    report(problems, received["log"][0])
    os.close(_REPORT_FD)  # no process waits for the rest
    cache_images(received)


if __name__ == "__main__":
    main()
