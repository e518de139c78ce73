"""The claims of identity tokens, and which build gets which token."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import ClassVar

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import asdict, replace

from buildrunner.errors import IdentityRefused
from buildrunner.identity.tokens import (
    AUDIENCES_FRESH_FOR,
    BuildFacts,
    BuildIdentity,
    subject,
    token_claims,
)
from buildrunner.plan.build_plan import BuildOrigin
from buildrunner.settings import Settings
from buildrunner.store.model.builds import StoredBuild
from buildrunner.worker.identity import BuildIdentities

NOW = datetime(2026, 5, 1, 12, 0, 0, 700_000, tzinfo=UTC)
FACTS = BuildFacts(
    project="shop",
    build="b1",
    trigger="t1",
    trigger_name="deploy",
    repository="https://git.example.com/shop.git",
    ref="refs/heads/main",
    commit="c" * 40,
)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "project:shop:trigger:t1:ref:refs/heads/main"),
        ({"ref": "refs/tags/v1"}, "project:shop:trigger:t1:ref:refs/tags/v1"),
        ({"ref": ""}, "project:shop:trigger:t1:no-ref"),
        ({"ref": "", "fork": True}, "project:shop:trigger:t1:fork"),
        ({"fork": True}, "project:shop:trigger:t1:fork"),
        ({"ref": "fork"}, "project:shop:trigger:t1:ref:fork"),
        ({"ref": "refs/heads/a:b%"}, "project:shop:trigger:t1:ref:refs/heads/a%3Ab%25"),
        ({"project": "a:trigger:t2"}, "project:a%3Atrigger%3At2:trigger:t1:ref:refs/heads/main"),
    ],
)
def test_the_subject_names_project_trigger_and_source(changes, expected):
    assert subject(replace(FACTS, **changes)) == expected


name = st.text(alphabet="ab:/%-é", max_size=8)


@given(*[st.tuples(name, name, name, st.booleans())] * 2)
def test_builds_of_other_projects_triggers_or_sources_have_another_subject(one, other):
    def source(facts):
        return (facts.project, facts.trigger, "" if facts.fork else facts.ref, facts.fork)

    a, b = (
        BuildFacts(project=project, build="b", trigger=trigger, ref=ref, fork=fork)
        for project, trigger, ref, fork in (one, other)
    )
    assert (subject(a) == subject(b)) is (source(a) == source(b))


def test_the_claims_are_the_facts_of_the_server():
    claims = token_claims(FACTS, issuer="https://ci", audience="aud", now=NOW, token_id="j")
    assert claims == {
        "iss": "https://ci",
        "sub": "project:shop:trigger:t1:ref:refs/heads/main",
        "aud": "aud",
        "iat": 1777636800,
        "nbf": 1777636800,
        "exp": 1777637400,
        "jti": "j",
        "project_id": "shop",
        "build_id": "b1",
        "trigger_id": "t1",
        "trigger_name": "deploy",
        "repository": "https://git.example.com/shop.git",
        "ref": "refs/heads/main",
        "commit": "c" * 40,
        "source": "trusted",
    }
    fork = token_claims(replace(FACTS, fork=True), issuer="i", audience="a", now=NOW, token_id="j")
    assert fork["source"] == "fork"


def stored(*, untrusted=False, trigger="t1"):
    document = {"id": "b1", "projectId": "shop", "buildTriggerId": trigger}
    return StoredBuild(document=document, request={}, untrusted=untrusted)


class NoKey:
    jwk: ClassVar = {"alg": "none", "kid": "k"}

    def sign(self, data):
        return b""


def identities(settings):
    return BuildIdentities("https://ci", Settings(), lambda *_: settings, NoKey, lambda: NOW)


TWO = ["https://a.example", "https://b.example"]


@pytest.mark.parametrize(
    ("settings", "build", "allowed"),
    [
        ({}, stored(), ()),
        ({"identity": {"audiences": TWO}}, stored(), tuple(TWO)),
        ({"identity": {"audiences": TWO}}, stored(trigger=""), ()),
        ({"identity": {"audiences": TWO}}, stored(untrusted=True), ()),
        ({"identity": {"audiences": TWO, "forks": True}}, stored(untrusted=True), tuple(TWO)),
        ({"identity": {"forks": True}}, stored(untrusted=True), ()),
        ({"identity": {"unknown": 1}}, stored(), ()),
    ],
)
def test_a_trigger_says_which_audiences_its_builds_may_have(settings, build, allowed):
    assert identities(settings).audiences(build) == allowed


def claims_of(token):
    return jwt.decode(token, options={"verify_signature": False})


def test_a_token_is_of_the_build_and_of_what_was_fetched_for_it():
    origin = BuildOrigin(
        repository=FACTS.repository,
        ref=FACTS.ref,
        commit=FACTS.commit,
        trigger="another, as a config may say",
        trigger_name="deploy",
    )
    credentials = identities({"identity": {"audiences": TWO}}).of_build(stored(), origin)
    claims = claims_of(credentials.identity_token(TWO[1]))
    for field, value in asdict(FACTS).items():
        if field != "fork":
            name = {"project": "project_id", "build": "build_id", "trigger": "trigger_id"}
            assert claims[name.get(field, field)] == value
    assert (claims["aud"], claims["source"]) == (TWO[1], "trusted")
    assert claims["jti"] != claims_of(credentials.identity_token(TWO[1]))["jti"]


@pytest.mark.parametrize("audience", ["https://other.example", "https://a.example/", ""])
def test_another_audience_is_refused(audience):
    credentials = identities({"identity": {"audiences": TWO}}).of_build(stored(), BuildOrigin())
    with pytest.raises(IdentityRefused, match="does not allow tokens for the audience"):
        credentials.identity_token(audience)


def test_an_audience_that_is_taken_from_the_trigger_counts_within_a_second():
    settings = {"identity": {"audiences": TWO}}
    times = [NOW]
    made = BuildIdentities("https://ci", Settings(), lambda *_: settings, NoKey, lambda: times[-1])
    credentials = made.of_build(stored(), BuildOrigin())
    credentials.identity_token(TWO[0])
    settings["identity"] = {"audiences": TWO[1:]}
    times.append(NOW + AUDIENCES_FRESH_FOR)
    with pytest.raises(IdentityRefused):
        credentials.identity_token(TWO[0])


def test_many_requests_of_a_build_read_the_database_once_in_a_second():
    reads = []

    def settings(project, trigger):
        reads.append(trigger)
        return {"identity": {"audiences": TWO}}

    made = BuildIdentities("https://ci", Settings(), settings, NoKey, lambda: NOW)
    credentials = made.of_build(stored(), BuildOrigin())
    for _ in range(50):
        credentials.identity_token(TWO[0])
        with pytest.raises(IdentityRefused):
            credentials.identity_token("https://other.example")
    assert len(reads) == 1


def test_there_are_no_access_tokens():
    credentials = BuildIdentity("https://ci", FACTS, lambda: ("a",), NoKey, lambda: NOW)
    with pytest.raises(IdentityRefused, match="keyless"):
        credentials.access_token(())


def test_no_step_gets_a_token_with_which_the_server_signs_provenance():
    """Issue: a step of a trigger that allows the audience signed a statement of its own."""
    settings = {"identity": {"audiences": ["sigstore", TWO[0]]}}
    keyless = Settings(projects={"shop": {"provenance_sigstore": "public"}})
    made = BuildIdentities("https://ci", keyless, lambda *_: settings, NoKey, lambda: NOW)
    steps = made.of_build(stored(), BuildOrigin())
    with pytest.raises(IdentityRefused, match="signed with such tokens"):
        steps.identity_token("sigstore")
    assert claims_of(steps.identity_token(TWO[0]))["aud"] == TWO[0]
    assert claims_of(steps.signing_token("sigstore"))["aud"] == "sigstore"


def test_no_step_of_a_project_that_signs_by_a_key_gets_the_token_of_one_that_signs_by_sigstore():
    settings = {"identity": {"audiences": ["sigstore"]}}
    keyless = Settings(projects={"another": {"provenance_sigstore": "public"}})
    made = BuildIdentities("https://ci", keyless, lambda *_: settings, NoKey, lambda: NOW)
    with pytest.raises(IdentityRefused, match="signed with such tokens"):
        made.of_build(stored(), BuildOrigin()).identity_token("sigstore")
