"""Tokens: what is stored is no secret, and what is revoked is useless."""

from datetime import UTC, datetime

import pytest
from msgspec.structs import replace

from buildrunner.errors import UsageError
from buildrunner.server.http.tokens import Caller, caller_of, hash_of, new_token

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_the_stored_token_does_not_hold_the_text():
    text, stored = new_token("ci", ["read"], now=NOW)
    assert text.startswith("brt_")
    assert text not in repr(stored)
    assert stored.hash_hex == hash_of(text)
    assert caller_of(text, stored) == Caller("ci", ("read",))


def test_no_two_tokens_are_the_same():
    assert len({new_token("ci", ["read"], now=NOW)[0] for _ in range(50)}) == 50


def test_unknown_revoked_and_mismatched_tokens_are_nobodys():
    text, stored = new_token("ci", ["read"], now=NOW)
    assert caller_of(text, None) is None
    assert caller_of(text, replace(stored, revoke_time=NOW)) is None
    assert caller_of(f"{text}x", stored) is None


@pytest.mark.parametrize(
    ("name", "scopes", "projects"),
    [
        ("", ["read"], []),
        ("a b", ["read"], []),
        ("x" * 65, ["read"], []),
        ("a", [], []),
        ("a", ["write"], []),
        ("a", ["read"], ["../p"]),
    ],
)
def test_what_can_not_be_is_refused(name, scopes, projects):
    with pytest.raises(UsageError):
        new_token(name, scopes, projects, now=NOW)


@pytest.mark.parametrize(
    ("scopes", "projects", "scope", "project", "allowed"),
    [
        (("read",), (), "read", "p", True),
        (("read",), (), "submit", "p", False),
        (("submit",), (), "read", "p", False),
        (("admin",), (), "approve", "p", True),
        (("read",), ("p",), "read", "p", True),
        (("read",), ("p",), "read", "q", False),
        (("admin",), ("p",), "admin", "q", False),
        (("admin",), ("p",), "admin", "", False),
        (("admin",), (), "admin", "", True),
    ],
)
def test_scopes_and_projects_say_what_a_caller_may(scopes, projects, scope, project, allowed):
    assert Caller("c", scopes, projects).may(scope, project) is allowed
