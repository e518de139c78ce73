"""The pages that are written in plain English stay so: short sentences with named subjects."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LONGEST = 30  # words of a sentence; aim for 25

# Pages that pass. Add a page once it passes; never remove one.
PAGES = (
    "CONTRIBUTING.md",
    "README.md",
    "docs/decisions/0001-msgspec-models.md",
    "docs/decisions/0002-argparse.md",
    "docs/decisions/0004-guardian.md",
    "docs/decisions/0005-local-store.md",
    "docs/decisions/0007-workspace-overlay.md",
    "docs/decisions/0008-yaml-nodes.md",
    "docs/decisions/0009-privilege.md",
    "docs/decisions/0010-open-points.md",
    "docs/decisions/0011-metadata-server.md",
    "docs/decisions/0012-builder-images.md",
    "docs/decisions/0013-limits-on-text.md",
    "docs/decisions/0015-secrets.md",
    "docs/decisions/0016-git-sources.md",
    "docs/decisions/0017-what-leaves.md",
    "docs/decisions/0018-log-files.md",
    "docs/decisions/0019-server-api.md",
    "docs/decisions/0020-nested-sandbox.md",
    "docs/decisions/0021-server-store.md",
    "docs/decisions/0022-worker.md",
    "docs/decisions/0023-dashboard.md",
    "docs/decisions/0024-triggers.md",
    "docs/decisions/0025-notifications.md",
    "docs/decisions/0026-kept-workspaces.md",
    "docs/decisions/0027-unpacking.md",
    "docs/decisions/0028-volumes-apart.md",
    "docs/decisions/0029-secret-scopes.md",
    "docs/decisions/0030-user-namespace.md",
    "docs/decisions/0031-forge-identity.md",
    "docs/decisions/0032-packages.md",
    "docs/decisions/0033-ignore-rules.md",
    "docs/decisions/0038-worker-protocol.md",
    "docs/decisions/README.md",
    "docs/explanation/architecture.md",
    "docs/explanation/crash-safety.md",
    "docs/explanation/sandbox.md",
    "docs/explanation/scale.md",
    "docs/explanation/speed.md",
    "docs/explanation/what-a-step-sees.md",
    "docs/how-to/artifacts.md",
    "docs/how-to/backup.md",
    "docs/how-to/builder-images.md",
    "docs/how-to/dashboard.md",
    "docs/how-to/notifications.md",
    "docs/how-to/part-of-a-build.md",
    "docs/how-to/policy.md",
    "docs/how-to/provenance.md",
    "docs/how-to/registries.md",
    "docs/how-to/remote.md",
    "docs/how-to/schedules.md",
    "docs/how-to/secrets.md",
    "docs/how-to/server.md",
    "docs/how-to/sources.md",
    "docs/how-to/submit.md",
    "docs/how-to/substitutions.md",
    "docs/how-to/triggers.md",
    "docs/how-to/trouble.md",
    "docs/how-to/webhooks.md",
    "docs/how-to/workers.md",
    "docs/index.md",
    "docs/reference/api.md",
    "docs/reference/builder-images.md",
    "docs/reference/cli.md",
    "docs/reference/compatibility.md",
    "docs/reference/events.md",
    "docs/reference/exit-codes.md",
    "docs/reference/filters.md",
    "docs/reference/log-routes.md",
    "docs/reference/rules.md",
    "docs/reference/settings.md",
    "docs/tutorial/first-build.md",
    "examples/README.md",
)

PATTERNS = {
    "say what there is, or name the subject": r"\b[Tt]here (?:is|are) (?:no|nothing)\b",
    "open a sentence with a named subject": (
        r"^(?:Who|What(?! would change our mind)|Whom|Whoever|Whatever|That which)\b[^?]*$"
    ),
    "name a person: the user, the caller, they": r"\b(?:[Hh]e|[Hh]is|[Hh]im|[Hh]imself)\b",
    "name the subject": r"\b(?:[Ww]hoever|[Ss]omebody|[Nn]obody|[Ee]verybody)\b",
    "resume, continue": r"\b(?:go|goes|going|gone|went) on with\b",
    "report, notify": r"\b(?:is|are|was|were|be) told\b",
}


def prose(text: str) -> str:
    """A page's text without code blocks, quotes of code, links' targets and comments."""
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"^ *(```|:::).*?^ *\1`*$", "\n", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"!\[[^]]*\]\([^)]*\)", "", text)
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"``?[^`]+``?", "CODE", text)


def sentences(text: str) -> list[str]:
    """The sentences of a page: of its paragraphs, list items and cells of tables."""
    blocks = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )|\n(?=#)|\|", prose(text))
    found = []
    for block in blocks:
        block = re.sub(r"^[\s#]*(?:[-*] |\d+\. )?", "", " ".join(block.split()))
        block = block.replace("*", "")
        found += re.split(r"(?<=[.?!])\)? +(?=[A-Z(]|buildrunner|gcloud|git\b)", block)
    return [one for one in found if one]


@pytest.mark.parametrize("page", PAGES)
def test_no_sentence_is_too_long(page):
    long = [one for one in sentences((ROOT / page).read_text()) if len(one.split()) > LONGEST]
    assert long == []


@pytest.mark.parametrize("page", PAGES)
def test_no_sentence_must_be_decoded(page):
    found = [
        f"{advice}: {one}"
        for one in sentences((ROOT / page).read_text())
        for advice, pattern in PATTERNS.items()
        if re.search(pattern, one)
    ]
    assert found == []


def test_the_list_of_pages_is_sorted_and_has_only_pages():
    assert list(PAGES) == sorted(set(PAGES))
    assert [page for page in PAGES if not (ROOT / page).is_file()] == []


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("Who is not root has sources copied.", "open a sentence with a named subject"),
        ("It stops. What fails is retried.", "open a sentence with a named subject"),
        ("There is no such name.", "say what there is, or name the subject"),
        ("A build that failed is gone on with.", "resume, continue"),
        ("A user may do what he likes.", "name a person: the user, the caller, they"),
    ],
)
def test_the_patterns_find_what_they_are_for(text, pattern):
    assert any(re.search(PATTERNS[pattern], one) for one in sentences(text))


def test_a_heading_that_asks_is_not_a_riddle():
    assert not any(
        re.search(PATTERNS["open a sentence with a named subject"], one)
        for one in sentences("# What is kept?\n\nLogs are kept.")
    )


def test_code_is_not_prose():
    assert sentences("Run `a b c d`.\n\n```console\n$ Who is it\n```\n\nDone.") == [
        "Run CODE.",
        "Done.",
    ]
