"""What only the Docker adapter has: limits, logs, lost networks, much output, a cheap import."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import tracemalloc
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from buildrunner import wiring
from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.containers.protocol import ContainerSpec, Mount
from buildrunner.errors import ContainerStartError, EngineError

HEAVY = ("asyncio", "docker", "email", "http.client", "requests", "ssl", "subprocess", "tarfile")


def run(engine: DockerEngine, spec: ContainerSpec) -> tuple[str, int]:
    container = engine.create_container(spec)
    output = b"".join(engine.start_container(container, attach=True)).decode()
    code = engine.wait_container(container).code
    engine.remove_container(container)
    return output, code


@pytest.mark.docker
class TestContainers:
    @pytest.fixture
    def spec(self, busybox: str, build_labels: dict[str, str]) -> ContainerSpec:
        return ContainerSpec(image=busybox, network="none", labels=build_labels)

    def changed(self, spec: ContainerSpec, script: str, **fields: object) -> ContainerSpec:
        return msgspec.structs.replace(spec, cmd=("sh", "-c", script), **fields)

    def test_get_what_the_spec_says(self, docker_engine: DockerEngine, spec: ContainerSpec) -> None:
        wanted = self.changed(
            spec,
            'echo "$A|$(pwd)|$(id -u)|$(hostname)|$(cat /etc/hosts | grep -c 10.9.8.7)"',
            env=("A=b c=d",),
            workdir="/made/here",
            user="65534",
            extra_hosts=("other:10.9.8.7",),
            network="bridge",
            name=f"buildrunner-test-{uuid.uuid4().hex[:12]}",
            init=True,
        )
        output, code = run(docker_engine, wanted)
        parts = output.strip().split("|")
        assert (parts[0], parts[1], parts[2], parts[4], code) == (
            "b c=d",
            "/made/here",
            "65534",
            "1",
            0,
        )

    def test_get_both_of_their_outputs(
        self, docker_engine: DockerEngine, spec: ContainerSpec
    ) -> None:
        output, _ = run(docker_engine, self.changed(spec, "echo out; echo err >&2"))
        assert sorted(output.split()) == ["err", "out"]

    def test_run_the_images_own_command_when_none_is_given(
        self, docker_engine: DockerEngine, spec: ContainerSpec
    ) -> None:
        assert run(docker_engine, spec) == ("", 0)  # sh, whose input is empty

    def test_an_entrypoint_drops_the_images_command(
        self, docker_engine: DockerEngine, spec: ContainerSpec
    ) -> None:
        wanted = msgspec.structs.replace(spec, entrypoint=("echo",), cmd=())
        assert run(docker_engine, wanted) == ("\n", 0)

    def test_nothing_to_run_is_an_error(
        self, docker_engine: DockerEngine, spec: ContainerSpec
    ) -> None:
        with pytest.raises(EngineError, match=r"[Nn]o command"):
            docker_engine.create_container(msgspec.structs.replace(spec, entrypoint=(), cmd=()))

    def test_see_no_more_than_their_limits(
        self, docker_engine: DockerEngine, spec: ContainerSpec
    ) -> None:
        container = docker_engine.create_container(
            self.changed(spec, "true", cpus=0.5, memory_bytes=64 * 1024**2)
        )
        body = docker_engine._api.send("GET", f"/containers/{container}/json")
        assert b'"NanoCpus":500000000' in body
        assert b'"Memory":67108864' in body

    def test_can_not_write_where_they_only_may_read(
        self, docker_engine: DockerEngine, spec: ContainerSpec, tmp_path: object
    ) -> None:
        mount = Mount(source=str(tmp_path), target="/in", bind=True, read_only=True)
        assert run(docker_engine, self.changed(spec, "echo x >/in/x", mounts=(mount,)))[1] == 1

    def test_a_host_folder_that_is_not_there_is_named(
        self, docker_engine: DockerEngine, spec: ContainerSpec
    ) -> None:
        mount = Mount(source="/no/such/folder", target="/in", bind=True)
        with pytest.raises(EngineError, match="/no/such/folder"):
            docker_engine.create_container(self.changed(spec, "true", mounts=(mount,)))

    def test_keep_their_log_only_when_asked_to(
        self, docker_engine: DockerEngine, spec: ContainerSpec
    ) -> None:
        for keep in (True, False):
            container = docker_engine.create_container(
                self.changed(spec, "echo kept", keep_log=keep)
            )
            docker_engine.start_container(container, attach=False)
            docker_engine.wait_container(container)
            logs = subprocess.run(["docker", "logs", container], capture_output=True, check=False)
            assert (b"kept" in logs.stdout) is keep

    def test_a_program_that_can_not_be_executed_is_told_from_one_that_is_not_there(
        self, docker_engine: DockerEngine, spec: ContainerSpec
    ) -> None:
        codes = []
        for program in ("nosuch", "/etc"):
            container = docker_engine.create_container(
                self.changed(spec, "", entrypoint=(program,))
            )
            with pytest.raises(ContainerStartError, match=program) as caught:
                docker_engine.start_container(container, attach=True)
            codes.append(caught.value.container_code)
        assert codes == [127, 126]

    def test_all_of_a_million_lines_arrive_in_little_memory(
        self, docker_engine: DockerEngine, spec: ContainerSpec
    ) -> None:
        script = "seq 1 1000000"
        container = docker_engine.create_container(self.changed(spec, script))
        tracemalloc.start()
        lines = 0
        last = b""
        for chunk in docker_engine.start_container(container, attach=True):
            lines += chunk.count(b"\n")
            last = (last + chunk)[-8:]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (lines, last) == (1_000_000, b"1000000\n")
        assert peak < 2 * 1024**2


@pytest.mark.docker
class TestLostNetworks:
    def test_one_that_was_removed_under_us_is_made_again(
        self, docker_engine: DockerEngine, busybox: str, build_labels: dict[str, str]
    ) -> None:
        name = f"buildrunner-test-{uuid.uuid4().hex[:12]}"
        docker_engine.ensure_network(name, build_labels)
        container = docker_engine.create_container(
            ContainerSpec(image=busybox, cmd=("true",), network=name, labels=build_labels)
        )
        subprocess.run(["docker", "network", "rm", name], check=True, capture_output=True)
        docker_engine.start_container(container, attach=False)
        assert docker_engine.wait_container(container).code == 0
        assert docker_engine.list_owned(build_labels).networks == (name,)

    def test_one_that_nobody_made_is_named(
        self, docker_engine: DockerEngine, busybox: str, build_labels: dict[str, str]
    ) -> None:
        container = docker_engine.create_container(
            ContainerSpec(image=busybox, network="nosuch-network", labels=build_labels)
        )
        with pytest.raises(ContainerStartError, match="network nosuch-network not found"):
            docker_engine.start_container(container, attach=False)

    def test_builds_that_start_together_make_one(
        self, docker_engine: DockerEngine, busybox: str, build_labels: dict[str, str]
    ) -> None:
        name = f"buildrunner-test-{uuid.uuid4().hex[:12]}"
        engines = [wiring.container_engine() for _ in range(6)]
        together = threading.Barrier(len(engines))

        def start(engine: DockerEngine) -> int:
            together.wait(30)
            engine.ensure_network(name, build_labels)
            container = engine.create_container(
                ContainerSpec(image=busybox, cmd=("true",), network=name, labels=build_labels)
            )
            engine.start_container(container, attach=False)
            return engine.wait_container(container).code

        with ThreadPoolExecutor(len(engines)) as pool:
            assert list(pool.map(start, engines)) == [0] * len(engines)
        for engine in engines:
            engine.close()
        assert docker_engine.list_owned(build_labels).networks == (name,)

    def test_those_that_take_no_turns_agree_on_one(
        self, docker_engine: DockerEngine, build_labels: dict[str, str]
    ) -> None:
        """As builds of two users, or of two machines on one engine."""
        name = f"buildrunner-test-{uuid.uuid4().hex[:12]}"
        engines = [DockerEngine(docker_engine.endpoint) for _ in range(4)]
        together = threading.Barrier(len(engines))

        def ensure(engine: DockerEngine) -> None:
            together.wait(30)
            engine.ensure_network(name, build_labels)

        with ThreadPoolExecutor(len(engines)) as pool:
            list(pool.map(ensure, engines))
        for engine in engines:
            engine.close()
        assert docker_engine.list_owned(build_labels).networks == (name,)


@pytest.mark.docker
@pytest.mark.parametrize(
    "config", ['{"auths": {"x": {"auth": "aGVsbG8="}}}', '{"auths": []}', "[]"]
)
def test_a_docker_config_that_can_not_be_read_keeps_no_engine_from_work(
    docker_engine: DockerEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str
) -> None:
    (tmp_path / "config.json").write_text(config)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with contextlib.closing(DockerEngine(docker_engine.endpoint)) as engine:
        assert engine.info().version


@pytest.mark.docker
def test_tags_are_of_exactly_that_repository(docker_engine: DockerEngine, busybox: str) -> None:
    repository, _, tag = busybox.rpartition(":")
    assert tag in docker_engine.tags_of(repository)
    assert tag in docker_engine.tags_of(f"docker.io/{repository}")
    assert docker_engine.tags_of(repository[:-1]) == ()


def test_importing_it_imports_nothing_heavy() -> None:
    code = (
        "import sys, buildrunner.containers.docker.engine, buildrunner.sandboxes.guardian\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
