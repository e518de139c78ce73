"""What `verify` prints about an artifact."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace

from buildrunner.cli.verify import _shown, _ways_to_a_key
from buildrunner.provenance.verification import Verified, claimed
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
    provenance_statement,
)


def claims(tmp_path, **origin: object) -> Verified:
    plan = replace(PLAN, origin=replace(ORIGIN, **origin))
    made = provenance_statement(BUILD, plan, outcome(), builder_id=BUILDER)
    found = claimed(DIGEST, [envelope(tmp_path, made)])
    assert found is not None
    return found


def test_the_text_names_commit_config_and_server(tmp_path) -> None:
    found = replace(claims(tmp_path), key="SHA256:abc")
    assert _shown("text", "app@sha256:1", found) == (
        "app@sha256:1 is verified\n"
        f"  source    commit {COMMIT} of {REPOSITORY} (refs/heads/main)\n"
        f"  config    cloudbuild.yaml, a file of this commit, sha256:{'c' * 64}\n"
        f"  server    {BUILDER}\n"
        "  build     projects/shop/locations/global/builds/b1, trigger on-push\n"
        "  finished  2026-01-02T03:05:35Z\n"
        "  key       SHA256:abc\n"
    )


@pytest.mark.parametrize(
    ("origin", "line"),
    [
        ({"untrusted": True, "ref": ""}, f"commit {COMMIT} of {REPOSITORY}, the code of a fork"),
        ({"repository": "", "commit": ""}, "files that were submitted, no Git repository"),
        ({"config_in_source": False}, f"cloudbuild.yaml, not from a commit, sha256:{'c' * 64}"),
        ({"config": ""}, "came in the request"),
    ],
)
def test_other_origins_are_said(tmp_path, origin, line) -> None:
    assert line in [
        row[12:] for row in _shown("text", "app", claims(tmp_path, **origin)).split("\n")
    ]


def test_claims_without_a_key_are_not_called_verified(tmp_path) -> None:
    found = claims(tmp_path)
    assert _shown("text", "app", found).startswith("app is not verified. Its provenance claims:\n")
    facts = json.loads(_shown("json", "app", found))
    assert (facts["verified"], facts["commit"], facts["builder"]) == (False, COMMIT, BUILDER)
    assert facts["statement"]["predicateType"] == "https://slsa.dev/provenance/v1"
    assert _ways_to_a_key(found).startswith(f"if you trust the server, add --server {BUILDER};")


def test_provenance_of_another_artifact_claims_nothing(tmp_path) -> None:
    assert claimed("sha256:" + "9" * 64, [b"nonsense", envelope(tmp_path)]) is None


def test_claims_add_no_lines_and_no_codes_of_the_terminal(tmp_path) -> None:
    found = replace(claims(tmp_path), builder="https://ci.example\x1b[2K\napp is verified")
    shown = _shown("text", "app", found)
    assert "  server    https://ci.example\\x1b[2K app is verified\n" in shown
    assert "\n" not in _ways_to_a_key(found)
