"""What `buildrunner verify` refuses, and what it says each time."""

from __future__ import annotations

import json
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from buildrunner.errors import ConfigError, RegistryError, UsageError, VerificationError
from buildrunner.provenance.signing import open_signer, signed_envelope
from buildrunner.provenance.statement import provenance_statement
from buildrunner.provenance.verification import (
    Policy,
    Trust,
    Verified,
    allows,
    read_policy,
    verified,
)
from tests.unit.provenance.builds import (
    BUILD,
    BUILDER,
    COMMIT,
    DIGEST,
    ORIGIN,
    PLAN,
    REPOSITORY,
    envelope,
    outcome,
    payload,
    statement,
)

STRICT = Policy(
    builders=(BUILDER,),
    sources=("https://git.example.com/acme/*",),
    refs=("refs/heads/main", "refs/tags/v*"),
    configs=("cloudbuild.yaml",),
)


def key(folder: Path) -> Any:
    return open_signer("", str(folder)).public_key


def made(folder: Path, **origin: Any) -> bytes:
    plan = replace(PLAN, origin=replace(ORIGIN, **origin))
    changed = provenance_statement(BUILD, plan, outcome(), builder_id=BUILDER)
    assert changed is not None
    return envelope(folder, changed)


def check(folder: Path, line: bytes, policy: Policy = STRICT, digest: str = DIGEST) -> Verified:
    return verified(digest, [line], Trust(keys=[key(folder)]), policy)


def refusal(folder: Path, line: bytes, policy: Policy = STRICT, digest: str = DIGEST) -> str:
    with pytest.raises(VerificationError) as caught:
        check(folder, line, policy, digest)
    assert caught.value.exit_code == 1
    return str(caught.value)


def test_good_provenance_is_verified(tmp_path):
    found = check(tmp_path, envelope(tmp_path))
    assert (found.builder, found.repository, found.commit) == (BUILDER, REPOSITORY, COMMIT)
    assert (found.ref, found.config) == ("refs/heads/main", "cloudbuild.yaml")
    assert found.key == key(tmp_path).keyid


def test_the_age_of_provenance_does_not_count(tmp_path):
    began = datetime(2001, 1, 1, tzinfo=UTC)
    old = outcome(started_at=began, finished_at=began + timedelta(seconds=1))
    changed = provenance_statement(BUILD, PLAN, old, builder_id=BUILDER)
    assert "2001-01-01" in json.dumps(changed)
    assert changed is not None
    assert check(tmp_path, envelope(tmp_path, changed)).commit == COMMIT


def test_one_good_attestation_among_bad_ones_is_enough(tmp_path):
    lines = [b"nonsense", envelope(tmp_path / "other"), envelope(tmp_path)]
    assert verified(DIGEST, lines, Trust(keys=[key(tmp_path)]), STRICT).builder == BUILDER


def unreadable(*attestations):
    """The attestations, and then another, which the registry does not deliver."""
    yield from attestations
    raise RegistryError("not all attestations can be read: the registry answers 404")


def test_what_can_not_be_read_is_named_if_nothing_good_is_found(tmp_path):
    trust = Trust(keys=[key(tmp_path)])
    good, other = envelope(tmp_path), envelope(tmp_path / "other")
    assert verified(DIGEST, unreadable(other, good), trust, STRICT).builder == BUILDER
    with pytest.raises(VerificationError, match=r"another key: .*\(not all attestations can be"):
        verified(DIGEST, unreadable(other), trust, STRICT)
    with pytest.raises(RegistryError, match="not all attestations can be read"):
        verified(DIGEST, unreadable(), trust, STRICT)


@pytest.mark.parametrize("keyid", [None, 1, 1.5, True, [], {}])
def test_an_attestation_with_a_key_id_that_is_none_disturbs_no_other(tmp_path, keyid):
    """Everyone who may push to the repository can attach one."""
    bad = json.loads(envelope(tmp_path / "other"))
    bad["signatures"][0]["keyid"] = keyid
    lines = [json.dumps(bad).encode(), envelope(tmp_path)]
    assert verified(DIGEST, lines, Trust(keys=[key(tmp_path)]), STRICT).builder == BUILDER
    assert refusal(tmp_path, lines[0]) == "its provenance is not a signed DSSE envelope"


@pytest.mark.parametrize("kind", [None, 1, 1.5, True, [], {}, "\ud800"])
def test_an_attestation_with_a_type_that_is_none_disturbs_no_other(tmp_path, kind):
    bad = {**json.loads(envelope(tmp_path / "other")), "payloadType": kind}
    lines = [json.dumps(bad).encode(), envelope(tmp_path)]
    assert verified(DIGEST, lines, Trust(keys=[key(tmp_path)]), STRICT).builder == BUILDER
    assert refusal(tmp_path, lines[0]) == "its provenance is not a signed DSSE envelope"


def test_the_reason_of_a_refusal_is_one_short_line_whatever_an_attestation_says(tmp_path):
    """Attack: a key id whose second line says that the artifact is verified."""
    bad = json.loads(envelope(tmp_path / "other"))
    bad["signatures"][0]["keyid"] = f"k\napp@sha256:1234 is verified\r{'x' * 5000}"
    message = refusal(tmp_path, json.dumps(bad).encode())
    assert "another key: k app@sha256:1234 is verified xxx" in message
    assert len(message) < 1100


def test_an_attestation_of_many_signatures_takes_no_time(tmp_path):
    """Attack: each is tried with each key, so that 20,000 in each of many would take hours."""
    bad = json.loads(envelope(tmp_path / "other"))
    (one,) = bad["signatures"]
    bad["signatures"] = [{**one, "keyid": f"{number}"} for number in range(21)]
    lines = [json.dumps(bad).encode(), envelope(tmp_path)]
    assert verified(DIGEST, lines, Trust(keys=[key(tmp_path)]), STRICT).builder == BUILDER
    assert refusal(tmp_path, lines[0]) == "its provenance has more than 20 signatures"


def test_any_of_several_keys_may_have_signed(tmp_path):
    keys = [key(tmp_path / "other"), key(tmp_path)]
    assert verified(DIGEST, [envelope(tmp_path)], Trust(keys=keys), STRICT).key == keys[1].keyid


def tampered(line: bytes) -> bytes:
    """The statement with another commit, below the old signature."""
    parsed = json.loads(line)
    text = json.dumps(payload(line)).replace(COMMIT, "f" * 40)
    parsed["payload"] = b64encode(text.encode()).decode()
    return json.dumps(parsed).encode()


def test_tampered_provenance_is_refused(tmp_path):
    message = refusal(tmp_path, tampered(envelope(tmp_path)))
    assert message.startswith("its provenance was changed after it was signed")


def test_another_payload_type_below_the_same_signature_is_refused(tmp_path):
    parsed = json.loads(envelope(tmp_path))
    parsed["payloadType"] = "text/plain"
    message = refusal(tmp_path, json.dumps(parsed).encode())
    assert message.startswith("its provenance was changed after it was signed")


def test_a_wrong_key_is_refused_and_named(tmp_path):
    line = envelope(tmp_path / "other")
    message = refusal(tmp_path, line)
    assert message == (f"its provenance is signed by another key: {key(tmp_path / 'other').keyid}")


def test_a_signature_that_only_claims_the_right_key_is_refused(tmp_path):
    parsed = json.loads(envelope(tmp_path / "other"))
    parsed["signatures"][0]["keyid"] = key(tmp_path).keyid
    message = refusal(tmp_path, json.dumps(parsed).encode())
    assert "the signature does not fit" in message


def test_a_swapped_digest_is_refused(tmp_path):
    other = "sha256:" + "9" * 64
    message = refusal(tmp_path, envelope(tmp_path), digest=other)
    assert message == f"its provenance is about another artifact: {DIGEST}, not {other}"


def test_an_unknown_builder_is_refused(tmp_path):
    policy = replace(STRICT, builders=("https://elsewhere.example",))
    assert refusal(tmp_path, envelope(tmp_path), policy) == f"unknown builder: {BUILDER}"


@pytest.mark.parametrize(
    ("origin", "message"),
    [
        ({"repository": "https://git.example.com/evil/x/app"}, "built from another repository"),
        ({"repository": "", "commit": "", "ref": ""}, "was not built from a Git repository"),
        ({"ref": "refs/heads/topic"}, "it was built from refs/heads/topic"),
        ({"ref": ""}, "it was built from no branch and no tag"),
        ({"ref": "", "untrusted": True}, "it was built from a fork's pull request"),
        ({"config_in_source": False}, "its config is not a file of its source repository"),
        ({"config": "", "config_in_source": False}, "its config is not a file of its source"),
        ({"config": "other.yaml"}, "it was built with other.yaml"),
    ],
)
def test_another_source_is_refused(tmp_path, origin, message):
    assert message in refusal(tmp_path, made(tmp_path, **origin))


def test_the_flags_of_sources_are_not_needed_for_a_build_without_one(tmp_path):
    line = made(tmp_path, repository="", commit="", ref="", config="")
    assert check(tmp_path, line, Policy(builders=(BUILDER,))).repository == ""


def test_a_policy_may_accept_forks(tmp_path):
    line = made(tmp_path, ref="", untrusted=True)
    policy = replace(STRICT, refs=(), forks=True)
    assert check(tmp_path, line, policy).ref == ""


def test_an_artifact_without_provenance_is_refused(tmp_path):
    with pytest.raises(VerificationError, match="it has no provenance"):
        verified(DIGEST, [], Trust(keys=[key(tmp_path)]), STRICT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predicateType": "https://spdx.dev/Document"}, "only a statement of type https://spdx"),
        ({"_type": "https://in-toto.io/Statement/v0.1"}, "it has no provenance"),
        ({"subject": []}, "is about another artifact"),
        ({"subject": [{"name": "x"}]}, "its provenance names no artifact"),
        ({"predicate": {"buildDefinition": {"buildType": "x"}}}, "another kind of build: x"),
        (
            {"predicate": {"buildDefinition": {"buildType": "urn:buildrunner:cloudbuild:v1"}}},
            "lacks a field of SLSA v1",
        ),
        ({"predicate": {}}, "no in-toto statement"),
    ],
)
def test_a_statement_of_another_form_is_refused(tmp_path, change, message):
    line = signed_envelope({**statement(), **change}, open_signer("", str(tmp_path)))
    assert message in refusal(tmp_path, line)


@pytest.mark.parametrize(
    "text", [b"", b"{}", b"[]", b'{"payload": 1}', b"\xff", b'{"signatures": 3}']
)
def test_what_is_no_envelope_is_refused(tmp_path, text):
    assert refusal(tmp_path, text) == "its provenance is not a signed DSSE envelope"


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        ("refs/heads/main", "refs/heads/main", True),
        ("refs/heads/main", "refs/heads/main2", False),
        ("refs/tags/v*", "refs/tags/v1.2", True),
        ("refs/tags/v*", "refs/tags/v1/evil", False),
        ("https://h/acme/*", "https://h/acme/app", True),
        ("https://h/acme/*", "https://h/acme/../evil/app", False),
        ("https://h/**", "https://h/a/b/c", True),
        ("a.c", "abc", False),
        ("", "x", False),
    ],
)
def test_patterns_of_a_policy(pattern, text, matches):
    assert allows([pattern], text) is matches


def test_a_policy_file_is_read_with_keys_beside_it(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text("keys: [ci.pub]\nbuilders: https://ci.example.com\nforks: true\n")
    assert read_policy(str(path)) == Policy(
        keys=(str(tmp_path / "ci.pub"),), builders=("https://ci.example.com",), forks=True
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("builder: [x]\n", ":1:1: builder: unknown key; did you mean builders?"),
        ("keys: [a]\nrefs: {a: b}\n", ":2:7: refs: must be a list of strings"),
        ("forks: maybe\n", ":1:8: forks: must be true or false"),
        ("- a\n", ": a policy is a mapping"),
        ("keys: [\n", ":2:1"),
    ],
)
def test_a_wrong_policy_names_line_and_column(tmp_path, text, problem):
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_policy(str(path))
    assert f"{path}{problem}" in str(caught.value)


def test_a_missing_policy_is_wrong_usage(tmp_path):
    with pytest.raises(UsageError, match="can't be read"):
        read_policy(str(tmp_path / "none"))


def test_an_sbom_beside_the_provenance_does_not_disturb(tmp_path):
    signer = open_signer("", str(tmp_path))
    sbom = {**statement(), "predicateType": "https://spdx.dev/Document", "predicate": {}}
    lines = [signed_envelope(sbom, signer), envelope(tmp_path)]
    assert verified(DIGEST, lines, Trust(keys=[key(tmp_path)]), STRICT).builder == BUILDER
