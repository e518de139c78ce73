"""Makes images on a Docker engine: build, import, pull, inspect.

Dockerfiles are built by the engine's classic builder: it is one plain request, and needs neither
the docker command nor BuildKit's session protocol.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import msgspec

from buildrunner.builders.image_factory import ImageBuild, StoredImage
from buildrunner.containers.docker.api import DockerApi
from buildrunner.containers.docker.endpoint import find_endpoint
from buildrunner.containers.docker.errors import Refusal
from buildrunner.containers.docker.images import has_name
from buildrunner.containers.image_name import ImageName
from buildrunner.containers.protocol import ContainerEngine, ContainerSpec
from buildrunner.errors import EngineError

_BUILDERS_OWN = ("Step ", " --->", "Removing intermediate container ", "Successfully ")
_LINE_LIMIT = 1 << 20
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # the classic builder colours standard error


class _BuildEvent(msgspec.Struct):
    stream: str = ""
    status: str = ""
    error: str = ""


class DockerImageFactory:
    """An `ImageFactory` on the engine of the ``docker`` command.

    Args:
        engine: pulls, with the user's registry credentials, and runs containers.
        environ: environment for finding the engine.
    """

    def __init__(self, engine: ContainerEngine, environ: Mapping[str, str]) -> None:
        self._engine = engine
        self._api = DockerApi(find_endpoint(environ))

    def find(self, image: str) -> StoredImage | None:
        """See `ImageFactory.find`."""
        try:
            with self._api.client() as client:
                found = client.inspect_image(image)
                if not has_name(found, ImageName.parse(image)):
                    return None
                return StoredImage(
                    id=found["Id"],
                    labels=(found.get("Config") or {}).get("Labels") or {},
                    size_bytes=found.get("Size", 0),
                    layers=tuple((found.get("RootFS") or {}).get("Layers") or ()),
                )
        except Refusal as refusal:
            if refusal.status in (400, 404):
                return None
            raise refusal.as_error(f"the image {image} can't be looked up") from refusal

    def pull(self, image: str) -> StoredImage:
        """See `ImageFactory.pull`."""
        self._engine.pull_image(image, on_progress=lambda _: None, cancel=threading.Event())
        return self._made(image)

    def build(self, build: ImageBuild, on_line: Callable[[str], None]) -> StoredImage:
        """See `ImageFactory.build`."""
        query = {
            "t": build.image,
            "target": build.target or None,
            "buildargs": json.dumps(dict(build.arguments)),
            "labels": json.dumps(dict(build.labels)),
            "nocache": None if build.use_cache else 1,
            "rm": 1,
            "forcerm": 1,
        }
        try:
            answer = self._api.stream(
                "POST",
                "/build",
                params=query,
                body=[build.context],
                # no limit: the installation of a package may print nothing for a long time
                timeout_s=None,
            )
        except Refusal as refusal:
            raise refusal.as_error(f"the image {build.image} can't be built") from refusal
        last = ""
        with contextlib.closing(answer):
            for event in _events(answer.lines(_LINE_LIMIT)):
                if event.error:
                    raise _build_error(build.image, last, event.error.strip())
                for line in _COLOURS.sub("", event.stream).splitlines():
                    if line.strip():
                        on_line(line)
                        last = last if line.startswith(_BUILDERS_OWN) else line
        return self._made(build.image)

    def import_root(
        self, image: str, archive: Iterable[bytes], labels: Mapping[str, str]
    ) -> StoredImage:
        """See `ImageFactory.import_root`."""
        self._engine.import_image(image, archive, cmd=("bash",), labels=labels)
        return self._made(image)

    def add_files(self, image: str, parent: str, archive: Iterable[bytes]) -> StoredImage:
        """See `ImageFactory.add_files`."""
        container = self._engine.create_container(ContainerSpec(image=parent))
        try:
            self._engine.put_archive(container, "/", archive)
            repository, _, tag = image.partition(":")
            with self._api.client() as client:
                client.commit(container, repository, tag)
        except Refusal as refusal:
            raise refusal.as_error(f"the image {image} can't be made") from refusal
        finally:
            self._engine.remove_container(container)
        return self._made(image)

    def run(self, image: str, program: str, arguments: Sequence[str]) -> tuple[int, str]:
        """See `ImageFactory.run`."""
        spec = ContainerSpec(
            image=image,
            entrypoint=(program,) if program else None,
            cmd=tuple(arguments),
            network="none",
        )
        container = self._engine.create_container(spec)
        try:
            output = b"".join(self._engine.start_container(container, attach=True))
            code = self._engine.wait_container(container).code
        except EngineError as error:
            return 127, str(error)
        finally:
            self._engine.remove_container(container)
        return code, output.decode("utf-8", "replace")

    def tag(self, image: str, name: str) -> None:
        """See `ImageFactory.tag`."""
        requested = ImageName.parse(name)
        try:
            with self._api.client() as client:
                client.tag(image, requested.repository, requested.tag or "latest")
        except Refusal as refusal:
            raise refusal.as_error(f"{image} can't be called {name}") from refusal

    def discard(self, image: str) -> None:
        """See `ImageFactory.discard`."""
        try:
            with self._api.client() as client:
                client.remove_image(image)
        except Refusal as refusal:
            if refusal.status not in (404, 409):  # 409: a container or another image uses it
                raise refusal.as_error(f"{image} can't be removed") from refusal

    def oldest_api_version(self) -> str:
        """See `ImageFactory.oldest_api_version`."""
        try:
            with self._api.client() as client:
                return str(client.version().get("MinAPIVersion", "1.12"))
        except Refusal as refusal:
            raise refusal.as_error("the engine does not report its version") from refusal

    def close(self) -> None:
        """Drop connections."""
        self._api.close()

    def _made(self, image: str) -> StoredImage:
        found = self.find(image)
        if found is None:
            raise EngineError(f"the engine said that {image} was made, but does not have it")
        return found


def _build_error(image: str, last_line: str, message: str) -> EngineError:
    """Return the error of a build, with the last line that the failing command printed."""
    if not last_line:
        return EngineError(f"the image {image} can't be built: {message}")
    return EngineError(f"the image {image} can't be built: {last_line.strip()}", hint=message)


def _events(lines: Iterable[bytes]) -> Iterator[_BuildEvent]:
    return (msgspec.json.decode(line, type=_BuildEvent) for line in lines)
