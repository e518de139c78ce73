"""The keys of identity tokens: rotation with an overlap, files, several servers, a KMS."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, CryptoSigner, Signer

from buildrunner.containers.process_owner import file_lock
from buildrunner.errors import AttestationError, IdentityError
from buildrunner.identity.keys import (
    FOLDER,
    OVERLAP,
    PUBLISHED_FOR,
    SIGNS_FOR,
    IdentityKeys,
    is_rotation_due,
    public_jwk,
    signing_key,
)
from buildrunner.identity.tokens import signed_token
from buildrunner.store.model.access import IdentityKey
from tests.server_databases import new_store

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)


def key_of_age(age):
    created = NOW - age
    return IdentityKey(
        id=f"{age.days}d",
        owner="w",
        jwk={},
        created_at=created,
        published_until=created + PUBLISHED_FOR,
    )


@pytest.mark.parametrize(
    ("ages", "due", "signs"),
    [
        ([], True, None),
        ([0], False, "0d"),
        ([29], False, "29d"),
        ([30], True, None),
        ([30, 0], False, "30d"),
        ([31, 1], False, "1d"),
        ([31, 0], False, "0d"),
        ([40], True, None),
        ([29, 2], False, "2d"),
    ],
)
def test_a_new_key_signs_once_it_was_published_for_a_day(ages, due, signs):
    keys = [key_of_age(age * DAY) for age in ages]
    assert is_rotation_due(keys, NOW) is due
    if signs:
        assert signing_key(keys, NOW).id == signs


class Clock:
    now = NOW

    def __call__(self):
        return self.now


@pytest.fixture
def store(tmp_path):
    store = new_store(str(tmp_path))
    yield store
    store.close()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def server(tmp_path, store, clock):
    def make(name="one"):
        return IdentityKeys(str(tmp_path / name), name, store.identity_keys, clock=clock)

    return make


def kids(keys):
    return [key["kid"] for key in keys.published()]


def verified(token, keys):
    """The claims of a token, which a key of the published set verifies."""
    published = jwt.PyJWKSet.from_dict({"keys": keys})
    key = published[jwt.get_unverified_header(token)["kid"]]
    return jwt.decode(token, key, algorithms=["RS256", "ES256"])


def test_every_token_is_verifiable_through_three_rotations(server, clock):
    keys = server()
    cached = keys.published()
    signed = set()
    for _ in range(100 * 4):
        clock.now += DAY / 4
        key = keys.signing()
        signed.add(key.jwk["kid"])
        token = signed_token({"n": 1}, key)
        assert verified(token, cached)  # a relying party that fetched the set six hours ago
        cached = keys.published()
        assert verified(token, cached)
        assert len(cached) <= 2
    assert len(signed) == 4


def test_a_server_that_was_away_for_long_signs_with_a_new_key(server, clock, tmp_path):
    keys = server()
    (old,) = kids(keys)
    clock.now += SIGNS_FOR + 3 * OVERLAP
    assert keys.signing().jwk["kid"] != old
    assert old not in kids(keys)
    assert not (tmp_path / "one" / FOLDER / f"{old}.pem").exists()


def test_all_servers_of_a_database_publish_the_same_keys(server):
    one, two = server("one"), server("two")
    one.signing()
    token = signed_token({"n": 2}, two.signing())
    assert kids(one) == kids(two)
    assert len(kids(one)) == 2
    assert verified(token, one.published()) == {"n": 2}


def test_a_server_without_a_key_makes_one_when_its_keys_are_asked_for(server):
    assert len(kids(server())) == 1
    assert len(kids(server())) == 1


def test_rotation_makes_no_key_where_nobody_uses_identities(server, store):
    server("one").rotate_if_used()
    assert store.identity_keys.all() == []
    server("two").signing()
    server("one").rotate_if_used()
    assert {key.owner for key in store.identity_keys.all()} == {"one", "two"}


def test_private_keys_are_in_private_files_and_not_in_the_database(server, store, tmp_path):
    key = server().signing()
    path = tmp_path / "one" / FOLDER / f"{key.jwk['kid']}.pem"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    (row,) = store.identity_keys.all()
    assert set(row.jwk) == {"alg", "e", "kid", "kty", "n", "use"}
    assert row.jwk == key.jwk


def test_a_key_whose_file_is_deleted_is_withdrawn(server, tmp_path):
    keys = server()
    (stolen,) = kids(keys)
    (tmp_path / "one" / FOLDER / f"{stolen}.pem").unlink()
    assert keys.signing().jwk["kid"] != stolen
    assert stolen not in kids(keys)


def test_a_build_s_tokens_are_signed_while_other_builds_and_the_database_are_busy(
    server, store, tmp_path
):
    keys = server()
    first = keys.current()
    with file_lock(str(tmp_path / "one" / FOLDER / "lock")):  # another build looks for a rotation
        store.close()
        assert keys.current() is first


def test_a_rotation_is_found_within_a_minute(server, clock):
    keys = server()
    first = keys.current()
    clock.now = NOW + SIGNS_FOR
    server().signing()  # the server makes the next key
    clock.now = NOW + SIGNS_FOR + OVERLAP
    assert keys.current().jwk["kid"] != first.jwk["kid"]


def test_a_key_whose_file_is_deleted_signs_no_more_tokens(server, tmp_path):
    keys = server()
    stolen = keys.current().jwk["kid"]
    (tmp_path / "one" / FOLDER / f"{stolen}.pem").unlink()
    assert keys.current().jwk["kid"] != stolen


def test_a_key_that_others_can_read_is_refused(server, tmp_path):
    keys = server()
    path = tmp_path / "one" / FOLDER / f"{keys.signing().jwk['kid']}.pem"
    path.chmod(0o640)
    with pytest.raises(IdentityError, match=r"can be read or changed by others .*0640") as refused:
        keys.signing()
    assert "delete it" in refused.value.hint


def test_a_damaged_key_is_one_clear_error(server, tmp_path):
    keys = server()
    path = tmp_path / "one" / FOLDER / f"{keys.signing().jwk['kid']}.pem"
    path.write_text("no key")
    with pytest.raises(IdentityError, match="is no RSA key in PEM form"):
        keys.signing()


class Kms(Signer):
    """A KMS whose keys are in memory, by the protocol of securesystemslib."""

    keys: ClassVar[dict[str, CryptoSigner]] = {}

    @classmethod
    def import_(cls, name):
        return f"kms:{name}", cls.keys[name].public_key

    @classmethod
    def from_priv_key_uri(cls, uri, public_key, secrets_handler=None):
        return cls.keys[uri.removeprefix("kms:")]

    public_key = None

    def sign(self, payload):
        raise NotImplementedError


@pytest.fixture
def kms(monkeypatch):
    monkeypatch.setattr(Kms, "keys", {})
    for scheme in ("gcpkms", "kms"):
        monkeypatch.setitem(SIGNER_FOR_URI_SCHEME, scheme, Kms)
    return Kms.keys


def test_a_key_of_a_kms_signs_and_is_published_once_for_all_servers(kms, store, clock, tmp_path):
    kms["k1"] = CryptoSigner.generate_ecdsa()
    servers = [
        IdentityKeys(str(tmp_path), name, store.identity_keys, clock=clock, kms="gcpkms:k1")
        for name in ("one", "two")
    ]
    tokens = [signed_token({"n": 3}, keys.signing()) for keys in servers]
    (jwk,) = servers[0].published()
    assert (jwk["alg"], jwk["crv"]) == ("ES256", "P-256")
    assert [verified(token, [jwk]) for token in tokens] == [{"n": 3}] * 2
    clock.now += SIGNS_FOR
    servers[0].signing()
    clock.now += SIGNS_FOR
    assert servers[1].published() == [jwk]


def test_a_key_that_identity_tokens_cannot_use_is_refused(kms, store, clock, tmp_path):
    kms["k1"] = CryptoSigner.generate_ed25519()
    keys = IdentityKeys(str(tmp_path), "one", store.identity_keys, clock=clock, kms="gcpkms:k1")
    with pytest.raises(IdentityError, match="signs by ed25519"):
        keys.signing()
    other = IdentityKeys(str(tmp_path), "one", store.identity_keys, clock=clock, kms="file:x")
    with pytest.raises(AttestationError, match="no key of a KMS"):
        other.signing()


def test_only_keys_that_clouds_accept_have_a_public_form():
    with pytest.raises(IdentityError):
        public_jwk(ec.generate_private_key(ec.SECP384R1()).public_key())
