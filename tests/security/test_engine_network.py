"""Attacks from a step on the network of its engine's container, as Pods and Compose start it."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import pytest

from buildrunner.addresses import METADATA_NETWORKS
from buildrunner.builders.catalog import ENGINE_IMAGE
from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.kubernetes.manifest import PodBuild, job_manifest
from buildrunner.kubernetes.pool import Pool

pytestmark = pytest.mark.docker

MODES = pytest.mark.parametrize("mode", ["user-namespace", "capabilities"])

SERVER = """\
$| = 1;
use IO::Socket::INET;
my $listener = IO::Socket::INET->new(LocalPort => 8080, Listen => 9, ReuseAddr => 1) or die;
while (my $client = $listener->accept) {
  sysread $client, my $request, 4096;
  print "SAW $request\\n";
  print $client "HTTP/1.0 200 OK\\r\\n\\r\\nok";
  close $client;
}"""

# Each request of a worker has a connection of its own, as after a pause.
WORKER = """\
use IO::Socket::INET;
while (1) {
  if (my $server = IO::Socket::INET->new(PeerAddr => "SERVER", PeerPort => 8080, Timeout => 1)) {
    print $server "GET / HTTP/1.0\\r\\nAuthorization: Bearer TOKEN-OF-A-WORKER\\r\\n\\r\\n";
    sysread $server, my $answer, 4096;
  }
  select undef, undef, undef, 0.1;
}"""

# All that a step can see of its network, for four seconds.
SNIFF = """\
perl -e '
  use Socket;
  socket(my $all, 17, SOCK_RAW, 0x0300) or die "no socket: $!";
  my $end = time + 4;
  vec(my $ready = "", fileno $all, 1) = 1;
  while (time < $end) {
    next unless select(my $now = $ready, undef, undef, 0.5);
    recv $all, my $packet, 65536, 0;
    print "SNIFFED $1\\n" if $packet =~ /(TOKEN-OF-A-WORKER)/;
  }
  print "LOOKED\\n"'"""

# Take the address of the server, tell the worker so, and answer in its place, for four seconds.
IMPERSONATE = """\
iptables -w -F
ip address add SERVER/32 dev eth0
perl -e '
  use Socket;
  my ($index, $own) = map { open my $f, "<", "/sys/class/net/eth0/$_"; chomp(my $l = <$f>); $l }
    "ifindex", "address";
  my $mac = pack "H12", $own =~ s/://gr;
  my $other = pack "H12", "WORKER-MAC" =~ s/://gr;
  socket(my $arp, 17, SOCK_RAW, 0x0608) or die "no socket: $!";
  my $to = pack "S n i S C C a8", 17, 0x0806, $index, 1, 0, 6, $other;
  my $answer = $other . $mac . pack("n n n C C n", 0x0806, 1, 0x0800, 6, 4, 2) . $mac .
    inet_aton("SERVER") . $other . inet_aton("WORKER");
  for (1 .. 40) { send $arp, $answer, 0, $to; select undef, undef, undef, 0.1 }' &
timeout 4 perl -e '{listen}'
echo LISTENED
""".replace("{listen}", SERVER)

# Change the rules of every network that a step can enter.
FLUSH = """\
for process in /proc/[0-9]* self; do
  for network in /proc/${process#/proc/}/ns/net; do
    nsenter --net=$network sh -c 'ip link show engine && echo OUTSIDE
      for table in filter nat; do iptables -t $table -F; done; iptables -P FORWARD ACCEPT'
  done
done 2> /dev/null
true
"""

# Look for processes outside, and enter their networks.
UNCOVER = """\
nsenter --target 1 --mount sh -c 'umount --lazy /proc; ls /proc/1/ns && echo UNCOVERED' 2> /dev/null
mount -t proc proc /mnt
for network in /mnt/[0-9]*/ns/net; do
  nsenter --net=$network ip link show engine && echo OUTSIDE
done 2> /dev/null
true
"""


def docker(*arguments: str, stdin: bytes | None = None) -> str:
    done = subprocess.run(
        ["docker", *arguments],
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    output = done.stdout.decode(errors="replace")
    assert done.returncode == 0, output
    return output.strip()


@pytest.fixture(scope="module", autouse=False)
def engine_image(docker_engine: DockerEngine) -> None:
    argv = [sys.executable, "-m", "buildrunner", "builders", "install", "engine"]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


class Machine:
    """Containers on one network of the machine.

    Args:
        stack: removes them.
        step_image: image of the steps.
    """

    def __init__(self, stack: ExitStack, step_image: str) -> None:
        self._stack = stack
        self._step_image = step_image
        self.network = f"test-{uuid.uuid4()}"
        docker("network", "create", self.network)
        stack.callback(docker, "network", "rm", self.network)

    def run(self, *arguments: str) -> str:
        """Start a container, and return its id."""
        container = docker("run", "--detach", *arguments)
        self._stack.callback(docker, "rm", "--force", "--volumes", container)
        return container

    def program(self, script: str, network: str = "") -> str:
        """Start a container with a program in Perl."""
        network = network or self.network
        return self.run("--network", network, "--entrypoint", "perl", ENGINE_IMAGE, "-e", script)

    def address(self, container: str, what: str = "IPAddress") -> str:
        """Return an address of a container."""
        return docker(
            "inspect",
            "-f",
            f"{{{{range .NetworkSettings.Networks}}}}{{{{.{what}}}}}{{{{end}}}}",
            container,
        )

    def engine(self, mode: str, *, deny: str | None = None, network: str = "") -> str:
        """Start an engine with the arguments, variables and rights that it has in a Pod."""
        made = engine_of_a_pod(mode)
        variables = {one["name"]: one["value"] for one in made["env"]}
        if deny is not None:
            variables["EGRESS_DENY"] = deny
        container = self.run(
            *(f"--cap-add={one}" for one in made["securityContext"]["capabilities"]["add"]),
            *(f"--security-opt={one}=unconfined" for one in ("seccomp", "apparmor")),
            *(f"--env={name}={value}" for name, value in variables.items()),
            *(f"--volume={one['mountPath']}" for one in made["volumeMounts"]),
            f"--network={network or self.network}",
            ENGINE_IMAGE,
            *made["args"],
        )
        self.wait_for_engine(container)
        image = subprocess.run(
            ["docker", "save", self._step_image], check=True, capture_output=True
        )
        docker("exec", "-i", container, "docker", "load", stdin=image.stdout)
        return container

    def wait_for_engine(self, container: str) -> None:
        """Wait until an engine answers."""
        for _ in range(300):
            argv = ["docker", "exec", container, "docker", "version"]
            if subprocess.run(argv, check=False, capture_output=True).returncode == 0:
                return
            time.sleep(0.1)
        pytest.fail(docker("logs", container))

    def step(self, engine: str, script: str) -> str:
        """Run a script with all rights that a step can get, and with the programs of the engine."""
        options = ["--cap-add=SYS_ADMIN", "--cap-add=NET_ADMIN", "--cap-add=NET_RAW"]
        options += ["--network=host", "--pid=host", "--security-opt=seccomp=unconfined"]
        path = "export PATH=/usr/sbin:/usr/bin:/sbin:/bin\n"
        return docker(
            *("exec", "-i", engine, "docker", "run", "-i", "--rm", *options, "-v", "/:/engine"),
            *(self._step_image, "chroot", "/engine", "bash"),
            stdin=(path + script).encode(),
        )

    def reached(self, engine: str, address: str) -> str:
        """Return ``OPEN`` if a step reaches port 8080 of an address, and the reason if not."""
        script = f"timeout 5 bash -c 'echo > /dev/tcp/{address}/8080' 2>&1 && echo OPEN; true"
        return self.step(engine, script).splitlines()[-1]


def engine_of_a_pod(mode: str) -> dict[str, Any]:
    """Return the container of the engine in the manifest of a build."""
    pool = Pool(
        name="ci", server="http://server", worker_image="w", engine_image="e", isolation=mode
    )
    build = PodBuild(id=str(uuid.uuid4()), timeout=timedelta(minutes=5))
    pod = job_manifest(build, pool)["spec"]["template"]["spec"]
    return dict(pod["initContainers"][0])


@pytest.fixture
def machine(busybox: str) -> Iterator[Machine]:
    with ExitStack() as stack:
        yield Machine(stack, busybox)


@MODES
def test_a_step_does_not_remove_the_wall_before_denied_networks(
    machine: Machine, mode: str
) -> None:
    denied, allowed = (machine.address(machine.program(SERVER)) for _ in range(2))
    engine = machine.engine(mode, deny=f"{denied}/32")
    assert machine.reached(engine, allowed) == "OPEN"
    assert "Connection refused" in machine.reached(engine, denied)
    output = machine.step(engine, FLUSH)
    assert "OUTSIDE" not in output
    assert machine.reached(engine, allowed) == "OPEN"
    assert "Connection refused" in machine.reached(engine, denied)
    assert not {"OUTSIDE", "UNCOVERED"} & set(machine.step(engine, UNCOVER).split())


@MODES
def test_an_engine_that_was_killed_starts_again(machine: Machine, mode: str) -> None:
    engine = machine.engine(mode)
    docker("kill", engine)
    docker("start", engine)
    machine.wait_for_engine(engine)


@MODES
def test_a_step_sees_no_request_of_the_worker_in_its_pod(machine: Machine, mode: str) -> None:
    server = machine.program(SERVER)
    engine = machine.engine(mode)
    machine.program(
        WORKER.replace("SERVER", machine.address(server)), network=f"container:{engine}"
    )
    until(lambda: "TOKEN-OF-A-WORKER" in docker("logs", server))
    assert machine.step(engine, SNIFF).splitlines() == ["LOOKED"]


@MODES
def test_a_step_does_not_take_the_address_of_the_server(machine: Machine, mode: str) -> None:
    server = machine.program(SERVER)
    worker = machine.program(WORKER.replace("SERVER", machine.address(server)))
    until(lambda: "TOKEN-OF-A-WORKER" in docker("logs", server))
    names = {
        "SERVER": machine.address(server),
        "WORKER-MAC": machine.address(worker, "MacAddress"),
        "WORKER": machine.address(worker),
    }
    attack = re.sub("SERVER|WORKER-MAC|WORKER", lambda name: names[name[0]], IMPERSONATE)
    output = machine.step(machine.engine(mode), attack)
    assert output.splitlines()[-1:] == ["LISTENED"]
    assert "SAW" not in output


@MODES
def test_a_step_does_not_change_the_names_of_its_pod(machine: Machine, mode: str) -> None:
    engine = machine.engine(mode)
    machine.step(
        engine,
        "echo 192.0.2.1 server >> /etc/hosts\n"
        "nsenter --target 1 --mount umount /etc/hosts\n"
        "nsenter --target 1 --mount sh -c 'echo 192.0.2.1 server >> /etc/hosts'\n"
        "true",
    )
    seen = docker("exec", engine, "cat", "/etc/hosts")
    assert "localhost" in seen
    assert "192.0.2.1" not in seen


@MODES
def test_steps_look_up_names_in_a_network_with_dockers_own_name_server(
    machine: Machine, mode: str
) -> None:
    neighbour = machine.run(
        f"--network={machine.network}",
        "--network-alias=neighbour",
        "--entrypoint=sleep",
        ENGINE_IMAGE,
        "infinity",
    )
    engine = machine.engine(mode)
    found = machine.step(engine, "getent hosts neighbour")
    assert found.split() == [machine.address(neighbour), "neighbour"]


def test_name_servers_that_are_denied_answer(machine: Machine) -> None:
    other = machine.program(SERVER)
    engine = machine.engine("user-namespace", deny="0.0.0.0/0")
    found = machine.step(engine, f"getent hosts {other[:12]}")
    assert found.split()[0] == machine.address(other)


def test_metadata_services_are_denied_where_nothing_says_which_networks_are() -> None:
    with open("steps/engine/start-engine", encoding="utf-8") as script:
        (default,) = re.findall(
            r"^EGRESS_DENY=\$\{EGRESS_DENY-(.*)\}$", script.read(), re.MULTILINE
        )
    assert tuple(default.split()) == METADATA_NETWORKS


def until(true: Callable[[], bool]) -> None:
    for _ in range(100):
        if true():
            return
        time.sleep(0.1)
    pytest.fail("not within ten seconds")
