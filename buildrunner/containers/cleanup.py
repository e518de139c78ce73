"""Removes a build's resources on the engine: for its guardian, or later for a sweep.

All resources of a build carry its labels, so that a later sweep finds them. All builds of the
machine share the network, which has its own rules (see `release_network`).
"""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from buildrunner.containers import image_name as private_names
from buildrunner.containers.protocol import (
    LABEL_BUILD,
    LABEL_OWNER,
    ContainerEngine,
    OwnedResources,
)
from buildrunner.errors import EngineError
from buildrunner.file_trees import remove_tree

_PASSES = 6
_PAUSE_S = 0.3
_AT_ONCE = 8
_TURN_S = 10.0
_LOOK_S = 0.01


def clean_build(
    engine: ContainerEngine, build_id: str, directories: Iterable[str], *, abandoned: bool
) -> list[str]:
    """Remove a build's containers, then its volumes, then its folders on this machine.

    The removal is repeated until nothing is found, since the last requests of the dead process may
    take effect after the first pass.

    Args:
        engine: where the build ran.
        build_id: the build.
        directories: absolute paths of folders to remove with their content.
        abandoned: the build's process died; make at least two passes, with a pause.

    Returns:
        A sentence for each resource that could not be removed; normally empty.
    """
    problems: list[str] = []
    quiet = 0
    for _ in range(_PASSES):
        problems = []
        owned = engine.list_owned({LABEL_BUILD: build_id})
        if not owned.containers and not owned.volumes:
            quiet += 1
            if quiet > (1 if abandoned else 0):
                break
        problems += _each(engine.remove_container, owned.containers)
        problems += _each(engine.remove_volume, owned.volumes)
        if abandoned or problems:
            time.sleep(_PAUSE_S)
    try:
        private_names.take_away(engine, build_id)
    except EngineError as error:
        problems.append(str(error))
    return problems + [problem for path in directories if (problem := _remove_directory(path))]


def _each(remove: Callable[[str], None], names: Sequence[str]) -> list[str]:
    """Remove several resources concurrently: each takes the engine some 50 to 100 ms."""
    problems: list[str] = []

    def work(part: Sequence[str]) -> None:
        for name in part:
            try:
                remove(name)
            except EngineError as error:
                problems.append(str(error))

    parts = [names[start::_AT_ONCE] for start in range(min(_AT_ONCE, len(names)))]
    threads = [threading.Thread(target=work, args=(part,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return problems


def _remove_directory(path: str) -> str:
    """Remove a folder. Returns the problem if it still exists, else an empty string."""
    if inner := _mount_below(path):
        return f"{path} is left: {inner} is still mounted there"
    problem = remove_tree(path)
    return f"{path} can't be removed: {problem}" if problem else ""


def _mount_below(path: str) -> str:
    """Return a mount point at or below ``path``: a removal would delete the mounted files."""
    prefix = path.rstrip("/") + "/"
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            points = [os.fsdecode(line.split()[4]).replace("\\040", " ") for line in file]
    except FileNotFoundError:
        return ""  # not Linux: temporary folders hold no mounts there
    return next((point for point in points if f"{point}/".startswith(prefix)), "")


# -- the network that builds share -----------------------------------------------------------


def open_network_lock(state_dir: str, address: str) -> int:
    """Return the file descriptor of the lock that counts the builds on an engine's network.

    A build holds the lock shared from before it ensures the network until its clean-up is done.
    A removal needs it exclusively. So a build that starts waits for a removal in progress
    (200 ms) and then makes a new network, and a network in use is never removed.
    """
    return _open_lock(state_dir, "network", address)


def _open_lock(state_dir: str, kind: str, address: str) -> int:
    os.makedirs(state_dir, exist_ok=True)
    name = "".join(letter if letter.isalnum() else "_" for letter in address)
    return os.open(os.path.join(state_dir, f"{kind}-{name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)


def hold_network_lock(lock: int) -> None:
    """Count as a user of the network; waits for a removal in progress."""
    fcntl.flock(lock, fcntl.LOCK_SH)


@contextmanager
def network_lock(state_dir: str, address: str, *, wait_limit_s: float = _TURN_S) -> Iterator[None]:
    """Hold a lock, so that one process of this user at a time creates a network on an engine.

    The wait ends after ``wait_limit_s``, in case a process was stopped while it held the lock: the
    engine then gets two requests at a time, which `ensure_network` handles.
    """
    lock = _open_lock(state_dir, "making-network", address)
    give_up_at = time.monotonic() + wait_limit_s
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > give_up_at:
                    break
                time.sleep(_LOOK_S)
            else:
                break
        yield
    finally:
        os.close(lock)


def release_network(engine: ContainerEngine, name: str, lock: int) -> bool:
    """Release the network, and remove it if no other build uses it.

    The network stays if another build holds the lock, if containers are on it (of a build of
    another user, say), or if it does not carry our label.

    Returns:
        Whether the network no longer exists.
    """
    try:
        # From shared to exclusive: the kernel drops the shared lock first, so that of two builds
        # that end together exactly one gets the exclusive lock.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    try:
        if name not in engine.list_owned({LABEL_BUILD: ""}).networks:
            return False
        return engine.remove_network(name)
    finally:
        fcntl.flock(lock, fcntl.LOCK_UN)


# -- orphans of builds whose process and guardian have both died -----------------------------


def owner_label(process: str) -> str:
    """Return the value of ``buildrunner.owner``: this machine and one of its processes.

    Args:
        process: a name of the process that no later process can get.
    """
    return f"{socket.gethostname()}/{process}"


def find_leftovers(engine: ContainerEngine, is_alive: Callable[[str], bool]) -> OwnedResources:
    """Find the resources of this machine's builds whose process is dead.

    Args:
        engine: the engine to search.
        is_alive: returns whether a process runs, given its name (see `owner_label`).
    """
    here = owner_label("")
    dead = [
        owner
        for owner in engine.label_values(LABEL_OWNER)
        if owner.startswith(here) and not is_alive(owner.removeprefix(here))
    ]
    found = [engine.list_owned({LABEL_OWNER: owner}) for owner in dead]
    return OwnedResources(
        tuple(name for one in found for name in one.containers),
        tuple(name for one in found for name in one.volumes),
        tuple(name for one in found for name in one.networks),
    )


def sweep(
    engine: ContainerEngine,
    is_alive: Callable[[str], bool],
    *,
    state_dir: str,
    address: str,
) -> tuple[OwnedResources, list[str]]:
    """Remove the leftovers of dead builds.

    Returns:
        The leftovers, and a sentence for each one that could not be removed.
    """
    found = find_leftovers(engine, is_alive)
    problems = _each(engine.remove_container, found.containers)
    problems += _each(engine.remove_volume, found.volumes)
    if found.networks:
        lock = open_network_lock(state_dir, address)
        try:
            for name in found.networks:
                release_network(engine, name, lock)  # a network in use by a running build stays
        finally:
            os.close(lock)
    return found, problems
