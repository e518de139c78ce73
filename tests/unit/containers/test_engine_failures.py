"""An engine that refuses, lies, falls silent or goes away: always one sentence, never a traceback.

The engine here is a socket whose answers a test writes down; what a healthy one does is tested on
the real one.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from buildrunner.containers import cleanup
from buildrunner.containers.docker import api as docker_api
from buildrunner.containers.docker.api import DockerApi
from buildrunner.containers.docker.endpoint import Endpoint
from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.containers.protocol import ContainerExit, ContainerSpec, ErrorOutput
from buildrunner.errors import EngineError, EngineUnavailable, ImagePullError, ImagePushError

PING = b"HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nContent-Length: 2\r\n\r\nOK"
PODMAN = PING.replace(b"Content-", b"Libpod-Api-Version: 5.4.2\r\nContent-")
DIGEST = f"sha256:{'1' * 64}"
IMAGE = json.dumps({"Id": "sha256:1"}).encode()


def answer(status: int, body: bytes | dict[str, Any] | list[Any]) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(data), data)


REFUSED = answer(500, {"message": "the disk caught fire"})


class ScriptedEngine:
    """Answers each request by the first entry whose word is in the request line.

    Of several answers each is given once, and the last one from then on.
    """

    def __init__(self, path: Path) -> None:
        self.answers: dict[str, bytes | list[bytes]] = {}
        self.ping = PING
        self.hangs_up_after = ""
        """The word in the request behind whose answer the conversation ends."""
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen()
        self._threads: list[threading.Thread] = []
        self._talking: list[socket.socket] = []
        self._started = threading.Event()
        self._run(self._serve)

    def _run(self, work: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=work, args=args)
        thread.start()
        self._threads.append(thread)

    def _serve(self) -> None:
        while True:
            try:
                conn, _ = self._server.accept()
            except OSError:
                return
            self._run(self._talk, conn)

    def _talk(self, conn: socket.socket) -> None:
        self._talking.append(conn)
        with conn, contextlib.suppress(OSError):  # the client may hang up at any moment
            while request := conn.recv(65536):
                line = request.split(b"\r\n")[0].decode()
                said = next((text for word, text in self.answers.items() if word in line), REFUSED)
                if isinstance(said, list):
                    said = said.pop(0) if len(said) > 1 else said[0]
                if "_ping" in line:
                    said = self.ping
                head, end, output = said.partition(b"\r\n\r\n")
                if b"101 UPGRADED" not in head:
                    conn.sendall(said)
                else:  # a container has no output before its start
                    conn.sendall(head + end)
                    self._started.wait(30)
                    conn.sendall(output)
                if "/start" in line:
                    self._started.set()
                if not said or (self.hangs_up_after and self.hangs_up_after in line):
                    return

    def hang_up(self) -> None:
        """End all conversations, as an engine does that is killed."""
        for conn in self._talking:
            with contextlib.suppress(OSError):
                conn.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        self._started.set()
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for thread in self._threads:
            thread.join(30)


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[ScriptedEngine]:
    running = ScriptedEngine(tmp_path / "engine.sock")
    yield running
    running.stop()


@pytest.fixture
def engine(scripted: ScriptedEngine, tmp_path: Path) -> Iterator[DockerEngine]:
    address = f"unix://{tmp_path}/engine.sock"
    made = DockerEngine(Endpoint(address=address), environ={"DOCKER_CONFIG": str(tmp_path)})
    yield made
    made.close()


def ignore(_: object) -> None:
    pass


INFO = {
    "ID": "ABCD",
    "Name": "elsewhere",
    "ServerVersion": "28.5.2",
    "DockerRootDir": "/var/lib/docker",
}
HERE = {"Name": socket.gethostname(), "KernelVersion": os.uname().release}


class TestTheEnginesOwnSocket:
    """Steps get the socket of the engine that they run on, or none: never another engine's."""

    def test_on_another_machine_is_the_usual_one(
        self, scripted: ScriptedEngine, engine: DockerEngine
    ) -> None:
        scripted.answers["/info"] = answer(200, INFO)
        assert engine.info().socket_path == "/var/run/docker.sock"

    def test_is_unknown_when_the_engine_there_is_rootless(
        self, scripted: ScriptedEngine, engine: DockerEngine
    ) -> None:
        scripted.answers["/info"] = answer(200, {**INFO, "SecurityOptions": ["name=rootless"]})
        info = engine.info()
        assert info.socket_path == ""
        assert "does not report the path of its socket" in info.no_socket
        assert "--no-docker-socket" in info.no_socket

    def test_on_this_machine_is_the_one_that_was_asked(
        self, scripted: ScriptedEngine, engine: DockerEngine, tmp_path: Path
    ) -> None:
        here = {"DockerRootDir": str(tmp_path), "SecurityOptions": ["name=rootless"]}
        scripted.answers["/info"] = answer(200, {**INFO, **HERE, **here})
        assert engine.info().socket_path == f"{tmp_path}/engine.sock"

    @pytest.mark.docker
    def test_is_not_that_of_another_engine_of_this_machine(
        self, docker_engine: DockerEngine, tmp_path: Path
    ) -> None:
        """An engine that listens on TCP only, beside the one at the usual place."""
        with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
            port = server.getsockname()[1]

            def serve() -> None:
                for body in (PING, answer(200, {**INFO, **HERE})):
                    conn, _ = server.accept()
                    with conn:
                        conn.recv(65536)
                        conn.sendall(body.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))

            thread = threading.Thread(target=serve)
            thread.start()
            engine = DockerEngine(Endpoint(address=f"tcp://127.0.0.1:{port}"))
            info = engine.info()
            thread.join()
        engine.close()
        assert info.socket_path == ""
        assert f"tcp://127.0.0.1:{port}" in info.no_socket

    @pytest.mark.parametrize(
        ("said", "path"),
        [
            ("unix:///run/user/501/podman/podman.sock", "/run/user/501/podman/podman.sock"),
            ("/run/podman/podman.sock", "/run/podman/podman.sock"),
            ("tcp://0.0.0.0:8080", ""),
        ],
    )
    def test_is_what_podman_reports(
        self, scripted: ScriptedEngine, engine: DockerEngine, said: str, path: str
    ) -> None:
        scripted.ping = PODMAN
        scripted.answers["/libpod/info"] = answer(200, {"host": {"remoteSocket": {"path": said}}})
        scripted.answers["/info"] = answer(200, INFO)
        assert engine.info().socket_path == path


def test_podman_4_is_refused_with_what_to_do(
    scripted: ScriptedEngine, engine: DockerEngine
) -> None:
    scripted.ping = PODMAN.replace(b"5.4.2", b"4.3.1")
    with pytest.raises(EngineUnavailable, match=r"Podman 4\.3\.1; buildrunner needs Podman 5") as e:
        engine.info()
    assert "Update Podman" in e.value.hint


CALLS: dict[str, Callable[[DockerEngine], object]] = {
    "find_image": lambda engine: engine.find_image("x"),
    "tags_of": lambda engine: engine.tags_of("x"),
    "import_image": lambda engine: engine.import_image("x", [b"tar"]),
    "pull_image": lambda engine: engine.pull_image(
        "x", on_progress=ignore, cancel=threading.Event()
    ),
    "push_image": lambda engine: engine.push_image(
        "x", on_progress=ignore, cancel=threading.Event()
    ),
    "ensure_network": lambda engine: engine.ensure_network("x", {}),
    "remove_network": lambda engine: engine.remove_network("x"),
    "network_members": lambda engine: engine.network_members("x"),
    "create_volume": lambda engine: engine.create_volume("x", {}),
    "remove_volume": lambda engine: engine.remove_volume("x"),
    "list_owned": lambda engine: engine.list_owned({"x": "y"}),
    "label_values": lambda engine: engine.label_values("x"),
    "create_container": lambda engine: engine.create_container(ContainerSpec(image="x")),
    "start_container": lambda engine: engine.start_container("x", attach=True),
    "start_container silently": lambda engine: engine.start_container("x", attach=False),
    "wait_container": lambda engine: engine.wait_container("x"),
    "kill_container": lambda engine: engine.kill_container("x"),
    "remove_container": lambda engine: engine.remove_container("x"),
    "put_archive": lambda engine: engine.put_archive("x", "/", [b"tar"]),
    "get_archive": lambda engine: engine.get_archive("x", "/"),
    "info": lambda engine: engine.info(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_the_engine_refuses_is_told_in_its_words(
    engine: DockerEngine, call: Callable[[DockerEngine], object]
) -> None:
    with pytest.raises(EngineError, match="the disk caught fire"):
        call(engine)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_engine_that_hangs_up_is_unavailable(
    scripted: ScriptedEngine, engine: DockerEngine, call: Callable[[DockerEngine], object]
) -> None:
    scripted.answers[""] = b""
    with pytest.raises(EngineUnavailable, match="broke off"):
        call(engine)


def test_an_answer_that_is_not_json_is_told(scripted: ScriptedEngine, engine: DockerEngine) -> None:
    scripted.answers[""] = answer(200, b"<html>")
    with pytest.raises(EngineError, match="can't be understood"):
        engine.info()


ANSWERS = [
    (
        'error parsing HTTP 413 response body: unexpected end of JSON input: ""',
        "the registry answers HTTP 413: it gives no reason",
        False,
    ),
    (
        "error parsing HTTP 403 response body: invalid character '<' looking for beginning"
        ' of value: "<html><h1>403</h1>\\nGateway timeout is 30 s</html>"',
        "the registry answers HTTP 403: it gives no reason",
        False,
    ),
    (
        "error parsing HTTP 502 response body: invalid character '<' looking for beginning"
        ' of value: "<html>not found</html>"',
        "the registry answers HTTP 502: it gives no reason",
        True,
    ),
    (
        "error parsing HTTP 403 response body: invalid character 'o' looking for beginning"
        ' of value: "over \\"quota\\"\\nfür 日"',
        'the registry answers HTTP 403: over "quota" für 日',
        False,
    ),
    (
        "denied: Quota exceeded: 3 MB of 10\nsee https://r.example",
        "denied: Quota exceeded: 3 MB of 10 see https://r.example",
        False,
    ),
]


class TestTransfers:
    def test_a_pull_fails_by_an_error_inside_its_stream(
        self, scripted: ScriptedEngine, engine: DockerEngine
    ) -> None:
        events = b'{"status":"Pulling"}\r\n{"errorDetail":{"message":"manifest unknown"}}\r\n'
        scripted.answers["/images/create"] = answer(200, events)
        with pytest.raises(ImagePullError, match="manifest unknown") as caught:
            engine.pull_image("x", on_progress=ignore, cancel=threading.Event())
        assert not caught.value.transient

    @pytest.mark.parametrize(
        ("message", "unresolved"),
        [
            ("dial tcp: lookup r.example on 1.1.1.1:53: no such host", True),
            (
                "dial tcp: lookup r.example on [::1]:53: read udp [::1]:4->[::1]:53: read: "
                "connection refused",
                True,
            ),
            ("dial tcp: lookup r.example on 1.1.1.1:53: server misbehaving", False),
            ("dial tcp 10.0.0.1:443: connect: connection refused", False),
        ],
    )
    def test_a_pull_error_says_whether_the_registry_has_an_address(
        self, scripted: ScriptedEngine, engine: DockerEngine, message: str, unresolved: bool
    ) -> None:
        scripted.answers["/images/create"] = answer(500, json.dumps({"message": message}).encode())
        with pytest.raises(ImagePullError) as caught:
            engine.pull_image("r.example/x", on_progress=ignore, cancel=threading.Event())
        assert (caught.value.transient, caught.value.unresolved) == (True, unresolved)

    @pytest.mark.parametrize(
        ("message", "transient", "unauthorized"),
        [
            ("unauthorized: authentication required", False, True),
            ("denied: requested access to the resource is denied", False, True),
            ("no basic auth credentials", False, True),
            ("received unexpected HTTP status: 500 Internal Server Error", True, False),
            ("received unexpected HTTP status: 502 Bad Gateway", True, False),
            ("net/http: TLS handshake timeout", True, False),
            ("dial tcp: lookup r.example on 1.1.1.1:53: no such host", True, False),
            ("dial tcp 10.0.0.1:443: i/o timeout", True, False),
            ("toomanyrequests: You have reached your pull rate limit", True, False),
            ("http: server gave HTTP response to HTTPS client", False, False),
            ("x509: certificate signed by unknown authority", False, False),
            ("something that nobody has ever seen", True, False),
            ("size invalid: quota of 1 GB exceeded", False, False),
            ("unsupported: the registry is read-only", False, False),
            ("received unexpected HTTP status: 405 Method Not Allowed", False, False),
            ("received unexpected HTTP status: 409 Conflict", False, False),
            ("Put https://r.example/v2/x/manifests/1: EOF", True, False),
            ("repository r.example/x not found", False, False),
        ],
    )
    def test_a_push_error_says_whether_to_try_again(
        self,
        scripted: ScriptedEngine,
        engine: DockerEngine,
        message: str,
        transient: bool,
        unauthorized: bool,
    ) -> None:
        scripted.answers["/json"] = answer(200, IMAGE)
        scripted.answers["/push"] = answer(200, json.dumps({"error": message}).encode())
        with pytest.raises(ImagePushError) as caught:
            engine.push_image("r.example/x:1", on_progress=ignore, cancel=threading.Event())
        assert message in str(caught.value)
        assert (caught.value.transient, caught.value.unauthorized) == (transient, unauthorized)

    @pytest.mark.parametrize(("message", "said", "transient"), ANSWERS)
    def test_what_a_service_answers_to_a_redirected_pull_is_not_shown(
        self,
        scripted: ScriptedEngine,
        engine: DockerEngine,
        message: str,
        said: str,
        transient: bool,
    ) -> None:
        """A registry can send the engine to a service of the machine's network."""
        scripted.answers["/images/create"] = answer(200, json.dumps({"error": message}).encode())
        with pytest.raises(ImagePullError) as caught:
            engine.pull_image("r.example/x:1", on_progress=ignore, cancel=threading.Event())
        is_answer = "response body" in message
        assert ("with no error of a registry" in str(caught.value)) == is_answer
        assert (said in str(caught.value)) != is_answer
        assert caught.value.transient == transient
        for secret in ("over", "Gateway", "not found"):
            assert secret not in str(caught.value)

    @pytest.mark.parametrize(("message", "said", "transient"), ANSWERS)
    def test_what_a_registry_says_is_one_sentence(
        self,
        scripted: ScriptedEngine,
        engine: DockerEngine,
        message: str,
        said: str,
        transient: bool,
    ) -> None:
        scripted.answers["/json"] = answer(200, IMAGE)
        scripted.answers["/push"] = answer(200, json.dumps({"error": message}).encode())
        with pytest.raises(ImagePushError) as caught:
            engine.push_image("r.example/x:1", on_progress=ignore, cancel=threading.Event())
        assert str(caught.value) == f"the image r.example/x:1 can't be pushed: {said}"
        assert caught.value.transient is transient

    @pytest.mark.parametrize(
        ("name", "message", "transient"),
        [
            ("geofence", "pull access denied for geofence, repository does not exist", False),
            ("a/timeout:eof", "manifest for a/timeout:eof not found: manifest unknown", False),
            (
                "timeout.example/x:1",
                "Head https://timeout.example/v2/x/manifests/1: unauthorized",
                False,
            ),
            ("eof", "pull access denied for eof, repository does not exist", True),
            ("r.example/denied-list:1", "error pulling r.example/denied-list:1: EOF", True),
            (
                "quota-checks",
                "Get https://r.example/v2/quota-checks/blobs/sha256:1: stream error",
                True,
            ),
        ],
    )
    def test_an_images_name_does_not_say_whether_to_try_again(
        self,
        scripted: ScriptedEngine,
        engine: DockerEngine,
        name: str,
        message: str,
        transient: bool,
    ) -> None:
        scripted.answers["/images/create"] = answer(200, json.dumps({"error": message}).encode())
        with pytest.raises(ImagePullError) as caught:
            engine.pull_image(name, on_progress=ignore, cancel=threading.Event())
        assert caught.value.transient is transient

    def test_a_push_without_a_digest_does_not_count(
        self, scripted: ScriptedEngine, engine: DockerEngine
    ) -> None:
        scripted.answers["/json"] = answer(200, IMAGE)
        scripted.answers["/push"] = answer(200, b'{"status":"Pushed","id":"1"}\r\n')
        with pytest.raises(ImagePushError, match="without a digest") as caught:
            engine.push_image("x", on_progress=ignore, cancel=threading.Event())
        assert caught.value.transient

    def test_a_push_counts_when_the_digest_comes_as_text_only(
        self, scripted: ScriptedEngine, engine: DockerEngine
    ) -> None:
        """As the containerd image store reports it."""
        scripted.answers["/distribution"] = answer(200, {"Descriptor": {"digest": DIGEST}})
        scripted.answers["/json"] = answer(200, IMAGE)
        scripted.answers["/push"] = answer(
            200, json.dumps({"status": f"latest: digest: {DIGEST} size: 405"}).encode()
        )
        pushed = engine.push_image("x", on_progress=ignore, cancel=threading.Event())
        assert pushed.digest == DIGEST

    def test_a_digest_that_the_registry_does_not_have_is_no_push(
        self, scripted: ScriptedEngine, engine: DockerEngine
    ) -> None:
        scripted.answers["/distribution"] = answer(404, {"message": "manifest unknown"})
        scripted.answers["/json"] = answer(200, IMAGE)
        scripted.answers["/push"] = answer(
            200, json.dumps({"status": f"latest: digest: {DIGEST} size: 405"}).encode()
        )
        with pytest.raises(ImagePushError, match="the registry has nothing"):
            engine.push_image("x", on_progress=ignore, cancel=threading.Event())

    @pytest.mark.parametrize("garbled", [b"<html>", b'{"Descriptor": null}'])
    def test_a_push_counts_when_the_answer_that_should_confirm_it_cannot_be_read(
        self, scripted: ScriptedEngine, engine: DockerEngine, garbled: bytes
    ) -> None:
        scripted.answers["/distribution"] = answer(200, garbled)
        scripted.answers["/json"] = answer(200, IMAGE)
        scripted.answers["/push"] = answer(
            200, json.dumps({"status": f"latest: digest: {DIGEST} size: 405"}).encode()
        )
        pushed = engine.push_image("x", on_progress=ignore, cancel=threading.Event())
        assert pushed.digest == DIGEST

    def test_podman_can_not_ask_a_registry_and_is_not_asked_to(
        self, scripted: ScriptedEngine, engine: DockerEngine
    ) -> None:
        scripted.ping = PODMAN
        scripted.answers["/distribution"] = answer(404, b"Not Found")
        scripted.answers["/json"] = answer(200, IMAGE)
        scripted.answers["/push"] = answer(
            200, json.dumps({"status": f"latest: digest: {DIGEST} size: 405"}).encode()
        )
        pushed = engine.push_image("x", on_progress=ignore, cancel=threading.Event())
        assert pushed.digest == DIGEST

    def test_why_podman_did_not_begin_a_push_is_told(
        self, scripted: ScriptedEngine, engine: DockerEngine
    ) -> None:
        scripted.ping = PODMAN
        said = "pinging container registry r.example: connection refused"
        scripted.answers["/json"] = answer(200, IMAGE)
        scripted.answers["/push"] = answer(500, {"errorDetail": {"message": said}, "error": said})
        with pytest.raises(ImagePushError, match="pinging container registry") as caught:
            engine.push_image("r.example/x", on_progress=ignore, cancel=threading.Event())
        assert caught.value.transient

    def test_an_image_that_is_gone_after_its_pull_is_missed(
        self, scripted: ScriptedEngine, engine: DockerEngine
    ) -> None:
        scripted.answers["/images/create"] = answer(200, b'{"status":"done"}\n')
        scripted.answers["/json"] = answer(404, {"message": "No such image"})
        with pytest.raises(ImagePullError, match="does not have it"):
            engine.pull_image("x", on_progress=ignore, cancel=threading.Event())

    @pytest.mark.parametrize("garbage", [b"not json\n", b"x" * 2_000_000])
    def test_a_garbled_stream_is_told(
        self, scripted: ScriptedEngine, engine: DockerEngine, garbage: bytes
    ) -> None:
        scripted.answers["/images/create"] = answer(200, garbage)
        with pytest.raises(ImagePullError):
            engine.pull_image("x", on_progress=ignore, cancel=threading.Event())

    def test_settings_of_an_image_have_one_line(self, engine: DockerEngine) -> None:
        with pytest.raises(EngineError, match="several lines"):
            engine.import_image("x", [b""], env=["A=b\nRUN evil"])


class TestAnAttachedConnectionThatBreaks:
    """It is not the end of the output: what it did not deliver comes from the engine's log."""

    GREETING = b"\x01\0\0\0\0\0\0\x05hello"
    REST = b"\x02\0\0\0\0\0\0\x02ah" + b"\x01\0\0\0\0\0\0\x06 world"
    EVENTS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    DEATH = b'{"Action": "die", "Actor": {"Attributes": {"exitCode": "0"}}}\n'

    @pytest.fixture(autouse=True)
    def running_container(self, scripted: ScriptedEngine) -> None:
        scripted.answers["/start"] = answer(204, b"")
        scripted.answers["/events"] = self.EVENTS
        scripted.answers["/json"] = answer(200, {"State": {"Status": "running"}})
        scripted.answers["/logs"] = answer(200, self.GREETING + self.REST)
        scripted.hangs_up_after = "/attach"

    def attached(self, scripted: ScriptedEngine, frames: bytes) -> None:
        scripted.answers["/attach"] = b"HTTP/1.1 101 UPGRADED\r\n\r\n" + frames

    @pytest.mark.parametrize("arrived", [0, 7, 8, 11, 13], ids="{} bytes".format)
    def test_loses_nothing_of_a_container_whose_log_is_kept(
        self, scripted: ScriptedEngine, engine: DockerEngine, arrived: int
    ) -> None:
        self.attached(scripted, self.GREETING[:arrived])
        output = list(engine.start_container("x", attach=True))
        errors = [chunk for chunk in output if isinstance(chunk, ErrorOutput)]
        assert b"".join(one for one in output if one not in errors) == b"hello world"
        assert errors == [b"ah"]

    @pytest.mark.parametrize("arrived", [11, 13], ids="{} bytes".format)
    def test_is_an_error_of_the_engine_where_no_log_is_kept(
        self, scripted: ScriptedEngine, engine: DockerEngine, arrived: int
    ) -> None:
        self.attached(scripted, self.GREETING[:arrived])
        scripted.answers["/logs"] = answer(501, {"message": "driver does not support reading"})
        output = engine.start_container("x", attach=True)
        assert next(output) == self.GREETING[8:arrived]
        with pytest.raises(EngineUnavailable, match=r"log is cut.*does not support reading"):
            next(output)

    def test_is_an_error_of_the_engine_when_that_is_gone(
        self, scripted: ScriptedEngine, engine: DockerEngine
    ) -> None:
        scripted.hangs_up_after = ""
        self.attached(scripted, self.GREETING[:11])
        output = engine.start_container("x", attach=True)
        assert next(output) == b"hel"
        scripted.answers["/logs"] = b""
        scripted.hang_up()
        with pytest.raises(EngineUnavailable, match="log is cut"):
            next(output)
        with pytest.raises(EngineUnavailable, match="broke off"):
            engine.wait_container("x")

    def test_is_told_from_the_end_of_the_container(
        self, scripted: ScriptedEngine, engine: DockerEngine
    ) -> None:
        self.attached(scripted, self.GREETING)
        scripted.answers["/events"] = self.EVENTS + b"%x\r\n%b\r\n" % (len(self.DEATH), self.DEATH)
        scripted.answers["/json"] = scripted.answers["/logs"] = b""
        assert list(engine.start_container("x", attach=True)) == [b"hello"]
        assert engine.wait_container("x").code == 0


class TestAContainerThatExitsWith137:
    """By itself, or killed for lack of memory, or by an engine that stops."""

    DEATH = b'{"Action": "die", "Actor": {"Attributes": {"exitCode": "137"}}}\n'
    KILL = b'{"Action": "kill"}\n'
    OOM = b'{"Action": "oom"}\n'

    def exit_of(
        self,
        scripted: ScriptedEngine,
        engine: DockerEngine,
        *events: bytes,
        memory: int = 0,
        killed: bool = False,
    ) -> ContainerExit:
        found = {"State": {"OOMKilled": killed}, "HostConfig": {"Memory": memory}}
        scripted.answers["/json"] = answer(200, found)
        scripted.answers["/events"] = [answer(200, one) for one in events]
        scripted.answers["/wait"] = answer(200, {"StatusCode": 137})
        return engine.wait_container("x")

    @pytest.mark.parametrize("killed", [False, True])
    def test_is_judged_by_one_look_if_it_has_no_limit_and_nobody_killed_it(
        self, scripted: ScriptedEngine, engine: DockerEngine, killed: bool
    ) -> None:
        exit_ = self.exit_of(scripted, engine, b"", b"", self.OOM, killed=killed)
        assert exit_ == ContainerExit(137, killed)

    def test_is_given_a_moment_for_late_news_if_it_has_a_limit(
        self, scripted: ScriptedEngine, engine: DockerEngine
    ) -> None:
        exit_ = self.exit_of(scripted, engine, b"", b"", self.OOM, memory=2**25)
        assert exit_ == ContainerExit(137, oom_killed=True)

    def test_is_no_failure_of_its_own_if_another_engine_answers_than_killed_it(
        self, scripted: ScriptedEngine, engine: DockerEngine
    ) -> None:
        with pytest.raises(EngineUnavailable, match="does not know the end"):
            self.exit_of(scripted, engine, self.KILL, b"")

    BRIDGE: ClassVar = {"Created": "2026-12-02T10:00:00.123456789Z"}

    @pytest.mark.parametrize(
        ("ended_at", "is_failure"),
        [("2026-12-02T09:59:59.9Z", False), ("2026-12-02T12:00:00.5+01:00", True)],
    )
    def test_is_no_failure_of_its_own_if_the_engine_has_started_since(
        self,
        scripted: ScriptedEngine,
        engine: DockerEngine,
        ended_at: str,
        is_failure: bool,
    ) -> None:
        scripted.answers["/networks/bridge"] = answer(200, self.BRIDGE)
        scripted.answers["/json"] = answer(200, {"State": {"FinishedAt": ended_at}})
        scripted.answers["/wait"] = answer(200, {"StatusCode": 0})
        scripted.answers["/events"] = answer(200, self.KILL)  # for all kinds of events
        if is_failure:  # the engine has forgotten the end: it keeps few events
            assert engine.wait_container("x") == ContainerExit(0)
        else:
            with pytest.raises(EngineUnavailable, match="started again after the end"):
                engine.wait_container("x")

    def test_has_failed_if_the_engine_that_killed_it_answers_late(
        self, scripted: ScriptedEngine, engine: DockerEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Issue: an engine that was busy for half a minute counted as one that shuts down."""
        asked: list[float | None] = []
        stream = DockerApi.stream

        def noted(api: DockerApi, *of: Any, timeout_s: float | None = -1.0, **more: Any) -> Any:
            asked.append(timeout_s)
            return stream(api, *of, **more)

        monkeypatch.setattr(DockerApi, "stream", noted)
        assert self.exit_of(scripted, engine, self.KILL, self.DEATH, b"") == ContainerExit(137)
        assert set(asked) == {-1.0}  # as long as for any other answer

    def test_has_failed_if_the_engine_that_killed_it_goes_on(
        self, scripted: ScriptedEngine, engine: DockerEngine
    ) -> None:
        exit_ = self.exit_of(scripted, engine, self.KILL, self.DEATH, b"")
        assert exit_ == ContainerExit(137)


def test_a_silent_engine_is_given_up(scripted: ScriptedEngine, engine: DockerEngine) -> None:
    scripted.answers["/info"] = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhal"
    with pytest.raises(EngineUnavailable, match="fell silent"):
        engine._api.send("GET", "/info", timeout_s=0.05)


def test_an_engine_of_another_age_is_told() -> None:
    assert docker_api._common_version("1.52") == "1.44"
    assert docker_api._common_version("1.41") == "1.41"
    with pytest.raises(EngineUnavailable, match="too old"):
        docker_api._common_version("1.24")


def test_the_network_waits_for_whoever_makes_one_at_the_same_moment(
    scripted: ScriptedEngine, engine: DockerEngine
) -> None:
    ambiguous = {"message": "network n is ambiguous (2 matches found based on name)"}
    both = [{"Id": "1", "Name": "n"}, {"Id": "2", "Name": "n"}, {"Id": "3", "Name": "nn"}]
    scripted.answers["GET /v1.41/networks/n"] = answer(400, ambiguous)
    scripted.answers["/networks/create"] = answer(409, {"message": "exists"})
    scripted.answers["GET /v1.41/networks?"] = answer(200, both)
    scripted.answers["DELETE /v1.41/networks/2"] = answer(204, b"")
    engine.ensure_network("n", {})  # both makers died: one of the two is taken away


def test_a_network_that_came_while_we_waited_for_our_turn_is_not_made_again(
    scripted: ScriptedEngine, tmp_path: Path
) -> None:
    turns = []

    @contextlib.contextmanager
    def turn(address: str) -> Iterator[None]:
        turns.append(address)
        scripted.answers["GET /v1.41/networks/n"] = answer(200, {"Id": "1"})
        yield

    scripted.answers["GET /v1.41/networks/n"] = answer(404, {"message": "network n not found"})
    endpoint = Endpoint(address=f"unix://{tmp_path}/engine.sock")
    with contextlib.closing(DockerEngine(endpoint, environ={}, network_lock=turn)) as engine:
        engine.ensure_network("n", {})  # to create one would be refused
        engine.ensure_network("n", {})
    assert turns == [endpoint.address]


AMBIGUOUS = answer(400, {"message": "network n is ambiguous (3 matches found on name)"})


@pytest.mark.parametrize(("refusals", "starts"), [(3, True), (20, False)])
def test_a_start_waits_until_others_have_agreed_on_a_network(
    scripted: ScriptedEngine, engine: DockerEngine, refusals: int, starts: bool
) -> None:
    scripted.answers["GET /v1.41/networks/n"] = answer(200, {"Id": "1"})
    scripted.answers["/events"] = answer(200, b"")
    scripted.answers["/start"] = [*[AMBIGUOUS] * refusals, answer(204, b"")]
    engine.ensure_network("n", {})
    with contextlib.nullcontext() if starts else pytest.raises(EngineError, match="is ambiguous"):
        engine.start_container("c", attach=False)


def test_clean_up_reports_what_stays(engine: DockerEngine, scripted: ScriptedEngine) -> None:
    scripted.answers["/containers/json"] = answer(200, [{"Id": "c1"}])
    scripted.answers["/volumes?"] = answer(200, {"Volumes": [{"Name": "v1"}]})
    scripted.answers["/networks?"] = answer(200, [])
    problems = cleanup.clean_build(engine, "b", ["/no/such/folder"], abandoned=False)
    assert len(problems) == 3  # the container, the volume, and the images that nobody could list
    assert all("the disk caught fire" in problem for problem in problems)
