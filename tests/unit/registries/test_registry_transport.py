"""Which addresses a registry that a build names may lead requests to."""

import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from buildrunner.addresses import Egress
from buildrunner.containers.image_name import ImageName
from buildrunner.errors import RegistryError
from buildrunner.registries import registry_transport
from buildrunner.registries.distribution import Repository
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
        ("r.example:5000", ["10.0.0.1"], "fd20:ce::254", False),
        ("r.example:5000", ["10.0.0.1"], "fd00:c1::a9fe:a9fe", False),
        ("r.example:5000", ["10.0.0.1"], "fec0::1", False),
        ("r.example", [PUBLIC], "::7f00:1", False),
        ("r.example", [PUBLIC], "::ffff:0:7f00:1", False),
        ("r.example", [PUBLIC], "64:ff9b:1::1", False),
        ("localhost", ["127.0.0.1"], "::1", True),
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


def test_who_denies_all_of_ipv4_denies_ipv6_as_well():
    total = Egress(deny=("0.0.0.0/0",), allow=("10.0.0.0/8",))
    assert is_reached("r.example", ["10.0.0.1"], "10.0.0.9", total)
    assert not is_reached("r.example", ["2606:4700::1"], "2606:4700::1", total)
    assert is_reached("r.example", ["2606:4700::1"], "2606:4700::1")


def test_a_refusal_says_how_an_address_is_allowed():
    names = Names(r_example=[["127.0.1.1"]])
    with (
        closing(transport("r.example", names)) as made,
        pytest.raises(RegistryError, match=r"at 127\.0\.1\.1") as caught,
    ):
        made._addresses("r.example")
    assert 'egress_allow = ["127.0.1.1"] below [sandbox]' in caught.value.hint
    allowed = Egress(allow=("127.0.1.1",))
    with closing(transport("r.example", names, allowed)) as made:
        assert made._addresses("r.example") == ("127.0.1.1",)


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


def test_a_name_is_looked_up_as_its_certificate_has_it():
    names = Names(**{"xn--fa-hia_de": [["127.0.0.9"]]})
    with (
        httpx.Client(transport=transport("xn--fa-hia.de", names)) as client,
        pytest.raises(RegistryError, match=r"leads to xn--fa-hia\.de at 127\.0\.0\.9"),
    ):
        client.get("https://xn--fa-hia.de/v2/")


def through(proxies: dict[str, str], url: str, **answers: list[list[str]]) -> int:
    """The status of the answer that a proxy gives."""
    made = RegistryTransport(
        "r.example",
        ssl.create_default_context(),
        proxies=proxies,
        addresses_of=Names(**answers),
    )
    with httpx.Client(transport=made) as client:
        return client.get(url).status_code


@pytest.mark.parametrize("name", ["http", "all"])
@pytest.mark.parametrize("scheme", ["", "http://"])
def test_a_proxy_is_used_however_it_is_written(server, name, scheme):
    proxies = {name: f"{scheme}127.0.0.1:{server.server_port}"}
    assert through(proxies, "http://r.example/v2/", r_example=[[PUBLIC]]) == 200
    assert server.names == ["r.example"]


def test_a_proxy_is_asked_for_names_that_this_machine_does_not_know(server):
    def unknown(_: str) -> list[str]:
        raise OSError("no such name")

    made = RegistryTransport(
        "r.example",
        ssl.create_default_context(),
        proxies={"http": f"127.0.0.1:{server.server_port}"},
        addresses_of=unknown,
    )
    with httpx.Client(transport=made) as client:
        assert client.get("http://r.example/v2/").status_code == 200


@pytest.mark.parametrize("address", ["127.0.0.1", METADATA, "10.0.0.9"])
def test_a_proxy_does_not_lead_nearer_either(server, address):
    proxies = {"http": f"127.0.0.1:{server.server_port}"}
    with pytest.raises(RegistryError, match="is not reached for builds"):
        through(proxies, "http://link.example/", link_example=[[address]], r_example=[[PUBLIC]])
    assert server.names == []


def test_a_proxy_of_an_unknown_kind_is_an_error_without_its_password():
    with pytest.raises(RegistryError, match="by a proxy of socks4://") as caught:
        through({"http": "socks4://u:s3cret@p:1"}, "http://r.example/", r_example=[[PUBLIC]])
    assert "s3cret" not in f"{caught.value}{caught.value.hint}"


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


def signed_by_itself(folder: Path, name: str) -> None:
    """NAME.crt, NAME.cert and NAME.key: one self-signed certificate in all roles."""
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    argv += ["-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-keyout", f"{name}.key"]
    argv += ["-addext", "subjectAltName=IP:127.0.0.1", "-out", f"{name}.crt"]
    subprocess.run(argv, cwd=folder, check=True, capture_output=True)
    shutil.copyfile(folder / f"{name}.crt", folder / f"{name}.cert")


@pytest.fixture
def strict(server: Named, tmp_path: Path) -> str:
    """A registry with a certificate of its own, which wants the client's; its ``host:port``."""
    signed_by_itself(tmp_path, "server")
    signed_by_itself(tmp_path, "client")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    tls.load_verify_locations(tmp_path / "client.crt")
    tls.verify_mode = ssl.CERT_REQUIRED
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    return f"127.0.0.1:{server.server_port}"


@pytest.mark.parametrize(
    ("files", "shown"),
    [
        (["server.crt", "client.cert", "client.key"], True),
        (["server.crt", "client.cert"], False),  # without its key, a certificate proves nothing
        (["server.crt"], False),
    ],
)
def test_a_registry_gets_the_client_certificate_of_its_folder(
    server: Named,
    strict: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: list[str],
    shown: bool,
) -> None:
    """Attestations, SBOMs and pushes of nested sandboxes go through this connection."""
    monkeypatch.setattr(registry_transport, "_CERTIFICATES", str(tmp_path / "certs.d"))
    folder = tmp_path / "certs.d" / strict
    folder.mkdir(parents=True)
    for name in files:
        shutil.copyfile(tmp_path / name, folder / name)
    with Repository(ImageName.parse(f"{strict}/app")) as repository:
        if shown:
            assert repository.manifest("1") is not None
        else:
            with pytest.raises(RegistryError):
                repository.manifest("1")
    assert (strict in server.names) is shown


def test_no_other_registry_gets_that_certificate(
    strict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_transport, "_CERTIFICATES", str(tmp_path / "certs.d"))
    of_another = tmp_path / "certs.d" / "127.0.0.1:1"
    of_another.mkdir(parents=True)
    for name in ("client.cert", "client.key"):
        shutil.copyfile(tmp_path / name, of_another / name)
    own = tmp_path / "certs.d" / strict
    own.mkdir()
    shutil.copyfile(tmp_path / "server.crt", own / "server.crt")
    with Repository(ImageName.parse(f"{strict}/app")) as repository, pytest.raises(RegistryError):
        repository.manifest("1")
