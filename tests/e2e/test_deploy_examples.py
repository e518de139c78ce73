"""The examples that deploy: with the real gcloud and kubectl, against stand-ins of the APIs.

The stand-ins run what is deployed, so that each check over HTTP reaches the app itself. gcloud is
Google's own program; where it is not installed, its tests are not collected (conftest.py).
"""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
import sys
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from hashlib import sha1, sha256
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Registry, remove_image
from tests.e2e.test_examples import Run, buildrunner
from tests.fixtures_gcs import GcsServer, running_gcs
from tests.google_cloud import (
    AppEngine,
    CloudFunctions,
    CloudRun,
    GoogleCloud,
    Request,
    environment,
    google_cloud,
)
from tests.kubernetes_api import kubernetes_api

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

EXAMPLES = Path(__file__).parents[2] / "examples"
BUILDERS = ("docker", "python", "gcloud", "gke-deploy")


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def builder_images(docker_engine: Any) -> None:
    answer = buildrunner("builders", "install", *BUILDERS)
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.fixture(autouse=True)
def images_removed(registry: Registry) -> Iterator[None]:
    """Remove the images that the examples built."""
    yield
    remove_images(registry)


def remove_images(registry: Registry) -> None:
    """Remove the images of the examples from the engine: those of a registry."""
    names = docker("images", "--format={{.Repository}}:{{.Tag}}", f"{registry.address}/roman")
    for name in names.split():
        remove_image(name)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def start_image(stack: ExitStack) -> Callable[[str], str]:
    """Starts images; removes their containers at the end."""

    def start(image: str) -> str:
        container = docker("run", "--detach", "--publish=127.0.0.1::8080", image)
        stack.callback(docker, "rm", "--force", container)
        return docker("port", container, "8080")

    return start


@pytest.fixture
def start_program(stack: ExitStack) -> Callable[[Path, dict[str, str], list[str]], str]:
    """Starts Python programs that listen at the port of the variable PORT; ends them at the end."""

    def start(folder: Path, environ: dict[str, str], arguments: list[str]) -> str:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, *arguments],
                cwd=folder,
                env={"PATH": os.environ["PATH"], "PORT": port, **environ},
            )
        )
        stack.callback(process.kill)
        return f"127.0.0.1:{port}"

    return start


class Example:
    """A copy of an example that tests change and submit."""

    def __init__(self, name: str, folder: Path, data: Path, aliases: dict[str, str]) -> None:
        self.folder = folder
        self.data = data
        self._aliases = aliases
        self._values: dict[str, str] = {"_PYTHON": "buildrunner/python"}
        shutil.copytree(EXAMPLES / name, folder)

    def submit(self, *, code: int = 0, **values: str) -> Run:
        aliases = [f"--image-alias={name}={image}" for name, image in self._aliases.items()]
        substitutions = ",".join(f"{k}={v}" for k, v in {**self._values, **values}.items())
        done = buildrunner(
            *("submit", str(self.folder), "--output=json", "--project=shop", *aliases),
            f"--substitutions={substitutions}",
            XDG_DATA_HOME=str(self.data),
        )
        assert done.returncode == code, done.stdout[-8000:] + done.stderr[-2000:]
        return Run(done.stdout)

    def replace(self, name: str, old: str, new: str) -> None:
        """Change a file."""
        path = self.folder / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))


@pytest.fixture
def gcloud_image(builder_images: None) -> Iterator[Callable[[str], str]]:
    """Makes an image of gcloud that uses a stand-in."""
    names: list[str] = []

    def make(address: str) -> str:
        name = f"buildrunner-tests/gcloud:{uuid.uuid4().hex[:12]}"
        lines = [f"ENV {key}={value}" for key, value in environment(address).items()]
        text = "\n".join(["FROM buildrunner/gcloud", *lines])
        subprocess.run(
            ["docker", "build", "--tag", name, "-"], input=text, text=True, check=True,
            capture_output=True,
        )  # fmt: skip
        names.append(name)
        return name

    yield make
    for name in names:
        remove_image(name)


def get(cloud: GoogleCloud, url: str) -> str:
    """Fetch a URL of a deployed app, as the public would."""
    connection = HTTPConnection(cloud.address, timeout=30)
    with closing(connection):
        connection.request("GET", url)
        answer = connection.getresponse()
        assert answer.status == 200
        return answer.read().decode().strip()


def statuses(run: Run) -> dict[str, str]:
    return {name: step["status"] for name, step in run.steps.items()}


def in_bucket(gcs: GcsServer) -> Callable[[str], bytes]:
    """Return a reader of objects by their addresses."""

    def content(url: str) -> bytes:
        bucket, _, name = url.removeprefix("https://storage.googleapis.com/").partition("/")
        return gcs.get(bucket, name)

    return content


# The same app as before, except that it reports another version: its unit tests do not see that.
BREAK = ("return 200, VERSION", 'return 200, VERSION.replace("-", "x")')

# -- Cloud Run -------------------------------------------------------------------------------------

SERVICES = "/apis/serving.knative.dev/v1/namespaces/shop/services"
INVOKERS = "/v1/projects/shop/locations/europe-west1/services/roman:setIamPolicy"


def test_cloud_run_gets_the_image_by_digest_and_its_traffic_goes_back_after_a_failed_check(
    machine_address: str,
    registry: Registry,
    start_image: Callable[[str], str],
    gcloud_image: Callable[[str], str],
    tmp_path: Path,
) -> None:
    with google_cloud(machine_address, CloudRun(start_image)) as cloud:
        aliases = {"gcr.io/cloud-builders/gcloud": gcloud_image(cloud.address)}
        example = Example("deploy-run", tmp_path / "source", tmp_path / "data", aliases)
        first = example.submit(_REGISTRY=registry.address)
        url = "http://roman-5qz2.a.run.app"
        assert get(cloud, f"{url}/version") == first.build["id"]
        assert get(cloud, f"{url}/42") == "XLII"
        digest = first.build["results"]["images"][0]["digest"]
        create, invokers, traffic = cloud.requests
        assert create[:3] == ("POST", "europe-west1-run.googleapis.com", SERVICES)
        (container,) = create.body["spec"]["template"]["spec"]["containers"]
        assert container["image"] == f"{registry.address}/roman@{digest}"
        assert invokers[:3] == ("POST", "run.googleapis.com", INVOKERS)
        assert invokers.body["policy"]["bindings"] == [
            {"role": "roles/run.invoker", "members": ["allUsers"]}
        ]
        assert traffic[:3] == ("PUT", "europe-west1-run.googleapis.com", f"{SERVICES}/roman")
        assert traffic.body["spec"]["traffic"] == [{"latestRevision": True, "percent": 100}]

        del cloud.requests[:]
        example.replace("service.py", *BREAK)
        second = example.submit(_REGISTRY=registry.address, code=1)
        assert statuses(second)["check"] == statuses(second)["roll-back"] == "FAILURE"
        assert get(cloud, f"{url}/version") == first.build["id"]
        back = cloud.requests[-1]
        assert back[:3] == ("PUT", "europe-west1-run.googleapis.com", f"{SERVICES}/roman")
        assert back.body["spec"]["traffic"] == [{"revisionName": "roman-00001-abc", "percent": 100}]
        assert "images" not in second.build["results"]

        # After a rollback the traffic stays with the old revision, unless the next build moves it.
        example.replace("service.py", *reversed(BREAK))
        third = example.submit(_REGISTRY=registry.address)
        assert get(cloud, f"{url}/version") == third.build["id"]
        assert cloud.unknown == []


def test_a_deployment_that_cloud_run_refuses_fails_the_build(
    machine_address: str,
    registry: Registry,
    start_image: Callable[[str], str],
    gcloud_image: Callable[[str], str],
    tmp_path: Path,
) -> None:
    with google_cloud(machine_address, CloudRun(start_image)) as cloud:
        cloud.refuse["POST", "/services"] = (
            403,
            {"error": {"code": 403, "message": "no permission", "status": "PERMISSION_DENIED"}},
        )
        aliases = {"gcr.io/cloud-builders/gcloud": gcloud_image(cloud.address)}
        example = Example("deploy-run", tmp_path / "source", tmp_path / "data", aliases)
        run = example.submit(_REGISTRY=registry.address, code=1)
        assert statuses(run)["deploy"] == "FAILURE"
        assert any("no permission" in line for line in run.log("deploy"))
        assert [request.path for request in cloud.requests] == [SERVICES]


# -- App Engine ------------------------------------------------------------------------------------

VERSIONS = "/v1/apps/shop/services/default/versions"


def test_app_engine_gets_each_file_by_digest_and_a_version_that_fails_its_check_is_deleted(
    machine_address: str,
    start_program: Callable[[Path, dict[str, str], list[str]], str],
    gcloud_image: Callable[[str], str],
    tmp_path: Path,
) -> None:
    def start(files: dict[str, bytes], version: str) -> str:
        folder = tmp_path / version
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return start_program(folder, {"GAE_VERSION": version}, ["main.py"])

    with running_gcs() as gcs:
        gcs.bucket("staging.shop.appspot.com")
        app = AppEngine(start, in_bucket(gcs))
        storage = gcs.url.removeprefix("http://")
        with google_cloud(machine_address, app, storage=storage) as cloud:
            aliases = {"gcr.io/cloud-builders/gcloud": gcloud_image(cloud.address)}
            example = Example("deploy-app-engine", tmp_path / "s", tmp_path / "data", aliases)
            first = example.submit()
            version = f"v{first.build['id'][:8]}"
            assert get(cloud, f"http://{version}-dot-shop.ew.r.appspot.com/42") == "XLII"
            digests = {
                name: sha1((example.folder / "app" / name).read_bytes()).hexdigest()
                for name in ("app.yaml", "main.py", "roman.py")
            }
            place = "https://storage.googleapis.com/staging.shop.appspot.com"
            body = {
                "id": version,
                "runtime": "python312",
                "entrypoint": {"shell": "python3 main.py"},
                "automaticScaling": {"standardSchedulerSettings": {"maxInstances": 2}},
                "deployment": {
                    "files": {
                        name: {"sha1Sum": digest, "sourceUrl": f"{place}/{digest}"}
                        for name, digest in digests.items()
                    }
                },
            }
            service = VERSIONS.removesuffix("/versions")
            split = {"split": {"allocations": {version: 1.0}, "shardBy": "IP"}}
            made, promoted = cloud.requests
            assert made[:3] == ("POST", "appengine.googleapis.com", VERSIONS)
            assert made.body == body
            assert promoted[:3] == ("PATCH", "appengine.googleapis.com", service)
            assert promoted.body == split

            del cloud.requests[:]
            example.replace("app/main.py", BREAK[0], 'return 200, VERSION.lstrip("v")')
            second = example.submit(code=1)
            assert statuses(second)["check"] == "FAILURE"
            assert statuses(second)["promote-or-roll-back"] == "FAILURE"
            assert app.traffic == {version: 1.0}
            assert list(app.versions) == [version]
            made, deleted = cloud.requests
            assert (made.method, made.path) == ("POST", VERSIONS)
            assert deleted[:3] == (
                *("DELETE", "appengine.googleapis.com"),
                f"{VERSIONS}/v{second.build['id'][:8]}",
            )
            assert cloud.unknown == []


# -- Cloud Functions -------------------------------------------------------------------------------

FUNCTIONS = "/v2/projects/shop/locations/europe-west1/functions"
FRAMEWORK = """\
import os
from http.server import BaseHTTPRequestHandler, HTTPServer
from main import answer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        text, status = answer(self)
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


def test_a_function_gets_its_source_by_digest_and_the_source_before_after_a_failed_check(
    machine_address: str,
    start_program: Callable[[Path, dict[str, str], list[str]], str],
    gcloud_image: Callable[[str], str],
    tmp_path: Path,
) -> None:
    def start(archive: bytes) -> str:
        folder = tmp_path / sha256(archive).hexdigest()
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            opened.extractall(folder)
        return start_program(folder, {}, ["-c", FRAMEWORK])

    with running_gcs() as gcs:
        gcs.bucket("shop-functions")
        storage = gcs.url.removeprefix("http://")
        functions = CloudFunctions(start, in_bucket(gcs))
        with google_cloud(machine_address, functions, storage=storage) as cloud:
            aliases = {"gcr.io/cloud-builders/gcloud": gcloud_image(cloud.address)}
            example = Example("deploy-functions", tmp_path / "s", tmp_path / "data", aliases)
            first = example.submit()
            url = "http://roman-ew.a.run.app"
            assert get(cloud, f"{url}/version") == first.build["id"]
            assert get(cloud, f"{url}/42") == "XLII"
            archive, _ = sorted(gcs.names("shop-functions"), key=lambda name: "current" in name)
            digest = sha256(gcs.get("shop-functions", archive)).hexdigest()
            assert archive == f"roman/sha256-{digest}.zip"
            current = gcs.get("shop-functions", "roman/current").decode()
            assert current.strip() == f"gs://shop-functions/{archive}"
            _, create, invokers = cloud.requests
            assert create == Request(
                "POST",
                "cloudfunctions.googleapis.com",
                FUNCTIONS,
                {
                    "name": f"{FUNCTIONS.removeprefix('/v2/')}/roman",
                    "labels": {"deployment-tool": "cli-gcloud"},
                    "buildConfig": {
                        "runtime": "python312",
                        "entryPoint": "answer",
                        "environmentVariables": {},
                        "source": {
                            "storageSource": {"bucket": "shop-functions", "object": archive}
                        },
                    },
                    "serviceConfig": {"environmentVariables": {}},
                },
            )
            assert invokers[:3] == ("POST", "run.googleapis.com", INVOKERS)

            del cloud.requests[:]
            example.replace("main.py", "return VERSION, 200", 'return VERSION.upper() + "x", 200')
            example.replace("test_main.py", '("development", 200)', '("DEVELOPMENTx", 200)')
            second = example.submit(code=1)
            assert statuses(second)["check"] == "FAILURE"
            assert statuses(second)["keep-or-roll-back"] == "FAILURE"
            sources = [
                request.body["buildConfig"]["source"]["storageSource"]["object"]
                for request in cloud.requests
                if request.method == "PATCH"
            ]
            assert len(sources) == 2
            assert sources[0] != archive == sources[1]
            assert get(cloud, f"{url}/version") == first.build["id"]
            assert gcs.get("shop-functions", "roman/current").decode() == current
            assert cloud.unknown == []


# -- Kubernetes ------------------------------------------------------------------------------------

DEPLOYMENT = "/apis/apps/v1/namespaces/default/deployments/roman"
PROXY = "/api/v1/namespaces/default/services/roman:http/proxy"


def test_kubernetes_gets_the_image_by_digest_and_the_image_before_after_a_failure(
    builder_images: None,
    machine_address: str,
    registry: Registry,
    start_image: Callable[[str], str],
    tmp_path: Path,
) -> None:
    with kubernetes_api(machine_address, start_image) as cluster:
        example = Example("deploy-kubernetes", tmp_path / "source", tmp_path / "data", {})
        (example.folder / "kubeconfig").write_text(cluster.kubeconfig())
        values = {"_REGISTRY": registry.address}
        first = example.submit(**values)
        image = f"{registry.address}/roman@{first.build['results']['images'][0]['digest']}"
        assert cluster.image(DEPLOYMENT) == image
        assert cluster.proxied(f"{PROXY}/version") == (200, f"{first.build['id']}\n".encode())

        example.replace("service.py", *BREAK)
        second = example.submit(code=1, **values)
        assert statuses(second)["deploy"] == "SUCCESS"
        assert statuses(second)["check"] == statuses(second)["roll-back"] == "FAILURE"
        assert cluster.image(DEPLOYMENT) == image

        example.replace("service.py", *reversed(BREAK))
        cluster.ready = {image}
        third = example.submit(code=1, _TIMEOUT="1s", **values)
        assert statuses(third)["deploy"] == "FAILURE"
        assert statuses(third)["roll-back"] == "FAILURE"
        assert any("not ready after 1 s" in line for line in third.log("deploy"))
        assert cluster.image(DEPLOYMENT) == image
