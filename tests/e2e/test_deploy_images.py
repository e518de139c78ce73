"""The images of `deploy/`, as buildrunner builds them: in a Pod, and by Docker Compose.

The containers of a Pod are started on the engine of this machine, from the manifest of the Job that
the server creates. The image of PostgreSQL, which can't be pulled everywhere, is made of this
machine's programs. Nothing else differs from a cluster's node and from `docs/how-to/compose.md`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.conftest import DEADLINE_S, compose_command, needs_root, remove_image, wait_until
from tests.e2e.test_pools import cluster, signer, token_of  # noqa: F401  (fixtures)
from tests.e2e.test_serve import api, serve  # noqa: F401  (a fixture)
from tests.fixtures_git import free_port
from tests.fixtures_postgres import server_programs

pytestmark = [needs_root, pytest.mark.docker, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
BUILDRUNNER = [sys.executable, "-m", "buildrunner"]
REGISTRY = "buildrunner-tests"
ENGINE_SOCKET = "unix:///run/buildrunner/docker.sock"

POOL = """
[pools.linux]
server = "http://{address}:{port}"
worker_image = "{registry}/worker:{tag}"
engine_image = "{registry}/engine:{tag}"
namespace = "ci"
memory = "768Mi"
cpu = "1"
"""


def output_of(*argv, **options):
    """The output of a command; a failure shows what it says."""
    done = subprocess.run(
        [str(one) for one in argv], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, f"{argv}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout


def docker(*arguments, **options):
    return output_of("docker", *arguments, **options)


@pytest.fixture(scope="module")
def images(docker_engine):
    """The tag of the images of server, worker and engine, as this tree has them.

    The last images stay under the tag ``latest``: the next ones share their layers.
    """
    tag = uuid.uuid4().hex[:12]
    output_of(*BUILDRUNNER, "builders", "install", "base", "docker", "engine", cwd=ROOT)
    values = f"_BASE=buildrunner/base,_REGISTRY={REGISTRY},_TAG={tag}"
    flags = ["--no-push", "--config=deploy/cloudbuild.yaml", f"--substitutions={values}"]
    output_of(*BUILDRUNNER, "submit", *flags, ".", cwd=ROOT)
    docker("tag", "buildrunner/engine", f"{REGISTRY}/engine:{tag}")
    yield tag
    for name in ("server", "worker"):
        docker("tag", f"{REGISTRY}/{name}:{tag}", f"{REGISTRY}/{name}:latest")
    for name in ("server", "worker", "engine"):
        docker("rmi", f"{REGISTRY}/{name}:{tag}")


def load(image, *engine):
    """Load an image into an engine, as if the engine had pulled the image.

    Args:
        image: an image of this machine's engine.
        engine: the command of the engine's client.
    """
    with subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE) as saved:
        output_of(*engine, "load", stdin=saved.stdout)


class Pod:
    """The containers of a Pod on this machine's engine, in a network of their own.

    Args:
        spec: of the Pod.
        token: the token that Kubernetes writes for the worker.
        pause: image of the container that has the network.
    """

    def __init__(self, spec, token, pause):
        self.name = f"buildrunner-tests-{uuid.uuid4().hex[:12]}"
        # Not of pytest: paths of sockets are short.
        self.folder = Path(output_of("mktemp", "--directory").strip())
        self._spec = spec
        (self.folder / "token").mkdir()
        (self.folder / "token" / "token").write_text(token)
        docker("run", "--detach", "--name", self.name, pause, "sleep", "900")

    def start(self, container):
        """Start a container with the image, arguments, variables, mounts, rights and limits."""
        rights, limits = container["securityContext"], container["resources"]["limits"]
        capabilities = rights.get("capabilities", {})
        profiles = ("seccompProfile", "appArmorProfile")
        unconfined = [one for one in profiles if rights.get(one, {}).get("type") == "Unconfined"]
        docker(
            *("run", "--detach", f"--name={self.name}-{container['name']}"),
            f"--network=container:{self.name}",
            *(f"--env={one['name']}={one['value']}" for one in container["env"]),
            *(f"--volume={self._mounted(one)}" for one in container["volumeMounts"]),
            *(f"--cap-drop={one}" for one in capabilities.get("drop", ())),
            *(f"--cap-add={one}" for one in capabilities.get("add", ())),
            *(f"--security-opt={one[:-7].lower()}=unconfined" for one in unconfined),
            *(["--read-only"] if rights.get("readOnlyRootFilesystem") else []),
            *(
                ["--security-opt=no-new-privileges"]
                if rights.get("allowPrivilegeEscalation") is False
                else []
            ),
            *(f"--cpus={limits['cpu']}", f"--memory={limits['memory'].removesuffix('i').lower()}"),
            *(container["image"], *container["args"]),
        )

    def _mounted(self, mount):
        assert {one["name"] for one in self._spec["volumes"]} >= {mount["name"]}
        path = self.folder / mount["name"] / mount.get("subPath", "")
        path.mkdir(parents=True, exist_ok=True)
        return f"{path}:{mount['mountPath']}{':ro' if mount.get('readOnly') else ''}"

    def said(self):
        """All that the worker and the engine say."""
        names = [f"{self.name}-{one}" for one in ("engine", "worker")]
        logs = [
            subprocess.run(["docker", "logs", one], capture_output=True, text=True, check=False)
            for one in names
        ]
        return "\n".join(one.stdout + one.stderr for one in logs)

    def remove(self):
        """Remove the containers and their folders."""
        names = [f"{self.name}-worker", f"{self.name}-engine", self.name]
        subprocess.run(["docker", "rm", "--force", "--volumes", *names], capture_output=True)
        output_of("rm", "-rf", self.folder)


def test_the_containers_of_a_pod_run_a_build(
    images,
    serve,  # noqa: F811  (the fixture)
    cluster,  # noqa: F811  (the fixture)
    signer,  # noqa: F811  (the fixture)
    busybox,
    tmp_path,
):
    """The server makes the Job for a fake cluster; its worker's token is the fake cluster's."""
    routes = docker("run", "--rm", busybox, "ip", "route")
    address = re.search(r"default via (\S+)", routes)[1]  # of this machine
    port = free_port()
    (tmp_path / "buildrunner").mkdir()
    pool = POOL.format(address=address, port=port, registry=REGISTRY, tag=images)
    (tmp_path / "buildrunner" / "config.toml").write_text(pool)
    variables = {"XDG_CONFIG_HOME": str(tmp_path), "KUBECONFIG": cluster.kubeconfig(tmp_path)}
    flags = ("--sandbox=none", "--host=0.0.0.0", f"--port={port}")
    server = serve(*flags, f"--internal-url=http://127.0.0.1:{port}", env=variables)
    server.url = f"http://127.0.0.1:{port}"
    write = {"name": busybox, "args": ["sh", "-c", "echo of the first step > /workspace/note"]}
    read = {"name": busybox, "args": ["cat", "/workspace/note"]}
    with api(server) as http:
        options = {"pool": {"name": "projects/p/locations/global/workerPools/linux"}}
        body = {"steps": [write, read], "options": options}
        made = http.post("/v1/projects/p/builds", json=body)
        assert made.status_code == 200, made.text
        build = made.json()["metadata"]["build"]["id"]
        wait_until(lambda: bool(cluster.of("pods")))
        (pod,) = cluster.of("pods")
        pod["status"] = {"phase": "Running"}
        (engine,), (worker,) = pod["spec"]["initContainers"], pod["spec"]["containers"]
        running = Pod(pod["spec"], token_of(pod["metadata"], signer), busybox)
        try:
            running.start(engine)
            client = ("docker", f"--host=unix://{running.folder}/shared/docker.sock")
            wait_until(
                lambda: not subprocess.run([*client, "version"], capture_output=True).returncode
            )
            load(busybox, *client)
            running.start(worker)
            code = docker("wait", f"{running.name}-worker", timeout=DEADLINE_S).strip()
            ended = http.get(f"/v1/projects/p/builds/{build}").json()
            assert (code, ended["status"]) == ("0", "SUCCESS"), running.said()
        finally:
            running.remove()
        log = http.get(f"/buildrunner/v1/projects/p/builds/{build}/log").text
        assert "Step #1: of the first step\n" in log


ENTRYPOINT = """#!/bin/sh
# Stands in for the entrypoint of the image postgres: the variables mean the same.
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  initdb --pgdata="$PGDATA" --username="$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" \\
    --auth=scram-sha-256 --encoding=UTF8 --locale=C --no-sync
  echo 'host all all all scram-sha-256' >> "$PGDATA/pg_hba.conf"
  echo "CREATE DATABASE $POSTGRES_DB" | postgres --single -D "$PGDATA" postgres
fi
exec postgres -D "$PGDATA" -c listen_addresses='*' -c unix_socket_directories=/tmp
"""


@pytest.fixture(scope="module")
def postgres_image(busybox, tmp_path_factory):
    """An image with PostgreSQL of this machine."""
    context = tmp_path_factory.mktemp("postgres")
    programs = server_programs()
    version = programs.parent.name
    libraries = sorted((programs.parent / "lib").glob("*.so"))
    wanted = [programs / one for one in ("initdb", "postgres", "pg_isready")]
    wanted += [one for one in libraries if not one.name.startswith("llvmjit")]
    needed = re.findall(r"/\S+", output_of("ldd", *wanted).replace(":\n", "\n"))
    for path in {*map(str, wanted), *needed}:
        (context / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, context / path[1:])
    shutil.copytree(f"/usr/share/postgresql/{version}", context / "usr/share/postgresql" / version)
    (context / "entrypoint").write_text(ENTRYPOINT)
    (context / "entrypoint").chmod(0o755)
    data = "/var/lib/postgresql/data"
    (context / "Dockerfile").write_text(
        f"FROM {busybox}\n"
        "COPY . /\n"
        f"RUN mkdir -p {data} && chown nobody {data} && chmod 700 {data}\n"
        "USER nobody\n"
        f"ENV PATH={programs}:/bin PGDATA={data} PGHOST=/tmp\n"
        'ENTRYPOINT ["/entrypoint"]\n'
    )
    name = f"{REGISTRY}/postgres:{uuid.uuid4().hex[:12]}"
    docker("build", "--quiet", f"--tag={name}", context)
    yield name
    remove_image(name)


class Service:
    """The service of `deploy/compose.yaml`, in a folder of its own.

    Attributes:
        url: of the server.
    """

    def __init__(self, folder, tag, postgres):
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.project = f"buildrunner-tests-{uuid.uuid4().hex[:12]}"
        self._folder = folder
        self._environ = {
            **{name: os.environ[name] for name in ("PATH", "DOCKER_HOST") if name in os.environ},
            "HOME": str(folder),
            "COMPOSE_PROJECT_NAME": self.project,
            "BUILDRUNNER_REGISTRY": REGISTRY,
            "BUILDRUNNER_TAG": tag,
            "POSTGRES_IMAGE": postgres,
            "LISTEN": f"127.0.0.1:{port}",
            "PUBLIC_URL": self.url,
        }
        shutil.copy(ROOT / "deploy" / "compose.yaml", folder)
        self._secrets = folder / "secrets"
        self._secrets.mkdir(0o700)
        self.write_secret("database-password", "a-password")
        address = "postgresql://buildrunner:a-password@database/buildrunner"
        self.write_secret("database-url", address)
        for number in ("1", "2"):
            self.write_secret(f"worker-{number}-token", "")

    def compose(self, *arguments, **options):
        argv = [*compose_command(), *arguments]
        return output_of(*argv, cwd=self._folder, env=self._environ, **options)

    def write_secret(self, name, value):
        (self._secrets / name).write_text(value)

    def left(self):
        """The containers, volumes and networks of the service that exist."""
        label = f"label=com.docker.compose.project={self.project}"
        kinds = (["ps", "--all"], ["volume", "ls"], ["network", "ls"])
        return [
            one for kind in kinds for one in docker(*kind, "-q", "--filter", label).splitlines()
        ]


@pytest.fixture
def service(images, postgres_image, tmp_path):
    made = Service(tmp_path, images, postgres_image)
    yield made
    made.compose("down", "--volumes", "--timeout=1")
    assert made.left() == []


def test_compose_starts_a_service_that_runs_a_build(service, busybox, tmp_path):
    """The commands of the page, with a stand-in for the image of PostgreSQL."""
    service.compose("up", "--detach", "--wait", "server")
    for name in ("worker-1", "worker-2"):
        create = ["buildrunner", "tokens", "create", name, "--worker"]
        service.write_secret(f"{name}-token", service.compose("exec", "-T", "server", *create))
    service.compose("up", "--detach", "--wait")
    for engine in ("engine-1", "engine-2"):
        container = service.compose("ps", "--quiet", engine).strip()
        load(busybox, "docker", "exec", "-i", container, "docker", f"--host={ENGINE_SOCKET}")
    shown = service.compose("logs", "server")
    token = re.search(r"brt_\S+", shown)
    assert token, shown
    source = tmp_path / "source"
    source.mkdir()
    (source / "note").write_text("of an uploaded folder\n")
    (source / "cloudbuild.yaml").write_text(f"steps: [{{name: '{busybox}', args: [cat, note]}}]\n")
    done = subprocess.run(
        [*BUILDRUNNER, "--server", service.url, "submit", str(source)],
        env={**os.environ, "BUILDRUNNER_TOKEN": token[0], "XDG_DATA_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr + service.compose("logs")
    assert "of an uploaded folder\n" in done.stdout
    for worker in ("worker-1", "worker-2"):
        assert "works for http://server:8080" in service.compose("logs", worker)
