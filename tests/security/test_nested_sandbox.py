"""Attacks from a step on the machine below its nested sandbox."""

import base64
import http.server
import json
import os
import re
import stat
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from buildrunner import wiring
from buildrunner.addresses import Egress
from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.containers.protocol import LABEL_BUILD, ContainerEngine, ContainerSpec, Mount
from buildrunner.engine.run_options import RunOptions
from buildrunner.errors import EngineError, EngineUnavailable, UploadError
from buildrunner.sandboxes.nested import disk as disk_watch
from buildrunner.sandboxes.nested import disk as own_disk
from buildrunner.sandboxes.nested import folders, start
from buildrunner.sandboxes.nested.container import container_name
from buildrunner.sandboxes.nested.daemon import NestedDaemons
from buildrunner.sandboxes.nested.image_catalog import CACHE
from buildrunner.sandboxes.nested.place import NestedPlace
from buildrunner.sandboxes.protocol import OpenSandbox, Sandbox, SandboxLimits, isolates
from buildrunner.settings import Settings
from buildrunner.workspace.files import WorkspaceFiles
from buildrunner.workspace.protocol import PreparedWorkspace
from tests.conftest import Registry
from tests.e2e.submit_bench import Bench, Done

pytestmark = pytest.mark.docker

DOCKER = "gcr.io/cloud-builders/docker"


@pytest.fixture(scope="module")
def builders(docker_engine: DockerEngine) -> None:
    argv = [sys.executable, "-m", "buildrunner", "builders", "install", "docker", "engine"]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


@pytest.fixture
def bench(tmp_path: Path, docker_engine: DockerEngine, busybox: str, builders: None) -> Bench:
    folder = tmp_path / "source"
    folder.mkdir()
    return Bench(folder, tmp_path / "data", docker_engine, busybox)


def isolate_by(bench: Bench, mode: str) -> None:
    """Have sandboxes isolated as on a machine that gives ``mode`` at most."""
    folder = Path(bench.environ["XDG_DATA_HOME"], "buildrunner/sandboxes")
    note_mode(bench.engine, folder, mode)


def note_mode(host: DockerEngine, folder: Path, mode: str) -> None:
    """Have sandboxes of a data folder isolated by ``mode``."""
    image = host.find_image("buildrunner/engine")
    assert image is not None
    daemons = NestedDaemons(host.endpoint)
    way = f"{daemons.facts().identity} {image.id}"
    daemons.close()
    folder.mkdir(parents=True)
    (folder / "nested.json").write_text(json.dumps({way: mode}))


def attack(bench: Bench, script: str, image: str = DOCKER) -> Done:
    """Run a shell script in a step of a nested build; ``IMAGE`` in it is a busybox."""
    bench.write("attack.sh", script)
    bench.write(
        "cloudbuild.yaml",
        f"steps:\n- name: {image}\n  entrypoint: sh\n  args: [attack.sh]\n",
    )
    (bench.folder / "attack.sh").write_text(script.replace("IMAGE", bench.image))
    return bench.run("submit", ".", "--sandbox", "nested")


def test_a_privileged_container_of_a_step_is_nobody_on_the_machine(bench: Bench) -> None:
    core_pattern = Path("/proc/sys/kernel/core_pattern").read_text()
    done = attack(
        bench,
        """\
docker run --rm --privileged --pid host IMAGE sh -c '
  mkdir /fresh
  mount -t proc proc /fresh || true
  for pattern in /proc/sys/kernel/core_pattern /fresh/sys/kernel/core_pattern; do
    echo "|/bin/false" > $pattern && echo "WROTE $pattern"
  done
  read -r _ first _ < /proc/self/uid_map && echo "root is $first"'
true
""",
    )
    assert done.code == 0, done.out + done.err
    assert "WROTE" not in done.out
    assert re.search(r"root is [1-9]\d{4}", done.out)
    assert Path("/proc/sys/kernel/core_pattern").read_text() == core_pattern


def test_a_step_can_not_give_itself_the_machines_disks(bench: Bench) -> None:
    done = attack(
        bench,
        """\
set -- $(grep -m1 -E " (vda|sda|nvme0n1|xvda)$" /proc/partitions)
major=${1:-8} minor=${2:-0}
for rights in "--device-cgroup-rule 'a *:* rwm' --cap-add MKNOD" --privileged; do
  eval docker run --rm $rights IMAGE sh -c "'
    mknod /disk b $major $minor && dd if=/disk of=/dev/null bs=512 count=1 && echo READ THE DISK'"
done
true
""",
    )
    assert done.code == 0, done.out + done.err
    assert "READ THE DISK" not in done.out


CONNECT = "exec 3<> /dev/tcp/$address/80 && echo REACHED"


def test_a_step_does_not_reach_metadata_addresses(bench: Bench) -> None:
    done = attack(
        bench,
        f"""\
for address in 169.254.169.254 100.100.100.200 168.63.129.16; do
  for network in bridge host; do
    docker run --rm --privileged --network $network --entrypoint bash buildrunner/docker -c "
      address=$address; {CONNECT.replace("$", chr(92) + "$")}" 2>&1 | sed "s/^/$network: /"
  done
done
true
""",
    )
    assert done.code == 0, done.out + done.err
    assert "REACHED" not in done.out
    # An answer of ours: programs that ask whether they run in a cloud go on at once.
    assert done.out.count("/80: Connection refused") == 6, done.out


def test_the_rules_for_addresses_can_not_be_changed_by_a_step(bench: Bench) -> None:
    done = attack(
        bench,
        f"""\
docker run --rm --privileged --network host --pid host -v /:/sandbox \
  --entrypoint bash buildrunner/engine -c '
    iptables -F; iptables -P FORWARD ACCEPT; iptables -t nat -F
    for process in /proc/[0-9]*; do
      nsenter --net=$process/ns/net iptables -F EGRESS && echo FLUSHED
      nsenter --net=$process/ns/net ip link show engine && echo OUTSIDE
    done' 2> /dev/null
docker run --rm --network host --entrypoint bash buildrunner/docker -c '
  address=169.254.169.254; {CONNECT}' 2>&1
true
""",
    )
    assert done.code == 0, done.out + done.err
    assert not {"FLUSHED", "OUTSIDE", "REACHED"} & set(done.out.split()), done.out


class _Private(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.requested.append(self.path)  # type: ignore[attr-defined]
        body = b"for this machine only"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def private_service() -> Iterator[tuple[int, Sequence[str]]]:
    """A web server on the machine's loopback address that is no registry.

    Its port, and the paths that it was asked for.
    """
    requested: list[str] = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Private) as server:
        server.requested = requested  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port, requested
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("mode", ["user-namespace", "capabilities"])
def test_a_push_opens_no_port_on_which_no_registry_listens(
    bench: Bench, private_service: tuple[int, Sequence[str]], mode: str
) -> None:
    isolate_by(bench, mode)
    port, requested = private_service
    name = f"localhost:{port}/app"
    bench.write("Dockerfile", "FROM IMAGE\n")
    bench.write(
        "cloudbuild.yaml",
        f"""
steps:
- name: {DOCKER}
  args: [build, -t, {name}, .]
- name: {DOCKER}
  entrypoint: sh
  args: ['-c', 'docker run -d --network host IMAGE sh -c
    "while sleep 0.1; do wget -q -O - http://127.0.0.1:{port}/stolen; done"']
images: [{name}]
""",
    )
    done = bench.run("submit", ".", "--sandbox", "nested")
    assert done.code != 0
    assert str(port) in done.err
    assert requested  # by the server itself, which looks for a registry there
    assert "/stolen" not in requested


def test_a_socket_that_leads_to_the_machine_s_engine_is_not_connected_to(
    tmp_path: Path, docker_engine: DockerEngine, builders: None
) -> None:
    """The folder of the sandbox's socket is shared with it: some steps can put a link there."""
    note_mode(docker_engine, tmp_path / "server", "capabilities")
    sandbox = wiring.sandbox(
        "nested",
        data_folder=str(tmp_path / "server"),
        labels={"buildrunner.server": "test-walls"},
        settings=Settings(),
    )
    build_id = f"test-{uuid.uuid4()}"
    try:
        place = sandbox.open(build_id)
        engine = place.engine
        engine.have_image("buildrunner/docker", threading.Event())  # type: ignore[attr-defined]
        machine = docker_engine.endpoint.socket_path
        container = engine.create_container(
            ContainerSpec(
                image="buildrunner/docker",
                entrypoint=("sh",),
                cmd=("-c", f"cd /shared && mv docker.sock old && ln -s {machine} docker.sock"),
                mounts=(Mount(source="/run/buildrunner", target="/shared", bind=True),),
            )
        )
        engine.start_container(container, attach=False)
        assert engine.wait_container(container).code == 0
        assert (tmp_path / f"server/run/{build_id}/engine/docker.sock").is_symlink()
        engine.close()  # type: ignore[attr-defined]  # the next call needs a new connection
        with pytest.raises(EngineUnavailable):
            engine.ping()
        place.close()
    finally:
        sandbox.remove(build_id)
        sandbox.close()


def test_a_step_s_output_is_read_from_its_sandbox_only(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "machine/.docker").mkdir(parents=True)
    (tmp_path / "machine/output").write_text("a file of the machine")
    done = attack(
        bench,
        f"""\
docker run --rm -v /var/lib/docker/volumes:/volumes --entrypoint sh buildrunner/docker -c '
  cd /volumes && for one in *outputs*; do
    mv $one/_data $one/old && ln -s {tmp_path}/machine $one/_data && echo LINKED
  done'
""",
    )
    assert "LINKED" in done.out, done.out + done.err
    told = bench.run("builds", "describe", done.build_id, "--format", "json")
    stolen = base64.b64encode(b"a file of the machine").decode().rstrip("=")
    assert told.code == 0, told.err
    assert stolen not in told.out


WRITTEN = r"written 0\.\d GiB"

# A file without a name whose descriptor is on its way through a socket: no process has it open.
IN_FLIGHT = """\
perl -MSocket -MIO::Handle -e '
  socketpair(my $one, my $other, AF_UNIX, SOCK_STREAM, 0) or die;
  open(my $file, "+>", "/sandbox/workspace/hidden") or die;
  unlink "/sandbox/workspace/hidden";
  for (1..200) { print $file "x" x (1 << 20) or last }
  $file->flush;
  my ($data, $call) = ("x", `uname -m` =~ /x86/ ? 46 : 211);
  my $vector = pack("P Q", $data, 1);
  my $rights = pack("Q l l l x4", 20, SOL_SOCKET, SCM_RIGHTS, fileno $file);
  my $message = pack("Q L x4 P Q P Q l x4", 0, 0, $vector, 1, $rights, 24, 0);
  syscall($call, fileno $one, $message, 0) == 1 or die $!;
  close $file;
  sleep 300'"""

# Two folders change places while they are counted.
RENAMES = """\
cd /sandbox/workspace && mkdir a b a/full && head -c 200000000 /dev/zero > a/full/file
while :; do mv a/full b/full; mv b/full a/full; done"""


@pytest.fixture(params=["own disk", "measured"])
def disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the limit of a sandbox's disk is kept."""
    if request.param == "measured":
        monkeypatch.setattr(own_disk, "_CONTROL", "/dev/no-such-device")
    elif why := own_disk.why_no_own_disk(["/var/lib/docker"]):
        pytest.skip(why)
    return str(request.param)


@pytest.mark.parametrize(
    ("script", "mounts", "why"),
    [
        ("head -c 200000000 /dev/zero > /full", (), WRITTEN),
        ("exec 3> /full && rm /full && head -c 200000000 /dev/zero >&3", (), WRITTEN),
        ("head -c 200000000 /dev/zero > /sandbox/tmp/full", ("/",), WRITTEN),
        ("head -c 200000000 /dev/zero > /sandbox/var/tmp/full", ("/",), WRITTEN),
        ("head -c 200000000 /dev/zero > /sandbox/opt/containerd/full", ("/",), WRITTEN),
        ("seq 30000 | xargs touch", (), r"[23]\d,\d{3} files and folders"),
    ],
)
def test_a_build_that_fills_the_disk_is_ended_and_told_why(
    tmp_path: Path,
    busybox: str,
    builders: None,
    monkeypatch: pytest.MonkeyPatch,
    disk: str,
    script: str,
    mounts: tuple[str, ...],
    why: str,
) -> None:
    monkeypatch.setattr(disk_watch, "LEAST_FILES", 20_000)
    fill_the_disk(tmp_path, busybox, script, mounts, why)


@pytest.mark.parametrize("disk", ["own disk"], indirect=True)
@pytest.mark.parametrize("script", [IN_FLIGHT, RENAMES], ids=["in flight", "renames"])
def test_a_step_hides_no_file_from_the_limit_of_the_disk(
    tmp_path: Path, builders: None, disk: str, script: str
) -> None:
    fill_the_disk(tmp_path, "buildrunner/docker", script, ("/",), WRITTEN)


def fill_the_disk(
    tmp_path: Path, image: str, script: str, mounts: tuple[str, ...], why: str
) -> None:
    """Run a script in a sandbox with 64 MiB of disk, which ends for the reason ``why``."""
    sandbox = wiring.sandbox(
        "nested",
        data_folder=str(tmp_path / "server"),
        labels={"buildrunner.server": "test-walls"},
        settings=Settings(),
        limits=SandboxLimits(disk_bytes=64 << 20),
    )
    build_id = f"test-{uuid.uuid4()}"
    try:
        place = sandbox.open(build_id)
        assert place.options(RunOptions()).disk_bytes == 64 << 20
        engine = place.engine
        engine.have_image(image, threading.Event())  # type: ignore[attr-defined]
        container = engine.create_container(
            ContainerSpec(
                image=image,
                entrypoint=("sh", "-c"),
                cmd=(f"{script}; sleep 300",),
                mounts=tuple(Mount(source=one, target="/sandbox", bind=True) for one in mounts),
            )
        )
        engine.start_container(container, attach=False)
        with pytest.raises(EngineUnavailable, match=rf"has {why} .* --max-build-disk"):
            engine.wait_container(container)
        place.close()
    finally:
        sandbox.remove(build_id)
        sandbox.close()


class Places:
    """The places of builds in a nested sandbox whose folder is ``server``.

    Args:
        sandbox: opens them.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self._open: list[OpenSandbox] = []

    def open(self, build_id: str = "") -> ContainerEngine:
        """The engine of a build, with the image for `run_in`."""
        self._open.append(self.sandbox.open(build_id or f"test-{uuid.uuid4()}"))
        engine = self._open[-1].engine
        engine.have_image("buildrunner/docker", threading.Event())  # type: ignore[attr-defined]
        return engine

    def close(self) -> None:
        """Close and remove all."""
        for place in self._open:
            place.engine.close()  # type: ignore[attr-defined]
            place.close()
        for build_id in self.sandbox.builds_left():
            self.sandbox.remove(build_id)
        self.sandbox.close()


@pytest.fixture
def places(
    tmp_path: Path, docker_engine: DockerEngine, builders: None, request: pytest.FixtureRequest
) -> Iterator[Places]:
    """Places that are isolated by the mode of the parameter."""
    data = tmp_path / "server"
    note_mode(docker_engine, data, getattr(request, "param", "user-namespace"))
    labels = {"buildrunner.server": f"test-walls-{uuid.uuid4()}"}
    sandbox = wiring.sandbox("nested", data_folder=str(data), labels=labels, settings=Settings())
    with closing(Places(sandbox)) as made:
        yield made


def run_in(engine: ContainerEngine, script: str, *mounts: str) -> str:
    """Run a shell script in a step with the engine's socket; its output."""
    socket = Mount(source="/var/run/docker.sock", target="/var/run/docker.sock", bind=True)
    container = engine.create_container(
        ContainerSpec(
            image="buildrunner/docker",
            entrypoint=("sh",),
            cmd=("-c", script),
            mounts=(socket, *(Mount(source=one, target=one, bind=True) for one in mounts)),
        )
    )
    output = b"".join(bytes(one) for one in engine.start_container(container, attach=True))
    engine.wait_container(container)
    return output.decode()


RIGHTS = "--cap-add SYS_ADMIN --security-opt seccomp=unconfined"
SET_ID = "cp /bin/sh /run/buildrunner/root-shell && chmod 6755 /run/buildrunner/root-shell"


def test_a_step_can_leave_nothing_beside_its_engine(places: Places, tmp_path: Path) -> None:
    """A server that is not root: else a step leaves it a program of the machine's root."""
    build_id = f"test-{uuid.uuid4()}"
    shared = tmp_path / "server/run" / build_id / "engine"
    shared.mkdir(parents=True)
    os.chown(shared, 12345, 12346)
    engine = places.open(build_id)
    again = "docker run --rm --privileged --pid host -v /run/buildrunner:/run/buildrunner"
    remount = f"{again} buildrunner/docker mount -o remount,bind,rw /run/buildrunner"
    said = run_in(engine, f"({SET_ID}; {remount}; {SET_ID}) 2>&1", "/run/buildrunner")
    assert said.count("Read-only file system") == 2, said
    assert {one.name for one in shared.iterdir()} <= {*BESIDE}
    socket = (shared / "docker.sock").stat()
    assert (socket.st_uid, socket.st_gid) == (12345, 12346)
    assert stat.S_IMODE(socket.st_mode) == 0o660


BESIDE = ("certs.d", "docker.sock", "images.tar", "origins", "seccomp.json")


def test_the_disk_is_measured_where_the_engine_can_not_mount_one_of_its_own(
    tmp_path: Path, builders: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "OPTIONS", "no-such-option")
    sandbox = wiring.sandbox(
        "nested",
        data_folder=str(tmp_path / "server"),
        labels={"buildrunner.server": f"test-walls-{uuid.uuid4()}"},
        settings=Settings(),
        limits=SandboxLimits(disk_bytes=64 << 20),
    )
    with closing(Places(sandbox)) as places:
        place = sandbox.open(f"test-{uuid.uuid4()}")
        assert isinstance(place, NestedPlace)
        assert not place.ready().state.own_disk
        place.close()
        assert run_in(places.open(), "docker info > /dev/null && echo works").strip() == "works"


@pytest.mark.parametrize("disk", ["own disk"], indirect=True)
def test_a_step_writes_to_its_own_disk_and_to_memory_only(
    tmp_path: Path, builders: None, disk: str
) -> None:
    data = tmp_path / "server"
    sandbox = wiring.sandbox(
        "nested",
        data_folder=str(data),
        labels={"buildrunner.server": f"test-walls-{uuid.uuid4()}"},
        settings=Settings(),
        limits=SandboxLimits(disk_bytes=64 << 20),
    )
    look = """\
docker run --rm --privileged -v /:/sandbox --entrypoint sh buildrunner/docker -c '
  find /sandbox -xdev -type d -writable 2> /dev/null | while read -r path; do
    mountpoint -q "$path" || echo "root:$path"
  done
  while read -r line; do
    set -- $line
    path=$5
    while [ "$1" != - ]; do shift; done
    case $path in /sandbox/*)
      if touch "$path/x" 2> /dev/null; then rm "$path/x"; echo "$2:$3:$path"; fi ;;
    esac
  done < /proc/self/mountinfo'"""
    with closing(Places(sandbox)) as places:
        said = run_in(places.open(), look).split()
    # Overlays are of containers, and have their files on the engine's disk.
    kinds = ("ext4:/dev/loop", "tmpfs:", "mqueue:", "overlay:overlay:/sandbox/var/lib/docker/")
    assert [one for one in said if not one.startswith(kinds)] == []
    assert len([one for one in said if one.startswith("ext4:/dev/loop")]) >= 2, said


@pytest.mark.parametrize("places", ["capabilities"], indirect=True)
def test_what_a_step_leaves_as_root_of_the_machine_is_removed_with_the_build(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_id = f"test-{uuid.uuid4()}"
    engine = places.open(build_id)
    run_in(engine, SET_ID, "/run/buildrunner")
    left = tmp_path / "server/run" / build_id / "engine/root-shell"
    assert left.stat().st_uid == 0
    answers = ["Permission denied"]  # as a server gets that is not root
    real = folders.remove_tree
    monkeypatch.setattr(
        folders, "remove_tree", lambda path: answers.pop() if answers else real(path)
    )
    places.sandbox.remove(build_id)
    assert not answers
    assert not left.exists()


@pytest.mark.parametrize("places", ["user-namespace", "capabilities"], indirect=True)
def test_a_step_does_not_reach_what_listens_in_another_sandbox(
    places: Places, busybox: str
) -> None:
    of_victim = f"test-{uuid.uuid4()}"
    attacker, victim = places.open(), places.open(of_victim)
    victim.have_image(busybox, threading.Event())  # type: ignore[attr-defined]
    served = run_in(
        victim,
        f"""\
docker run -d -p 8080:80 {busybox} httpd -f -p 80 > /dev/null
docker run -d --network host {busybox} httpd -f -p 8081 > /dev/null
sleep 1
{reach("127.0.0.1", "host")}
""",
    )
    assert served.count("REACHED") == 2, served
    shown = subprocess.run(
        ["docker", "inspect", "-f", "{{.NetworkSettings.IPAddress}}", container_name(of_victim)],
        capture_output=True,
        text=True,
        check=True,
    )
    reached = run_in(attacker, reach(shown.stdout.strip(), "host bridge"))
    assert reached.count("tried") == 4, reached
    assert "REACHED" not in reached


def reach(address: str, networks: str) -> str:
    """A script that connects to what the victim serves."""
    return f"""\
for network in {networks}; do
  for port in 8080 8081; do
    docker run --rm --network $network --entrypoint bash buildrunner/docker -c "
      (exec 3<> /dev/tcp/{address}/$port) && echo REACHED; echo tried" 2>&1
  done
done
"""


def test_a_step_can_not_write_to_the_images_that_sandboxes_share(
    places: Places, busybox: str
) -> None:
    """The cache is mounted read-only; a step with SYS_ADMIN mounts it anew, writable."""
    places.open().have_image(busybox, threading.Event())  # type: ignore[attr-defined]
    places.sandbox.keep_spares(0)  # it caches the images that builds used
    engine = places.open()
    engine.have_image(busybox, threading.Event())  # type: ignore[attr-defined]
    said = run_in(
        engine,
        f"""\
docker run --rm {RIGHTS} -v {CACHE}:/cache {busybox} sh -c '
  ls /cache && echo LISTED
  mount -o remount,bind,rw /cache; touch /cache/x && echo WROTE && rm /cache/x
  mkdir /again && mount -o bind /cache /again && mount -o remount,bind,rw /again &&
  touch /again/x && echo WROTE && rm /again/x' 2>&1
""",
    )
    assert "LISTED" in said
    assert "WROTE" not in said, said


@pytest.mark.parametrize("places", ["capabilities"], indirect=True)
def test_with_capabilities_a_step_changes_shared_images_and_may_change_the_kernel(
    places: Places, busybox: str
) -> None:
    """The page on security says so; nothing is written to the kernel here."""
    engine = places.open()
    engine.have_image(busybox, threading.Event())  # type: ignore[attr-defined]
    said = run_in(
        engine,
        f"""\
docker run --rm {RIGHTS} -v {CACHE}:/cache {busybox} sh -c '
  mount -o remount,bind,rw /cache; touch /cache/x && echo WROTE && rm /cache/x
  mkdir /fresh && mount -t proc proc /fresh &&
  (exec 3> /fresh/sys/kernel/core_pattern) && echo OPENED' 2>&1
""",
    )
    assert {"WROTE", "OPENED"} <= set(said.split()), said


def test_sandboxes_share_the_kernel_of_the_machine(places: Places) -> None:
    engine = places.open()
    for shared in ("/proc/sys/kernel/random/boot_id", "/proc/sys/fs/file-max"):
        assert run_in(engine, f"cat {shared}") == Path(shared).read_text()


@pytest.mark.parametrize("places", ["capabilities"], indirect=True)
def test_with_capabilities_root_of_a_sandbox_is_the_machine_s(places: Places) -> None:
    assert run_in(places.open(), "cat /proc/self/uid_map").split() == ["0", "0", "4294967295"]


# The kernel limits these for each user, or for each user who makes a user namespace.
TAKE_ALL = {
    "keys": """
my ($kind, $name, $data) = ("keyring", "x", "");
$name++ while syscall($x86 ? 248 : 217, $kind, $name, $data, 0, -3) > 0;
$why = $!;""",
    "watchers of files": """
1 while syscall($x86 ? 294 : 26, 0) >= 0;
$why = $!;""",
    "namespaces": """
for (1..8) {
  pipe(my $told, my $tells);
  if (!fork) {
    my @held;
    while (syscall($x86 ? 272 : 97, 0x4000000) == 0) {
      open(my $file, "<", "/proc/self/ns/uts") or last;
      push @held, $file;
    }
    print $tells $!;
    close $tells;
    sleep 300;
  }
  close $tells;
  last if ($why = <$told>) !~ /many open files/;
}""",
}
NEED_ONE = "perl -e 'syscall(`uname -m` =~ /x86/ ? 294 : 26, 0) >= 0 or die' && echo runs"


@pytest.mark.parametrize("what", TAKE_ALL)
def test_no_step_takes_what_the_kernel_has_for_others(
    places: Places, busybox: str, what: str
) -> None:
    engine, other = places.open(), places.open()
    program = f"my ($x86, $why) = scalar(`uname -m` =~ /x86/); {TAKE_ALL[what]}"
    container = engine.create_container(
        ContainerSpec(
            image="buildrunner/docker",
            entrypoint=("sh", "-c", 'ulimit -n $(ulimit -Hn); exec perl -e "$0"'),
            cmd=(f'{program} $| = 1; print "stopped: $why\\n"; sleep 300',),
            privileged=True,
        )
    )
    said = bytes(next(iter(engine.start_container(container, attach=True)))).decode()
    assert re.search("stopped: .*(quota|many open files|No space)", said), said
    assert run_in(other, NEED_ONE) == "runs\n"
    subprocess.run(["sh", "-c", NEED_ONE], check=True)
    subprocess.run(["docker", "run", "--rm", "--network=none", busybox, "true"], check=True)
    engine.kill_container(container)


def test_a_step_hides_a_file_from_the_measure_of_the_disk(places: Places) -> None:
    """Where no file system of its own keeps the limit."""
    build_id = f"test-{uuid.uuid4()}"
    engine = places.open(build_id)
    script = IN_FLIGHT.replace("  sleep 300", '  print "SENT\\n"; STDOUT->flush; sleep 300')
    container = engine.create_container(
        ContainerSpec(
            image="buildrunner/docker",
            entrypoint=("sh", "-c"),
            cmd=(script,),
            mounts=(Mount(source="/", target="/sandbox", bind=True),),
        )
    )
    output = engine.start_container(container, attach=True)
    assert "SENT" in bytes(next(iter(output))).decode()
    measured = subprocess.run(
        ["docker", "exec", container_name(build_id), *disk_watch._MEASURE],
        capture_output=True,
        text=True,
        check=True,
    )
    engine.kill_container(container)
    named, _, nameless, _ = map(int, measured.stdout.split())
    assert named + nameless < 100_000_000


@pytest.mark.parametrize("measure", [("false",), ("true",), ("echo", "1")])
def test_a_build_whose_disk_can_not_be_measured_is_ended_and_told_why(
    tmp_path: Path,
    busybox: str,
    builders: None,
    monkeypatch: pytest.MonkeyPatch,
    measure: tuple[str, ...],
) -> None:
    monkeypatch.setattr(disk_watch, "_MEASURE", measure)
    monkeypatch.setattr(disk_watch, "_MEASURE_OWN", measure)
    monkeypatch.setattr(disk_watch, "_PAUSE_S", 0.1)
    monkeypatch.setattr(disk_watch, "_MISSES", 3)
    sandbox = wiring.sandbox(
        "nested",
        data_folder=str(tmp_path / "server"),
        labels={"buildrunner.server": "test-walls"},
        settings=Settings(),
        limits=SandboxLimits(disk_bytes=64 << 20),
    )
    build_id = f"test-{uuid.uuid4()}"
    try:
        engine = sandbox.open(build_id).engine
        engine.have_image(busybox, threading.Event())  # type: ignore[attr-defined]
        container = engine.create_container(ContainerSpec(image=busybox, cmd=("sleep", "300")))
        engine.start_container(container, attach=False)
        with pytest.raises(EngineUnavailable, match="could not be measured 3 times in a row"):
            engine.wait_container(container)
    finally:
        sandbox.remove(build_id)
        sandbox.close()


@pytest.mark.parametrize(
    "script", ["truncate -s 200000000 /workspace/holes", "cd /workspace; seq 20000 | xargs touch"]
)
def test_no_files_are_copied_beyond_the_limit_of_the_disk(
    docker_engine: DockerEngine, busybox: str, script: str
) -> None:
    """They take no room in the sandbox. Uploads copy each file, with all of its size."""
    volume = f"test-{uuid.uuid4()}"
    labels = {LABEL_BUILD: volume}
    docker_engine.create_volume(volume, labels)
    try:
        container = docker_engine.create_container(
            ContainerSpec(
                image=busybox,
                cmd=("sh", "-c", script),
                mounts=(Mount(source=volume, target="/workspace"),),
                labels=labels,
            )
        )
        docker_engine.start_container(container, attach=False)
        assert docker_engine.wait_container(container).code == 0
        docker_engine.remove_container(container)
        workspace = PreparedWorkspace(volume=volume)
        halt = threading.Event()
        with (
            WorkspaceFiles(docker_engine, workspace, labels, halt, limit_bytes=64 << 20) as files,
            pytest.raises(UploadError, match=r"more than 0\.1 GiB"),
        ):
            files.below("", lambda _: True)
    finally:
        docker_engine.remove_volume(volume)


@pytest.mark.parametrize(
    ("found", "demanded", "enough"),
    [
        ("user-namespace", "user-namespace", True),
        ("user-namespace", "capabilities", True),
        ("capabilities", "user-namespace", False),
        ("privileged", "capabilities", False),
        ("host", "capabilities", False),
        ("", "capabilities", False),
        ("", "", True),
        ("host", "", True),
    ],
)
def test_an_isolation_is_enough_if_it_is_no_weaker(found: str, demanded: str, enough: bool) -> None:
    assert isolates(found, demanded) is enough


def test_builds_of_forks_are_not_run_where_isolation_is_too_weak(
    tmp_path: Path, builders: None
) -> None:
    """Also when the machine changed after the queue let the build go."""
    sandbox = wiring.sandbox(
        "nested",
        data_folder=str(tmp_path / "server"),
        labels={"buildrunner.server": "test-walls"},
        settings=Settings(),
        isolation="user-namespace",
    )
    build_id = f"test-{uuid.uuid4()}"
    try:
        assert sandbox.isolation() == ""  # nobody has tried yet
        sandbox.keep_spares(0)
        assert sandbox.isolation() == "user-namespace"
        notes = tmp_path / "server" / "nested.json"
        notes.write_text(notes.read_text().replace("user-namespace", "capabilities"))
        with pytest.raises(EngineError, match="isolated by capabilities only"):
            sandbox.open(build_id, trusted=False)
    finally:
        sandbox.remove(build_id)
        sandbox.close()


@pytest.mark.parametrize("mode", ["user-namespace", "capabilities"])
def test_no_address_of_ipv6_is_reached_whose_rules_are_for_ipv4(bench: Bench, mode: str) -> None:
    isolate_by(bench, mode)
    sandbox = wiring.sandbox(
        "nested",
        data_folder=str(Path(bench.environ["XDG_DATA_HOME"], "buildrunner/sandboxes")),
        labels={"buildrunner.server": "test-walls"},
        settings=Settings(),
    )
    build_id = f"test-{uuid.uuid4()}"
    daemons = NestedDaemons(bench.engine.endpoint)
    try:
        place = sandbox.open(build_id)
        place.engine.ping()
        place.close()
        # As on an engine that gives its containers addresses of IPv6.
        script = (
            "ip -6 address add fd00::2/64 dev eth0 && ip -6 route add default dev eth0 && "
            "ip -6 route show; true"
        )
        shown = daemons.execute(container_name(build_id), ("sh", "-c", script))
        assert b"default" not in shown
    finally:
        daemons.close()
        sandbox.remove(build_id)
        sandbox.close()


def test_a_stranger_s_build_sees_and_leaves_no_image_of_the_machine(
    tmp_path: Path, docker_engine: DockerEngine, busybox: str, registry: Registry, builders: None
) -> None:
    name = f"{registry.address}/public/{uuid.uuid4().hex[:8]}:1"
    never = threading.Event()
    assert docker_engine.tag_image(busybox, name)
    docker_engine.push_image(name, on_progress=lambda _: None, cancel=never)
    docker_engine.untag_image(name)
    sandbox = wiring.sandbox(
        "nested",
        data_folder=str(tmp_path / "server"),
        labels={"buildrunner.server": "test-walls"},
        settings=Settings(),
    )
    build_id = f"test-{uuid.uuid4()}"
    daemons = NestedDaemons(docker_engine.endpoint)
    try:
        place = sandbox.open(build_id, trusted=False)
        try:
            place.open_port(int(registry.address.rpartition(":")[2]))  # type: ignore[attr-defined]
            pulled = place.engine.pull_image(
                name, on_progress=lambda _: None, cancel=never, anonymous=True
            )
            container = place.engine.create_container(ContainerSpec(image=pulled.id, cmd=("true",)))
            place.engine.start_container(container, attach=False)
            assert place.engine.wait_container(container).code == 0
            seen = daemons.execute(
                container_name(build_id),
                ("sh", "-c", "ls /run/images 2> /dev/null; docker images -q | wc -l"),
            )
        finally:
            place.close()
        assert seen.split() in ([b"1"], [b"2"])  # and one that is tried before the first build
        assert docker_engine.find_image(name) is None
        wanted = tmp_path / "server" / "wanted"
        assert not wanted.exists()
    finally:
        daemons.close()
        sandbox.remove(build_id)
        sandbox.close()


def test_link_local_addresses_are_denied_by_default() -> None:
    assert "169.254.0.0/16" in Egress().deny
    assert Egress().allow == ()


def test_no_image_that_a_step_makes_is_another_build_s(bench: Bench) -> None:
    """By its name, by an archive that claims to be another image, and in the image cache."""
    bench.write("cloudbuild.yaml", "steps:\n- name: IMAGE\n  args: ['true']\n")
    assert bench.run("submit", ".", "--sandbox", "nested").code == 0
    done = attack(
        bench,
        """\
docker run --name evil IMAGE sh -c 'printf "#!/bin/sh\\necho EVIL" > /bin/true && rm /bin/sh'
docker commit evil evil && docker tag evil IMAGE && echo TAGGED
mkdir out && docker save IMAGE | tar -x -C out && (cd out && tar -c . | docker load)
docker run --rm --privileged --pid host -v /:/sandbox --entrypoint bash buildrunner/docker -c '
  for folder in /sandbox/run/images /proc/1/root/run/images; do
    mount -o remount,rw,bind $folder; mount -o remount,rw $folder
    touch $folder/evil && echo WROTE
    for file in $folder/overlay2/*/diff/bin/true; do echo evil > $file && echo WROTE; done
  done'
true
""",
    )
    assert "TAGGED" in done.out, done.out + done.err
    assert "WROTE" not in done.out
    bench.write("cloudbuild.yaml", "steps:\n- name: IMAGE\n  args: ['true']\n")
    done = bench.run("submit", ".", "--sandbox", "nested")
    assert done.code == 0, done.err
    assert "EVIL" not in done.out
