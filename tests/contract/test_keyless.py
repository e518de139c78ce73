"""Keyless signatures: made and verified by sigstore-python, with a small Sigstore instance.

The identity tokens are those of a server of ours, whose keys Fulcio fetches.
"""

from __future__ import annotations

import json
import threading
from base64 import b64decode, b64encode
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sigstore.models import Bundle, TrustedRoot
from sigstore.verify import Verifier
from sigstore.verify.policy import Identity as SigstoreIdentity

from buildrunner.errors import AttestationError, VerificationError
from buildrunner.plan.build_plan import BuildOrigin
from buildrunner.provenance.attachment import attach, attached
from buildrunner.provenance.keyless import AUDIENCE, Identity, Keyless, keyless_bundle, trusted_root
from buildrunner.provenance.sbom import make
from buildrunner.provenance.stored import read_attestations, sbom_failures
from buildrunner.provenance.verification import Policy, Trust, Verified, verified
from buildrunner.registries.distribution import Repository
from buildrunner.settings import Settings
from buildrunner.store.model.builds import StoredBuild
from buildrunner.worker.identity import BuildIdentities
from tests.api_server import ApiServer, api_server
from tests.contract.test_attestations import name_at, push
from tests.contract.test_sboms import job, layer
from tests.sigstore_server import Sigstore, sigstore_server
from tests.unit.provenance.builds import DIGEST, envelope, statement

CERTIFICATES = "/api/v2/signingCert"
ENTRIES = "/api/v1/log/entries"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with api_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def sigstore() -> Iterator[Sigstore]:
    with sigstore_server() as running:
        yield running


@pytest.fixture
def token(server: ApiServer) -> str:
    return token_of(server)


def token_of(server: ApiServer, *, ahead: timedelta = timedelta()) -> str:
    """The token of a build of the trigger t1, on the branch main."""
    identities = BuildIdentities(
        server.url,
        Settings(),
        server.store.triggers.settings,
        server.identity_keys.signing,
        lambda: datetime.now(UTC) + ahead,
    )
    document = {"id": "b1", "projectId": "shop", "buildTriggerId": "t1"}
    origin = BuildOrigin(ref="refs/heads/main", trigger_name="deploy")
    return identities.signing_token(StoredBuild(document=document, request={}), origin, AUDIENCE)


@pytest.fixture
def keyless(sigstore: Sigstore, token: str, tmp_path: Path) -> Keyless:
    return Keyless(sigstore=sigstore.write_trust(tmp_path), token=token)


def check(bundle: bytes, keyless: Keyless, *allowed: Identity, digest: str = DIGEST) -> Verified:
    trust = Trust(identities=allowed, sigstore=trusted_root(keyless.sigstore))
    return verified(digest, [bundle], trust, Policy())


def refusal(bundle: bytes, keyless: Keyless, *allowed: Identity, digest: str = DIGEST) -> str:
    with pytest.raises(VerificationError) as caught:
        check(bundle, keyless, *allowed, digest=digest)
    return str(caught.value)


def builds_of(server: ApiServer, subject: str = "/project:shop:trigger:t1:**") -> Identity:
    return Identity(server.url, f"{server.url}{subject}")


def changed(bundle: bytes, **material: Any) -> bytes:
    document = json.loads(bundle)
    document["verificationMaterial"].update(material)
    return json.dumps(document).encode()


def test_a_statement_is_signed_for_the_identity_of_the_build_and_logged(keyless, server, sigstore):
    bundle = keyless_bundle(statement(), keyless)
    assert b"\n" not in bundle
    found = check(bundle, keyless, builds_of(server))
    assert found.statement == statement()
    subject = f"{server.url}/project:shop:trigger:t1:ref:refs/heads/main"
    assert (found.key, found.identity) == ("", Identity(server.url, subject))
    assert sigstore.requests == [CERTIFICATES, ENTRIES]


def test_sigstore_itself_verifies_the_bundle(keyless, server, tmp_path):
    config = json.loads(Path(keyless.sigstore).read_text())
    (tmp_path / "root.json").write_text(json.dumps(config["trustedRoot"]))
    subject = f"{server.url}/project:shop:trigger:t1:ref:refs/heads/main"
    kind, payload = Verifier(
        trusted_root=TrustedRoot.from_file(str(tmp_path / "root.json"))
    ).verify_dsse(
        Bundle.from_json(keyless_bundle(statement(), keyless)),
        SigstoreIdentity(identity=subject, issuer=server.url),
    )
    assert (kind, json.loads(payload)) == ("application/vnd.in-toto+json", statement())


def test_a_trusted_root_alone_verifies_a_bundle(keyless, server, tmp_path):
    config = json.loads(Path(keyless.sigstore).read_text())
    (tmp_path / "root.json").write_text(json.dumps(config["trustedRoot"]))
    root = Keyless(sigstore=str(tmp_path / "root.json"))
    assert check(keyless_bundle(statement(), keyless), root, builds_of(server)).identity


def test_a_bundle_among_other_entries_of_the_log_is_verified(keyless, server):
    bundles = [keyless_bundle(statement(), keyless) for _ in range(5)]
    assert all(check(one, keyless, builds_of(server)) for one in bundles)


def test_another_identity_is_refused(keyless, server):
    bundle = keyless_bundle(statement(), keyless)
    other = builds_of(server, "/project:other:**")
    assert refusal(bundle, keyless, other) == (
        "its provenance is signed by another identity: "
        f"{server.url}/project:shop:trigger:t1:ref:refs/heads/main"
    )


def test_a_certificate_of_several_subjects_is_nobody_s(keyless, server, sigstore):
    sigstore.more_subjects = ["https://other.example/subject"]
    try:
        bundle = keyless_bundle(statement(), keyless)
    finally:
        sigstore.more_subjects = []
    assert refusal(bundle, keyless, Identity(server.url, "**")) == (
        "its provenance is signed by another identity: no subject"
    )


def test_another_issuer_is_refused_though_the_subject_fits(keyless, server):
    bundle = keyless_bundle(statement(), keyless)
    other = Identity("https://other.example", "**")
    assert refusal(bundle, keyless, other) == (
        f"its provenance is signed by an identity of another issuer: {server.url}"
    )


def test_a_signature_after_the_end_of_its_certificate_is_refused(keyless, server, sigstore):
    bundle = keyless_bundle(statement(), keyless)
    late = int((datetime.now(UTC) + timedelta(hours=1)).timestamp())
    entry = json.loads(bundle)["verificationMaterial"]["tlogEntries"][0]
    text = refusal(
        changed(bundle, tlogEntries=[{**entry, "integratedTime": str(late)}]),
        keyless,
        builds_of(server),
    )
    assert text.startswith(
        "the certificate of its signature had expired or was not valid yet: it signed at "
    )


def test_a_time_that_the_log_did_not_sign_is_refused(keyless, server):
    bundle = keyless_bundle(statement(), keyless)
    entry = json.loads(bundle)["verificationMaterial"]["tlogEntries"][0]
    moved = {**entry, "integratedTime": str(int(entry["integratedTime"]) + 60)}
    assert refusal(changed(bundle, tlogEntries=[moved]), keyless, builds_of(server)).startswith(
        "its signature is not in the transparency log: "
    )


def test_a_time_that_no_clock_has_disturbs_no_other_attestation(keyless, server):
    good = keyless_bundle(statement(), keyless)
    (entry,) = json.loads(good)["verificationMaterial"]["tlogEntries"]
    bad = changed(good, tlogEntries=[{**entry, "integratedTime": str(2**63 - 1)}])
    trust = Trust(identities=[builds_of(server)], sigstore=trusted_root(keyless.sigstore))
    assert verified(DIGEST, [bad, good], trust, Policy()).identity
    assert refusal(bad, keyless, builds_of(server)) == "its provenance can't be read: OSError"


def test_a_signature_that_no_log_has_is_refused(keyless, server):
    bundle = keyless_bundle(statement(), keyless)
    assert refusal(changed(bundle, tlogEntries=[]), keyless, builds_of(server)) == (
        "its signature is in no transparency log"
    )


def test_an_entry_about_another_signature_is_refused(keyless, server):
    first, second = (keyless_bundle(statement(), keyless) for _ in range(2))
    entries = json.loads(second)["verificationMaterial"]["tlogEntries"]
    assert refusal(changed(first, tlogEntries=entries), keyless, builds_of(server)).startswith(
        "its Sigstore bundle is not valid: log entry signatures do not match"
    )


def test_a_bundle_of_another_instance_is_refused(keyless, server, tmp_path):
    (tmp_path / "other").mkdir()
    with sigstore_server() as other:
        elsewhere = Keyless(sigstore=other.write_trust(tmp_path / "other"))
    assert refusal(keyless_bundle(statement(), keyless), elsewhere, builds_of(server)) == (
        "the certificate of its signature comes from no trusted Fulcio"
    )


def test_a_changed_statement_is_refused(keyless, server):
    document = json.loads(keyless_bundle(statement(), keyless))
    payload = document["dsseEnvelope"]["payload"]
    document["dsseEnvelope"]["payload"] = payload[:-8] + "AAAA" + payload[-4:]
    text = refusal(json.dumps(document).encode(), keyless, builds_of(server))
    assert text == "its Sigstore bundle is not valid: DSSE: invalid signature"


def test_another_digest_is_refused(keyless, server):
    bundle = keyless_bundle(statement(), keyless)
    text = refusal(bundle, keyless, builds_of(server), digest="sha256:" + "9" * 64)
    assert text.startswith("its provenance is about another artifact")


def test_a_policy_of_keys_says_that_an_identity_signed(keyless):
    with pytest.raises(VerificationError) as caught:
        verified(DIGEST, [keyless_bundle(statement(), keyless)], Trust(), Policy())
    assert str(caught.value) == "its provenance is signed by an identity, not by a key"


def test_a_policy_of_identities_says_that_a_key_signed(keyless, server, tmp_path):
    text = refusal(envelope(tmp_path), keyless, builds_of(server))
    assert text.startswith("its provenance is signed by another key: ")


def failure(keyless: Keyless, cancel: threading.Event | None = None) -> str:
    with pytest.raises(AttestationError) as caught:
        keyless_bundle(statement(), keyless, cancel)
    return str(caught.value)


def test_a_busy_instance_is_tried_again(keyless, server, sigstore):
    sigstore.faults = {CERTIFICATES: [(503, b"busy")], ENTRIES: [(429, b"")]}
    assert check(keyless_bundle(statement(), keyless), keyless, builds_of(server))
    assert sigstore.requests == [CERTIFICATES, CERTIFICATES, ENTRIES, CERTIFICATES, ENTRIES]


def test_an_instance_that_stays_busy_is_named_with_its_answer(keyless, sigstore):
    sigstore.faults = {CERTIFICATES: [(503, b"out of order")] * 3}
    assert failure(keyless) == (
        f"no certificate of Fulcio for the provenance: {sigstore.url} answers 503: out of order"
    )
    assert sigstore.requests == [CERTIFICATES] * 3


def test_a_refused_token_is_not_tried_again(keyless, sigstore):
    refused = {"code": 3, "message": "There was an error processing the identity token"}
    sigstore.faults = {CERTIFICATES: [(400, json.dumps(refused).encode())]}
    assert failure(keyless) == (
        f"no certificate of Fulcio for the provenance: {sigstore.url} answers 400: "
        "There was an error processing the identity token"
    )
    assert sigstore.requests == [CERTIFICATES]


def test_an_entry_that_the_log_refuses_is_named(keyless, sigstore):
    sigstore.faults = {ENTRIES: [(400, b'{"code": 400, "message": "entry too large"}')]}
    assert failure(keyless) == (
        f"the provenance can't be logged by Rekor: {sigstore.url} answers 400: entry too large"
    )


def test_a_signature_without_a_date_gives_no_provenance(keyless, sigstore):
    # Rekor 2 dates no entry: an authority does, and this one is not there.
    config = json.loads(Path(keyless.sigstore).read_text())
    signing = config["signingConfig"]
    signing["rekorTlogUrls"][0]["majorApiVersion"] = 2
    signing["tsaUrls"] = [{**signing["caUrls"][0], "url": "http://127.0.0.1:9"}]
    Path(keyless.sigstore).write_text(json.dumps(config))
    text = b64encode(b"x" * 32).decode()
    proof = {"logIndex": "0", "rootHash": text, "treeSize": "1", "hashes": []}
    entry = {
        "logIndex": "0",
        "logId": {"keyId": text},
        "kindVersion": {"kind": "hashedrekord", "version": "0.0.2"},
        "inclusionProof": {**proof, "checkpoint": {"envelope": "x"}},
        "canonicalizedBody": text,
    }
    sigstore.faults = {"/api/v2/log/entries": [(201, json.dumps(entry).encode())] * 3}
    assert failure(keyless).startswith(
        "no timestamp authority dated the signature of the provenance: "
    )
    assert sigstore.faults == {"/api/v2/log/entries": []}


def test_an_instance_that_is_not_there_is_named(keyless, sigstore, tmp_path):
    config = json.loads(Path(keyless.sigstore).read_text())
    config["signingConfig"]["caUrls"][0]["url"] = "http://127.0.0.1:9"
    Path(keyless.sigstore).write_text(json.dumps(config))
    text = failure(keyless)
    assert text.startswith("no certificate of Fulcio for the provenance: ")
    assert "Connection refused" in text


def test_a_log_whose_proof_is_wrong_gives_no_provenance(keyless, sigstore):
    real = sigstore.entry

    def forged(proposed: dict[str, Any]) -> dict[str, Any]:
        ((uuid, entry),) = real(proposed).items()
        proof = {**entry["verification"]["inclusionProof"], "rootHash": "0" * 64}
        return {uuid: {**entry, "verification": {**entry["verification"], "inclusionProof": proof}}}

    sigstore.entry = forged
    assert failure(keyless).startswith(
        "Sigstore gave the provenance a signature that is not valid: "
        "its signature is not in the transparency log"
    )


def test_an_expired_token_is_named(keyless, server, sigstore):
    old = token_of(server, ahead=timedelta(hours=-1))
    assert failure(Keyless(sigstore=keyless.sigstore, token=old)) == (
        "the identity token for Sigstore can't be used: Signature has expired"
    )
    assert sigstore.requests == []


def test_a_token_comes_from_a_file_too(keyless, server, token, tmp_path):
    (tmp_path / "token").write_text(f"{token}\n")
    from_file = Keyless(sigstore=keyless.sigstore, token_file=str(tmp_path / "token"))
    assert check(keyless_bundle(statement(), from_file), keyless, builds_of(server))


def test_a_missing_token_file_is_named(keyless, tmp_path):
    missing = str(tmp_path / "missing")
    text = failure(Keyless(sigstore=keyless.sigstore, token_file=missing))
    assert text.startswith(f"the identity token {missing} can't be read: ")


def test_without_any_token_the_build_says_so(keyless, monkeypatch):
    for name in ("GITHUB_ACTIONS", "GITLAB_CI", "BUILDKITE", "CIRCLECI"):
        monkeypatch.delenv(name, raising=False)
    assert failure(Keyless(sigstore=keyless.sigstore)) == (
        "there is no identity token for Sigstore"
    )


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"mediaType": "x"}'])
def test_a_file_that_is_no_trust_config_is_named(tmp_path, text):
    (tmp_path / "trust.json").write_text(text)
    path = str(tmp_path / "trust.json")
    assert failure(Keyless(sigstore=path)).startswith(f"{path} is no trust config of Sigstore: ")
    with pytest.raises(AttestationError, match="is no trust config of Sigstore"):
        trusted_root(path)


def test_a_cancelled_build_does_not_wait_for_sigstore(keyless, sigstore):
    cancel, requested, answer = threading.Event(), threading.Event(), threading.Event()
    real = sigstore.certificate

    def slow(*args: Any) -> list[str]:
        requested.set()
        answer.wait()
        return real(*args)

    sigstore.certificate = slow
    threading.Thread(target=lambda: requested.wait() and cancel.set(), daemon=True).start()
    try:
        assert failure(keyless, cancel).startswith("Sigstore did not sign the provenance within ")
    finally:
        answer.set()


def test_a_bundle_is_attached_as_it_is_and_found_again(keyless, registry):
    bundle = keyless_bundle(statement(), keyless)
    with Repository(name_at(registry.address)) as repository:
        image = push(repository)
        attach(repository, image, bundle)
        assert list(attached(repository, image.digest)) == [bundle]


def test_sboms_are_signed_in_the_same_way(keyless, registry, server, tmp_path):
    with Repository(name_at(registry.address)) as repository:
        image = push(repository, layer())
        make(job(tmp_path, f"{repository.name}@{image.digest}", formats=("spdx",), keyless=keyless))
        assert sbom_failures(str(tmp_path / "log")) == []
        (found,) = attached(repository, image.digest)
    (line,) = read_attestations(str(tmp_path / "log"), "b1").splitlines()
    assert line == found
    made = json.loads(b64decode(json.loads(line)["dsseEnvelope"]["payload"]))
    assert made["predicateType"] == "https://spdx.dev/Document"
    assert refusal(line, keyless, builds_of(server), digest=image.digest) == (
        "it has no provenance, only a statement of type https://spdx.dev/Document"
    )
