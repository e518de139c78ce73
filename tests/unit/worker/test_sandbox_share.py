"""What a nested sandbox may take of the machine, and what is told of images."""

import contextlib
import hashlib
import io
import json
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from buildrunner.containers.image_share import FolderFiles, chain_ids, shared_images
from buildrunner.containers.layer_origins import Origin, decode_notes, tell_origins
from buildrunner.containers.loopback import is_registry, loopback_ports, token_ports
from buildrunner.containers.nested_daemon import _last_error
from buildrunner.worker.sandbox import SandboxLimits, fair_share

GIB = 1 << 30


@pytest.mark.parametrize(
    ("builds", "memory", "limits"),
    [
        (0, 8 * GIB, SandboxLimits()),
        (1, 10 * GIB, SandboxLimits(cpu_shares=1024, memory_bytes=9 * GIB, pids=32768)),
        (3, 10 * GIB, SandboxLimits(cpu_shares=1024, memory_bytes=3 * GIB, pids=10922)),
        (64, 10 * GIB, SandboxLimits(cpu_shares=1024, memory_bytes=512 << 20, pids=2048)),
    ],
)
def test_builds_share_what_a_machine_has(builds, memory, limits):
    assert fair_share(builds, memory) == limits


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("localhost:5000/app:1", {5000}),
        ("127.0.0.1:80/a 127.1.2.3:81/b", {80, 81}),
        ("registry.example.com:5000/app", set()),
        ("notlocalhost:5000/app", set()),
        ("my.localhost:5000/app", set()),
        ("localhost:99999/app", set()),
        ("localhost/app", set()),
    ],
)
def test_registries_on_the_machine_itself_are_known_by_their_name(text, ports):
    assert loopback_ports(text) == ports


@contextlib.contextmanager
def answering(status, headers, body=b""):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,)).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()


@pytest.mark.parametrize(
    ("status", "headers", "body", "registry"),
    [
        (401, {"Docker-Distribution-Api-Version": "registry/2.0"}, b"", True),
        (404, {}, b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "no"}]}', True),
        (401, {}, b'{"errors":[{"code":"UNAUTHORIZED"}]}', True),
        (401, {"WWW-Authenticate": "Basic realm=app"}, b"", False),
        (200, {}, b"{}", False),
        (404, {}, b'{"errors": [{"code": 404}]}', False),
        (404, {}, b'{"error": "MANIFEST_UNKNOWN"}', False),
    ],
)
def test_only_what_answers_as_a_registry_is_one(status, headers, body, registry):
    with answering(status, headers, body) as port:
        assert is_registry(port) is registry
    assert not is_registry(port)  # nobody listens any more


@pytest.mark.parametrize(
    ("challenge", "ports"),
    [
        ('Bearer realm="http://localhost:5001/token",service="x"', {5001}),
        ('bearer service="x",realm="http://127.0.0.1:5001/token"', {5001}),
        ('Bearer realm="https://login.example.com/token"', set()),
        ('Basic realm="http://localhost:5001/"', set()),
    ],
)
def test_where_a_registry_sends_clients_for_a_token(challenge, ports):
    with answering(401, {"WWW-Authenticate": challenge}) as port:
        assert token_ports(port) == ports
    assert token_ports(port) == set()


@pytest.mark.parametrize(
    ("log", "told"),
    [
        (b'time="x" level=info msg="all is well"\n', ""),
        (b'time="x" level=fatal msg="no \\"room\\" left" a=b\ntime="x" level=warning msg="w"\n',
         'no "room" left'),
        (b"time=x level=info msg=up\nfailed to start daemon: no iptables\n",
         "failed to start daemon: no iptables"),
        (b"", ""),
    ],
)  # fmt: skip
def test_of_an_engines_last_words_the_errors_count(log, told):
    assert _last_error(log) == told


def test_a_layers_chain_names_all_below_it():
    chains = chain_ids(["sha256:a", "sha256:b"])
    assert chains[0] == "sha256:a"
    assert chains[1] == "sha256:" + hashlib.sha256(b"sha256:a sha256:b").hexdigest()
    assert chain_ids([]) == []


class Store:
    """The files of an engine that keeps layers in overlay2."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names: dict[str, dict[str, str]] = {}

    def file(self, path: str, text: str) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def image(self, identity: str, name: str, *diffs: str) -> None:
        config = {"rootfs": {"type": "layers", "diff_ids": list(diffs)}}
        self.file(f"image/overlay2/imagedb/content/sha256/{identity}", json.dumps(config))
        self.names.setdefault(name.partition(":")[0], {})[name] = f"sha256:{identity}"
        self.file("image/overlay2/repositories.json", json.dumps({"Repositories": self.names}))
        below: list[str] = []
        for chain, diff in zip(chain_ids(diffs), diffs, strict=True):
            cache = f"cache-{diff[7:]}"
            folder = f"image/overlay2/layerdb/sha256/{chain[7:]}"
            for file, text in (("cache-id", cache), ("diff", diff), ("size", "1")):
                self.file(f"{folder}/{file}", text)
            self.file(f"{folder}/tar-split.json.gz", "")
            self.file(f"overlay2/{cache}/diff/file", "content")
            if below:
                self.file(f"{folder}/parent", below[-1])
            below.append(chain)

    def shared(self):
        files = FolderFiles(str(self.root))
        return shared_images(files, str(self.root), wanted=lambda name: name != "hidden")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def members(notes: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(notes)) as tar:
        return {one.name: one for one in tar.getmembers()}


def test_images_with_names_are_shared_by_links_to_their_layers(store):
    store.image("i1", "app:1", "sha256:d1", "sha256:d2")
    found = store.shared()
    assert found.layers == {
        "cache-d1": str(store.root / "overlay2/cache-d1/diff"),
        "cache-d2": str(store.root / "overlay2/cache-d2/diff"),
    }
    told = members(found.notes)
    assert told["var/lib/docker/overlay2/cache-d1"].linkname == "/run/layers/cache-d1"
    with tarfile.open(fileobj=io.BytesIO(found.notes)) as tar:
        link = tar.extractfile("run/layers/cache-d1/link").read().decode()
        assert tar.extractfile("run/layers/cache-d2/lower").read().decode() == f"l/{link}"
    assert told[f"var/lib/docker/overlay2/l/{link}"].linkname == "../cache-d1/diff"
    assert "run/layers/cache-d1/lower" not in told
    assert "var/lib/docker/image/overlay2/imagedb/content/sha256/i1" in told
    # The content of layers is never copied.
    assert not any(name.endswith("/file") for name in told)


def test_only_images_that_nothing_stands_on_have_to_be_held(store):
    store.image("i1", "base:1", "sha256:d1")
    store.image("i2", "app:1", "sha256:d1", "sha256:d2")
    store.image("i3", "other:1", "sha256:d3")
    assert set(store.shared().holders) == {"sha256:i2", "sha256:i3"}


def test_what_is_not_wanted_or_not_whole_is_left_out(store):
    store.image("i1", "hidden:1", "sha256:d1")
    store.image("i2", "app:1", "sha256:d2")
    store.image("i3", "broken:1", "sha256:d3")
    (chain,) = chain_ids(["sha256:d3"])
    (store.root / f"image/overlay2/layerdb/{chain.replace(':', '/')}/cache-id").unlink()
    found = store.shared()
    assert list(found.layers) == ["cache-d2"]
    with tarfile.open(fileobj=io.BytesIO(found.notes)) as tar:
        names = json.load(tar.extractfile("var/lib/docker/image/overlay2/repositories.json"))
    assert names == {"Repositories": {"app": {"app:1": "sha256:i2"}, "broken": {}}}


ORIGINS = "var/lib/docker/image/overlay2/distribution"


def told(notes: bytes, path: str) -> str:
    with tarfile.open(fileobj=io.BytesIO(notes)) as tar:
        return tar.extractfile(f"{ORIGINS}/{path}").read().decode()


def origins(*numbers: int) -> tuple[Origin, ...]:
    return tuple(
        Origin(digest=f"sha256:{number:064x}", repository=f"localhost:{number}/app")
        for number in numbers
    )


def test_where_a_layer_is_already_is_told_by_the_engine(store):
    (known,) = origins(1)
    noted = {"Digest": known.digest, "SourceRepository": known.repository}
    garbled = {"Digest": "", "SourceRepository": ""}
    store.image("i1", "app:1", "sha256:d1", "sha256:d2")
    store.file(
        "image/overlay2/distribution/v2metadata-by-diffid/sha256/d1",
        json.dumps([{**noted, "HMAC": "made of a login"}, garbled]),
    )
    found = store.shared()
    assert found.diff_ids == {"sha256:d1", "sha256:d2"}
    assert found.origins == {"sha256:d1": (known,)}
    # What a pull believes comes from the host engine alone.
    pulls = f"{ORIGINS}/diffid-by-digest"
    assert [name for name in members(found.notes) if name.startswith(pulls)] == [
        f"{pulls}/sha256/{known.digest[7:]}"
    ]
    assert told(found.notes, f"diffid-by-digest/sha256/{known.digest[7:]}") == "sha256:d1"
    # What a push asks is told by a folder, so that more can be told later.
    notes = members(found.notes)[f"{ORIGINS}/v2metadata-by-diffid"]
    assert notes.linkname == "/run/buildrunner/origins"


def test_what_earlier_builds_know_is_told_after_what_the_engine_knows(tmp_path):
    first, second, third = origins(1, 2, 3)
    tell_origins(str(tmp_path), {"sha256:d1": (first, second), "sha256:d2": (first,)})
    tell_origins(str(tmp_path), {"sha256:d1": (third, first), "sha256:d3": (second,)})
    notes = {one.name: decode_notes(one.read_bytes()) for one in (tmp_path / "sha256").iterdir()}
    assert notes == {"d1": (second, third, first), "d2": (first,), "d3": (second,)}


def test_a_store_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(OSError, match="repositories"):
        shared_images(FolderFiles(str(tmp_path)), str(tmp_path), wanted=lambda _: True)
