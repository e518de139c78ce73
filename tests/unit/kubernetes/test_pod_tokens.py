"""Tokens of Pods: only those count that the cluster has signed for the Pod of a build."""

from __future__ import annotations

import json
import threading
import time

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from msgspec.structs import replace

from buildrunner.errors import KubernetesError
from buildrunner.kubernetes.manifest import spare_name
from buildrunner.kubernetes.pod_tokens import PodTokens
from buildrunner.kubernetes.pool import Pool
from buildrunner.store.model.remote import WorkerIdentity

ID = "aef20688-6937-4742-bce1-5f0b81931d41"
ISSUER = "https://kubernetes.default.svc"
POOL = Pool(
    name="arm",
    server="http://ci",
    worker_image="w",
    engine_image="e",
    namespace="builds",
    service_account="runner",
)


class Signer:
    """A key of the cluster."""

    def __init__(self, name, key, algorithm):
        self.name, self.key, self.algorithm = name, key, algorithm

    def public(self):
        kind = jwt.algorithms.get_default_algorithms()[self.algorithm]
        shown = json.loads(kind.to_jwk(self.key.public_key()))
        return {**shown, "kid": self.name, "use": "sig", "alg": self.algorithm}

    def sign(self, claims):
        return jwt.encode(claims, self.key, self.algorithm, {"kid": self.name})


@pytest.fixture(scope="module")
def signer():
    return Signer("1", rsa.generate_private_key(public_exponent=65537, key_size=2048), "RS256")


def claims(**changes):
    facts = {
        "namespace": "builds",
        "pod": {"name": f"build-{ID}-x7k2p", "uid": "u1"},
        "serviceaccount": {"name": "runner", "uid": "u2"},
        **changes.pop("facts", {}),
    }
    issued = {"iss": ISSUER, "aud": ["buildrunner"], "exp": time.time() + 3600}
    return {**issued, "kubernetes.io": facts, **changes}


def tokens(cluster, api, *signers, pool_of=lambda _: "arm", claim_of=lambda _: "", **options):
    cluster.keys = [one.public() for one in signers]
    return PodTokens(api.account_keys, {"arm": POOL}, pool_of, claim_of, **options)


def test_the_token_of_a_build_s_pod_opens_this_build_alone(cluster, api, signer):
    found = tokens(cluster, api, signer)(signer.sign(claims()))
    assert found == WorkerIdentity(name="pod:u1", pool="arm", build_id=ID)


def test_clusters_sign_by_elliptic_curves_too(cluster, api):
    curve = Signer("2", ec.generate_private_key(ec.SECP256R1()), "ES256")
    assert tokens(cluster, api, curve)(curve.sign(claims())) is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": ["https://kubernetes.default.svc"]},
        {"iss": "https://another"},
        {"exp": time.time() - 3600},
        {"exp": None},
        {"kubernetes.io": "text"},
        {"kubernetes.io": {}},
        {"facts": {"namespace": "default"}},
        {"facts": {"serviceaccount": {"name": "default"}}},
        {"facts": {"serviceaccount": None}},
        {"facts": {"pod": None}},
        {"facts": {"pod": {"name": f"build-{ID}-x7k2p"}}},
        {"facts": {"pod": {"name": f"build-{ID}", "uid": "u1"}}},
        {"facts": {"pod": {"name": f"x-build-{ID}-x7k2p", "uid": "u1"}}},
    ],
)
def test_a_token_for_anything_else_is_no_worker_s(cluster, api, signer, changes):
    wrong = {name: value for name, value in claims(**changes).items() if value is not None}
    assert tokens(cluster, api, signer)(signer.sign(wrong)) is None


@pytest.mark.parametrize("token", ["", "br_worker_1", "a.b.c", "ey.ey.ey"])
def test_what_is_no_such_token_is_left_to_others(cluster, api, signer, token):
    assert tokens(cluster, api, signer)(token) is None


def test_a_token_without_a_signature_is_no_worker_s(cluster, api, signer):
    unsigned = jwt.encode(claims(), None, "none", {"kid": "1"})
    by_secret = jwt.encode(claims(), "secret" * 8, "HS256", {"kid": "1"})
    verify = tokens(cluster, api, signer)
    assert verify(unsigned) is verify(by_secret) is None


def test_another_key_of_the_same_name_is_no_key_of_the_cluster(cluster, api, signer):
    own = Signer("1", rsa.generate_private_key(public_exponent=65537, key_size=2048), "RS256")
    assert tokens(cluster, api, signer)(own.sign(claims())) is None


@pytest.mark.parametrize("pool", ["", "x86"])
def test_the_build_must_be_of_a_pool_on_the_cluster(cluster, api, signer, pool):
    assert tokens(cluster, api, signer, pool_of=lambda _: pool)(signer.sign(claims())) is None


def test_keys_are_asked_for_again_where_the_cluster_has_a_new_one(cluster, api, signer):
    now = [100.0]
    verify = tokens(cluster, api, signer, clock=lambda: now[0])
    assert verify(signer.sign(claims())) is not None
    new = Signer("2", rsa.generate_private_key(public_exponent=65537, key_size=2048), "RS256")
    cluster.keys.append(new.public())
    before = len(cluster.requests)
    assert verify(new.sign(claims())) is None
    assert len(cluster.requests) == before  # strangers can't have it asked all the time
    now[0] += 11
    assert verify(new.sign(claims())) is not None


def test_a_cluster_that_does_not_answer_refuses_nobody(cluster, api, signer):
    now = [100.0]
    verify = tokens(cluster, api, signer, clock=lambda: now[0])
    cluster.broken = (503, "busy")
    for seconds in (0, 5):  # the second one does not ask the cluster again
        now[0] += seconds
        with pytest.raises(KubernetesError) as caught:
            verify(signer.sign(claims()))
        assert caught.value.http_status == 503
    assert len(cluster.requests) == 1
    cluster.broken = None
    now[0] += 6
    assert verify(signer.sign(claims())) is not None


def test_known_keys_hold_while_the_cluster_does_not_answer(cluster, api, signer):
    now = [100.0]
    verify = tokens(cluster, api, signer, clock=lambda: now[0])
    assert verify(signer.sign(claims())) is not None
    cluster.broken = (503, "busy")
    now[0] += 7200
    before = len(cluster.requests)
    for _ in range(3):
        assert verify(signer.sign(claims())) is not None
    assert len(cluster.requests) == before + 1


def test_keys_that_the_cluster_has_no_more_are_forgotten_in_an_hour(cluster, api, signer):
    now = [100.0]
    verify = tokens(cluster, api, signer, clock=lambda: now[0])
    assert verify(signer.sign(claims())) is not None
    cluster.keys.clear()
    now[0] += 3601
    assert verify(signer.sign(claims())) is None


def test_while_one_request_reads_new_keys_others_do_not_wait(cluster, api, signer):
    now = [100.0]
    requested, answer = threading.Event(), threading.Event()

    def slowly():
        requested.set()
        assert answer.wait(30)
        return api.account_keys()

    cluster.keys = [signer.public()]
    verify = PodTokens(slowly, {"arm": POOL}, lambda _: "arm", lambda _: "", clock=lambda: now[0])
    token, found = signer.sign(claims()), []
    first = threading.Thread(target=lambda: found.append(verify(token)))
    first.start()
    assert requested.wait(30)
    with pytest.raises(KubernetesError, match="not read yet"):
        verify(token)
    answer.set()
    first.join()
    assert found[0] is not None
    requested.clear()
    answer.clear()
    now[0] += 3601
    again = threading.Thread(target=lambda: found.append(verify(token)))
    again.start()
    assert requested.wait(30)
    assert verify(token) is not None
    answer.set()
    again.join()


def spare_claims(**changes):
    name = f"{spare_name(POOL, ID)}-x7k2p"
    return claims(facts={"pod": {"name": name, "uid": "u1"}, **changes})


def test_the_token_of_a_spare_pod_opens_no_build_before_it_has_claimed_one(cluster, api, signer):
    claimed = {}
    job = spare_name(POOL, ID)
    verify = tokens(cluster, api, signer, claim_of=lambda name: claimed.get(name, ""))
    spare = verify(signer.sign(spare_claims()))
    assert spare == WorkerIdentity(name="pod:u1", pool="arm", spare=job)
    claimed[job] = "b1"
    assert verify(signer.sign(spare_claims())) == replace(spare, build_id="b1")


@pytest.mark.parametrize(
    "facts",
    [
        {"namespace": "default"},
        {"serviceaccount": {"name": "default"}},
        {"pod": {"name": f"{spare_name(replace(POOL, name='x86'), ID)}-x7k2p", "uid": "u1"}},
        {"pod": {"name": f"{spare_name(POOL, ID)}", "uid": "u1"}},
        {"pod": {"name": f"{spare_name(POOL, ID)}-x7k2p"}},
    ],
)
def test_the_token_of_a_spare_pod_elsewhere_is_no_worker_s(cluster, api, signer, facts):
    assert tokens(cluster, api, signer)(signer.sign(spare_claims(**facts))) is None
