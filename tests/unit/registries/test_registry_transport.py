"""Which addresses a registry that a build names may lead requests to."""

import ssl
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from buildrunner.addresses import Egress
from buildrunner.errors import RegistryError
from buildrunner.registries.registry_transport import RegistryTransport, is_loopback

PUBLIC = "93.184.215.14"


class Names:
    """A resolver: the answers for each name in turn, the last one for ever."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = {name.replace("_", "."): found for name, found in answers.items()}

    def __call__(self, host: str) -> list[str]:
        found = self.answers.get(host, [[host]])
        return found.pop(0) if len(found) > 1 else found[0]


def transport(registry: str, names: Names, egress: Egress | None = None) -> RegistryTransport:
    return RegistryTransport(
        registry, ssl.create_default_context(), egress=egress, addresses_of=names
    )


def is_reached(registry: str, own: list[str], link: str, egress: Egress | None = None) -> bool:
    """Whether a registry with addresses of its own leads to the address ``link``."""
    names = Names(r_example=[own], localhost=[own], link_example=[[link]])
    with closing(transport(registry, names, egress)) as made:
        try:
            made._addresses(made._host)
            made._addresses("link.example")
        except RegistryError:
            return False
        return True


METADATA = "169.254.169.254"


@pytest.mark.parametrize(
    ("registry", "own", "link", "reached"),
    [
        ("r.example", [PUBLIC], "1.1.1.1", True),
        ("r.example", [PUBLIC], "10.0.0.9", False),
        ("r.example", [PUBLIC], "127.0.0.1", False),
        ("r.example", [PUBLIC], METADATA, False),
        ("r.example", [PUBLIC], "::ffff:127.0.0.1", False),
        ("r.example", [PUBLIC], "0.0.0.0", False),
        ("r.example", [PUBLIC], "fe80::1", False),
        ("r.example:5000", ["10.0.0.1"], "10.0.0.9", True),
        ("r.example:5000", ["10.0.0.1", "fd00::1"], "fd00::9", True),
        ("r.example:5000", ["10.0.0.1"], "127.0.0.1", False),
        ("r.example:5000", ["10.0.0.1"], METADATA, False),
        ("r.example:5000", ["10.0.0.1"], "100.100.100.200", False),
        ("r.example:5000", ["10.0.0.1"], "fd00:ec2::254", False),
        ("r.example", [PUBLIC, "10.0.0.1"], "10.0.0.9", False),
        ("127.0.0.1:5000", ["127.0.0.1"], "127.0.0.2", True),
        ("localhost:5000", ["127.0.0.1"], "10.0.0.9", True),
        ("127.0.0.1:5000", ["127.0.0.1"], METADATA, False),
        ("r.example", ["127.0.0.1"], "1.1.1.1", False),
        ("r.example", [METADATA], "1.1.1.1", False),
    ],
)
def test_a_registry_leads_no_nearer_than_it_is_itself(registry, own, link, reached):
    assert is_reached(registry, own, link) is reached


def test_what_the_settings_deny_and_allow_counts():
    denied = Egress(deny=("10.0.0.0/8",), allow=("10.0.0.1", "127.0.0.1"))
    assert is_reached("r.example", ["10.0.0.1"], "127.0.0.1", denied)
    assert not is_reached("r.example", ["10.0.0.1"], "10.0.0.9", denied)
    assert not is_reached("r.example", ["10.0.0.2"], "1.1.1.1", denied)


class Named(ThreadingHTTPServer):
    """Notes the names that it is called by."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Named)
        self.names: list[str] = []


class _Named(BaseHTTPRequestHandler):
    server: Named

    def do_GET(self) -> None:
        self.server.names.append(self.headers["Host"])
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Named]:
    made = Named()
    thread = threading.Thread(target=made.serve_forever, args=(0.02,))
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def test_a_name_is_looked_up_once_and_its_address_connected_to(server):
    names = Names(r_example=[["127.0.0.1"], ["127.0.0.9"]])
    place = f"r.example:{server.server_port}"
    made = transport(place, names, Egress(allow=("127.0.0.1",)))
    with httpx.Client(transport=made) as client:
        for _ in range(2):
            assert client.get(f"http://{place}/v2/").status_code == 200
    assert server.names == [place, place]


def test_the_next_address_is_tried_if_one_does_not_answer(server):
    names = Names(r_example=[["127.0.0.9", "127.0.0.1"]])
    place = f"r.example:{server.server_port}"
    made = transport(place, names, Egress(allow=("127.0.0.0/8",)))
    with httpx.Client(transport=made) as client:
        assert client.get(f"http://{place}/v2/").status_code == 200


@pytest.mark.parametrize(
    ("registry", "expected"),
    [
        ("localhost", True),
        ("LOCALHOST:5000", True),
        ("a.localhost:5000", True),
        ("127.8.9.1:5000", True),
        ("[::1]:5000", True),
        ("[::1]", True),
        ("localhost.example", False),
        ("127.0.0.1.example:5000", False),
        ("[::2]:5000", False),
    ],
)
def test_a_registry_is_local_by_the_way_it_is_written(registry, expected):
    assert is_loopback(registry) is expected
