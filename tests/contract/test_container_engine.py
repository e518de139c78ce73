"""What every container engine promises: the fake passes the same suite as the real one.

A spec says what its container does in the environment that `FakeEngine` documents; in a real
container the script PROGRAM reads the same environment.
"""

from __future__ import annotations

import io
import tarfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
from docker import APIClient
from msgspec.structs import replace

from buildrunner.containers import start_gate
from buildrunner.containers.docker.containers import DockerContainers
from buildrunner.containers.fake import FakeEngine
from buildrunner.containers.protocol import (
    LABEL_BUILD,
    ContainerEngine,
    ContainerSpec,
    ErrorOutput,
    Mount,
    TransferProgress,
)
from buildrunner.errors import (
    ContainerNameTaken,
    ContainerStartError,
    EngineError,
    GateRefused,
    ImagePullError,
    ImagePushError,
    NotFound,
)
from tests.conftest import remove_image

PROGRAM = """
[ -z "$ON_SIGTERM" ] || trap 'exit $ON_SIGTERM' TERM
printf %s "$OUTPUT"
printf %s "$ERRORS" >&2
if [ -n "$SLEEP" ]; then sleep 600 & wait; fi
[ -z "$WRITE" ] || printf %s "${WRITE#*=}" > "${WRITE%%=*}"
[ -z "$READ" ] || cat "$READ" 2>/dev/null || exit 1
[ -z "$OOM" ] || exec tail /dev/zero
exit ${EXIT_CODE:-0}
"""

Progress = Callable[[TransferProgress], None]


class Bench:
    """One engine under test, and names that are free on it."""

    def __init__(self, engine: ContainerEngine, image: str, labels: dict[str, str]) -> None:
        self.engine = engine
        self.image = image
        self.labels = labels
        self.unique = uuid.uuid4().hex[:12]

    def spec(self, *env: str, **fields: object) -> ContainerSpec:
        """A container that does what ``env`` says."""
        return ContainerSpec(
            image=self.image,
            entrypoint=("/nosuch",) if any("START_FAIL" in one for one in env) else ("sh",),
            cmd=("-c", PROGRAM),
            env=env,
            **{"labels": self.labels, "network": "none", **fields},
        )

    def run(self, *env: str, **fields: object) -> tuple[bytes, int]:
        """Output and exit code of one container's whole life."""
        container = self.engine.create_container(self.spec(*env, **fields))
        output = b"".join(self.engine.start_container(container, attach=True))
        code = self.engine.wait_container(container).code
        self.engine.remove_container(container)
        return output, code

    def gated(self, *env: str, **fields: object) -> ContainerSpec:
        """The same, made to be started ahead of its turn."""
        spec = self.spec(*env, **{"name": f"gated-{uuid.uuid4().hex}", **fields})
        if not self.engine.info().needs_start_gate:
            return spec
        program = start_gate.gate_program(self.engine.info().architecture)
        assert program is not None
        volume = f"buildrunner-test-gate-{uuid.uuid4().hex}"
        mount = Mount(source=volume, target=start_gate.FOLDER)
        self.engine.create_volume(volume, self.labels)
        container = self.engine.create_container(self.spec(mounts=(mount,)))
        tar = tar_of({start_gate.PATH.lstrip("/"): program}, mode=0o755)
        self.engine.fill_mount(container, start_gate.FOLDER, tar)
        self.engine.remove_container(container)
        mounts = (*spec.mounts, replace(mount, read_only=True))
        return replace(spec, gate=start_gate.PATH, mounts=mounts)


real = pytest.param("docker", marks=pytest.mark.docker)
only_real_engines = pytest.mark.parametrize("bench", [real], indirect=True)


@pytest.fixture(params=["fake", real])
def bench(request: pytest.FixtureRequest, build_labels: dict[str, str]) -> Bench:
    if request.param == "fake":
        return Bench(FakeEngine(["busybox"]), "busybox", build_labels)
    engine = request.getfixturevalue("docker_engine")
    return Bench(engine, request.getfixturevalue("busybox"), build_labels)


@pytest.fixture
def registry_name(bench: Bench, request: pytest.FixtureRequest) -> Iterator[str]:
    """A repository in a registry that the engine reaches."""
    if isinstance(bench.engine, FakeEngine):
        yield f"127.0.0.1:5000/{bench.unique}"
        return
    name = f"{request.getfixturevalue('registry').address}/{bench.unique}"
    yield name
    for tag in bench.engine.tags_of(name):
        remove_image(f"{name}:{tag}")


def tar_of(
    files: dict[str, bytes], links: Mapping[str, str] | None = None, *, mode: int = 0o644
) -> Iterable[bytes]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            tar.addfile(entry, io.BytesIO(content))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type = tarfile.SYMTYPE
            entry.linkname = target
            tar.addfile(entry)
    content = buffer.getvalue()
    return (content[start : start + 1000] for start in range(0, len(content), 1000))


def files_of(tar: Iterable[bytes]) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(b"".join(tar))) as archive:
        return {
            entry.name: content.read()
            for entry in archive
            if (content := archive.extractfile(entry)) is not None
        }


def make_image(engine: ContainerEngine, name: str, content: bytes) -> None:
    engine.import_image(name, tar_of({"content": content}), cmd=["/content"])


def streams(chunks: Iterable[bytes]) -> tuple[bytes, bytes]:
    """What came of stdout, and of stderr."""
    chunks = list(chunks)
    errors = b"".join(chunk for chunk in chunks if isinstance(chunk, ErrorOutput))
    return b"".join(chunk for chunk in chunks if not isinstance(chunk, ErrorOutput)), errors


def keeps_manifests(engine: ContainerEngine) -> bool:
    """Whether an image has a digest before any registry has seen it."""
    return engine.info().containerd_images or is_podman(engine)


def is_podman(engine: ContainerEngine) -> bool:
    return engine.info().name == "podman"


def ignore(_: TransferProgress) -> None:
    pass


class TestOneContainersLife:
    def test_gives_its_whole_output_and_its_exit_code(self, bench: Bench) -> None:
        assert bench.run("OUTPUT=one\ntwo\nno newline at the end", "EXIT_CODE=3") == (
            b"one\ntwo\nno newline at the end",
            3,
        )

    def test_that_says_nothing_gives_no_output(self, bench: Bench) -> None:
        assert bench.run() == (b"", 0)

    def test_loses_no_byte_in_any_of_many_parallel_runs(self, bench: Bench) -> None:
        with ThreadPoolExecutor(4) as pool:
            runs = list(pool.map(lambda n: bench.run(f"OUTPUT={n}", f"EXIT_CODE={n}"), range(8)))
        assert runs == [(str(n).encode(), n) for n in range(8)]

    def test_can_be_started_without_listening(self, bench: Bench) -> None:
        container = bench.engine.create_container(bench.spec("OUTPUT=unheard", "EXIT_CODE=4"))
        assert list(bench.engine.start_container(container, attach=False)) == []
        assert bench.engine.wait_container(container).code == 4

    def test_keeps_going_while_its_output_is_read_slowly(self, bench: Bench) -> None:
        container = bench.engine.create_container(bench.spec("OUTPUT=early", "SLEEP=x"))
        output = bench.engine.start_container(container, attach=True)
        assert next(output) == b"early"
        bench.engine.kill_container(container)
        assert list(output) == []

    def test_tells_its_errors_from_its_output(self, bench: Bench) -> None:
        container = bench.engine.create_container(bench.spec("OUTPUT=good", "ERRORS=bad"))
        assert streams(bench.engine.start_container(container, attach=True)) == (b"good", b"bad")

    def test_another_process_reads_the_output_of_what_runs_from_its_beginning(
        self, bench: Bench
    ) -> None:
        container = bench.engine.create_container(
            bench.spec("OUTPUT=good\n", "ERRORS=bad\n", "SLEEP=x", "ON_SIGTERM=5", keep_log=True)
        )
        first = bench.engine.start_container(container, attach=True)
        assert next(first) in (b"good\n", b"bad\n")
        output = bench.engine.follow_container(container)
        begun = [next(output), next(output)]
        bench.engine.kill_container(container, "SIGTERM")
        assert streams([*begun, *output]) == (b"good\n", b"bad\n")
        assert bench.engine.wait_container(container).code == 5

    def test_another_process_reads_the_output_and_the_end_of_what_has_ended(
        self, bench: Bench
    ) -> None:
        text = "".join(f"{number:010}\n" for number in range(9_000))  # no line is like another
        container = bench.engine.create_container(
            bench.spec(f"OUTPUT={text}", "ERRORS=bad", "EXIT_CODE=3", keep_log=True)
        )
        bench.engine.start_container(container, attach=False)
        bench.engine.wait_container(container)
        output = bench.engine.follow_container(container)
        assert streams(output) == (text.encode(), b"bad")
        assert bench.engine.wait_container(container).code == 3

    def test_a_container_is_found_by_its_labels_and_tells_whether_it_was_started(
        self, bench: Bench
    ) -> None:
        labels = {**bench.labels, "buildrunner.test": bench.unique}
        created = bench.engine.create_container(bench.spec(labels=labels))
        started = bench.engine.create_container(bench.spec(labels=labels))
        bench.engine.start_container(started, attach=False)
        bench.engine.wait_container(started)
        found = bench.engine.find_containers({"buildrunner.test": bench.unique})
        assert {one.id: one.was_started for one in found} == {created: False, started: True}
        ended = {created: False, started: True}
        deadline = time.monotonic() + 30  # Docker's list is a little behind the end of a container
        while {one.id: one.has_ended for one in found} != ended and time.monotonic() < deadline:
            found = bench.engine.find_containers({"buildrunner.test": bench.unique})
        assert {one.id: one.has_ended for one in found} == ended
        assert all(one.labels.items() >= labels.items() for one in found)

    def test_only_what_was_never_started_is_removed_as_unstarted(self, bench: Bench) -> None:
        created, running, ended = (
            bench.engine.create_container(bench.spec("SLEEP=x" if at == 1 else "EXIT_CODE=3"))
            for at in range(3)
        )
        for one in (running, ended):
            bench.engine.start_container(one, attach=False)
        bench.engine.wait_container(ended)
        assert bench.engine.remove_unstarted(created)
        assert bench.engine.remove_unstarted(created)  # gone is gone
        assert not bench.engine.remove_unstarted(running)
        assert not bench.engine.remove_unstarted(ended)
        assert bench.engine.wait_container(ended).code == 3
        bench.engine.kill_container(running)
        assert bench.engine.wait_container(running).code == 137

    def test_what_is_being_started_is_either_removed_before_or_not_at_all(
        self, bench: Bench
    ) -> None:
        """A container that was removed as unstarted never ran, and never will."""
        with ThreadPoolExecutor(2) as pool:
            for _ in range(8):
                container = bench.engine.create_container(bench.spec("EXIT_CODE=3"))
                starting = pool.submit(bench.engine.start_container, container, attach=False)
                removing = pool.submit(bench.engine.remove_unstarted, container)
                if (error := removing.exception(30)) is not None:
                    assert "its result is lost" in str(error)
                    starting.result(30)
                elif removing.result():
                    assert starting.exception(30) is not None
                else:
                    starting.result(30)
                    assert bench.engine.wait_container(container).code == 3

    @only_real_engines  # the fake one looks and removes under one lock
    def test_one_that_starts_and_ends_right_before_its_removal_is_not_taken_for_unstarted(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        container = bench.engine.create_container(bench.spec("EXIT_CODE=0"))
        remove = APIClient.remove_container

        def remove_late(client: APIClient, container_id: str, **options: bool) -> None:
            bench.engine.start_container(container_id, attach=False)
            bench.engine.wait_container(container_id)
            remove(client, container_id, **options)

        monkeypatch.setattr(APIClient, "remove_container", remove_late)
        with pytest.raises(EngineError, match="ran while it was removed"):
            bench.engine.remove_unstarted(container)

    def test_a_kill_releases_the_reader_and_every_waiter(self, bench: Bench) -> None:
        container = bench.engine.create_container(bench.spec("OUTPUT=up", "SLEEP=x"))
        output = bench.engine.start_container(container, attach=True)
        assert next(output) == b"up"
        with ThreadPoolExecutor(3) as pool:
            waiters = [pool.submit(bench.engine.wait_container, container) for _ in range(2)]
            reader = pool.submit(list, output)
            bench.engine.kill_container(container)
            assert [one.result(30).code for one in waiters] == [137, 137]
            assert reader.result(30) == []

    def test_a_kill_is_not_taken_for_lack_of_memory(self, bench: Bench) -> None:
        container = bench.engine.create_container(bench.spec("SLEEP=x"))
        bench.engine.start_container(container, attach=False)
        bench.engine.kill_container(container)
        assert not bench.engine.wait_container(container).oom_killed

    def test_lack_of_memory_is_named(self, bench: Bench) -> None:
        if not bench.engine.info().limits_resources:
            pytest.skip("this engine can't limit memory")
        container = bench.engine.create_container(bench.spec("OOM=1", memory_bytes=8 * 1024**2))
        bench.engine.start_container(container, attach=False)
        exit_ = bench.engine.wait_container(container)
        assert (exit_.code, exit_.oom_killed) == (137, True)

    def test_an_exit_of_its_own_with_137_is_no_lack_of_memory(self, bench: Bench) -> None:
        container = bench.engine.create_container(bench.spec("EXIT_CODE=137", "OUTPUT=last words"))
        output = bench.engine.start_container(container, attach=True)
        assert b"".join(output) == b"last words"
        exit_ = bench.engine.wait_container(container)
        assert (exit_.code, exit_.oom_killed) == (137, False)

    def test_sigterm_lets_it_end_by_itself(self, bench: Bench) -> None:
        container = bench.engine.create_container(
            bench.spec("OUTPUT=up", "SLEEP=x", "ON_SIGTERM=5")
        )
        output = bench.engine.start_container(container, attach=True)
        assert next(output) == b"up"
        bench.engine.kill_container(container, "SIGTERM")
        assert bench.engine.wait_container(container).code == 5

    def test_its_end_can_be_asked_for_again(self, bench: Bench) -> None:
        container = bench.engine.create_container(bench.spec("EXIT_CODE=7"))
        bench.engine.start_container(container, attach=False)
        assert [bench.engine.wait_container(container).code for _ in range(3)] == [7, 7, 7]

    def test_killing_what_does_not_run_is_no_error(self, bench: Bench) -> None:
        container = bench.engine.create_container(bench.spec())
        bench.engine.kill_container(container)
        bench.engine.start_container(container, attach=False)
        bench.engine.wait_container(container)
        bench.engine.kill_container(container)
        bench.engine.remove_container(container)
        bench.engine.kill_container(container)

    def test_removing_ends_it_and_can_be_repeated(self, bench: Bench) -> None:
        container = bench.engine.create_container(bench.spec("SLEEP=x"))
        output = bench.engine.start_container(container, attach=True)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(bench.engine.remove_container, [container] * 4))
        bench.engine.remove_container(container)
        assert list(output) == []
        assert bench.engine.list_owned(bench.labels).containers == ()

    def test_one_that_can_not_start_says_why(self, bench: Bench) -> None:
        container = bench.engine.create_container(bench.spec("START_FAIL=/nosuch is not there"))
        with pytest.raises(ContainerStartError, match="/nosuch") as caught:
            bench.engine.start_container(container, attach=True)
        assert caught.value.container_code == 127
        bench.engine.remove_container(container)

    def test_one_of_a_missing_image_is_not_made(self, bench: Bench) -> None:
        with pytest.raises(EngineError, match="no image 'buildrunner-tests/nosuch'"):
            bench.engine.create_container(ContainerSpec(image="buildrunner-tests/nosuch"))

    def test_a_name_is_had_by_one_only(self, bench: Bench) -> None:
        name = f"buildrunner-test-{bench.unique}"
        bench.engine.create_container(bench.spec(name=name))
        with pytest.raises(ContainerNameTaken, match=name):
            bench.engine.create_container(bench.spec(name=name))
        assert bench.engine.remove_unstarted(name)
        bench.engine.create_container(bench.spec(name=name))

    def test_waiting_for_what_is_not_there_is_an_error(self, bench: Bench) -> None:
        with pytest.raises(EngineError):
            bench.engine.wait_container("0" * 64)

    def test_a_start_that_was_prepared_gives_all_output_and_the_exit_code(
        self, bench: Bench
    ) -> None:
        container = bench.engine.create_container(bench.spec("OUTPUT=prepared", "EXIT_CODE=3"))
        bench.engine.prepare_start(container)
        bench.engine.prepare_start(container)
        output = b"".join(bench.engine.start_container(container, attach=True))
        assert (output, bench.engine.wait_container(container).code) == (b"prepared", 3)

    def test_a_start_that_was_prepared_may_never_come(self, bench: Bench) -> None:
        container = bench.engine.create_container(bench.spec("OUTPUT=never"))
        bench.engine.prepare_start(container)
        bench.engine.remove_container(container)
        assert container not in bench.engine.list_owned(bench.labels).containers

    def test_a_prepared_start_that_fails_says_so(self, bench: Bench) -> None:
        holder = bench.engine.create_container(bench.spec())
        guest = bench.engine.create_container(bench.spec(network=f"container:{holder}"))
        bench.engine.prepare_start(guest)
        with pytest.raises(EngineError):
            bench.engine.start_container(guest, attach=True)


class TestNetworks:
    def test_are_made_once_and_removed_once(self, bench: Bench) -> None:
        name = f"buildrunner-test-{bench.unique}"
        for _ in range(2):
            bench.engine.ensure_network(name, bench.labels)
        assert bench.engine.list_owned(bench.labels).networks == (name,)
        assert [bench.engine.remove_network(name) for _ in range(2)] == [True, True]
        assert bench.engine.list_owned(bench.labels).networks == ()

    def test_are_made_once_by_many_at_once(self, bench: Bench) -> None:
        name = f"buildrunner-test-{bench.unique}"
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: bench.engine.ensure_network(name, bench.labels), range(4)))
        assert bench.engine.list_owned(bench.labels).networks == (name,)

    def test_stay_while_a_container_is_on_them(self, bench: Bench) -> None:
        name = f"buildrunner-test-{bench.unique}"
        bench.engine.ensure_network(name, bench.labels)
        container = bench.engine.create_container(bench.spec("SLEEP=x", network=name))
        bench.engine.start_container(container, attach=False)
        assert not bench.engine.remove_network(name)
        bench.engine.remove_container(container)
        assert bench.engine.remove_network(name)

    def test_know_who_runs_on_them(self, bench: Bench) -> None:
        name = f"buildrunner-test-{bench.unique}"
        bench.engine.ensure_network(name, bench.labels)
        assert bench.engine.network_members(name) == ()
        running = bench.engine.create_container(bench.spec("SLEEP=x", network=name))
        bench.engine.create_container(bench.spec(network=name))
        bench.engine.start_container(running, attach=False)
        (member,) = bench.engine.network_members(name)
        assert member.id == running
        assert member.labels.items() >= bench.labels.items()


LOOK = """
env | grep -v HOSTNAME | sort; pwd; id; ls /builder /proc/1/fd; readlink /proc/1/fd/0
tr '\\0' ' ' </proc/1/cmdline; cat /proc/1/oom_score_adj; stat -L -c '%t %T %a' /proc/1/fd/0
grep -E '^(Sig[PIC]|Shd|Cap|NoNew|Seccomp|Groups)' /proc/1/status
grep ^SigBlk /proc/self/status  # process 1 blocks all signals for as long as it forks
"""


class TestStartAhead:
    def test_the_program_runs_once_its_turn_has_come(self, bench: Bench) -> None:
        volume = f"buildrunner-test-{bench.unique}"
        bench.engine.create_volume(volume, bench.labels)
        mounts = (Mount(source=volume, target="/data"),)
        spec = bench.gated("OUTPUT=out", "ERRORS=err", "EXIT_CODE=3", "WRITE=/data/x=1")
        container = bench.engine.create_container(replace(spec, mounts=(*spec.mounts, *mounts)))
        bench.engine.start_ahead(container)
        assert bench.run("READ=/data/x", mounts=mounts) == (b"", 1)
        output = bench.engine.start_container(container, attach=True)
        assert streams(output) == (b"out", b"err")
        assert bench.engine.wait_container(container).code == 3
        assert bench.run("READ=/data/x", mounts=mounts) == (b"1", 0)

    def test_a_container_with_a_gate_can_be_started_like_any_other(self, bench: Bench) -> None:
        container = bench.engine.create_container(bench.gated("OUTPUT=x", "EXIT_CODE=4"))
        assert b"".join(bench.engine.start_container(container, attach=True)) == b"x"
        assert bench.engine.wait_container(container).code == 4

    def test_needs_no_gate_for_what_can_be_prepared(self, bench: Bench) -> None:
        container = bench.engine.create_container(bench.spec("OUTPUT=x"))
        bench.engine.start_ahead(container)
        assert b"".join(bench.engine.start_container(container, attach=True)) == b"x"

    def test_a_program_that_can_not_run_is_refused(self, bench: Bench) -> None:
        container = bench.engine.create_container(bench.gated("START_FAIL=not found"))

        def run() -> None:
            bench.engine.start_ahead(container)  # Podman says so here
            list(bench.engine.start_container(container, attach=True))

        with pytest.raises((GateRefused, ContainerStartError)):
            run()
        bench.engine.remove_container(container)

    def test_one_that_was_killed_before_its_turn_does_not_run(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Another question could be answered before the news of the end has come.
        monkeypatch.delattr(DockerContainers, "_torn_down")
        if is_podman(bench.engine):
            pytest.skip("Podman does not kill what has no program yet")
        container = bench.engine.create_container(bench.gated("OUTPUT=x"))
        bench.engine.start_ahead(container)
        bench.engine.kill_container(container)
        bench.engine.wait_container(container)
        with pytest.raises(GateRefused):
            list(bench.engine.start_container(container, attach=True))

    def test_another_process_lets_it_go_and_reads_all_output(self, bench: Bench) -> None:
        spec = bench.gated("OUTPUT=x", "ERRORS=y", "EXIT_CODE=5", keep_log=True)
        if not spec.gate and is_podman(bench.engine):
            pytest.skip("Podman's containers that wait count as not started")
        container = bench.engine.create_container(spec)
        bench.engine.start_ahead(container)
        (found,) = bench.engine.find_containers({LABEL_BUILD: bench.labels[LABEL_BUILD]})
        assert found.was_started
        assert not found.has_ended
        assert streams(bench.engine.follow_container(container)) == (b"x", b"y")
        assert bench.engine.wait_container(container).code == 5
        assert streams(bench.engine.follow_container(container)) == (b"x", b"y")

    @only_real_engines  # the fake one runs no programs
    @pytest.mark.parametrize("user", ["", "65534:65534"])
    def test_the_program_finds_what_it_finds_without_a_gate(self, bench: Bench, user: str) -> None:
        def seen(spec: ContainerSpec) -> bytes:
            spec = replace(spec, cmd=("-c", LOOK), user=user, env=("A=1",), workdir="/tmp")
            container = bench.engine.create_container(spec)
            bench.engine.start_ahead(container)
            output = b"".join(bench.engine.start_container(container, attach=True))
            bench.engine.wait_container(container)
            bench.engine.remove_container(container)
            return output.replace(b"gate\n", b"")

        plain = bench.spec(mounts=(Mount(source=f"x-{bench.unique}", target="/builder/x"),))
        gated = bench.gated(mounts=plain.mounts)
        assert seen(gated).decode() == seen(plain).decode()


class TestVolumesAndFiles:
    def test_a_volume_carries_files_from_container_to_container(self, bench: Bench) -> None:
        volume = f"buildrunner-test-{bench.unique}"
        assert volume in bench.engine.create_volume(volume, bench.labels)
        mounts = (Mount(source=volume, target="/data"),)
        assert bench.run("WRITE=/data/note=kept", mounts=mounts) == (b"", 0)
        assert bench.run("READ=/data/note", mounts=mounts) == (b"kept", 0)
        assert bench.run("READ=/data/note") == (b"", 1)
        for _ in range(2):
            bench.engine.remove_volume(volume)
        assert bench.engine.list_owned(bench.labels).volumes == ()

    def test_a_volume_in_use_is_not_removed(self, bench: Bench) -> None:
        volume = f"buildrunner-test-{bench.unique}"
        bench.engine.create_volume(volume, bench.labels)
        bench.engine.create_container(bench.spec(mounts=(Mount(source=volume, target="/data"),)))
        with pytest.raises(EngineError, match=r"in use|being used"):
            bench.engine.remove_volume(volume)

    def test_files_go_in_before_the_start_and_come_out_after_the_end(self, bench: Bench) -> None:
        volume = f"buildrunner-test-{bench.unique}"
        bench.engine.create_volume(volume, bench.labels)
        container = bench.engine.create_container(
            bench.spec(
                "READ=/data/in",
                "WRITE=/data/out=made",
                mounts=(Mount(source=volume, target="/data"),),
            )
        )
        bench.engine.put_archive(container, "/data", tar_of({"in": b"given " * 100_000}))
        output = b"".join(bench.engine.start_container(container, attach=True))
        assert output == b"given " * 100_000
        assert bench.engine.wait_container(container).code == 0
        assert files_of(bench.engine.get_archive(container, "/data/out")) == {"out": b"made"}
        top = "" if is_podman(bench.engine) else "data"
        assert files_of(bench.engine.get_archive(container, "/data")) == {
            f"{top}/in": b"given " * 100_000,
            f"{top}/out": b"made",
        }

    def test_a_mount_is_filled_with_links_that_lead_anywhere(self, bench: Bench) -> None:
        volume = f"buildrunner-test-{bench.unique}"
        bench.engine.create_volume(volume, bench.labels)
        mounts = (Mount(source=volume, target="/data"),)
        container = bench.engine.create_container(bench.spec(mounts=mounts))
        links = {"data/up": "../../etc", "data/away": "/etc"}
        bench.engine.fill_mount(container, "/data", tar_of({"data/in": b"given"}, links))
        assert bench.run("READ=/data/in", mounts=mounts) == (b"given", 0)

    def test_what_was_copied_out_of_a_mount_fills_another_one(self, bench: Bench) -> None:
        """So workspaces of failed builds are kept and restored."""
        mounts = []
        for number in range(2):
            volume = f"buildrunner-test-{bench.unique}-{number}"
            bench.engine.create_volume(volume, bench.labels)
            mounts.append((Mount(source=volume, target="/data"),))
        first, second = (bench.engine.create_container(bench.spec(mounts=one)) for one in mounts)
        bench.engine.fill_mount(first, "/data", tar_of({"data/in": b"given"}))
        bench.engine.fill_mount(second, "/data", bench.engine.get_archive(first, "/data"))
        assert bench.run("READ=/data/in", mounts=mounts[1]) == (b"given", 0)

    def test_a_path_that_is_not_there_is_not_found(self, bench: Bench) -> None:
        container = bench.engine.create_container(bench.spec())
        with pytest.raises(NotFound, match="/no/such"):
            bench.engine.get_archive(container, "/no/such")
        if not is_podman(bench.engine):  # which makes the folder
            with pytest.raises(NotFound, match="/no/such"):
                bench.engine.put_archive(container, "/no/such", tar_of({"big": b"x" * 3_000_000}))


class TestLabels:
    def test_find_all_of_a_build_and_nothing_else(self, bench: Bench) -> None:
        owner = f"owner-{bench.unique}"
        more = {**bench.labels, "buildrunner.test": owner}
        container = bench.engine.create_container(bench.spec(labels=more))
        other = bench.engine.create_container(bench.spec())
        bench.engine.create_volume(f"buildrunner-test-{bench.unique}", more)
        owned = bench.engine.list_owned({"buildrunner.test": owner})
        assert owned.containers == (container,)
        assert owned.volumes == (f"buildrunner-test-{bench.unique}",)
        assert set(bench.engine.list_owned(bench.labels).containers) == {container, other}
        assert owner in bench.engine.label_values("buildrunner.test")
        assert container in bench.engine.list_owned({"buildrunner.test": ""}).containers

    def test_of_nobody_find_nothing(self, bench: Bench) -> None:
        owned = bench.engine.list_owned({LABEL_BUILD: "no such build"})
        assert (owned.containers, owned.volumes, owned.networks) == ((), (), ())


class TestImages:
    def test_are_found_by_name_and_by_id(self, bench: Bench) -> None:
        found = bench.engine.find_image(bench.image)
        assert found is not None
        assert found.cmd == ("sh",)
        if not keeps_manifests(bench.engine):
            assert found.digest == ""
        assert bench.engine.find_image(found.id) == msgspec.structs.replace(found, digest="")
        assert bench.engine.find_image("buildrunner-tests/nosuch") is None
        assert bench.engine.find_image("not a valid NAME") is None

    def test_have_the_tags_that_were_given(self, bench: Bench, registry_name: str) -> None:
        for tag in ("v2", "v1"):
            make_image(bench.engine, f"{registry_name}:{tag}", b"same")
        assert bench.engine.tags_of(registry_name) == ("v1", "v2")
        assert bench.engine.tags_of(f"{registry_name}/other") == ()

    def test_have_a_digest_once_pushed(self, bench: Bench, registry_name: str) -> None:
        name = f"{registry_name}:v1"
        make_image(bench.engine, name, b"pushed")
        seen: list[TransferProgress] = []
        pushed = bench.engine.push_image(name, on_progress=seen.append, cancel=threading.Event())
        assert pushed.name == name
        assert pushed.digest.startswith("sha256:")
        assert pushed.size_bytes > 0
        assert is_podman(bench.engine) or (pushed.layers_pushed, pushed.layers_reused) == (1, 0)
        assert pushed.log[0].startswith("The push refers to repository [")
        assert pushed.log[-1].startswith(f"v1: digest: {pushed.digest} size: ")
        assert seen
        again = bench.engine.push_image(name, on_progress=ignore, cancel=threading.Event())
        assert is_podman(bench.engine) or (again.layers_pushed, again.layers_reused) == (0, 1)
        assert again.digest == pushed.digest
        if is_podman(bench.engine):  # which packs the layers once more, with another digest
            return
        found = bench.engine.find_image(name)
        assert found is not None
        assert found.digest == pushed.digest
        by_digest = bench.engine.find_image(f"{registry_name}@{pushed.digest}")
        assert by_digest is not None
        assert by_digest.id == found.id

    def test_can_be_given_one_more_name(self, bench: Bench, registry_name: str) -> None:
        make_image(bench.engine, f"{registry_name}:v1", b"named twice")
        image = bench.engine.find_image(f"{registry_name}:v1")
        assert image is not None
        assert bench.engine.tag_image(image.id, f"{registry_name}:v2")
        bench.engine.untag_image(f"{registry_name}:v1")
        bench.engine.untag_image(f"{registry_name}:v1")
        assert bench.engine.find_image(f"{registry_name}:v1") is None
        found = bench.engine.find_image(f"{registry_name}:v2")
        assert found is not None
        assert found.id == image.id
        assert not bench.engine.tag_image(f"sha256:{'0' * 64}", f"{registry_name}:v3")

    def test_are_not_found_by_the_last_part_of_their_name(
        self, bench: Bench, registry_name: str
    ) -> None:
        """Issue: Podman ran ``docker.io/acme/python`` for a step that named ``python``."""
        make_image(bench.engine, f"{registry_name}:latest", b"of another")
        assert bench.engine.find_image(registry_name) is not None
        assert bench.engine.find_image(registry_name.rpartition("/")[2]) is None

    @only_real_engines
    def test_are_not_found_by_a_short_beginning_of_their_id(
        self, bench: Bench, registry_name: str
    ) -> None:
        """A step that names ``cafe`` ran any image whose id begins so."""
        make_image(bench.engine, f"{registry_name}:latest", b"of another")
        image = bench.engine.find_image(registry_name)
        assert image is not None
        digits = image.id.removeprefix("sha256:")
        assert bench.engine.find_image(digits[:11]) is None
        found = bench.engine.find_image(digits[:12])
        assert found is not None
        assert found.id == image.id

    def test_do_not_lose_a_name_that_only_ends_like_the_given_one(
        self, bench: Bench, registry_name: str
    ) -> None:
        make_image(bench.engine, f"{registry_name}:latest", b"of another")
        bench.engine.untag_image(registry_name.rpartition("/")[2])
        assert bench.engine.find_image(registry_name) is not None

    def test_push_latest_when_they_have_no_tag(self, bench: Bench, registry_name: str) -> None:
        make_image(bench.engine, f"{registry_name}:latest", b"latest")
        pushed = bench.engine.push_image(
            registry_name, on_progress=ignore, cancel=threading.Event()
        )
        assert pushed.name == f"{registry_name}:latest"

    def test_that_nobody_built_are_not_pushed(self, bench: Bench, registry_name: str) -> None:
        with pytest.raises(ImagePushError, match="no image") as caught:
            bench.engine.push_image(
                f"{registry_name}:none", on_progress=ignore, cancel=threading.Event()
            )
        assert not caught.value.transient

    def test_come_back_by_a_pull(self, bench: Bench, registry_name: str) -> None:
        name = f"{registry_name}:v1"
        make_image(bench.engine, name, b"round trip")
        pushed = bench.engine.push_image(name, on_progress=ignore, cancel=threading.Event())
        if is_podman(bench.engine):  # which keeps the digest that it had before the push, too
            remove_image(name)
        seen: list[TransferProgress] = []
        pulled = bench.engine.pull_image(name, on_progress=seen.append, cancel=threading.Event())
        assert pulled.digest == pushed.digest
        assert all(one.image == name for one in seen)
        assert seen

    def test_that_no_registry_has_can_not_be_pulled(self, bench: Bench, registry_name: str) -> None:
        with pytest.raises(ImagePullError, match=f"{registry_name}/nosuch:1") as caught:
            bench.engine.pull_image(
                f"{registry_name}/nosuch:1", on_progress=ignore, cancel=threading.Event()
            )
        assert not caught.value.transient

    def test_a_cancelled_transfer_ends_at_once(self, bench: Bench, registry_name: str) -> None:
        make_image(bench.engine, f"{registry_name}:v1", b"never sent")
        cancel = threading.Event()
        cancel.set()
        with pytest.raises(ImagePushError, match="cancelled"):
            bench.engine.push_image(f"{registry_name}:v1", on_progress=ignore, cancel=cancel)
        with pytest.raises(ImagePullError, match="cancelled"):
            bench.engine.pull_image(f"{registry_name}:v1", on_progress=ignore, cancel=cancel)


def test_an_engine_describes_itself(bench: Bench) -> None:
    info = bench.engine.info()
    assert info.name
    assert info.version
    assert info.cpus > 0
    assert info.memory_bytes > 0
    assert info.architecture
    assert bench.engine.info() == info
