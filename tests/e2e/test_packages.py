"""Packages that a build publishes, to servers that the tests start."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from buildrunner.artifacts.packages import IMAGES
from buildrunner.containers.docker import DockerEngine
from tests.e2e.submit_bench import Bench, Done

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

USER, PASSWORD = "publisher", "s3cret-of-packages"
PYTHON = "https://us-python.pkg.dev/p/r"
MAVEN = "https://us-maven.pkg.dev/p/r"
NPM = "https://us-npm.pkg.dev/p/r"
GO = "https://us-go.pkg.dev/p/r"


class Shelf:
    """A server that keeps what is PUT or POSTed, for those who log in.

    Attributes:
        files: path -> content.
        failures: statuses of the next answers to PUT and POST, before anything is kept.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.failures: list[int] = []
        shelf = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                found = shelf.files.get(unquote(self.path))
                self.answer(404 if found is None else 200, found or b"{}")

            def do_PUT(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                pair = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
                if self.headers["Authorization"] != f"Basic {pair}":
                    self.answer(401, b"{}")
                elif shelf.failures:
                    self.answer(shelf.failures.pop(0), b"{}")
                else:
                    shelf.files[unquote(self.path)] = content
                    self.answer(201, b"{}")

            do_POST = do_PUT  # noqa: N815

            def answer(self, status: int, content: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    made = Shelf()
    yield made
    made.close()


@pytest.fixture(scope="module")
def images(docker_engine: DockerEngine) -> None:
    missing = {image for image in IMAGES.values() if docker_engine.find_image(image) is None}
    names = [image.partition("/")[2].partition(":")[0] for image in sorted(missing)]
    if names:
        argv = [sys.executable, "-m", "buildrunner", "builders", "install", *names]
        subprocess.run(argv, check=True, capture_output=True)


class PackageBench(Bench):
    """Builds that publish, and a home with logins."""

    def home(self, folder: Path, repositories: dict[str, str]) -> None:
        folder.mkdir()
        self.environ["HOME"] = str(folder)
        (folder / ".netrc").write_text(f"machine 127.0.0.1 login {USER} password {PASSWORD}\n")
        lines = "".join(f'"{name}" = "{url}"\n' for name, url in repositories.items())
        self.write(".buildrunner.toml", f"[artifacts.repositories]\n{lines}")

    def publish(self, artifacts: dict[str, Any], script: str = "true") -> Done:
        steps = [{"name": self.image, "script": script}]
        self.write("cloudbuild.yaml", json.dumps({"steps": steps, "artifacts": artifacts}))
        done = self.run("submit", ".", "--output", "json")
        assert PASSWORD not in done.out + done.err
        return done


@pytest.fixture
def bench(
    tmp_path: Path, docker_engine: DockerEngine, busybox: str, images: None, shelf: Shelf
) -> PackageBench:
    folder = tmp_path / "source"
    folder.mkdir()
    made = PackageBench(folder, tmp_path / "data", docker_engine, busybox)
    kinds = {PYTHON: "python", MAVEN: "maven", NPM: "npm", GO: "go"}
    urls = {name: f"{shelf.url}/{kind}" for name, kind in kinds.items()}
    made.home(tmp_path / "home", urls)
    return made


def result_of(done: Done) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done.out.splitlines()[-1])["build"]
    return found


def only_hash(entry: dict[str, Any]) -> tuple[str, bytes]:
    (one,) = entry["fileHashes"]["fileHash"]
    return one["type"], base64.b64decode(one["value"])


def wheel(name: str = "demo", version: str = "1.0") -> bytes:
    buffer = io.BytesIO()
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"{name}.py", "")
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return buffer.getvalue()


def test_a_maven_artifact_lies_where_maven_looks(bench: PackageBench, shelf: Shelf) -> None:
    artifact = {"repository": MAVEN, "path": "out/app.jar", "groupId": "org.example",
                "artifactId": "app", "version": "1.0"}  # fmt: skip
    for version in ("1.0", "1.1"):
        script = "mkdir -p out; printf 'a jar' > out/app.jar"
        done = bench.publish({"mavenArtifacts": [{**artifact, "version": version}]}, script)
        assert done.code == 0, done.out
    folder = "/maven/org/example/app"
    jar = shelf.files[f"{folder}/1.1/app-1.1.jar"]
    assert jar == b"a jar"
    assert shelf.files[f"{folder}/1.1/app-1.1.jar.sha1"] == hashlib.sha1(jar).hexdigest().encode()
    assert b"<artifactId>app</artifactId>" in shelf.files[f"{folder}/1.1/app-1.1.pom"]
    listed = shelf.files[f"{folder}/maven-metadata.xml"]
    assert listed.count(b"<version>") == 2
    assert b"<release>1.1</release>" in listed
    (entry,) = result_of(done)["results"]["mavenArtifacts"]
    assert entry["uri"] == f"{shelf.url}{folder}/1.1/app-1.1.jar"
    assert only_hash(entry) == ("SHA256", hashlib.sha256(jar).digest())
    assert entry["pushTiming"]["startTime"] <= entry["pushTiming"]["endTime"]
    assert result_of(done)["results"]["artifactTiming"]


def test_a_go_module_is_what_goproxy_serves(bench: PackageBench, shelf: Shelf) -> None:
    bench.write("mod/go.mod", "module example.com/Demo\n\ngo 1.21\n")
    bench.write("mod/demo.go", "package demo\n")
    bench.write("mod/inner/go.mod", "module example.com/Demo/inner\n")
    bench.write("mod/inner/inner.go", "package inner\n")
    bench.write("mod/vendor/a/a.go", "package a\n")
    module = {"repositoryName": "r", "repositoryLocation": "us", "repositoryProjectId": "p",
              "sourcePath": "mod", "modulePath": "example.com/Demo",
              "moduleVersion": "v1.2.3"}  # fmt: skip
    done = bench.publish({"goModules": [module]})
    assert done.code == 0, done.out
    stem = "/go/example.com/!demo/@v/v1.2.3"
    assert shelf.files[f"{stem}.mod"] == b"module example.com/Demo\n\ngo 1.21\n"
    assert json.loads(shelf.files[f"{stem}.info"])["Version"] == "v1.2.3"
    with zipfile.ZipFile(io.BytesIO(shelf.files[f"{stem}.zip"])) as archive:
        names = archive.namelist()
        # Independently of what built it: sum each entry of the archive, then the list of sums.
        sums = [f"{hashlib.sha256(archive.read(n)).hexdigest()}  {n}\n" for n in sorted(names)]
    prefix = "example.com/Demo@v1.2.3/"
    assert sorted(names) == [f"{prefix}demo.go", f"{prefix}go.mod"]
    (entry,) = result_of(done)["results"]["goModules"]
    assert only_hash(entry) == ("GO_MODULE_H1", hashlib.sha256("".join(sums).encode()).digest())
    assert entry["uri"] == f"{shelf.url}{stem}.zip"


def test_python_packages_go_out_with_twine(bench: PackageBench, shelf: Shelf) -> None:
    content = wheel()
    (bench.folder / "dist").mkdir()
    (bench.folder / "dist" / "demo-1.0-py3-none-any.whl").write_bytes(content)
    done = bench.publish({"pythonPackages": [{"repository": PYTHON, "paths": ["dist/*"]}]})
    assert done.code == 0, done.out
    assert content in shelf.files["/python/"]
    (entry,) = result_of(done)["results"]["pythonPackages"]
    assert entry["uri"].endswith("demo-1.0-py3-none-any.whl")
    assert only_hash(entry) == ("SHA256", hashlib.sha256(content).digest())


def test_an_npm_package_goes_out_with_npm(bench: PackageBench, shelf: Shelf) -> None:
    package = {"name": "@demo/thing", "version": "2.0.0",
               "publishConfig": {"registry": "http://127.0.0.1:9/elsewhere"},
               "scripts": {"prepack": "echo built > made-by-prepack"}}  # fmt: skip
    bench.write("app/package.json", json.dumps(package))
    done = bench.publish({"npmPackages": [{"repository": NPM, "packagePath": "app"}]})
    assert done.code == 0, done.out
    document = json.loads(shelf.files["/npm/@demo/thing"])
    (attachment,) = document["_attachments"].values()
    tgz = base64.b64decode(attachment["data"])
    with tarfile.open(fileobj=io.BytesIO(tgz)) as tar:
        assert "package/made-by-prepack" in tar.getnames()
    (entry,) = result_of(done)["results"]["npmPackages"]
    assert only_hash(entry) == ("SHA256", hashlib.sha256(tgz).digest())
    assert entry["uri"] == f"{shelf.url}/npm/@demo/thing/-/thing-2.0.0.tgz"


def maven_of(**fields: str) -> dict[str, Any]:
    artifact = {"repository": MAVEN, "path": "app.jar", "groupId": "g", "artifactId": "a"}
    return {"mavenArtifacts": [{**artifact, "version": "1", **fields}]}


@pytest.mark.parametrize(
    "artifacts",
    [
        maven_of(path="none.jar"),
        {"pythonPackages": [{"repository": PYTHON, "paths": ["dist/*"]}]},
        {"npmPackages": [{"repository": NPM, "packagePath": "none"}]},
    ],
)
def test_what_is_not_there_fails_the_build(bench: PackageBench, artifacts: dict[str, Any]) -> None:
    done = bench.publish(artifacts)
    assert done.code == 1
    build = result_of(done)
    assert build["failureInfo"]["type"] == "PUSH_FAILED"
    assert "can't be published" in build["statusDetail"]
    assert "\n" not in build["statusDetail"]


def test_a_busy_repository_is_asked_again(bench: PackageBench, shelf: Shelf) -> None:
    shelf.failures = [503, 429]
    done = bench.publish(maven_of(), "echo jar > app.jar")
    assert done.code == 0
    assert "/maven/g/a/1/a-1.jar" in shelf.files


@pytest.mark.parametrize("kind", ["maven", "python", "npm"])
def test_a_wrong_login_is_refused_once(bench: PackageBench, shelf: Shelf, kind: str) -> None:
    netrc = Path(bench.environ["HOME"]) / ".netrc"
    netrc.write_text("machine 127.0.0.1 login nobody password wrong\n")
    (bench.folder / "dist").mkdir()
    (bench.folder / "dist" / "demo-1.0-py3-none-any.whl").write_bytes(wheel())
    bench.write("app/package.json", '{"name": "demo", "version": "1.0.0"}')
    bench.write("app.jar", "jar")
    artifacts: dict[str, dict[str, Any]] = {
        "maven": maven_of(),
        "python": {"pythonPackages": [{"repository": PYTHON, "paths": ["dist/*"]}]},
        "npm": {"npmPackages": [{"repository": NPM, "packagePath": "app"}]},
    }
    done = bench.publish(artifacts[kind])
    assert done.code == 1
    assert result_of(done)["failureInfo"]["type"] == "PUSH_NOT_AUTHORIZED"
    assert shelf.files == {}


def test_a_path_out_of_the_workspace_and_an_unmapped_go_module_run_nothing(
    bench: PackageBench,
) -> None:
    done = bench.publish(maven_of(path="../app.jar"))
    assert done.code == 2
    assert "is not below /workspace" in done.err
    module = {"repositoryName": "other", "modulePath": "example.com/m", "moduleVersion": "v1.0.0"}
    done = bench.publish({"goModules": [module]})
    assert done.code == 2
    assert "[artifacts.repositories]" in done.err
