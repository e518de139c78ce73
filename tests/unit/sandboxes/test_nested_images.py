"""Images of a nested engine: what the host engine has is taken, or a registry is asked anew."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from buildrunner.addresses import Egress
from buildrunner.containers.fake import FakeEngine
from buildrunner.containers.protocol import (
    ContainerSpec,
    ImageInfo,
    PushedImage,
    RegistryLogin,
    TransferProgress,
)
from buildrunner.errors import EngineError, EngineUnavailable, ImagePullError, ImagePushError
from buildrunner.sandboxes.nested import gateway_push, loopback
from buildrunner.sandboxes.nested.container import HostFacts
from buildrunner.sandboxes.nested.engine import NestedEngine, Running, SandboxImages
from buildrunner.sandboxes.nested.gateway_push import GatewayPush
from buildrunner.sandboxes.nested.host_pulls import UNUSED_S, HostPulls, WantedImages, delete_unused

PRIVATE = "corp.example.com/team/app"
SHARED = "shared:1"
OTHER = "other:1"


class Nest:
    """A host engine, and an engine nested in it that knows the host's images by other ids.

    Both have one image from the start; the host has another one besides.
    """

    def __init__(self) -> None:
        self.host, self.inner = FakeEngine(), FakeEngine()
        for name in (PRIVATE, SHARED, OTHER):
            self.host.add_image(name, digest=f"sha256:{len(name):064x}")
        self.host.offer_image(PRIVATE)
        self.host.private.add(PRIVATE)
        self.copies: list[str] = []
        self.used: list[str] = []
        self.inner._images[SHARED] = self.inside(SHARED)
        self.host_pulls = HostPulls(self.host, "/nowhere", None)
        self.engine = NestedEngine(self)
        self.gateway = GatewayPush(None, str, str, Egress())  # type: ignore[arg-type]

        self.is_common: Callable[[str], bool] | None = None

    def pull_turn(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()

    def ready(self) -> Running:
        images = SandboxImages(ids={self.host_id(SHARED): self.inside(SHARED).id})
        return Running(
            state=None,  # type: ignore[arg-type]
            engine=self.inner,
            data_folder="/",
            images=images,
        )

    def why_gone(self) -> EngineUnavailable | None:
        return None

    def note_use(self, images: Iterable[str]) -> None:
        self.used.extend(images)

    def open_port(self, port: int) -> None:
        pass

    def login_for(self, registry: str, cancel: threading.Event) -> RegistryLogin | None:
        return None

    def push_with(self, *args: Any, **named: Any) -> PushedImage:
        return self.gateway.push(*args, **named)

    def digest_of(self, name: str) -> str:
        return self.gateway.digest_of(name)

    def note_push(self) -> None:
        pass

    def host_id(self, name: str) -> str:
        found = self.host.find_image(name)
        assert found is not None
        return found.id

    @staticmethod
    def inside(name: str) -> ImageInfo:
        return ImageInfo(id=f"sha256:{'f' * 50}{len(name):014x}")

    def copy_image(self, image: str, names: Iterable[str], cancel: threading.Event) -> str:
        (name,) = {one for one in (PRIVATE, SHARED, OTHER) if self.host_id(one) == image}
        self.copies.append(name)
        for one in (*names, self.inside(name).id):
            self.inner._images[one if ":" in one else f"{one}:latest"] = self.inside(name)
        return self.inside(name).id

    def pull(self, *, anonymous: bool) -> None:
        self.engine.pull_image(
            PRIVATE, on_progress=lambda _: None, cancel=threading.Event(), anonymous=anonymous
        )

    def image_of_container(self, image: str) -> str:
        container = self.engine.create_container(ContainerSpec(image=image))
        return self.inner.containers[container].spec.image


def test_an_image_has_one_id_before_and_after_it_was_copied() -> None:
    nest = Nest()
    before = nest.engine.find_image(OTHER)
    assert before is not None
    assert nest.image_of_container(before.id) == nest.inside(OTHER).id
    assert nest.engine.find_image(OTHER) == before == nest.host.find_image(OTHER)
    assert nest.engine.find_image(before.id) is not None
    assert nest.copies == [OTHER]


def test_an_image_that_was_copied_unasked_has_its_digest() -> None:
    nest = Nest()
    nest.image_of_container(OTHER)
    assert nest.engine.find_image(OTHER) == nest.host.find_image(OTHER)


def test_an_image_that_is_shared_is_not_copied() -> None:
    nest = Nest()
    found = nest.engine.find_image(SHARED)
    assert found is not None
    assert found.id == nest.host_id(SHARED)
    assert nest.image_of_container(found.id) == nest.inside(SHARED).id
    assert nest.image_of_container(SHARED) == SHARED
    assert nest.copies == []


def test_an_image_that_a_step_has_removed_comes_back() -> None:
    nest = Nest()
    found = nest.engine.find_image(SHARED)
    assert found is not None
    nest.inner._images.clear()
    assert nest.image_of_container(found.id) == nest.inside(SHARED).id
    assert nest.copies == [SHARED]


def test_an_image_that_a_step_made_keeps_its_id() -> None:
    nest = Nest()
    nest.inner.add_image("made:1")
    assert nest.engine.find_image("made:1") == nest.inner.find_image("made:1")
    assert nest.used == []


def test_the_images_that_a_build_uses_are_noted() -> None:
    nest = Nest()
    nest.engine.find_image(SHARED)
    nest.engine.find_image(OTHER)
    assert nest.used == [nest.host_id(SHARED)]
    nest.image_of_container(OTHER)
    assert nest.used == [nest.host_id(SHARED), nest.host_id(OTHER)]


def test_an_image_that_is_nowhere_is_not_found() -> None:
    assert Nest().engine.find_image("nowhere:1") is None


def test_what_the_host_engine_has_is_taken_from_there() -> None:
    nest = Nest()
    nest.pull(anonymous=False)
    assert ("pull_image", PRIVATE) not in nest.host.calls
    assert nest.copies == [PRIVATE]


def test_without_a_login_the_nested_engine_pulls_and_nothing_stays_on_the_machine() -> None:
    nest = Nest()
    with pytest.raises(ImagePullError):
        nest.pull(anonymous=True)  # though the host engine has it
    nest.inner.offer_image(PRIVATE)
    nest.pull(anonymous=True)
    assert nest.inner.find_image(PRIVATE) is not None
    assert [call for call in nest.host.calls if call[0] == "pull_image"] == []
    assert nest.copies == []


class Puller:
    """An engine that pulls images of some layers, and reports their sizes first."""

    def __init__(self, layers: list[int], unpacked: int) -> None:
        self.layers = layers
        self.unpacked = unpacked
        self.images: set[str] = set()
        self.ids: dict[str, str] = {}

    def pull_image(
        self,
        name: str,
        *,
        on_progress: Callable[[TransferProgress], None],
        cancel: threading.Event,
        anonymous: bool = False,
    ) -> ImageInfo:
        assert not anonymous
        for number, size in enumerate(self.layers):
            on_progress(
                TransferProgress(
                    image=name, layer=f"layer{number}", status="Downloading", total_bytes=size
                )
            )
            if cancel.is_set():
                raise ImagePullError("cancelled")
        self.images.add(name)
        self.ids[name] = f"pulled {name}"
        return ImageInfo(id=self.ids[name], digest="", size_bytes=self.unpacked)

    def untag_image(self, name: str) -> None:
        self.images.discard(name)

    def tag_image(self, image: str, name: str) -> bool:
        self.images.add(name)
        self.ids[name] = image
        return True

    def find_image(self, name: str) -> ImageInfo | None:
        return ImageInfo(id=self.ids[name]) if name in self.images else None

    def pulls(self, folder: Path, limit: int | None) -> HostPulls:
        return HostPulls(self, str(folder / "pulled"), limit)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("layers", "unpacked", "limit"),
    [([1, 2], 9, None), ([1, 2], 9, 9), ([], 0, 9)],
)
def test_an_image_within_the_limit_is_pulled(
    tmp_path: Path, layers: list[int], unpacked: int, limit: int | None
) -> None:
    engine = Puller(layers, unpacked)
    engine.pulls(tmp_path, limit).pull("app:1", cancel=threading.Event())
    assert engine.images == {"app:1"}


@pytest.mark.parametrize(("layers", "unpacked"), [([5, 5], 5), ([10], 5), ([1], 10)])
def test_an_image_beyond_the_limit_of_the_build_s_disk_does_not_stay(
    tmp_path: Path, layers: list[int], unpacked: int
) -> None:
    engine = Puller(layers, unpacked)
    with pytest.raises(ImagePullError, match=r"larger than .* write to the disk") as caught:
        engine.pulls(tmp_path, 9).pull("app:1", cancel=threading.Event())
    assert not caught.value.transient
    assert engine.images == set()


def test_a_name_that_another_program_moved_after_the_pull_stays(tmp_path: Path) -> None:
    engine = Puller([], 0)
    pulls = engine.pulls(tmp_path, None)
    pulled = pulls.pull("app:1", cancel=threading.Event())
    engine.tag_image("of the user", "app:1")
    pulls.restore("app:1", None, pulled)
    assert engine.ids["app:1"] == "of the user"
    assert engine.images == {"app:1"}


def test_a_pull_that_is_too_large_leaves_the_image_that_had_the_name_before(
    tmp_path: Path,
) -> None:
    engine = Puller([1], 10)
    engine.tag_image("of the user", "app:1")
    with pytest.raises(ImagePullError, match="larger than"):
        engine.pulls(tmp_path, 9).pull("app:1", cancel=threading.Event())
    assert engine.images == {"app:1"}
    assert engine.ids["app:1"] == "of the user"


def test_many_images_of_a_build_have_one_limit_together(tmp_path: Path) -> None:
    engine = Puller([2], 3)
    pulls = engine.pulls(tmp_path, 9)
    for number in range(3):
        pulls.pull(f"app:{number}", cancel=threading.Event())
    for number in range(3, 20):
        with pytest.raises(ImagePullError, match="with the others that this machine pulled"):
            pulls.pull(f"app:{number}", cancel=threading.Event())
    assert engine.images == {"app:0", "app:1", "app:2"}
    engine.pulls(tmp_path, 9).pull("app:3", cancel=threading.Event())  # another build


def test_pulls_at_the_same_time_have_one_limit_together(tmp_path: Path) -> None:
    both = threading.Barrier(2)

    class Slow(Puller):
        def pull_image(self, name: str, **named: Any) -> ImageInfo:
            report = named["on_progress"]
            report(TransferProgress(image=name, layer=name, total_bytes=5))
            both.wait(10)
            return super().pull_image(name, **named)

    engine = Slow([], 5)
    pulls = engine.pulls(tmp_path, 9)
    failed = []

    def pull(name: str) -> None:
        try:
            pulls.pull(name, cancel=threading.Event())
        except ImagePullError:
            failed.append(name)

    threads = [threading.Thread(target=pull, args=(name,)) for name in ("app:1", "app:2")]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(failed) >= 1
    assert len(engine.images) == 2 - len(failed)


def test_layers_of_unknown_size_count_as_they_arrive(tmp_path: Path) -> None:
    class Chunked(Puller):
        def pull_image(
            self,
            name: str,
            *,
            on_progress: Callable[[TransferProgress], None],
            cancel: threading.Event,
            anonymous: bool = False,
        ) -> ImageInfo:
            for arrived in range(100):
                on_progress(TransferProgress(image=name, layer="one", current_bytes=arrived))
                if cancel.is_set():
                    raise ImagePullError(f"cancelled after {arrived}")
            return ImageInfo(id=name, digest="", size_bytes=100)

    with pytest.raises(ImagePullError, match="larger than") as caught:
        Chunked([], 0).pulls(tmp_path, 9).pull("app:1", cancel=threading.Event())
    assert str(caught.value.__cause__) == "cancelled after 10"


def test_a_pull_that_is_cancelled_is_not_called_too_large(tmp_path: Path) -> None:
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(ImagePullError, match=r"^cancelled$"):
        Puller([1], 1).pulls(tmp_path, 9).pull("app:1", cancel=stopped)


class Pulled:
    """A machine whose engine pulled images, at times in hours."""

    def __init__(self, folder: Path, hours: dict[str, float]) -> None:
        self.host = FakeEngine(["of-the-user:1"])
        self.folder = folder / "pulled"
        for name, hour in hours.items():
            before = set(self.folder.iterdir()) if hours and self.folder.exists() else set()
            self.host.offer_image(name)
            HostPulls(self.host, str(self.folder), None).pull(name, cancel=threading.Event())
            (note,) = set(self.folder.iterdir()) - before
            os.utime(note, (hour * 3600, hour * 3600))

    def id(self, name: str) -> str:
        found = self.host.find_image(name)
        assert found is not None
        return found.id

    def delete(
        self, *, now: float, used: dict[str, float] | None = None, full: int = 0
    ) -> list[str]:
        """Delete what is unused while the disk is full ``full`` times; the images that are left."""
        answers = iter([True] * full)
        delete_unused(
            self.host,
            str(self.folder),
            {self.id(name): hour * 3600 for name, hour in (used or {}).items()},
            now=now * 3600,
            is_full=lambda: next(answers, False),
        )
        names = ("of-the-user:1", "one:1", "two:1", "three:1")
        return [name for name in names if self.host.find_image(name) is not None]


HOURS = {"one:1": 1.0, "two:1": 2.0, "three:1": 3.0}
UNUSED_H = UNUSED_S / 3600


@pytest.mark.parametrize(
    ("now", "used", "full", "left"),
    [
        (3.0, {}, 0, ["one:1", "two:1", "three:1"]),
        (2.5 + UNUSED_H, {}, 0, ["three:1"]),
        (2.5 + UNUSED_H, {"one:1": 4.0}, 0, ["one:1", "three:1"]),
        (10.0, {}, 2, ["three:1"]),
        (10.0, {"one:1": 4.0}, 1, ["one:1", "three:1"]),
        (3.5, {}, 9, ["three:1"]),
    ],
)
def test_images_that_were_pulled_go_when_no_build_uses_them_or_the_disk_is_full(
    tmp_path: Path, now: float, used: dict[str, float], full: int, left: list[str]
) -> None:
    pulled = Pulled(tmp_path, HOURS)
    assert pulled.delete(now=now, used=used, full=full) == ["of-the-user:1", *left]
    assert len(list(pulled.folder.iterdir())) == len(left)


def test_a_name_that_the_user_gave_to_another_image_stays(tmp_path: Path) -> None:
    pulled = Pulled(tmp_path, {"one:1": 1.0})
    pulled.host.tag_image(pulled.id("of-the-user:1"), "one:1")
    assert pulled.delete(now=9999.0) == ["of-the-user:1", "one:1"]
    assert list(pulled.folder.iterdir()) == []


def test_an_image_that_the_user_had_before_is_no_image_that_was_pulled(tmp_path: Path) -> None:
    pulled = Pulled(tmp_path, {"one:1": 1.0})
    pulled.host.offer_image("of-the-user:1")
    HostPulls(pulled.host, str(pulled.folder), None).pull("of-the-user:1", cancel=threading.Event())
    assert pulled.delete(now=1e9) == ["of-the-user:1"]


def wanted(folder: Path, engine: Puller, limit: int) -> WantedImages:
    pulls = engine.pulls
    return WantedImages(
        str(folder / "wanted"),
        engine,  # type: ignore[arg-type]
        lambda _: None,
        own=pulls(folder, limit),
        left=pulls(folder, limit),
    )


def test_what_steps_pull_is_pulled_for_the_next_build_up_to_one_limit(tmp_path: Path) -> None:
    engine = Puller([3], 3)
    noted = wanted(tmp_path, engine, 10)
    for number in range(50):
        noted.note(f"app:{number}")
    while list((tmp_path / "wanted").iterdir()):
        pass
    noted.close()
    assert len(engine.images) == 3


def test_the_login_of_a_step_goes_through_the_gateway_which_knows_what_was_pushed() -> None:
    """The engine, which steps can replace, would name any digest, and the server signs it."""
    nest = Nest()
    login = RegistryLogin(username="a step", password="bogus")
    pushes: list[tuple[str, RegistryLogin]] = []

    def push(_: object, name: str, login: RegistryLogin, **_more: object) -> PushedImage:
        pushes.append((name, login))
        return PushedImage(name=name, digest="sha256:1")

    nest.push_with = push  # type: ignore[method-assign]
    nest.inner.push_image = None  # type: ignore[assignment, method-assign]
    nest.host.add_image("r.example/app:1")
    nest.inner.add_image("r.example/app:1")
    pushed = nest.engine.push_image(
        "r.example/app:1", on_progress=lambda _: None, cancel=threading.Event(), login=login
    )
    assert pushed.digest == "sha256:1"
    assert pushes == [("r.example/app:1", login)]


class Facts:
    """Stands for the daemons of the machine: its engine takes plain http of loopback addresses."""

    def facts(self) -> HostFacts:
        return HostFacts(identity="", arguments=("--insecure-registry=127.0.0.0/8",))


class Claiming(FakeEngine):
    """An engine of the steps', which says what it likes."""

    digest = ""

    def push_image(self, name: str, **named: Any) -> PushedImage:
        return msgspec.structs.replace(super().push_image(name, **named), digest=self.digest)


def push_without_login(nest: Nest, name: str, digest: str) -> PushedImage:
    """Push without a login from an engine that claims to have pushed ``digest``."""
    nest.inner = Claiming([name])
    nest.inner.digest = digest
    return nest.engine.push_image(name, on_progress=lambda _: None, cancel=threading.Event())


def test_an_engine_that_names_another_digest_of_a_push_without_a_login_is_not_believed(
    plain_registry: PlainRegistry,
) -> None:
    nest = Nest()
    nest.gateway = GatewayPush(Facts(), str, str, Egress())  # type: ignore[arg-type]
    name = f"{plain_registry.address}/team/app:1"
    pushed = push_without_login(nest, name, plain_registry.digest)
    assert pushed.digest == plain_registry.digest
    foreign = f"sha256:{'e' * 64}"
    plain_registry.said = foreign  # in a header, too, which is no proof
    with pytest.raises(ImagePushError, match=f"registry has {plain_registry.digest}") as caught:
        push_without_login(nest, name, foreign)
    assert caught.value.transient
    plain_registry.content = b""
    with pytest.raises(ImagePushError, match="registry has nothing"):
        push_without_login(nest, name, foreign)
    plain_registry.content, plain_registry.status = b"{}", 403
    with pytest.raises(ImagePushError, match="does not tell what it has"):
        push_without_login(nest, name, foreign)


@pytest.mark.parametrize("answer_s", [0.3, 0.0], ids=["in the answer", "before the request"])
def test_a_registry_that_tells_its_digest_byte_by_byte_is_left_at_the_deadline(
    plain_registry: PlainRegistry, monkeypatch: pytest.MonkeyPatch, answer_s: float
) -> None:
    monkeypatch.setattr(gateway_push, "_ANSWER_S", answer_s)
    gateway = GatewayPush(Facts(), str, str, Egress())  # type: ignore[arg-type]
    with plain_registry.trickling(), pytest.raises(ImagePushError, match="does not tell") as caught:
        gateway.digest_of(f"{plain_registry.address}/team/app:1")
    assert caught.value.transient


class Relayed(Facts):
    """Stands for the daemons of a machine where engines reach the gateway by its socket."""

    @contextmanager
    def relayed_port(self, *_: object) -> Iterator[int]:
        yield 1


class Pushing(FakeEngine):
    """An engine that looks for the manifest before it pushes, as engines do."""

    socket = ""

    def tag_image(self, image: str, name: str) -> bool:
        found = self.find_image(image)  # real engines take a name, too
        return found is not None and super().tag_image(found.id, name)

    def push_image(self, name: str, **named: Any) -> PushedImage:
        with httpx.Client(transport=httpx.HTTPTransport(uds=self.socket), timeout=60) as client:
            answer = client.get("http://gateway/v2/team/app/manifests/1")
        raise ImagePushError(f"the gateway answers {answer.status_code}")


def test_a_registry_that_trickles_holds_no_push_for_ever(
    tmp_path: Path, plain_registry: PlainRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_push, "_ANSWERS_S", 1.0)
    name = f"{plain_registry.address}/team/app:1"
    engine = Pushing()
    engine.add_image(name)
    engine.socket = str(tmp_path / "push.sock")
    gateway = GatewayPush(Relayed(), str, lambda: str(tmp_path), Egress())  # type: ignore[arg-type]
    login = RegistryLogin(username="me", password="pw")
    with plain_registry.trickling(), pytest.raises(ImagePushError, match="the gateway answers"):
        gateway.push(engine, name, login, on_progress=lambda _: None, cancel=threading.Event())


def test_no_digest_is_known_of_a_push_to_a_registry_of_a_step(unused_port: int) -> None:
    """Such a registry says what the steps have it say."""
    name = f"localhost:{unused_port}/app:1"
    assert push_without_login(Nest(), name, f"sha256:{'e' * 64}").digest == ""


class PlainRegistry(ThreadingHTTPServer):
    """A registry with one image that anyone may read and write.

    Attributes:
        content: the manifest of the image; none if empty.
        said: what it says that the digest is.
        status: of all answers but those about no image.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _PlainRegistry)
        self.address = f"127.0.0.1:{self.server_port}"
        self.content = b"{}"
        self.digest = self.said = f"sha256:{hashlib.sha256(self.content).hexdigest()}"
        self.status = 200
        self.ended: threading.Event | None = None

    @contextmanager
    def trickling(self) -> Iterator[None]:
        """Send manifests byte by byte, without an end."""
        self.ended = threading.Event()
        try:
            yield
        finally:
            self.ended.set()


class _PlainRegistry(BaseHTTPRequestHandler):
    server: PlainRegistry

    def do_GET(self) -> None:
        is_image = "/manifests/" in self.path
        registry = self.server
        content = registry.content if is_image else b"{}"
        self.send_response(registry.status if content and is_image else 200 if content else 404)
        self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        self.send_header("Docker-Content-Digest", registry.said)
        if registry.ended is None or not is_image:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        with suppress(OSError):
            while is_image and registry.ended and not registry.ended.wait(0.02):
                self.wfile.write(b" ")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def plain_registry() -> Iterator[PlainRegistry]:
    made = PlainRegistry()
    thread = threading.Thread(target=made.serve_forever, args=(0.02,))
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


def alone() -> Nest:
    """A nest of a project with logins of its own: it shares the builder image only."""
    nest = Nest()
    nest.is_common = lambda name: name == OTHER
    return nest


def test_a_project_with_logins_of_its_own_sees_no_image_that_others_pulled() -> None:
    nest = alone()
    assert nest.engine.find_image(PRIVATE) is None
    assert nest.engine.find_image(nest.host_id(PRIVATE)) is None
    with pytest.raises(EngineError, match="has no image"):
        nest.image_of_container(PRIVATE)
    with pytest.raises(EngineError, match="has no image"):
        nest.image_of_container(nest.host_id(PRIVATE))
    assert nest.copies == []
    common = nest.engine.find_image(OTHER)
    assert common is not None
    assert nest.image_of_container(common.id) == nest.inside(OTHER).id


def test_the_registry_decides_anew_whether_a_project_may_have_an_image_of_the_machine() -> None:
    nest = alone()
    nest.host.registry.clear()
    with pytest.raises(ImagePullError):
        nest.pull(anonymous=False)
    assert nest.engine.find_image(PRIVATE) is None
    assert nest.host.find_image(PRIVATE) is not None  # it was there before


def test_an_image_that_a_project_pulled_with_its_logins_is_left_to_no_other() -> None:
    nest = alone()
    image = nest.host.find_image(PRIVATE)
    assert image is not None
    nest.host.untag_image(PRIVATE)
    copy_image = nest.copy_image

    def copy(_: str, names: Iterable[str], cancel: threading.Event) -> str:
        return copy_image(nest.host_id(PRIVATE), names, cancel)  # while it is there

    nest.copy_image = copy  # type: ignore[method-assign]
    nest.pull(anonymous=False)
    assert nest.copies == [PRIVATE]
    assert nest.host.find_image(PRIVATE) is None
    assert nest.inner.find_image(PRIVATE) is not None


def test_while_a_project_s_image_is_pulled_the_machine_has_it() -> None:
    nest = alone()
    nest.host.untag_image(PRIVATE)
    seen: list[bool] = []

    def copy(*_: object) -> str:
        seen.append(nest.host.find_image(PRIVATE) is not None)
        return nest.inside(PRIVATE).id

    nest.copy_image = copy  # type: ignore[method-assign]
    nest.pull(anonymous=False)
    assert (seen, nest.host.find_image(PRIVATE)) == ([True], None)


def test_a_tag_that_a_project_s_pull_moved_names_the_image_of_before(tmp_path: Path) -> None:
    nest = alone()
    nest.host_pulls = HostPulls(nest.host, str(tmp_path / "pulled"), None)
    before = nest.host_id(PRIVATE)
    moved = msgspec.structs.replace(nest.host.registry[f"{PRIVATE}:latest"], id="sha256:moved")
    nest.host.registry[f"{PRIVATE}:latest"] = moved
    copied: list[str] = []

    def copy(image: str, names: Iterable[str], cancel: threading.Event) -> str:
        copied.append(nest.host_id(PRIVATE))
        return nest.inside(PRIVATE).id

    nest.copy_image = copy  # type: ignore[method-assign]
    # An image that has no name is on no machine: the fake engine forgets it at once.
    nest.host.add_image("kept-by-its-digest:1")
    nest.host._images["kept-by-its-digest:1"] = nest.host._images[f"{PRIVATE}:latest"]
    nest.pull(anonymous=False)
    assert copied == ["sha256:moved"]
    assert nest.host_id(PRIVATE) == before
    assert nest.host.find_image("sha256:moved") is None


def test_what_a_project_pulled_with_its_logins_is_not_noted(tmp_path: Path) -> None:
    """Else a server would delete the same image, which its user pulled later."""
    nest = alone()
    nest.host_pulls = HostPulls(nest.host, str(tmp_path / "pulled"), None)
    nest.host.untag_image(PRIVATE)
    nest.copy_image = lambda *_: nest.inside(PRIVATE).id  # type: ignore[method-assign, assignment]
    nest.pull(anonymous=False)
    assert list((tmp_path / "pulled").iterdir()) == []


def test_no_registry_of_the_machine_is_asked_that_a_step_had_in_its_sandbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``docker pull 127.0.0.1:5000/app`` in a step names a registry of the sandbox."""
    engine = Puller([], 0)
    noted = wanted(tmp_path, engine, 10)

    def resolve(host: str) -> list[str]:
        if host == "unknown.example":
            raise OSError("no such name")
        return [resolver.get(host, host)]

    resolver = {"rebinding.example": "127.0.0.1", "metadata.example": "169.254.169.254"}
    monkeypatch.setattr(loopback, "look_up", resolve)
    for registry in (
        "127.0.0.1:5000",
        "localhost:5000",
        "LOCALHOST:5000",
        "a.localhost:5000",
        "[::1]:5000",
        "0.0.0.0:5000",
        "[::ffff:127.0.0.1]:5000",
        "127.1:80",
        "2130706433:80",
        "rebinding.example:5000",
        "metadata.example",
        "unknown.example",
    ):
        noted.note(f"{registry}/app:1")
        noted.note(f"{registry}/app@sha256:1")
    noted.close()
    assert engine.images == set()
    assert not (tmp_path / "wanted").exists()
