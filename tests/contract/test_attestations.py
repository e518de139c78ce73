"""Attestations beside images in real registries: with the referrers API, and without."""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
from sigstore_models.bundle.v1 import Bundle

from buildrunner.containers.image_name import ImageName
from buildrunner.containers.protocol import RegistryLogin
from buildrunner.errors import RegistryError
from buildrunner.provenance.attachment import (
    BUNDLE_TYPE,
    attach,
    attach_signature,
    attached,
    bundle_of,
)
from buildrunner.provenance.signing import open_signer, public_key_pem
from buildrunner.registries.distribution import (
    INDEX,
    MANIFEST,
    Manifest,
    Repository,
    referrers_tag,
    sha256,
)
from tests.conftest import Registry, program, start_registry, started_when, stop
from tests.registry_servers import (
    HTPASSWD,
    PASSWORD,
    USER,
    Fault,
    faulty_proxy,
    referrers_proxy,
    registry_that_answers,
    tls_registry,
    trusted,
)
from tests.unit.provenance.builds import envelope, statement


@pytest.fixture(params=["with the referrers API", "without it"])
def address(request: pytest.FixtureRequest, registry: Registry) -> Iterator[str]:
    if request.param == "without it":
        yield registry.address
        return
    with referrers_proxy(registry.address) as proxy:
        yield proxy


def name_at(address: str) -> ImageName:
    return ImageName.parse(f"{address}/proof-{uuid.uuid4().hex[:8]}")


def push(repository: Repository, layer: bytes = b"layer") -> Manifest:
    """An image of one layer, by the client itself."""

    def stored(data: bytes, kind: str) -> dict[str, object]:
        media_type = f"application/vnd.oci.image.{kind}"
        return {"mediaType": media_type, "digest": repository.put_blob(data), "size": len(data)}

    files = {"type": "layers", "diff_ids": [sha256(layer)]}
    config = {"architecture": "amd64", "os": "linux", "rootfs": files}
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": stored(json.dumps(config).encode(), "config.v1+json"),
        "layers": [stored(layer, "layer.v1.tar")],
    }
    body = json.dumps(manifest).encode()
    repository.put_manifest("1", body, MANIFEST)
    found = repository.manifest("1")
    assert found is not None
    assert found.digest == sha256(body)
    return found


def same(one: bytes, other: bytes) -> bool:
    return bool(json.loads(one) == json.loads(other))


def test_an_attestation_is_found_again_by_the_digest_of_its_image(address, tmp_path):
    line = envelope(tmp_path)
    with Repository(name_at(address)) as repository:
        image = push(repository)
        assert list(attached(repository, image.digest)) == []
        attach(repository, image, line)
        (found,) = attached(repository, image.digest)
    assert same(found, line)


def test_a_second_build_of_an_image_adds_its_attestation(address, tmp_path):
    lines = [envelope(tmp_path / one) for one in ("a", "b")]
    with Repository(name_at(address)) as repository:
        image = push(repository)
        for line in (*lines, lines[0]):  # the first one once more: it is there once
            attach(repository, image, line)
        found = list(attached(repository, image.digest))
    assert sorted(found) == sorted(
        json.dumps(json.loads(one), separators=(",", ":")).encode() for one in lines
    )


def large(line: bytes) -> bytes:
    """The attestation, longer than any that is read."""
    return json.dumps({**json.loads(line), "more": "x" * (5 << 20)}).encode()


def test_an_attestation_that_is_too_large_hides_no_other(address, tmp_path):
    lines = [envelope(tmp_path / one) for one in ("a", "b")]
    with Repository(name_at(address)) as repository:
        image = push(repository)
        attach(repository, image, large(lines[0]))
        attach(repository, image, lines[1])
        found = attached(repository, image.digest)
        assert same(next(found), lines[1])
        with pytest.raises(RegistryError, match=r"not all attestations .* more than 4,194,304"):
            next(found)


def test_an_attestation_that_the_registry_lacks_hides_no_other(registry, tmp_path):
    lines = [envelope(tmp_path / one) for one in ("a", "b")]
    with Repository(name_at(registry.address)) as repository:
        image = push(repository)
        for line in lines:
            attach(repository, image, line)
    fault = Fault("GET", f"/blobs/{sha256(bundle_of(lines[0]))}", 404)
    with faulty_proxy(registry.address, fault) as proxy:
        name = ImageName.parse(f"{proxy}/{repository.name.partition('/')[2]}")
        with Repository(name) as behind:
            found = attached(behind, image.digest)
            assert same(next(found), lines[1])
            assert same(next(found), lines[0])  # below cosign's tag
            with pytest.raises(RegistryError, match="the registry answers 404"):
                next(found)
    assert fault.hits == 1


def test_a_good_attestation_is_found_behind_many_others(registry, tmp_path):
    other, line = (envelope(tmp_path / one) for one in ("a", "b"))
    with Repository(name_at(registry.address)) as repository:
        image = push(repository)
        attach(repository, image, other)
        tag = referrers_tag(image.digest)
        envelopes = repository.manifest(f"{tag}.att")
        attach(repository, image, line)
        repository.put_manifest(f"{tag}.att", envelopes.body, MANIFEST)  # as for a keyless one
        junk, good = json.loads(repository.manifest(tag).body)["manifests"]
        foreign = {**junk, "artifactType": "application/vnd.example"}
        entries = [*[foreign] * 2000, *[junk] * 150, good]
        body = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries})
        repository.put_manifest(tag, body.encode(), INDEX)
        assert any(same(one, line) for one in attached(repository, image.digest))


def without_tag(repository: Repository, image: Manifest) -> None:
    """Leave the referrers alone, as of keyless attestations."""
    body = json.dumps({**json.loads(image.body), "layers": []}).encode()
    repository.put_manifest(f"{referrers_tag(image.digest)}.att", body, MANIFEST)


def test_a_good_attestation_is_found_on_a_later_page_of_the_referrers(registry, tmp_path):
    """Attack: whoever may push attaches so many that the good one is not on the first page."""
    lines = [envelope(tmp_path / one) for one in ("a", "b", "c")]
    with (
        referrers_proxy(registry.address, page=1) as address,
        Repository(name_at(address)) as repository,
    ):
        image = push(repository)
        for line in lines:
            attach(repository, image, line)
        without_tag(repository, image)
        found = list(attached(repository, image.digest))
    assert len(found) == 3
    assert all(map(same, found, lines))


def test_pages_of_referrers_that_do_not_end_hide_no_attestation(registry, tmp_path):
    line = envelope(tmp_path)
    with (
        referrers_proxy(registry.address, circle=True) as address,
        Repository(name_at(address)) as repository,
    ):
        image = push(repository)
        attach(repository, image, line)
        without_tag(repository, image)
        found = attached(repository, image.digest)
        assert same(next(found), line)
        with pytest.raises(RegistryError, match="more than 1,000 pages of referrers"):
            next(found)


@pytest.mark.parametrize("listed", [5, "text", {}, [5, None]])
def test_a_list_of_referrers_that_is_none_is_read_as_an_empty_one(listed):
    """Attack: some registries keep what whoever pushes puts below the tag of the list."""
    body = json.dumps({"manifests": listed}).encode()
    with registry_that_answers(200, body) as address, Repository(name_at(address)) as repository:
        assert list(attached(repository, sha256(body))) == []


def test_a_registry_that_redirects_in_a_circle_is_named():
    with registry_that_answers(307) as address, Repository(name_at(address)) as repository:
        for request in (
            partial(repository.manifest, "1"),
            partial(repository.put_blob, b"x"),
            partial(list, attached(repository, sha256(b"x"))),
        ):
            with pytest.raises(RegistryError, match="Exceeded maximum allowed redirects"):
                request()


def test_attestations_are_read_one_by_one(registry, tmp_path):
    with Repository(name_at(registry.address)) as repository:
        image = push(repository)
        for one in ("a", "b"):
            attach(repository, image, envelope(tmp_path / one))
    reads = Fault("GET", "/blobs/", 500, times=0)  # counts
    with faulty_proxy(registry.address, reads) as proxy:
        name = ImageName.parse(f"{proxy}/{repository.name.partition('/')[2]}")
        with Repository(name) as behind:
            next(attached(behind, image.digest))
    assert reads.hits == 1


def test_a_referrer_is_a_sigstore_bundle_that_names_its_subject(address, tmp_path):
    with Repository(name_at(address)) as repository:
        image = push(repository)
        attach(repository, image, envelope(tmp_path))
        (entry,) = repository.referrers(image.digest)
        assert entry["artifactType"] == BUNDLE_TYPE
        assert entry["annotations"]["dev.sigstore.bundle.predicateType"] == (
            "https://slsa.dev/provenance/v1"
        )
        manifest = json.loads(repository.manifest(entry["digest"]).body)
        assert manifest["subject"]["digest"] == image.digest
        bundle = Bundle.from_json(repository.blob(manifest["layers"][0]["digest"]))
    assert bundle.media_type == BUNDLE_TYPE
    payload = base64.b64decode(bundle.to_dict()["dsseEnvelope"]["payload"])
    assert json.loads(payload) == statement()


def test_cosign_s_tag_has_the_envelope_as_a_layer(registry, tmp_path):
    line = envelope(tmp_path)
    with Repository(name_at(registry.address)) as repository:
        image = push(repository)
        attach(repository, image, line)
        tag = image.digest.replace(":", "-") + ".att"
        (layer,) = json.loads(repository.manifest(tag).body)["layers"]
        assert layer["mediaType"] == "application/vnd.dsse.envelope.v1+json"
        assert layer["annotations"]["predicateType"] == "https://slsa.dev/provenance/v1"
        assert repository.blob(layer["digest"]) == line


def signatures(repository: Repository, image: Manifest) -> list[tuple[bytes, bytes]]:
    """Claim and signature of each layer below cosign's tag."""
    tag = image.digest.replace(":", "-") + ".sig"
    layers = json.loads(repository.manifest(tag).body)["layers"]
    kinds = {layer["mediaType"] for layer in layers}
    assert kinds == {"application/vnd.dev.cosign.simplesigning.v1+json"}
    return [
        (
            repository.blob(layer["digest"]),
            base64.b64decode(layer["annotations"]["dev.cosignproject.cosign/signature"]),
        )
        for layer in layers
    ]


def test_cosign_s_tag_has_a_signature_of_the_image_that_openssl_verifies(address, tmp_path):
    signer = open_signer("", str(tmp_path))
    with Repository(name_at(address)) as repository:
        image = push(repository)
        for _ in range(2):  # a second build of the same image adds nothing
            attach_signature(repository, image, signer)
        ((claim, signature),) = signatures(repository, image)
        assert json.loads(claim) == {
            "critical": {
                "identity": {"docker-reference": repository.name},
                "image": {"docker-manifest-digest": image.digest},
                "type": "cosign container image signature",
            },
            "optional": None,
        }
    files = {"claim": claim, "signature": signature, "key": public_key_pem(signer).encode()}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    openssl = program("openssl", "openssl")
    command = f"{openssl} dgst -sha256 -verify key -signature signature claim"
    done = subprocess.run(command.split(), cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "Verified OK\n"


def test_the_signature_of_another_key_stays(registry, tmp_path):
    with Repository(name_at(registry.address)) as repository:
        image = push(repository)
        for key in ("a", "b"):
            attach_signature(repository, image, open_signer("", str(tmp_path / key)))
        (one, first), (other, second) = signatures(repository, image)
        assert one == other
        assert first != second


def test_the_bundle_of_an_envelope_is_valid(tmp_path):
    bundle = Bundle.from_json(bundle_of(envelope(tmp_path)))
    assert bundle.verification_material.public_key is not None


def test_a_registry_that_demands_a_login_gets_it(tmp_path):
    running = start_registry(tmp_path, htpasswd=HTPASSWD)
    try:
        name = name_at(running.address)
        login = RegistryLogin(username=USER, password=PASSWORD)
        with Repository(name, login) as repository:
            image = push(repository)
        with Repository(name) as stranger, pytest.raises(RegistryError, match="answers 401") as no:
            stranger.manifest(image.digest)
        assert "docker login" in no.value.hint
        with (
            Repository(name, RegistryLogin(username=USER, password="wrong")) as wrong,
            pytest.raises(RegistryError, match="answers 401"),
        ):
            wrong.manifest(image.digest)
    finally:
        stop(running.process)


def test_tls_is_checked_against_the_authorities_that_docker_trusts(tmp_path):
    with tls_registry(tmp_path) as running:
        login = RegistryLogin(username=USER, password=PASSWORD)
        name = name_at(running.address)
        with (
            Repository(name, login) as repository,
            pytest.raises(RegistryError, match="CERTIFICATE_VERIFY_FAILED"),
        ):
            repository.manifest("1")
        with trusted(running), Repository(name, login) as repository:
            assert push(repository).digest.startswith("sha256:")


def test_a_registry_that_breaks_once_is_asked_again(registry, tmp_path):
    with Repository(name_at(registry.address)) as repository:
        image = push(repository)
    fault = Fault("GET", "/manifests/", 503, times=1)
    with faulty_proxy(registry.address, fault) as proxy:
        name = ImageName.parse(f"{proxy}/{repository.name.partition('/')[2]}")
        with Repository(name) as behind:
            assert behind.manifest(image.digest) == image
    assert fault.hits == 2


def test_a_manifest_that_is_not_that_of_its_digest_is_refused(registry):
    with Repository(name_at(registry.address)) as repository:
        image = push(repository, b"a layer that no other test has")
        other = push(repository, b"another layer")
    path = repository.name.partition("/")[2]
    files = registry.root / "data/docker/registry/v2/blobs/sha256"
    hex_of = image.digest.partition(":")[2]
    (files / hex_of[:2] / hex_of / "data").write_bytes(other.body)
    name = ImageName.parse(f"{registry.address}/{path}")
    with Repository(name) as again, pytest.raises(RegistryError):
        again.manifest(image.digest)


# -- tokens, as Docker Hub and most registries of today want them ---------------------------------


class _Tokens(BaseHTTPRequestHandler):
    """A token service: signs what its caller asks for, after a look at the password."""

    key = certificate = ""

    def do_GET(self) -> None:
        requested = parse_qs(urlsplit(self.path).query)
        kind, name, actions = requested["scope"][0].split(":")
        given = self.headers.get("Authorization", "")
        pair = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        allowed = actions.split(",") if given == f"Basic {pair}" else []
        claims = {
            "iss": "tests",
            "sub": USER,
            "aud": requested["service"][0],
            "jti": uuid.uuid4().hex,
            "nbf": int(time.time()) - 60,
            "exp": int(time.time()) + 300,
            "access": [{"type": kind, "name": name, "actions": allowed}],
        }
        headers = {"x5c": [self.certificate]}
        token = jwt.encode(claims, self.key, algorithm="ES256", headers=headers)
        body = json.dumps({"token": token}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def token_registry(root: Path) -> Iterator[str]:
    openssl = program("openssl", "openssl")
    command = (
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 "
        "-keyout key.pem -out cert.pem -subj /CN=tests"
    )
    subprocess.run([openssl, *command.split()], cwd=root, check=True, capture_output=True)
    pem = (root / "cert.pem").read_text()
    _Tokens.key = (root / "key.pem").read_text()
    _Tokens.certificate = "".join(pem.splitlines()[1:-1])
    service = ThreadingHTTPServer(("127.0.0.1", 0), _Tokens)
    thread = threading.Thread(target=service.serve_forever, args=(0.02,))
    thread.start()
    (root / "config.yml").write_text(
        "version: 0.1\nstorage: {inmemory: {}}\nhttp: {addr: '127.0.0.1:0'}\n"
        f"auth: {{token: {{realm: 'http://127.0.0.1:{service.server_port}/token', service: tests, "
        f"issuer: tests, rootcertbundle: {root}/cert.pem}}}}\n"
    )
    process = subprocess.Popen(
        [program("docker-registry", "docker-registry"), "serve", str(root / "config.yml")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={"PATH": "/usr/bin:/bin", "OTEL_TRACES_EXPORTER": "none"},
    )
    try:
        line = started_when(process, b"listening on").decode()
        yield f"127.0.0.1:{line.split('127.0.0.1:')[1].split(chr(34))[0].split()[0]}"
    finally:
        stop(process)
        service.shutdown()
        thread.join()
        service.server_close()


def test_a_registry_with_tokens_is_used_with_the_user_s_login(tmp_path):
    with token_registry(tmp_path) as address:
        name = name_at(address)
        line = envelope(tmp_path / "key")
        with Repository(name, RegistryLogin(username=USER, password=PASSWORD)) as repository:
            image = push(repository)
            attach(repository, image, line)
            assert same(next(attached(repository, image.digest)), line)
        with Repository(name) as stranger, pytest.raises(RegistryError, match="answers 401"):
            stranger.manifest(image.digest)
