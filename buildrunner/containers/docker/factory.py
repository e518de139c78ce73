"""Making images on a Docker engine: build, import, pull, inspect.

Dockerfiles go through the engine's classic builder: it is one plain request, and needs neither the
docker command nor BuildKit's session protocol.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import msgspec

from buildrunner.builders.image_factory import ImageBuild, StoredImage
from buildrunner.containers.docker import errors as docker_errors
from buildrunner.containers.docker.api import DockerApi, json_body
from buildrunner.containers.docker.endpoint import find_endpoint, open_socket
from buildrunner.containers.docker.http import HttpClient, quoted
from buildrunner.containers.protocol import ContainerEngine
from buildrunner.containers.types import ContainerSpec
from buildrunner.errors import EngineError

_BUILDERS_OWN = ("Step ", " --->", "Removing intermediate container ", "Successfully ")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # the classic builder paints what goes to standard error


class _Config(msgspec.Struct):
    labels: dict[str, str] | None = msgspec.field(name="Labels", default=None)


class _RootFs(msgspec.Struct):
    layers: list[str] | None = msgspec.field(name="Layers", default=None)


class _Inspected(msgspec.Struct):
    id: str = msgspec.field(name="Id")
    size: int = msgspec.field(name="Size", default=0)
    config: _Config | None = msgspec.field(name="Config", default=None)
    root_fs: _RootFs = msgspec.field(name="RootFS", default_factory=_RootFs)


class _Version(msgspec.Struct):
    oldest: str = msgspec.field(name="MinAPIVersion", default="1.12")


class _BuildEvent(msgspec.Struct):
    stream: str = ""
    status: str = ""
    error: str = ""


class DockerImageFactory:
    """An `ImageFactory` on the engine that the ``docker`` command would use.

    Args:
        engine: pulls, with the user's registry credentials, and runs containers.
        environ: environment for finding the engine.
    """

    def __init__(self, engine: ContainerEngine, environ: Mapping[str, str]) -> None:
        endpoint = find_endpoint(environ)
        self._engine = engine
        self._api = DockerApi(HttpClient(lambda: open_socket(endpoint)))

    def find(self, image: str) -> StoredImage | None:
        """See `ImageFactory.find`."""
        status, body = self._api.call("GET", f"/images/{quoted(image)}/json")
        if status in (400, 404):
            return None
        if status != 200:
            raise docker_errors.engine_error(f"the image {image} can't be looked up", status, body)
        found = json_body(body, _Inspected)
        labels = (found.config.labels if found.config else None) or {}
        layers = tuple(found.root_fs.layers or ())
        return StoredImage(id=found.id, labels=labels, size_bytes=found.size, layers=layers)

    def pull(self, image: str) -> StoredImage:
        """See `ImageFactory.pull`."""
        import threading

        self._engine.pull_image(image, on_progress=lambda _: None, cancel=threading.Event())
        return self._made(image)

    def build(self, build: ImageBuild, on_line: Callable[[str], None]) -> StoredImage:
        """See `ImageFactory.build`."""
        query = _query(
            t=build.image,
            target=build.target,
            buildargs=msgspec.json.encode(build.arguments).decode(),
            labels=msgspec.json.encode(build.labels).decode(),
            nocache="" if build.use_cache else "1",
            rm="1",
            forcerm="1",
        )
        response = self._api.request(
            "POST",
            f"/build?{query}",
            body=build.context,
            headers={"Content-Type": "application/x-tar"},
            timeout_s=None,  # a package's installation may be silent for long
        )
        if response.status != 200:
            what = f"the image {build.image} can't be built"
            raise docker_errors.engine_error(what, response.status, response.body())
        last = ""
        for event in _events(response.pieces()):
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
        repository, _, tag = image.partition(":")
        query = _query(fromSrc="-", repo=repository, tag=tag)
        changes = [f'LABEL "{name}"="{value}"' for name, value in labels.items()]
        for change in ['CMD ["bash"]', *changes]:
            query += f"&changes={quoted(change)}"
        response = self._api.request(
            "POST", f"/images/create?{query}", body=archive, timeout_s=None
        )
        body = response.body()
        if response.status != 200:
            what = f"the image {image} can't be imported"
            raise docker_errors.engine_error(what, response.status, body)
        for event in _events([body]):
            if event.error:
                raise EngineError(f"the image {image} can't be imported: {event.error}")
        return self._made(image)

    def add_files(self, image: str, parent: str, archive: Iterable[bytes]) -> StoredImage:
        """See `ImageFactory.add_files`."""
        container = self._engine.create_container(ContainerSpec(image=parent))
        try:
            self._engine.put_archive(container, "/", archive)
            repository, _, tag = image.partition(":")
            query = _query(container=container, repo=repository, tag=tag)
            response = self._api.request("POST", f"/commit?{query}", timeout_s=None)
            body = response.body()
            if response.status != 201:
                what = f"the image {image} can't be made"
                raise docker_errors.engine_error(what, response.status, body)
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
        folder, slash, last = name.rpartition("/")
        base, _, tag = last.partition(":")
        query = _query(repo=f"{folder}{slash}{base}", tag=tag or "latest")
        status, body = self._api.call("POST", f"/images/{quoted(image)}/tag?{query}")
        if status != 201:
            raise docker_errors.engine_error(f"{image} can't be called {name}", status, body)

    def discard(self, image: str) -> None:
        """See `ImageFactory.discard`."""
        status, body = self._api.call("DELETE", f"/images/{quoted(image)}")
        if status not in (200, 404, 409):  # 409: a container or another image stands on it
            raise docker_errors.engine_error(f"{image} can't be removed", status, body)

    def oldest_api_version(self) -> str:
        """See `ImageFactory.oldest_api_version`."""
        status, body = self._api.call("GET", "/version")
        if status != 200:
            raise docker_errors.engine_error("the engine won't tell its version", status, body)
        return json_body(body, _Version).oldest

    def close(self) -> None:
        """Drop connections."""
        self._api.close()

    def _made(self, image: str) -> StoredImage:
        found = self.find(image)
        if found is None:
            raise EngineError(f"the engine said that {image} was made, but does not have it")
        return found


def _build_error(image: str, last_line: str, message: str) -> EngineError:
    """The error of a build; the last line that the failing command printed says most."""
    if not last_line:
        return EngineError(f"the image {image} can't be built: {message}")
    return EngineError(f"the image {image} can't be built: {last_line.strip()}", hint=message)


def _query(**values: str) -> str:
    return "&".join(f"{name}={quoted(value)}" for name, value in values.items() if value)


def _events(pieces: Iterable[bytes]) -> Iterator[_BuildEvent]:
    """The JSON documents of a progress stream, which come one a line."""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from (msgspec.json.decode(line, type=_BuildEvent) for line in lines if line.strip())
    if rest.strip():
        yield msgspec.json.decode(rest, type=_BuildEvent)
