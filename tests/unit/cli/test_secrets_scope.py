"""``buildrunner secrets``: who may have a secret, as a person says it and reads it."""

from __future__ import annotations

import io
import json
import sys

import pytest

from buildrunner.cli.main import main
from buildrunner.store.sql.store import open_store

NUMBERED = "projects/102892647586/secrets/key"
NUMBERED_KEY = "projects/102892647586/locations/global/keyRings/r/cryptoKeys/k"
IMAGE = f"busybox@sha256:{'a' * 64}"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("BUILDRUNNER_DATABASE", raising=False)
    monkeypatch.chdir(tmp_path)

    def secrets(*arguments, value=b"hunter22"):
        stdin = io.TextIOWrapper(io.BytesIO(value))
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr("os.isatty", lambda _: False)
        code = main(["secrets", *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return secrets


def scopes(run):
    return {one["name"]: one["scope"] for one in json.loads(run("list", "--format", "json")[1])}


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["key"], "no project"),
        (["projects/shop/secrets/key"], "projects shop"),
        (["key", "--project", "shop", "--project", "web"], "projects shop, web"),
        (["key", "--project", "*"], "projects all"),
        (
            ["projects/shop/secrets/key", "--trigger", "deploy", "--branch", "main", "--tag", "v*"],
            "projects shop; triggers deploy; branches main; tags v*",
        ),
        (["key", "--project", "shop", "--image", IMAGE], f"projects shop; images {IMAGE}"),
        (
            ["key", "--project", "shop", "--image", IMAGE, "--env", "A", "--env", "B"],
            f"projects shop; images {IMAGE}; variables A, B",
        ),
        (["key", "--project", "shop", "--for", "notifiers"], "projects shop; for notifiers"),
        (["hooks-github"], "the server"),
    ],
)
def test_a_scope_is_set_with_the_value_and_listed(run, flags, text):
    assert run("set", *flags)[0] == 0
    assert scopes(run) == {flags[0]: text}


def test_the_token_of_a_forge_has_its_host_beside_it(run):
    assert run("set", "--forge", "https://Git.Example.com:8443/")[0] == 0
    assert scopes(run) == {"forge-git_example_com__3a8443": "the server, for git.example.com:8443"}


def test_a_scope_is_kept_by_a_new_version_and_replaced_or_taken_away_by_scope(run):
    run("set", "key", "--project", "shop", "--trigger", "deploy")
    run("set", "key")
    assert scopes(run) == {"key": "projects shop; triggers deploy"}
    assert run("scope", "key", "--project", "web")[2] == "The scope of [key]: projects web.\n"
    assert run("scope", "key")[2] == "The scope of [key]: no project.\n"
    assert run("list")[1].splitlines()[1].split()[-2:] == ["no", "project"]


def test_what_is_at_google_is_shared_by_its_name(run):
    key = "projects/billing/locations/global/keyRings/r/cryptoKeys/k"
    for name in ("projects/billing/secrets/key", key):
        assert run("scope", name, "--project", "shop")[0] == 0
    assert scopes(run) == dict.fromkeys(
        [key, "projects/billing/secrets/key"], "projects billing, shop"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["set"], "takes a NAME or --forge HOST"),
        (["set", "key", "--forge", "github.com"], "takes a NAME or --forge HOST"),
        (["set", "--forge", "github.com", "--project", "p"], "the server's own"),
        (["set", "--forge", "not a host"], "is no host of a forge"),
        (["set", "forge-github_com"], "are for tokens of forges"),
        (["set", "status-github-com"], "are for tokens of forges"),
        (["set", "hooks-github", "--project", "p"], "is the server's own and shared with nobody"),
        (["scope", "hooks-github", "--project", "p"], "is the server's own"),
        (["scope", "forge-github_com"], "is the server's own"),
        (["set", "key", "--trigger", "deploy"], "key belongs to no project"),
        (["set", NUMBERED, "--trigger", "deploy"], "scopes hold for names with its id"),
        (["scope", NUMBERED, "--trigger", "deploy"], "scopes hold for names with its id"),
        (["scope", NUMBERED_KEY, "--project", "p"], "scopes hold for names with its id"),
        (["set", "key", "--project", "a b"], "'a b' is no project id"),
        (["set", "key", "--project", "p", "--image", "app:1"], "write app:1@sha256:DIGEST"),
        (
            ["set", "key", "--project", "p", "--branch", "main", "--for", "notifiers"],
            "--branch limits builds",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_kept(run, arguments, said):
    code, _, err = run(*arguments)
    assert code == 2
    assert said in err
    assert scopes(run) == {}


def test_changes_are_in_the_audit_log_of_the_server_of_this_machine(run, tmp_path):
    folder = tmp_path / "data" / "buildrunner" / "server"
    folder.mkdir(parents=True)
    open_store(f"sqlite:///{folder}/server.db").close()
    run("set", "key", "--project", "shop")
    run("scope", "key", "--project", "web", "--branch", "main")
    run("set", "key")
    run("rm", "key", "--yes")
    run("rm", "key", "--yes")
    with_server = open_store(f"sqlite:///{folder}/server.db")
    entries = with_server.audit.page(limit=10)
    with_server.close()
    assert [(one.action, one.target, one.who) for one in reversed(entries)] == [
        ("secrets.set", "key version 1 (projects shop)", "local"),
        ("secrets.scope", "key (projects web; branches main)", "local"),
        ("secrets.set", "key version 2 (projects web; branches main)", "local"),
        ("secrets.rm", "key version 1, 2", "local"),
    ]


def test_a_server_that_a_flag_names_and_that_is_not_there_is_an_error(run, tmp_path):
    code, _, err = run("set", "key", "--data", str(tmp_path / "nowhere"))
    assert code == 2
    assert "there is no server in" in err
    assert scopes(run) == {}
