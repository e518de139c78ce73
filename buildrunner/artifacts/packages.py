"""Publishes packages from containers on the engine of the machine.

A login is never given to the engine that ran the steps, nor to an image that it names: a step with
its socket can replace both. The files of a package are copied out of the workspace. Credentials go
into the container as a file: neither an argv nor an environment shows them.
"""

from __future__ import annotations

import glob
import os
import posixpath
import tempfile
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import urlsplit

import msgspec

from buildrunner.archives import tar_writer
from buildrunner.archives.members import DIRECTORY, REGULAR, Member, Members
from buildrunner.archives.reader import chunk_reader
from buildrunner.archives.tar_reader import TarReader
from buildrunner.containers.protocol import ContainerEngine, ContainerSpec, Mount
from buildrunner.engine.log.pipeline import LogPipeline
from buildrunner.engine.outcome import PublishedPackage, Span
from buildrunner.errors import ConfigError, NotFound, PackageError, SourceError, UploadError
from buildrunner.plan.build_plan import PackageUpload
from buildrunner.problem import Problem
from buildrunner.registries.package_logins import (
    PackageLogin,
    PackageLogins,
    where_to_log_in,
)
from buildrunner.workspace.files import WorkspaceFile, WorkspaceFiles
from buildrunner.workspace.protocol import WORKSPACE, PreparedWorkspace
from buildrunner.workspace.volume import read_file

FOLDER = "/buildrunner-publish"
"""The folder in the container for the program, its request and its result."""

LARGEST_BYTES = 16 << 30
"""Largest size of the files of one package, if the build has no limit of its own."""

_MEMORY_BYTES = 4 << 30  # memory of a container that publishes: it reads whole files
_RESULT_BYTES = 64 << 20
_MANIFEST_BYTES = 4 << 20

_KEPT_BYTES = 256 * 1024  # of the output: errors are at its end
_LONGEST_LINE = 64 * 1024


class PublishingContainer:
    """A container with files from tar archives. A context manager; removed at its end."""

    def __init__(
        self, engine: ContainerEngine, spec: ContainerSpec, *archives: Iterable[bytes]
    ) -> None:
        self._engine = engine
        self._id = engine.create_container(spec)
        try:
            for archive in archives:
                engine.put_archive(self._id, "/", archive)
        except BaseException:
            engine.remove_container(self._id)
            raise

    def __enter__(self) -> PublishingContainer:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.remove_container(self._id)

    def run(self, log: LogPipeline, cancel: threading.Event) -> tuple[int, str]:
        """Run the container to its end. Returns its exit code and the end of its output.

        The log gets all of the output.
        """
        over = threading.Event()

        def watch() -> None:
            while not over.is_set():
                if cancel.wait(0.2):
                    self._engine.kill_container(self._id)
                    return

        output = self._engine.start_container(self._id, attach=True)
        watcher = threading.Thread(target=watch, name="publish-watch", daemon=True)
        watcher.start()
        said = b""
        try:
            rest = b""
            for chunk in output:  # line by line: a user who waits sees the reason
                said = (said + chunk)[-_KEPT_BYTES:]
                *lines, rest = (rest + chunk).split(b"\n")
                _log_lines(log, lines)
                if len(rest) > _LONGEST_LINE:
                    _log_lines(log, [rest])
                    rest = b""
            _log_lines(log, [rest])
            code = self._engine.wait_container(self._id).code
        finally:
            over.set()
        if cancel.is_set():
            raise PackageError("the build was stopped")
        return code, said.decode(errors="replace")

    def file(self, name: str, limit: int) -> bytes:
        """Return the beginning of a file that the container left in the folder; empty for none."""
        return read_file(self._engine, self._id, f"{FOLDER}/{name}", limit=limit)

    def save(self, ending: str, path: str, limit: int) -> str:
        """Copy the folder's file whose name ends with ``ending`` to ``path``.

        Returns:
            The name of the file; empty if there is no such file.

        Raises:
            PackageError: the file is too large, or can't be read.
        """
        try:
            with closing(_chunks(self._engine.get_archive(self._id, FOLDER))) as chunks:
                reader = TarReader(chunk_reader(chunks))
                for member in reader.members():
                    if member.kind == REGULAR and member.path.endswith(ending):
                        _write(path, reader.content(), limit)
                        return posixpath.basename(member.path)
        except NotFound:
            pass
        except SourceError as error:
            raise PackageError(f"the packed file can't be read: {error}") from error
        return ""


def _chunks(chunks: Iterable[bytes]) -> Generator[bytes, None, None]:
    yield from chunks


def _write(path: str, content: Iterable[bytes], limit: int) -> None:
    size = 0
    with open(path, "wb") as file:
        for piece in content:
            size += len(piece)
            if size > limit:
                raise PackageError(f"the package is larger than {limit / (1 << 30):.1f} GiB")
            file.write(piece)


def _log_lines(log: LogPipeline, lines: Iterable[bytes]) -> None:
    for line in lines:
        if line.strip():
            log.line(line.decode(errors="replace").rstrip("\r"))


def _archive(files: Mapping[str, bytes]) -> Iterator[bytes]:
    """Return a tar archive with files in `FOLDER`."""
    members: list[tuple[Member, Iterable[bytes]]] = [
        (Member(path=name, kind=REGULAR, mode=0o600, size=len(content)), (content,))
        for name, content in files.items()
    ]
    return tar_writer.pack((*_parents(FOLDER[1:], files), *_below(FOLDER[1:], members)))


def _copies(files: Iterable[tuple[str, WorkspaceFile]]) -> Iterator[bytes]:
    """Return a tar archive with copies of files of the workspace, under their paths there."""
    copies = dict(files)
    members = (
        (
            Member(path=path, kind=REGULAR, size=file.size_bytes),
            _content(file.copy),
        )
        for path, file in copies.items()
    )
    return tar_writer.pack(
        one
        for part in (_parents(WORKSPACE[1:], copies), _below(WORKSPACE[1:], members))
        for one in part
    )


def _below(folder: str, members: Members) -> Members:
    return (
        (msgspec.structs.replace(member, path=f"{folder}/{member.path}"), content)
        for member, content in members
    )


def _parents(folder: str, paths: Iterable[str]) -> Members:
    """Return the parent folders of files below ``folder``, each before its content."""
    found = {folder}
    for path in paths:
        parent = posixpath.dirname(path)
        while parent:
            found.add(f"{folder}/{parent}")
            parent = posixpath.dirname(parent)
    return [(Member(path=one, kind=DIRECTORY, mode=0o755), ()) for one in sorted(found)]


def _content(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        yield from iter(lambda: file.read(1 << 18), b"")


IMAGES = {
    "python": "buildrunner/twine:latest",
    "maven": "buildrunner/python:latest",
    "maven-folder": "buildrunner/python:latest",
    "generic": "buildrunner/python:latest",
    "go": "buildrunner/python:latest",
    "npm": "buildrunner/node:latest",
}
"""Kind of package -> the builder image that publishes it."""

_PROGRAM = os.path.join(os.path.dirname(__file__), "publisher")
_AUTHORITIES = "authorities.pem"
_START = f"from publisher.program import main\n\nmain({FOLDER!r})\n".encode()
_PACKED = f"{FOLDER}/package.tgz"
_PACK = f"""
npm pack --pack-destination {FOLDER} --loglevel error "$1" || exit
node {FOLDER}/manifest.js {FOLDER}/*.tgz {FOLDER}/manifest.json
"""


class PublishingPlace(msgspec.Struct, frozen=True, kw_only=True):
    """The source of packages, and the place where the programs that publish them run.

    Attributes:
        engine: the engine that ran the steps. Not closed.
        machine: the engine of the machine. Not closed.
        network: the network of publishing containers on it.
        labels: for containers on both.
        limit_bytes: how much may be copied for one package.
    """

    engine: ContainerEngine
    machine: ContainerEngine
    network: str
    labels: dict[str, str]
    limit_bytes: int = LARGEST_BYTES


class ContainerPublisher:
    """Implements `PackagePublisher`.

    Args:
        place: where packages come from, and where the programs run.
        repositories: repository as builds name it -> the repository to publish to.
        logins: the login for each repository.
        authorities: certificates to trust besides those of the images, in PEM.
    """

    def __init__(
        self,
        place: PublishingPlace,
        repositories: Mapping[str, str],
        logins: PackageLogins,
        authorities: bytes = b"",
    ) -> None:
        self._place = place
        self._repositories = {name.rstrip("/"): url for name, url in repositories.items()}
        self._logins = logins
        self._trusted = {_AUTHORITIES: authorities} if authorities else {}
        self._images: dict[str, str] = {}  # kind of package -> image id, as it was before the steps

    def check(self, packages: Iterable[PackageUpload]) -> None:
        """Refuse packages that can't be published, before anything runs. Called before `publish`.

        Raises:
            ConfigError: with a problem for each.
            EngineError: the engine can't list its images.
        """
        problems = [
            Problem(reason, path=f"artifacts ({package.label})", rule="package", hint=hint)
            for package in packages
            for reason, hint in self._obstacles(package)
        ]
        if problems:
            raise ConfigError(problems)

    def _obstacles(self, package: PackageUpload) -> Iterator[tuple[str, str]]:
        repository = self._repositories.get(package.repository, package.repository)
        another = f'name another repository for "{package.repository}" in [artifacts.repositories]'
        if package.kind == "go" and repository == package.repository:
            yield "a Go module can't be uploaded to Artifact Registry from here", another
        elif package.kind == "generic" and repository.startswith("projects/"):
            yield f"files can't be uploaded to {repository} from here", another
        elif not repository.startswith(("https://", "http://")):
            yield f'"{repository}" is no address of a repository', "it begins with https://"
        elif urlsplit(repository).username is not None:
            yield (
                "the address of a repository must not have a login in it",
                "builds are stored and shown with it; put the login into ~/.netrc",
            )
        else:
            try:  # a missing login is reported before the steps run, not after them
                self._logins.login_for(package.kind, repository)
            except PackageError as error:
                yield str(error), error.hint or another
        image = IMAGES[package.kind]
        found = self._place.machine.find_image(image)
        if found is not None:
            self._images[package.kind] = found.id
        else:
            name = image.partition("/")[2].removesuffix(":latest")
            yield (
                f"publishing needs the builder image {image}, which is not there",
                f"run: buildrunner builders install {name}",
            )

    def publish(
        self,
        package: PackageUpload,
        *,
        workspace: PreparedWorkspace,
        log: LogPipeline,
        cancel: threading.Event,
    ) -> tuple[PublishedPackage, ...]:
        """See `PackagePublisher.publish`."""
        repository = self._repositories.get(package.repository, package.repository).rstrip("/")
        log.line(f"Publishing {package.label} to {repository}")
        try:
            if package.kind == "npm":
                return self._npm(package, repository, workspace, log, cancel)
            with self._files(workspace, cancel) as files:
                copies = _copies(_wanted(package, files))
                return self._run(package, repository, copies, log, cancel)
        except (PackageError, UploadError) as error:
            raise PackageError(
                f"{package.label} can't be published: {error}",
                unauthorized=error.unauthorized,
                hint=error.hint,
            ) from error

    def _npm(
        self,
        package: PackageUpload,
        repository: str,
        workspace: PreparedWorkspace,
        log: LogPipeline,
        cancel: threading.Event,
    ) -> tuple[PublishedPackage, ...]:
        """Pack where the package's scripts may run; publish, with the login, where they can't."""
        if not self._logins.login_for("npm", repository).found:
            raise PackageError(
                f"{repository} accepts npm packages only with a login",
                unauthorized=True,
                hint=where_to_log_in(repository, "~/.npmrc or ~/.netrc"),
            )
        (folder,) = package.paths
        with tempfile.TemporaryDirectory(prefix="buildrunner-npm-") as scratch:
            path = os.path.join(scratch, "package.tgz")
            manifest = self._pack(folder, path, workspace, log, cancel)
            size = os.path.getsize(path)
            member = Member(path=_PACKED[1:], kind=REGULAR, size=size)
            packed = tar_writer.pack([(member, _content(path))])
            package = msgspec.structs.replace(package, paths=(_PACKED,))
            return self._run(package, repository, packed, log, cancel, manifest=manifest)

    def _run(
        self,
        package: PackageUpload,
        repository: str,
        files: Iterable[bytes],
        log: LogPipeline,
        cancel: threading.Event,
        **request: object,
    ) -> tuple[PublishedPackage, ...]:
        """Run the publishing program with ``request`` on ``files``, a tar archive."""
        login = self._logins.login_for(package.kind, repository)
        request |= msgspec.to_builtins(package) | msgspec.to_builtins(login)
        program = _archive(
            {
                "request.json": msgspec.json.encode({**request, "repository": repository}),
                **self._trusted,
                **_program_files(),
            }
        )
        spec = self._spec(
            package.kind, ("python3", "-I", "-B", FOLDER), network=self._place.network
        )
        spec = msgspec.structs.replace(spec, memory_bytes=_MEMORY_BYTES)
        # The program comes last: no file of the workspace can take its place.
        container = PublishingContainer(self._place.machine, spec, files, program)
        with container:
            container.run(log, cancel)
            answer = container.file("result.json", _RESULT_BYTES)
        if not answer:
            raise PackageError("the publishing program ended without a result; its log says why")
        result: dict[str, Any] = msgspec.json.decode(answer)
        if "error" in result:
            refused = bool(result["unauthorized"])
            hint = _log_in(repository, login) if refused else ""
            raise PackageError(result["error"], unauthorized=refused, hint=hint)
        kind = "maven" if package.kind == "maven-folder" else package.kind
        return tuple(
            PublishedPackage(
                kind=kind,
                uri=one["uri"],
                hash=bytes.fromhex(one["sha256"]),
                timing=Span(_instant(one["start"]), _instant(one["end"])),
            )
            for one in result["packages"]
        )

    def _pack(
        self,
        folder: str,
        path: str,
        workspace: PreparedWorkspace,
        log: LogPipeline,
        cancel: threading.Event,
    ) -> dict[str, Any]:
        """Pack the npm package in ``folder`` to ``path`` on this machine. Returns its manifest.

        Steps control both: this machine never unpacks the package nor trusts the manifest.
        """
        place = self._place
        spec = self._spec(
            "npm", ("sh", "-c", _PACK, "sh", folder), workspace.mount(), network="none"
        )
        with open(os.path.join(_PROGRAM, "npm_manifest.js"), "rb") as file:
            files = _archive({"manifest.js": file.read(), **self._trusted})
        with PublishingContainer(place.engine, spec, files) as container:
            code, said = container.run(log, cancel)
            name = container.save(".tgz", path, place.limit_bytes)
            manifest = container.file("manifest.json", _MANIFEST_BYTES)
        if code or not name:
            raise PackageError(f"npm could not pack {folder}: {_reason(said, 'npm')}")
        try:
            return msgspec.json.decode(manifest, type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError) as error:
            raise PackageError(f"its package.json can't be read: {error}") from error

    def _files(self, workspace: PreparedWorkspace, cancel: threading.Event) -> WorkspaceFiles:
        place = self._place
        return WorkspaceFiles(
            place.engine, workspace, place.labels, cancel, limit_bytes=place.limit_bytes
        )

    def _spec(
        self, kind: str, argv: tuple[str, ...], *mounts: Mount, network: str
    ) -> ContainerSpec:
        return ContainerSpec(
            image=self._images[kind],
            entrypoint=argv[:1],
            cmd=argv[1:],
            env=("HOME=/tmp", "NPM_CONFIG_UPDATE_NOTIFIER=false", *self._trust()),
            workdir="/",
            mounts=mounts,
            network=network,
            labels=self._place.labels,
        )

    def _trust(self) -> tuple[str, ...]:
        """Return variables that make Python, requests and Node trust the certificates."""
        names = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")
        return tuple(f"{name}={FOLDER}/{_AUTHORITIES}" for name in names if self._trusted)


def _log_in(repository: str, login: PackageLogin) -> str:
    """Return advice for a refused login."""
    host = urlsplit(repository).hostname or repository
    if login.username:
        return (
            f"check what {login.username} may do there, and the password that you have for {host}"
        )
    if login.token:
        return f"check the token that you have for {host}, and what it may do there"
    return f"there is no login for {host}: {where_to_log_in(repository, '~/.netrc')}"


def _program_files() -> dict[str, bytes]:
    files = {"__main__.py": _START}
    for name in os.listdir(_PROGRAM):
        if name.endswith(".py"):
            with open(os.path.join(_PROGRAM, name), "rb") as file:
                files[f"publisher/{name}"] = file.read()
    return files


def _wanted(package: PackageUpload, files: WorkspaceFiles) -> Iterator[tuple[str, WorkspaceFile]]:
    """Yield copies of a package's files, by their paths in the workspace.

    The program that publishes chooses among them. Links to files count where a file is named, by
    itself or by a pattern; in a folder, links are left out.
    """
    for path in package.paths:
        inner = path.removeprefix(WORKSPACE).strip("/")
        if glob.has_magic(inner):
            yield from _matching(inner, files)
        elif (single := files.single(inner)) is not None:
            yield inner, single
        else:
            for file in files.below(inner, lambda _: True, links=False):
                yield posixpath.join(inner, file.path), file


def _matching(pattern: str, files: WorkspaceFiles) -> Iterator[tuple[str, WorkspaceFile]]:
    """Yield the files below the folder of a pattern whose names match the pattern's last part."""
    parts = pattern.split("/")
    fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    folder = "/".join(parts[:fixed])
    last = "*" if parts[-1] in ("", "**") else parts[-1]
    for file in files.below(folder, lambda path: fnmatchcase(posixpath.basename(path), last)):
        yield posixpath.join(folder, file.path), file


def _reason(said: str, program: str) -> str:
    """Return the first line of a program's output that gives the reason of its error."""
    for line in said.splitlines():
        words = line.split(maxsplit=2)
        if words[:2] == [program, "error"] and len(words) == 3 and not words[2].startswith("code "):
            return words[2]
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else f"{program} gave no reason"


def _instant(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
