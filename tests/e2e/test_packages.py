"""Packages that a build publishes, to servers that the tests start."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import ssl
import subprocess
import sys
import tarfile
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from buildrunner.artifacts.packages import IMAGES
from buildrunner.containers.docker.engine import DockerEngine
from tests.e2e.submit_bench import Bench, Done
from tests.fixtures_google import write_certificate
from tests.package_servers import PASSWORD, USER, Shelf, running_npm, running_pypi

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

PYTHON = "https://us-python.pkg.dev/p/r"
MAVEN = "https://us-maven.pkg.dev/p/r"
NPM = "https://us-npm.pkg.dev/p/r"
GO = "https://us-go.pkg.dev/p/r"
GENERIC = "projects/p/locations/us/repositories/r"


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
        self.write_own_settings(f"[artifacts.repositories]\n{lines}")

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
    kinds = {PYTHON: "python", MAVEN: "maven", NPM: "npm", GO: "go", GENERIC: "generic"}
    urls = {name: f"{shelf.url}/{kind}" for name, kind in kinds.items()}
    urls["any"] = f"{shelf.url}/x"  # without TLS, a login is for what the settings name
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


def test_a_folder_that_maven_deployed_is_published_and_its_lists_are_merged(
    bench: PackageBench, shelf: Shelf
) -> None:
    folder = "/maven/org/example/app"
    shelf.files[f"{folder}/maven-metadata.xml"] = (
        b"<metadata><groupId>org.example</groupId><artifactId>app</artifactId><versioning>"
        b"<versions><version>1.0</version></versions></versioning></metadata>"
    )
    bench.write("deployed/org/example/app/2.0/app-2.0.jar", "a jar")
    bench.write("deployed/org/example/app/2.0/app-2.0.jar.sha1", "not what it should be")
    bench.write("deployed/org/example/app/2.0/app-2.0.pom", "<project/>")
    bench.write(
        "deployed/org/example/app/maven-metadata.xml",
        "<metadata><groupId>org.example</groupId><artifactId>app</artifactId><versioning>"
        "<versions><version>2.0</version></versions></versioning></metadata>",
    )
    done = bench.publish({"mavenArtifacts": [{"repository": MAVEN, "deployFolder": "deployed"}]})
    assert done.code == 0, done.out
    assert shelf.files[f"{folder}/2.0/app-2.0.jar"] == b"a jar"
    right = hashlib.sha1(b"a jar").hexdigest().encode()
    assert shelf.files[f"{folder}/2.0/app-2.0.jar.sha1"] == right
    listed = shelf.files[f"{folder}/maven-metadata.xml"]
    assert b"<version>1.0</version>" in listed
    assert b"<version>2.0</version>" in listed
    uris = [entry["uri"] for entry in result_of(done)["results"]["mavenArtifacts"]]
    assert uris == [f"{shelf.url}{folder}/2.0/app-2.0.{kind}" for kind in ("jar", "pom")]


def test_files_go_out_as_they_are(bench: PackageBench, shelf: Shelf) -> None:
    bench.write("out/a.bin", "a")
    bench.write("out/deep/er/b.bin", "b")
    named = {"folder": "out", "registryPath": f"{GENERIC}/packages/tools/versions/1.2"}
    done = bench.publish(
        {
            "genericArtifacts": [
                named,
                {"folder": "out/a.bin", "registryPath": f"{shelf.url}/x/$BUILD_ID"},
            ]
        }
    )
    assert done.code == 0, done.out
    build = result_of(done)
    assert shelf.files == {
        "/generic/tools/1.2/a.bin": b"a",
        "/generic/tools/1.2/deep/er/b.bin": b"b",
        f"/x/{build['id']}/a.bin": b"a",
    }
    assert build["results"]["artifactTiming"]
    shown = bench.run("submit", ".", "--dry-run").out
    assert f"publish\n  generic tools@1.2, to {shelf.url}/generic\n" in shown
    wrong = {"genericArtifacts": [{"folder": "out", "registryPath": "out/x"}]}
    refused = bench.publish(wrong)
    assert refused.code == 2
    assert "artifacts.genericArtifacts[0].registryPath" in refused.err
    assert '"out/x" is not an address' in refused.err


@pytest.fixture
def pypi(bench: PackageBench, tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "pypi"
    folder.mkdir()
    with running_pypi(folder) as url:
        bench.write_own_settings(f'[artifacts.repositories]\n"{PYTHON}" = "{url}"\n')
        yield url


@pytest.fixture(scope="module")
def npm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_npm(tmp_path_factory.mktemp("verdaccio")) as url:
        yield url


@pytest.fixture
def npm(bench: PackageBench, npm_server: str) -> str:
    bench.write_own_settings(f'[artifacts.repositories]\n"{NPM}" = "{npm_server}"\n')
    return npm_server


def fetched(url: str) -> bytes:
    with urllib.request.urlopen(url) as answer:
        content: bytes = answer.read()
    return content


def test_python_packages_go_out_with_twine(bench: PackageBench, pypi: str) -> None:
    content = wheel()
    (bench.folder / "dist").mkdir()
    for version in ("1.0", "1.1"):
        name = f"demo-{version}-py3-none-any.whl"
        (bench.folder / "dist" / name).write_bytes(wheel(version=version))
    done = bench.publish({"pythonPackages": [{"repository": PYTHON, "paths": ["dist/*"]}]})
    assert done.code == 0, done.out
    assert fetched(f"{pypi}/packages/demo-1.0-py3-none-any.whl") == content
    assert b"demo-1.1-py3-none-any.whl" in fetched(f"{pypi}/simple/demo/")
    first, second = result_of(done)["results"]["pythonPackages"]
    assert first["uri"].endswith("demo-1.0-py3-none-any.whl")
    assert only_hash(first) == ("SHA256", hashlib.sha256(content).digest())
    assert second["pushTiming"]["startTime"] >= first["pushTiming"]["endTime"]
    again = bench.publish({"pythonPackages": [{"repository": PYTHON, "paths": ["dist/*"]}]})
    assert again.code == 1
    build = result_of(again)
    assert build["failureInfo"]["type"] == "PUSH_FAILED"
    reason = "did not take demo-1.0-py3-none-any.whl: HTTPError: 4"
    assert reason in build["statusDetail"]


def test_an_npm_package_goes_to_a_registry(bench: PackageBench, npm: str) -> None:
    package = {"name": "@demo/thing", "version": "2.0.0",
               "publishConfig": {"registry": "http://127.0.0.1:9/elsewhere"},
               "scripts": {"prepack": "echo built > made-by-prepack"}}  # fmt: skip
    bench.write("app/package.json", json.dumps(package))
    artifacts = {"npmPackages": [{"repository": NPM, "packagePath": "app"}]}
    done = bench.publish(artifacts)
    assert done.code == 0, done.out
    document = json.loads(fetched(f"{npm}/@demo%2fthing"))
    tgz = fetched(document["versions"]["2.0.0"]["dist"]["tarball"])
    with tarfile.open(fileobj=io.BytesIO(tgz)) as tar:
        assert "package/made-by-prepack" in tar.getnames()
    (entry,) = result_of(done)["results"]["npmPackages"]
    assert only_hash(entry) == ("SHA256", hashlib.sha256(tgz).digest())
    assert entry["uri"] == f"{npm}/@demo/thing/-/thing-2.0.0.tgz"
    assert entry["uri"] == document["versions"]["2.0.0"]["dist"]["tarball"]
    again = bench.publish(artifacts)
    assert again.code == 1
    assert result_of(again)["failureInfo"]["type"] == "PUSH_FAILED"


def test_a_registry_gets_what_npm_publish_sends(bench: PackageBench, shelf: Shelf) -> None:
    package = {"name": "@demo/thing", "version": "2.0.0", "bin": "x.js", "repository": "a/b",
               "author": "A B <a@b.example>", "keywords": "one, two", "license": "MIT",
               "publishConfig": {"tag": "beta", "access": "public"}}  # fmt: skip
    bench.write("app/package.json", json.dumps(package))
    bench.write("app/x.js", "")
    bench.write("app/binding.gyp", "{}")
    bench.write("app/README.md", "# Größe\n")
    done = bench.publish({"npmPackages": [{"repository": NPM, "packagePath": "app"}]})
    assert done.code == 0, done.out
    sent = json.loads(shelf.files.pop("/npm/@demo/thing"))
    pair = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    bench.write("npmrc", f"//{shelf.url.partition('://')[2]}/npm/:_auth={pair}\n")
    script = "cp -r /source /copy; npm publish --userconfig /copy/npmrc --registry $1 /copy/app"
    argv = ["docker", "run", "--rm", "--network", "host", "--volume", f"{bench.folder}:/source:ro"]
    argv += [IMAGES["npm"], "sh", "-c", script, "sh", f"{shelf.url}/npm/"]
    subprocess.run(argv, check=True, capture_output=True)
    assert sent == json.loads(shelf.files["/npm/@demo/thing"])


def test_no_publish_config_of_a_package_leads_the_login_elsewhere(
    bench: PackageBench, npm: str, shelf: Shelf
) -> None:
    config = {"proxy": shelf.url, "https-proxy": shelf.url, "strict-ssl": False,
              "registry": shelf.url, "@demo:registry": shelf.url, "tag": "beta"}  # fmt: skip
    package = {"name": "@demo/led", "version": "1.0.0", "publishConfig": config}
    bench.write("app/package.json", json.dumps(package))
    done = bench.publish({"npmPackages": [{"repository": NPM, "packagePath": "app"}]})
    assert done.code == 0, done.out
    assert "publishConfig: @demo:registry, https-proxy, proxy, strict-ssl of" in done.out
    assert shelf.requests == []
    assert json.loads(fetched(f"{npm}/@demo%2fled"))["dist-tags"]["beta"] == "1.0.0"


def test_npm_without_a_login_says_where_to_put_one(bench: PackageBench) -> None:
    (Path(bench.environ["HOME"]) / ".netrc").unlink()
    bench.write("app/package.json", '{"name": "nobody", "version": "1.0.0"}')
    repository = "http://127.0.0.1:9/npm"  # npm asks nobody before it has a login
    done = bench.publish({"npmPackages": [{"repository": repository, "packagePath": "app"}]})
    assert done.code == 1
    build = result_of(done)
    assert build["failureInfo"]["type"] == "PUSH_NOT_AUTHORIZED"
    assert build["statusDetail"].endswith(
        "put one for the machine 127.0.0.1:9 into ~/.npmrc or ~/.netrc"
    )


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


def test_a_busy_repository_of_python_packages_is_asked_again(
    bench: PackageBench, shelf: Shelf
) -> None:
    bench.write_own_settings(f'[artifacts.repositories]\n"{PYTHON}" = "{shelf.url}/py"\n')
    (bench.folder / "dist").mkdir()
    (bench.folder / "dist" / "demo-1.0-py3-none-any.whl").write_bytes(wheel())
    shelf.failures = [429]
    done = bench.publish(PUBLISHED["python"])
    assert done.code == 0, done.out
    assert "HTTP 429 for demo-1.0-py3-none-any.whl: trying again in 1 s" in done.out
    assert "/py/" in shelf.files


def test_a_busy_repository_is_given_the_time_it_asks_for(bench: PackageBench, shelf: Shelf) -> None:
    shelf.failures, shelf.retry_after, shelf.cuts = [429, 503], "2", 1
    done = bench.publish(maven_of(), "echo jar > app.jar")
    assert done.code == 0
    said = done.out
    assert "HTTP 429 for g/a/1/a-1.jar: trying again in 2 s" in said
    assert "HTTP 503 for g/a/1/a-1.jar: trying again in 2 s" in said
    assert shelf.files["/maven/g/a/1/a-1.jar"] == b"jar\n"


def test_a_repository_that_keeps_failing_or_is_not_there_fails_the_build(
    bench: PackageBench, shelf: Shelf
) -> None:
    shelf.failures = [500] * 9
    done = bench.publish(maven_of(), "echo jar > app.jar")
    assert done.code == 1
    detail = result_of(done)["statusDetail"]
    assert "refused g/a/1/a-1.jar: HTTP 500" in detail
    bench.write_own_settings(f'[artifacts.repositories]\n"{MAVEN}" = "http://127.0.0.1:1"\n')
    done = bench.publish(maven_of(), "echo jar > app.jar")
    build = result_of(done)
    assert build["failureInfo"]["type"] == "PUSH_FAILED"
    assert (
        "http://127.0.0.1:1 can't be reached: [Errno 111] Connection refused"
        in (build["statusDetail"])
    )


PUBLISHED = {
    "maven": maven_of(),
    "python": {"pythonPackages": [{"repository": PYTHON, "paths": ["dist/*"]}]},
    "npm": {"npmPackages": [{"repository": NPM, "packagePath": "app"}]},
    "generic": {"genericArtifacts": [{"folder": "app.jar",
                                      "registryPath": f"{GENERIC}/packages/a/versions/1"}]},
}  # fmt: skip


@pytest.mark.parametrize("kind", list(PUBLISHED))
def test_a_wrong_login_is_refused_once(
    bench: PackageBench, shelf: Shelf, request: pytest.FixtureRequest, kind: str
) -> None:
    if kind in ("python", "npm"):
        request.getfixturevalue("pypi" if kind == "python" else kind)
    netrc = Path(bench.environ["HOME"]) / ".netrc"
    netrc.write_text("machine 127.0.0.1 login nobody password wrong\n")
    (bench.folder / "dist").mkdir()
    (bench.folder / "dist" / "demo-1.0-py3-none-any.whl").write_bytes(wheel())
    bench.write("app/package.json", '{"name": "refused", "version": "1.0.0"}')
    bench.write("app.jar", "jar")
    done = bench.publish(PUBLISHED[kind])
    assert done.code == 1
    build = result_of(done)
    assert build["failureInfo"]["type"] == "PUSH_NOT_AUTHORIZED"
    assert ": check " in build["statusDetail"]
    assert "\n" not in build["statusDetail"]
    assert shelf.files == {}


def test_a_certificate_that_this_machine_trusts_is_trusted_by_every_tool(
    bench: PackageBench, tmp_path: Path
) -> None:
    write_certificate(tmp_path / "server.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    tls = Shelf(context)
    names = {PYTHON: "python", MAVEN: "maven", NPM: "npm"}
    lines = "".join(f'"{name}" = "{tls.url}/{kind}"\n' for name, kind in names.items())
    bench.write_own_settings(f"[artifacts.repositories]\n{lines}")
    (bench.folder / "dist").mkdir()
    (bench.folder / "dist" / "demo-1.0-py3-none-any.whl").write_bytes(wheel())
    bench.write("app/package.json", '{"name": "demo", "version": "1.0.0"}')
    bench.write("app.jar", "jar")
    artifacts = {**PUBLISHED["maven"], **PUBLISHED["python"], **PUBLISHED["npm"]}
    try:
        refused = bench.publish(artifacts)
        assert refused.code == 1
        assert "certificate" in result_of(refused)["statusDetail"].lower()
        assert tls.files == {}
        bench.environ["SSL_CERT_FILE"] = str(tmp_path / "server.pem")
        done = bench.publish(artifacts)
        assert done.code == 0, done.out
    finally:
        tls.close()
    assert {"/maven/g/a/1/a-1.jar", "/python/", "/npm/demo"} <= set(tls.files)


def test_artifact_registry_without_google_credentials_is_refused_before_the_steps(
    bench: PackageBench,
) -> None:
    bench.write_own_settings("")
    bench.environ |= {
        "GOOGLE_APPLICATION_CREDENTIALS": str(bench.folder / "none.json"),
        "NO_GCE_CHECK": "true",
    }
    bench.write("app.jar", "jar")
    for kind, host in (("maven", "us-maven"), ("python", "us-python"), ("npm", "us-npm")):
        done = bench.publish(PUBLISHED[kind], "echo it runs")
        assert done.code == 2, done.out
        assert f"there is no login for {host}.pkg.dev: no usable Google credentials" in done.err
        assert "[artifacts.repositories]" in done.err
        assert "it runs" not in done.out


def test_a_path_out_of_the_workspace_and_an_unmapped_go_module_run_nothing(
    bench: PackageBench,
) -> None:
    done = bench.publish(maven_of(path="../app.jar"))
    assert done.code == 2
    assert "is not below /workspace" in done.err
    done = bench.publish(maven_of(repository=f"http://someone:{PASSWORD}@127.0.0.1:9/x"))
    assert done.code == 2
    assert "must not have a login in it" in done.err
    module = {"repositoryName": "other", "modulePath": "example.com/m", "moduleVersion": "v1.0.0"}
    done = bench.publish({"goModules": [module]})
    assert done.code == 2
    assert "[artifacts.repositories]" in done.err
