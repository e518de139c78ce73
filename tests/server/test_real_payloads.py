"""Every example of GitHub's payloads that octokit publishes, sent to a real server."""

from __future__ import annotations

import hashlib
import hmac
import json
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from buildrunner.server.events.handling import DeliveryHandler
from buildrunner.server.events.loop import DeliveryLoop
from buildrunner.server.outbox.status_reporter import StatusReporter
from buildrunner.triggers.forges.catalog import FORGES
from buildrunner.triggers.forges.forge import WebhookRequest
from tests.api_server import ApiServer, api_server
from tests.held_secrets import HeldSecrets, token_name

PACKAGE = "@octokit/webhooks-examples@7.6.1"
EDITIONS = ("api.github.com", "ghes-31", "ghes-32", "ghes-33", "ghes-34", "ghes-35")
SECRET = "s3cret-of-the-hook"
# What happens on a repository; the first two words of a kind that fires something.
FIRING = {"push", "pull_request", "issue_comment"}


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[str, Any]]]:
    """Examples by edition of GitHub: kind of event and payload."""
    folder = tmp_path_factory.mktemp("octokit")
    packed = subprocess.run(
        ["npm", "pack", PACKAGE, "--silent"], cwd=folder, check=True, capture_output=True, text=True
    )
    subprocess.run(["tar", "-xzf", packed.stdout.strip()], cwd=folder, check=True)
    found = {}
    for edition in EDITIONS:
        kinds = json.loads((folder / "package" / edition / "index.json").read_bytes())
        found[edition] = [(kind["name"], one) for kind in kinds for one in kind["examples"]]
    return found


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(tmp_path) as running:
        running.hook("github", SECRET, owners=["*"])
        yield running


def send(server: ApiServer, kind: str, body: Any) -> int:
    content = json.dumps(body).encode()
    digest = hmac.new(SECRET.encode(), content, hashlib.sha256).hexdigest()
    headers = {
        "X-GitHub-Event": kind,
        "X-GitHub-Delivery": str(uuid.uuid4()),
        "X-Hub-Signature-256": f"sha256={digest}",
    }
    answer = server.http.post("/hooks/github", content=content, headers=headers)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["delivery"])


@pytest.mark.parametrize("edition", EDITIONS)
def test_every_example_is_read(examples: dict[str, list[tuple[str, Any]]], edition: str) -> None:
    told = 0
    for kind, body in examples[edition]:
        request = WebhookRequest({"x-github-event": kind}, json.dumps(body).encode())
        parsed = FORGES["github"].parse(request)
        assert bool(parsed.events) is not bool(parsed.ignored), (kind, parsed)
        told += len(parsed.events)
        if parsed.events:
            assert kind in FIRING
    assert told > (30 if edition == "api.github.com" else 0)


def test_examples_make_the_builds_that_they_should(
    examples: dict[str, list[tuple[str, Any]]], server: ApiServer
) -> None:
    names = {
        body["repository"]["full_name"]
        for kind, body in examples["api.github.com"]
        if kind in FIRING and "repository" in body
    }
    for number, name in enumerate(sorted(names)):
        owner, _, repository = name.partition("/")
        for event in (
            {"push": {"branch": ".*"}},
            {"push": {"tag": ".*"}},
            {"pullRequest": {"branch": ".*"}},
        ):
            kind = next(iter(next(iter(event.values()))))
            trigger = {
                "name": f"t{number}-{next(iter(event))}-{kind}",
                "github": {"owner": owner, "name": repository, **event},
                "build": {"steps": [{"name": "busybox"}]},
            }
            answer = server.http.post("/v1/projects/p/triggers", json=trigger)
            assert answer.status_code == 200, answer.text
    sent = {send(server, kind, body): (kind, body) for kind, body in examples["api.github.com"]}
    loop = DeliveryLoop(server.context, DeliveryHandler(server.context))
    while loop.turn():
        assert loop.wait_until_idle(60)
    built = 0
    refs: dict[str, str] = {}  # where they are: the same example in two variants is no news
    for number, (kind, body) in sent.items():
        stored = server.store.deliveries.get(number)
        assert "error" not in stored.outcome, (kind, stored.outcome)
        made = [
            verdict["build"]
            for event in stored.outcome["events"]
            for verdict in event["verdicts"]
            if "build" in verdict
        ]
        commit, wanted = expected(kind, body)
        if kind == "push":
            wanted = wanted and refs.get(body["ref"]) != commit
            refs[body["ref"]] = commit if not body["deleted"] else ""
        assert len(made) == wanted, (kind, body.get("action"), stored.outcome)
        for build in made:
            document = server.store.builds.find(build).document
            assert document["source"]["gitSource"]["revision"] == commit
            assert document["substitutions"]["COMMIT_SHA"] == commit
        built += len(made)
    assert built > 5
    secrets = HeldSecrets(**{token_name("https://github.com"): "token"})
    reporter = StatusReporter(secrets, dict, server.store.outbox.changed_build)
    for change in server.store.outbox.changes(limit=1000):
        build = server.store.builds.find(change.build_id)
        (message,) = reporter(change)
        commit = build.document["substitutions"]["COMMIT_SHA"]
        name = build.labels["repository"]
        where = f"https://api.github.com/repos/{name}/statuses/{commit}"
        assert message.message["url"] == where


def expected(kind: str, body: Any) -> tuple[str, bool]:
    """The commit that an example is about, and whether it is to be built: by GitHub's own words."""
    if kind == "push":
        deleted = body["deleted"] or body["after"] == "0" * 40
        head = body["head_commit"]
        return (head["id"] if head else body["after"]), not deleted
    if kind == "pull_request":
        fires = body["action"] in ("opened", "reopened", "synchronize")
        return body["pull_request"]["head"]["sha"], fires
    return "", False
