"""Names of our own for images that containers were made of ahead of their steps' turn.

On the hosted service, no container of a later step stands on an image while an earlier step runs:
``docker rmi`` deletes it. A second name has the engine take the first one away all the same.
"""

from __future__ import annotations

import threading

from buildrunner.containers.protocol import ContainerEngine

REPOSITORY = "buildrunner.ahead"


class PrivateNames:
    """The private names of one build. Thread-safe.

    Args:
        engine: where the images are.
        build_id: the build; part of the names.
    """

    def __init__(self, engine: ContainerEngine, build_id: str) -> None:
        self._engine = engine
        self._build_id = build_id
        self._named: set[str] = set()
        self._lock = threading.Lock()

    def give(self, image: str) -> None:
        """Give an image, by id, its private name; nothing happens if it is gone or has it.

        Raises:
            EngineError: the engine refused.
        """
        with self._lock:
            if image in self._named:
                return
            tag = f"{self._build_id}-{image.removeprefix('sha256:')[:12]}"
            if self._engine.tag_image(image, f"{REPOSITORY}:{tag}"):
                self._named.add(image)

    def take_away(self) -> None:
        """Take all of them away. Images that steps deleted go now.

        Raises:
            EngineError: the engine refused.
        """
        if self._named:
            take_away(self._engine, self._build_id)


def take_away(engine: ContainerEngine, build_id: str) -> None:
    """Take the private names of a build away, also those that a dead process gave.

    Raises:
        EngineError: the engine refused.
    """
    for tag in engine.tags_of(REPOSITORY):
        if tag.startswith(build_id):
            engine.untag_image(f"{REPOSITORY}:{tag}")
