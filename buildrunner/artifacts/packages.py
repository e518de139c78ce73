"""A container that publishes: it gets files of its own, and leaves some; its output is logged.

Credentials go in as a file: neither an argv nor an environment shows them.
"""

from __future__ import annotations

import io
import os
import tarfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import msgspec

from buildrunner.containers.protocol import ContainerEngine
from buildrunner.containers.types import ContainerSpec, Mount
from buildrunner.engine.log.pipeline import LogPipeline
from buildrunner.engine.outcome import PublishedPackage, Span
from buildrunner.errors import ConfigError, NotFound, PackageError
from buildrunner.plan.build_plan import PackageUpload
from buildrunner.problem import Problem
from buildrunner.registries.package_logins import PackageLogins
from buildrunner.workspace.protocol import PreparedWorkspace

FOLDER = "/buildrunner-publish"
"""Where its files are."""

_KEPT_BYTES = 256 * 1024  # of the output: what went wrong is said at its end
_LONGEST_LINE = 64 * 1024


class PublishingContainer:
    """A container with files in `FOLDER`. A context manager; removed at its end."""

    def __init__(
        self, engine: ContainerEngine, spec: ContainerSpec, files: Mapping[str, bytes]
    ) -> None:
        self._engine = engine
        self._id = engine.create_container(spec)
        try:
            engine.put_archive(self._id, "/", [_archive(files)])
        except BaseException:
            engine.remove_container(self._id)
            raise

    def __enter__(self) -> PublishingContainer:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.remove_container(self._id)

    def run(self, log: LogPipeline, cancel: threading.Event) -> tuple[int, str]:
        """Run it to its end; exit code and the end of its output, all of which is in the log."""
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
            for chunk in output:  # line by line: whoever waits sees why
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

    def file(self, name: str) -> bytes | None:
        """A file that the container left in the folder."""
        found = self.file_ending(name)
        return found[1] if found else None

    def file_ending(self, ending: str) -> tuple[str, bytes] | None:
        """Name and content of the file in the folder whose name ends so."""
        try:
            data = b"".join(self._engine.get_archive(self._id, FOLDER))
        except NotFound:
            return None
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member in tar:
                if member.isreg() and member.name.endswith(ending):
                    content = tar.extractfile(member)
                    return os.path.basename(member.name), content.read() if content else b""
        return None


def _log_lines(log: LogPipeline, lines: Iterable[bytes]) -> None:
    for line in lines:
        if line.strip():
            log.line(line.decode(errors="replace").rstrip("\r"))


def _archive(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        folder = tarfile.TarInfo(FOLDER.lstrip("/"))
        folder.type = tarfile.DIRTYPE
        folder.mode = 0o700
        tar.addfile(folder)
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{folder.name}/{name}")
            entry.size = len(content)
            entry.mode = 0o600
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


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
_NO_LOGIN = "ENEEDAUTH"
_REFUSALS = ("E401", "E403", _NO_LOGIN)
_NPM_LOG_IN = "npm publishes nothing without a login: put one for it into ~/.npmrc or ~/.netrc"
_NPM_CHECK = "check the login in ~/.npmrc or ~/.netrc, and what it may do there"


class ContainerPublisher:
    """Implements `PackagePublisher`.

    Args:
        engine: where the workspace is. Not closed.
        labels: for the containers.
        repositories: repository as builds name it -> the one to publish to.
        logins: who to be there.
        authorities: certificates to trust besides those of the images, in PEM.
    """

    def __init__(
        self,
        engine: ContainerEngine,
        labels: Mapping[str, str],
        repositories: Mapping[str, str],
        logins: PackageLogins,
        authorities: bytes = b"",
    ) -> None:
        self._engine = engine
        self._labels = dict(labels)
        self._repositories = {name.rstrip("/"): url for name, url in repositories.items()}
        self._logins = logins
        self._trusted = {_AUTHORITIES: authorities} if authorities else {}

    def check(self, packages: Iterable[PackageUpload]) -> None:
        """Refuse what can't be published, before anything runs.

        Raises:
            ConfigError: with a problem for each.
            EngineError: the engine does not tell what images it has.
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
            try:  # who has no login learns it before the steps run, not behind them
                self._logins.login_for(package.kind, repository)
            except PackageError as error:
                yield str(error), error.hint or another
        image = IMAGES[package.kind]
        if self._engine.find_image(image) is None:
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
            return self._by_program(package, repository, workspace, log, cancel)
        except PackageError as error:
            raise PackageError(
                f"{package.label} can't be published: {error}",
                unauthorized=error.unauthorized,
                hint=error.hint,
            ) from error

    def _by_program(
        self,
        package: PackageUpload,
        repository: str,
        workspace: PreparedWorkspace,
        log: LogPipeline,
        cancel: threading.Event,
    ) -> tuple[PublishedPackage, ...]:
        username, password = self._logins.login_for(package.kind, repository)
        request = {
            **msgspec.to_builtins(package),
            "repository": repository,
            "username": username,
            "password": password,
        }
        files = {
            "request.json": msgspec.json.encode(request),
            **self._trusted,
            **_program_files(),
        }
        argv = ("python3", "-I", "-B", FOLDER)
        spec = self._spec(package.kind, argv, workspace.mount(read_only=True))
        with PublishingContainer(self._engine, spec, files) as container:
            container.run(log, cancel)
            answer = container.file("result.json")
        if answer is None:
            raise PackageError("the publishing program ended without a result; its log says why")
        result: dict[str, Any] = msgspec.json.decode(answer)
        if "error" in result:
            refused = bool(result["unauthorized"])
            hint = _log_in(repository, username) if refused else ""
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

    def _npm(
        self,
        package: PackageUpload,
        repository: str,
        workspace: PreparedWorkspace,
        log: LogPipeline,
        cancel: threading.Event,
    ) -> tuple[PublishedPackage, ...]:
        """Pack where the package's scripts may run, publish where they can't: with the login."""
        import hashlib

        began = datetime.now(UTC)
        (folder,) = package.paths
        pack = ("npm", "pack", "--pack-destination", FOLDER, "--loglevel", "error", folder)
        spec = self._spec("npm", pack, workspace.mount(), network="none")
        with PublishingContainer(self._engine, spec, {"made": b"", **self._trusted}) as container:
            code, said = container.run(log, cancel)
            packed = container.file_ending(".tgz")
        if code or packed is None:
            raise PackageError(f"npm could not pack {folder}: {_reason(said, 'npm')}")
        name, content = packed
        publish = ("npm", "publish", f"{FOLDER}/{name}", "--registry", f"{repository}/")
        quiet = ("--userconfig", f"{FOLDER}/npmrc", "--ignore-scripts", "--loglevel", "error")
        files = {name: content, "npmrc": self._logins.npmrc_for(repository), **self._trusted}
        with PublishingContainer(
            self._engine, self._spec("npm", (*publish, *quiet)), files
        ) as container:
            code, said = container.run(log, cancel)
        if code:
            refused = any(word in said for word in _REFUSALS)
            known = _NPM_CHECK if refused else ""
            raise PackageError(
                f"{repository} did not take {name}: {_reason(said, 'npm')}",
                unauthorized=refused,
                hint=_NPM_LOG_IN if _NO_LOGIN in said else known,
            )
        document = _package_document(content)
        # The address that the registry itself will give for it.
        uri = f"{repository}/{document['name']}/-/{_tarball(document)}"
        digest = hashlib.sha256(content).digest()
        timing = Span(began, datetime.now(UTC))
        return (PublishedPackage(kind="npm", uri=uri, hash=digest, timing=timing),)

    def _spec(
        self, kind: str, argv: tuple[str, ...], *mounts: Mount, network: str = "host"
    ) -> ContainerSpec:
        """The container. It shares the machine's network: a repository may be on 127.0.0.1."""
        return ContainerSpec(
            image=IMAGES[kind],
            entrypoint=argv[:1],
            cmd=argv[1:],
            env=("HOME=/tmp", "NPM_CONFIG_UPDATE_NOTIFIER=false", *self._trust()),
            workdir="/",
            mounts=mounts,
            network=network,
            labels=self._labels,
        )

    def _trust(self) -> tuple[str, ...]:
        """How Python, requests and Node are told of certificates."""
        names = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")
        return tuple(f"{name}={FOLDER}/{_AUTHORITIES}" for name in names if self._trusted)


def _log_in(repository: str, username: str) -> str:
    """What may help who was refused."""
    host = urlsplit(repository).hostname or repository
    if username:
        return f"check what {username} may do there, and the password that you have for {host}"
    return f"there is no login for {host}: put one into ~/.netrc"


def _program_files() -> dict[str, bytes]:
    files = {"__main__.py": _START}
    for name in os.listdir(_PROGRAM):
        if name.endswith(".py"):
            with open(os.path.join(_PROGRAM, name), "rb") as file:
                files[f"publisher/{name}"] = file.read()
    return files


def _package_document(tgz: bytes) -> dict[str, Any]:
    with tarfile.open(fileobj=io.BytesIO(tgz)) as tar:
        content = tar.extractfile("package/package.json")
        document: dict[str, Any] = msgspec.json.decode(content.read() if content else b"{}")
    return document


def _tarball(document: dict[str, Any]) -> str:
    return f"{document['name'].rpartition('/')[2]}-{document['version']}.tgz"


def _reason(said: str, program: str) -> str:
    """The first line of an error that tells something."""
    for line in said.splitlines():
        words = line.split(maxsplit=2)
        if words[:2] == [program, "error"] and len(words) == 3 and not words[2].startswith("code "):
            return words[2]
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else f"{program} gave no reason"


def _instant(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
