"""``buildrunner triggers`` and ``deliveries`` against a real server."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from buildrunner.cli.main import main
from tests.api_server import ApiServer, api_server
from tests.server.test_hooks import PUSH, SECRET, github, handle

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(tmp_path) as running:
        running.hook("github", SECRET, owners=["acme"])
        yield running


@pytest.fixture
def run(
    server: ApiServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "xdg"))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        project = () if arguments[0] == "deliveries" else ("--project", "p")
        code = main([*arguments, "--server", server.url, *project])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def stored(server: ApiServer, name: str = "ci") -> Any:
    found = server.store.triggers.get("p", name)
    return {key: value for key, value in found.items() if key not in _SET_BY_SERVER}


_SET_BY_SERVER = ("id", "resourceName", "createTime")
GITHUB = ("--repo-owner", "acme", "--repo-name", "app")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            ("github", *GITHUB, "--branch-pattern", "^main$", "--build-config", "ci.yaml"),
            {
                "github": {"owner": "acme", "name": "app", "push": {"branch": "^main$"}},
                "filename": "ci.yaml",
            },
        ),
        (
            ("github", *GITHUB, "--pull-request-pattern", "^main$"),
            {
                "github": {
                    "owner": "acme",
                    "name": "app",
                    "pullRequest": {"branch": "^main$", "commentControl": "COMMENTS_ENABLED"},
                },
                "autodetect": True,
            },
        ),
        (
            (
                *("repository", "--repository", "app", "--tag-pattern", "^v", "--invert-regex"),
                *("--included-files", "src/**,*.md", "--require-approval"),
                *("--substitutions", "_A=1,_B=2", "--filter", "_A == '1'"),
                *("--dockerfile", "Dockerfile", "--dockerfile-dir", "/app"),
                *("--dockerfile-image", "r/i:$COMMIT_SHA", "--description", "d"),
            ),
            {
                "repositoryEventConfig": {
                    "repository": "app",
                    "push": {"tag": "^v", "invertRegex": True},
                },
                "includedFiles": ["src/**", "*.md"],
                "approvalConfig": {"approvalRequired": True},
                "substitutions": {"_A": "1", "_B": "2"},
                "filter": "_A == '1'",
                "description": "d",
                "build": {
                    "steps": [
                        {
                            "name": "gcr.io/cloud-builders/docker",
                            "args": ["build", "-t", "r/i:$COMMIT_SHA", "-f", "Dockerfile", "."],
                            "dir": "app",
                        }
                    ],
                    "images": ["r/i:$COMMIT_SHA"],
                },
            },
        ),
        (
            ("gitlab", "--project-namespace", "g/app", "--branch-pattern", "."),
            {
                "gitlabEnterpriseEventsConfig": {
                    "projectNamespace": "g/app",
                    "push": {"branch": "."},
                },
                "autodetect": True,
            },
        ),
        (
            (
                *("bitbucket-server", "--project-key", "K", "--repo-slug", "app"),
                *("--branch-pattern", "."),
            ),
            {
                "bitbucketServerTriggerConfig": {
                    "projectKey": "K",
                    "repoSlug": "app",
                    "push": {"branch": "."},
                },
                "autodetect": True,
            },
        ),
        (
            ("cloud-source-repositories", "--repo-name", "app", "--branch-pattern", "x"),
            {"triggerTemplate": {"repoName": "app", "branchName": "x"}, "autodetect": True},
        ),
        (
            (
                *("webhook", "--secret", "projects/p/secrets/s/versions/latest"),
                *("--repo", "https://e.com/r", "--branch", "main", "--build-config", "b.yaml"),
            ),
            {
                "webhookConfig": {"secret": "projects/p/secrets/s/versions/latest"},
                "sourceToBuild": {"uri": "https://e.com/r", "ref": "refs/heads/main"},
                "gitFileSource": {"path": "b.yaml", "uri": "https://e.com/r"},
            },
        ),
        (
            ("manual", "--repo", "https://e.com/r", "--tag", "v1", "--repo-type", "GITHUB"),
            {
                "sourceToBuild": {
                    "uri": "https://e.com/r",
                    "ref": "refs/tags/v1",
                    "repoType": "GITHUB",
                },
                "autodetect": True,
            },
        ),
    ],
)
def test_flags_make_the_trigger(
    run: Run, server: ApiServer, flags: tuple[str, ...], expected: dict[str, Any]
) -> None:
    code, out, err = run("triggers", "create", *flags, "--name", "ci")
    assert code == 0, err
    assert out.splitlines()[0].split() == ["NAME", "CREATE_TIME", "STATUS"]
    assert out.splitlines()[1].split()[::2] == ["ci", "ENABLED"]
    assert stored(server) == {"name": "ci", **expected}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("github", "--branch-pattern", "x"), "needs --repo-owner and --repo-name"),
        (("github", *GITHUB), "--branch-pattern, --tag-pattern, --pull-request-pattern is"),
        (("github", *GITHUB, "--branch-pattern", "("), "is no regular expression of RE2"),
        (("manual", "--repo", "https://e.com/r"), "one of --branch and --tag"),
        (("manual", "--build-config", "a", "--dockerfile", "b"), "contradict each other"),
        (("manual", "--inline-config", "none.yaml"), "none.yaml can't be read"),
        (("manual", "--trigger-config", "none.yaml"), "none.yaml can't be read"),
    ],
)
def test_flags_that_can_not_be_are_one_clear_error(
    run: Run, flags: tuple[str, ...], said: str
) -> None:
    code, _, err = run("triggers", "create", *flags, "--name", "ci")
    assert code == 2
    assert said in err
    assert "Traceback" not in err


KINDS_OF_TRIGGERS: dict[str, dict[str, Any]] = {
    "github": {
        "github": {"owner": "acme", "name": "app", "push": {"branch": "x", "invertRegex": True}}
    },
    "pull": {
        "github": {
            "owner": "acme",
            "name": "app",
            "pullRequest": {
                "branch": "x",
                "commentControl": "COMMENTS_ENABLED_FOR_EXTERNAL_CONTRIBUTORS_ONLY",
                "invertRegex": True,
            },
        }
    },
    "gitlab": {"gitlabEnterpriseEventsConfig": {"projectNamespace": "g/app", "push": {"tag": "v"}}},
    "bitbucket-server": {
        "bitbucketServerTriggerConfig": {
            "projectKey": "K",
            "repoSlug": "app",
            "push": {"branch": "x"},
        }
    },
    "repository": {"repositoryEventConfig": {"repository": "app", "push": {"branch": "x"}}},
    "cloud-source-repositories": {
        "triggerTemplate": {"repoName": "app", "branchName": "x", "dir": "d"}
    },
    "pubsub": {"pubsubConfig": {"topic": "projects/p/topics/t"}},
    "webhook": {"webhookConfig": {"secret": "projects/p/secrets/s/versions/1"}},
    "manual": {},
    "sourced": {
        "sourceToBuild": {
            "uri": "https://e.com/r",
            "ref": "refs/heads/main",
            "repoType": "GITHUB",
        }
    },
}
BUILDS: dict[str, Any] = {
    "description": "d",
    "filename": "c.yaml",
    "substitutions": {"_A": "1", "_B": "2"},
    "includedFiles": ["a"],
    "ignoredFiles": ["b"],
    "filter": "_A == '1'",
    "approvalConfig": {"approvalRequired": True},
    "serviceAccount": "projects/p/serviceAccounts/a",
    "tags": ["kept"],
}
EVENTS = ("github", "pull", "gitlab", "bitbucket-server", "repository")
CONFIGS = {
    "github": "github",
    "pull": "github",
    "gitlab": "gitlabEnterpriseEventsConfig",
    "bitbucket-server": "bitbucketServerTriggerConfig",
    "repository": "repositoryEventConfig",
}


def set_at(path: str, value: Any) -> Callable[[dict[str, Any], str], None]:
    """A change of one field; ``EVENTS`` in the path stands for where the trigger keeps those."""

    def change(document: dict[str, Any], kind: str) -> None:
        place = document
        *above, last = path.replace("EVENTS", CONFIGS.get(kind, "")).split(".")
        for name in above:
            place = place.setdefault(name, {})
        if value is None:
            place.pop(last, None)
        else:
            place[last] = value

    return change


def events(old: str, new: str, **fields: Any) -> Callable[[dict[str, Any], str], None]:
    """Another filter of events; what no flag names of the old one stays."""

    def change(document: dict[str, Any], kind: str) -> None:
        config = document[CONFIGS[kind]]
        before = config.pop("push", None) or config.pop("pullRequest", None)
        names = ("invertRegex", *(("commentControl",) if new == "pullRequest" else ()))
        kept = {name: before[name] for name in names if name in before}
        config[new] = {**kept, **{k: v for k, v in fields.items() if k not in kept or v}}

    return change


def template(**fields: Any) -> Callable[[dict[str, Any], str], None]:
    def change(document: dict[str, Any], _: str) -> None:
        for name in ("filename", "build", "gitFileSource", "autodetect"):
            document.pop(name, None)
        document.update(fields)

    return change


def pull_filter(document: dict[str, Any], kind: str) -> None:
    config = document[CONFIGS[kind]]
    before = config.pop("push", None)
    if before is None:
        config["pullRequest"]["branch"] = "^new$"
        return
    inverted = {"invertRegex": True} if before.get("invertRegex") else {}
    control = {"commentControl": "COMMENTS_ENABLED"}
    config["pullRequest"] = {"branch": "^new$", **control, **inverted}


def push_filter(name: str) -> Callable[[dict[str, Any], str], None]:
    def change(document: dict[str, Any], kind: str) -> None:
        if kind == "cloud-source-repositories":
            ours = {"branch": "branchName", "tag": "tagName"}
            place = document["triggerTemplate"]
            place.pop("branchName")
            place[ours[name]] = "^new$"
            return
        config = document[CONFIGS[kind]]
        before = config.pop("push", None) or config.pop("pullRequest")
        inverted = {"invertRegex": True} if before.get("invertRegex") else {}
        config["push"] = {name: "^new$", **inverted}

    return change


def invert(wanted: bool) -> Callable[[dict[str, Any], str], None]:
    def change(document: dict[str, Any], kind: str) -> None:
        if kind == "cloud-source-repositories":
            place = document["triggerTemplate"]
        else:
            config = document[CONFIGS[kind]]
            place = config.get("push") or config["pullRequest"]
        place.pop("invertRegex", None)
        if wanted:
            place["invertRegex"] = True

    return change


LISTENING = (*EVENTS, "cloud-source-repositories")
ALL_KINDS = tuple(KINDS_OF_TRIGGERS)
STEP = {"name": "gcr.io/cloud-builders/docker"}
IMAGE = "gcr.io/$PROJECT_ID/$REPO_NAME:$COMMIT_SHA"


def dockerfile(image: str = IMAGE, **step: str) -> dict[str, Any]:
    arguments = ["build", "-t", image, "-f", "Dockerfile", "."]
    return {"build": {"steps": [{**STEP, "args": arguments, **step}], "images": [image]}}


# The flag, the kinds of triggers that it goes with, and what it changes. All others refuse it.
CHANGES: list[tuple[tuple[str, ...], tuple[str, ...], Any]] = [
    (("--description", "new"), ALL_KINDS, set_at("description", "new")),
    (("--description", ""), ALL_KINDS, set_at("description", None)),
    (
        ("--service-account", "projects/p/serviceAccounts/b"),
        ALL_KINDS,
        set_at("serviceAccount", "projects/p/serviceAccounts/b"),
    ),
    (("--no-require-approval",), ALL_KINDS, set_at("approvalConfig", None)),
    (("--included-files", "x,y"), ALL_KINDS, set_at("includedFiles", ["x", "y"])),
    (("--included-files", ""), ALL_KINDS, set_at("includedFiles", None)),
    (("--ignored-files", "z"), ALL_KINDS, set_at("ignoredFiles", ["z"])),
    (("--filter", "_B == '2'"), ALL_KINDS, set_at("filter", "_B == '2'")),
    (("--substitutions", "_A=7"), ALL_KINDS, set_at("substitutions", {"_A": "7"})),
    (
        ("--update-substitutions", "_B=7"),
        ALL_KINDS,
        set_at("substitutions", {"_A": "1", "_B": "7"}),
    ),
    (("--remove-substitutions", "_B"), ALL_KINDS, set_at("substitutions", {"_A": "1"})),
    (("--repo-owner", "new"), ("github", "pull"), set_at("EVENTS.owner", "new")),
    (("--repo-name", "new"), ("github", "pull"), set_at("EVENTS.name", "new")),
    (
        ("--repo-name", "new"),
        ("cloud-source-repositories",),
        set_at("triggerTemplate.repoName", "new"),
    ),
    (("--project-namespace", "g/new"), ("gitlab",), set_at("EVENTS.projectNamespace", "g/new")),
    (("--project-key", "NEW"), ("bitbucket-server",), set_at("EVENTS.projectKey", "NEW")),
    (("--repo-slug", "new"), ("bitbucket-server",), set_at("EVENTS.repoSlug", "new")),
    (("--repository", "new"), ("repository",), set_at("EVENTS.repository", "new")),
    (("--branch-pattern", "^new$"), LISTENING, push_filter("branch")),
    (("--tag-pattern", "^new$"), LISTENING, push_filter("tag")),
    (("--pull-request-pattern", "^new$"), EVENTS, pull_filter),
    (("--invert-regex",), LISTENING, invert(True)),
    (("--no-invert-regex",), LISTENING, invert(False)),
    (
        ("--comment-control", "COMMENTS_ENABLED"),
        ("pull",),
        set_at("EVENTS.pullRequest.commentControl", "COMMENTS_ENABLED"),
    ),
    (
        ("--comment-control", "COMMENTS_DISABLED"),
        ("pull",),
        set_at("EVENTS.pullRequest.commentControl", None),
    ),
    (
        ("--secret", "projects/p/secrets/s/versions/2"),
        ("webhook",),
        set_at("webhookConfig.secret", "projects/p/secrets/s/versions/2"),
    ),
    (
        ("--topic", "projects/p/topics/new"),
        ("pubsub",),
        set_at("pubsubConfig.topic", "projects/p/topics/new"),
    ),
    (("--build-config", "new.yaml"), ALL_KINDS, set_at("filename", "new.yaml")),
    (("--inline-config", "inline.yaml"), ALL_KINDS, template(build={"steps": [{"name": "b"}]})),
    (("--dockerfile", "Dockerfile"), ALL_KINDS, template(**dockerfile())),
    (
        ("--dockerfile", "Dockerfile", "--dockerfile-dir", "/app", "--dockerfile-image", "i"),
        ALL_KINDS,
        template(**dockerfile("i", dir="app")),
    ),
    (("--dockerfile-dir", "/app"), (), None),
    (("--dockerfile-image", "i"), (), None),
    (
        ("--repo", "https://e.com/new"),
        ("sourced",),
        set_at("sourceToBuild.uri", "https://e.com/new"),
    ),
    (
        ("--repo", "https://e.com/new", "--branch", "b"),
        ("manual", "pubsub", "webhook"),
        set_at("sourceToBuild", {"uri": "https://e.com/new", "ref": "refs/heads/b"}),
    ),
    (("--repo-type", "GITLAB"), ("sourced",), set_at("sourceToBuild.repoType", "GITLAB")),
    (("--branch", "b"), ("sourced",), set_at("sourceToBuild.ref", "refs/heads/b")),
    (("--tag", "v1"), ("sourced",), set_at("sourceToBuild.ref", "refs/tags/v1")),
]
# The same flag in other rows tells what it does to these.
IN_OTHER_ROWS = {
    ("--repo-name", "new"): {"github", "pull", "cloud-source-repositories"},
    ("--repo", "https://e.com/new", "--branch", "b"): {"sourced"},
}


def test_a_new_branch_is_that_of_the_config_too(run: Run, server: ApiServer) -> None:
    source = {"uri": "https://e.com/r", "ref": "refs/heads/main"}
    file = {"path": "b.yaml", "uri": source["uri"], "revision": source["ref"]}
    trigger = {"id": "t", "name": "t", "sourceToBuild": source, "gitFileSource": file}
    server.store.triggers.create("p", "global", trigger)
    code, _, err = run("triggers", "update", "t", "--branch", "b")
    assert code == 0, err
    changed = stored(server, "t")
    assert changed["sourceToBuild"]["ref"] == changed["gitFileSource"]["revision"] == "refs/heads/b"


@pytest.mark.parametrize("row", CHANGES, ids=lambda row: " ".join(row[0]))
def test_each_flag_of_update_changes_what_it_names_and_nothing_else_or_is_refused(
    run: Run, server: ApiServer, tmp_path: Path, row: Any
) -> None:
    flags, kinds, change = row
    (tmp_path / "inline.yaml").write_text("steps: [{name: b}]\n")
    for kind, fields in KINDS_OF_TRIGGERS.items():
        if kind not in kinds and kind in IN_OTHER_ROWS.get(flags, ()):
            continue
        server.store.triggers.create(
            "p", "global", copy({"id": kind, "name": kind, **BUILDS, **fields})
        )
        before = stored(server, kind)
        code, _, err = run("triggers", "update", kind, *flags)
        after = stored(server, kind)
        if kind in kinds:
            assert code == 0, err
            wanted = copy(before)
            change(wanted, kind)
            assert after == wanted
            assert after != before or "invert-regex" in flags[0]
        else:
            assert code == 2, f"{flags} was taken for a trigger of kind {kind}"
            assert "Updated" not in err
            assert flags[0].replace("--no-", "--") in err
            assert after == before


def copy(document: Any) -> Any:
    return json.loads(json.dumps(document))


def test_the_table_of_flags_holds_them_all(run: Run) -> None:
    from buildrunner.cli.triggers.flags import add_update_flags

    parser = argparse.ArgumentParser(add_help=False)
    add_update_flags(parser)
    flags = {one for action in parser._actions for one in action.option_strings}
    told = {flag for row, _, _ in CHANGES for flag in row if flag.startswith("--")}
    elsewhere = {"--require-approval", "--subscription-filter", "--clear-substitutions"}
    assert flags - told == {*elsewhere, "--trigger-config", "--forge", "--forge-host"}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "there is nothing to change"),
        (("--remove-substitutions", "_NONE"), "this trigger has no substitution _NONE"),
        (("--repo-owner", ""), "--repo-owner is empty"),
        (("--branch", "a", "--tag", "b"), "--branch does not go with a trigger of kind github"),
        (("--trigger-config", "t.yaml", "--description", "x"), "--description can't, too"),
        (("--forge-host", "git.example.com"), "--forge-host needs --forge"),
        (("--forge", "gitea"), "a forge of kind gitea needs its host"),
        (("--forge", "gitea", "--forge-host", "github.com"), "is a forge of kind github"),
    ],
)
def test_an_update_that_can_not_be_is_one_clear_error(
    run: Run, server: ApiServer, tmp_path: Path, flags: tuple[str, ...], said: str
) -> None:
    (tmp_path / "t.yaml").write_text("name: ci\nfilename: d.yaml\n")
    run("triggers", "create", "github", "--name", "ci", *GITHUB, "--branch-pattern", "x")
    before = stored(server)
    code, _, err = run("triggers", "update", "ci", *flags)
    assert code == 2
    assert said in err
    assert stored(server) == before


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("manual", "--topic", "projects/p/topics/t"), "--topic does not go with"),
        (("pubsub", "--topic", "projects/p/topics/t", "--repo-name", "x"), "--repo-name does not"),
        (("github", *GITHUB, "--branch-pattern", "x", "--repo", "https://e.com/r"), "--repo does"),
        (
            ("github", *GITHUB, "--branch-pattern", "x", "--comment-control", "COMMENTS_DISABLED"),
            "--comment-control is for pull requests",
        ),
        (("manual", "--branch", "main"), "--branch goes with --repo"),
        (("manual", "--dockerfile-image", "i"), "--dockerfile-image goes with --dockerfile"),
        (("manual", "--forge", "gitea"), "--forge does not go with a trigger of kind manual"),
    ],
)
def test_create_refuses_flags_that_would_change_nothing(
    run: Run, server: ApiServer, flags: tuple[str, ...], said: str
) -> None:
    code, _, err = run("triggers", "create", *flags, "--name", "ci")
    assert code == 2
    assert said in err
    assert server.http.get("/v1/projects/p/triggers").json()["triggers"] == []


def test_a_forge_is_set_with_the_trigger_and_changed_alone(
    run: Run, server: ApiServer, tmp_path: Path
) -> None:
    def forge(name: str = "ci") -> Any:
        trigger = server.store.triggers.get("p", name)["id"]
        return server.store.triggers.settings("p", trigger).get("forge")

    at_gitea = ("--forge", "gitea", "--forge-host", "https://git.example.com")
    flags = ("github", "--name", "ci", *GITHUB, "--branch-pattern", "x", *at_gitea)
    code, _, err = run("triggers", "create", *flags)
    assert code == 0, err
    assert forge() == {"kind": "gitea", "host": "https://git.example.com"}
    assert forge() is not None
    before = stored(server)
    assert run("triggers", "update", "ci", "--forge-host", "git2.example.com")[0] == 0
    assert forge() == {"kind": "gitea", "host": "git2.example.com"}
    assert run("triggers", "update", "ci", "--forge", "github", "--forge-host", "")[0] == 0
    assert forge() == {"kind": "github", "host": ""}
    assert stored(server) == before
    run("triggers", "update", "ci", *at_gitea, "--description", "both")
    assert (forge()["kind"], stored(server)["description"]) == ("gitea", "both")
    file = tmp_path / "t.yaml"
    file.write_text("name: new\nfilename: c.yaml\ngithub: {owner: a, name: b, push: {branch: x}}\n")
    assert run("triggers", "import", "--source", str(file), *at_gitea)[0] == 0
    assert forge("new")["kind"] == "gitea"
    assert run("triggers", "import", "--source", str(file), "--forge", "gitlab")[0] == 0
    assert forge("new") == {"kind": "gitlab", "host": "https://git.example.com"}
    assert run("triggers", "import", "--source", str(file))[0] == 0
    assert forge("new")["kind"] == "gitlab"
    run("triggers", "update", "new", "--trigger-config", str(file), "--forge", "gitea")
    assert forge("new")["kind"] == "gitea"


def test_a_guess_of_an_earlier_version_is_not_confirmed_in_passing(
    run: Run, server: ApiServer
) -> None:
    run("triggers", "create", "github", "--name", "ci", *GITHUB, "--branch-pattern", "x")
    trigger = server.store.triggers.get("p", "ci")["id"]
    guess = {"forge": {"kind": "gitea", "host": "https://evil.example", "unconfirmed": True}}
    server.store.triggers.set_settings("p", trigger, guess)
    run("triggers", "update", "ci", "--description", "x")
    run("schedules", "settings", "ci", "--jitter", "1s")
    run("schedules", "settings", "ci", "--clear")
    assert run("triggers", "update", "ci", "--forge", "gitea")[0] == 2
    assert server.store.triggers.settings("p", trigger) == guess
    run("triggers", "update", "ci", "--forge", "gitea", "--forge-host", "git.example.com")
    forge = {"kind": "gitea", "host": "git.example.com"}
    assert server.store.triggers.settings("p", trigger)["forge"] == forge


def test_update_changes_what_it_is_told(run: Run, server: ApiServer) -> None:
    flags = ("--branch-pattern", "x", "--substitutions", "_A=1,_B=2", "--build-config", "c.yaml")
    run("triggers", "create", "github", "--name", "ci", *GITHUB, *flags)
    run("triggers", "update", "ci", "--tag-pattern", "^v", "--update-substitutions", "_B=3")
    found = stored(server)
    assert found["github"] == {"owner": "acme", "name": "app", "push": {"tag": "^v"}}
    assert found["substitutions"] == {"_A": "1", "_B": "3"}
    assert found["filename"] == "c.yaml"
    run("triggers", "update", "ci", "--remove-substitutions", "_A", "--description", "new")
    assert stored(server)["substitutions"] == {"_B": "3"}
    code, _, err = run("triggers", "update", "ci", "--clear-substitutions", "--dockerfile", "D")
    assert code == 0, err
    found = stored(server)
    assert "substitutions" not in found
    assert "filename" not in found
    assert found["build"]["images"]
    assert found["description"] == "new"


def test_what_is_exported_can_be_imported(run: Run, server: ApiServer, tmp_path: Path) -> None:
    file = tmp_path / "triggers.yaml"
    file.write_text(
        "name: a\nbuild: {steps: [{name: busybox}]}\n---\nname: b\nfilename: c.yaml\n"
        "github: {owner: o, name: r, push: {branch: ^main$}}\n"
    )
    _, _, err = run("triggers", "import", "--source", str(file))
    assert err.splitlines() == ["Created [a].", "Created [b]."]
    before = server.store.triggers.get("p", "b")
    out = str(tmp_path / "b.yaml")
    assert run("triggers", "export", "b", "--destination", out)[0] == 0
    _, _, err = run("triggers", "import", "--source", out)
    assert err == "Updated [b].\n"
    assert server.store.triggers.get("p", "b") == before
    run("triggers", "update", "b", "--description", "new")
    run("triggers", "update", "b", "--build-config", "c.yaml")
    assert run("triggers", "export", "b", "--destination", "-")[1] == (
        "description: new\n" + (tmp_path / "b.yaml").read_text()
    )
    _, shown, _ = run("triggers", "describe", "b", "--format", "json")
    assert json.loads(shown)["id"] == before["id"]
    listed = json.loads(run("triggers", "list", "--format", "json")[1])
    assert [one["name"] for one in listed] == ["a", "b"]
    by_id = tmp_path / "id.yaml"
    by_id.write_text(f"id: {before['id']}\nname: renamed\nfilename: d.yaml\n")
    run("triggers", "import", "--source", str(by_id))
    assert server.store.triggers.get("p", before["id"])["name"] == "renamed"
    by_id.write_text("id: nobody\nname: x\nfilename: d.yaml\n")
    code, _, err = run("triggers", "import", "--source", str(by_id))
    assert code == 2
    assert "there is no trigger with the id nobody" in err


def test_what_the_hosted_service_exported_is_imported_by_its_name(
    run: Run, server: ApiServer, tmp_path: Path
) -> None:
    file = tmp_path / "t.yaml"
    identity = "0ab5a0b2-3c4d-4a5b-9c6d-000000000001"
    exported = {
        "createTime": "2024-05-02T10:11:12.345678901Z",
        "eventType": "REPO",
        "filename": "cloudbuild.yaml",
        "github": {
            "enterpriseConfigResourceName": "projects/p/locations/l/githubEnterpriseConfigs/c",
            "installationId": "12345",
            "name": "app",
            "owner": "acme",
            "push": {"branch": "^main$"},
        },
        "id": identity,
        "name": "ci",
        "resourceName": f"projects/h/locations/global/triggers/{identity}",
    }
    file.write_text(json.dumps(exported))
    assert run("triggers", "import", "--source", str(file))[2] == "Created [ci].\n"
    made = server.store.triggers.get("p", "ci")
    assert made["github"] == exported["github"]
    assert made["id"] != identity
    file.write_text(json.dumps({**exported, "filename": "other.yaml"}))
    assert run("triggers", "import", "--source", str(file))[2] == "Updated [ci].\n"
    now = server.store.triggers.get("p", "ci")
    assert (now["filename"], now["id"]) == ("other.yaml", made["id"])


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (
            "gitlabEnterpriseEventsConfig",
            {
                "projectNamespace": "g/app",
                "gitlabConfigResource": "projects/p/locations/l/gitLabConfigs/c",
                "push": {"branch": "main"},
            },
        ),
        (
            "bitbucketServerTriggerConfig",
            {
                "repoSlug": "app",
                "projectKey": "P",
                "bitbucketServerConfigResource": "projects/p/locations/l/bitbucketServerConfigs/c",
                "push": {"branch": "main"},
            },
        ),
    ],
)
def test_what_the_hosted_service_tells_of_a_connection_is_passed_over(
    run: Run, server: ApiServer, tmp_path: Path, kind: str, config: dict[str, Any]
) -> None:
    told = {"name": "c", "createTime": "2024-01-01T00:00:00Z", "secrets": {"a": "b"}}
    output = kind.removesuffix("EnterpriseEventsConfig").removesuffix("TriggerConfig") + "Config"
    trigger = {"name": "ci", "filename": "c.yaml", kind: {output: told, **config}}
    (tmp_path / "t.yaml").write_text(json.dumps(trigger))
    assert run("triggers", "import", "--source", "t.yaml")[2] == "Created [ci].\n"
    assert stored(server)[kind] == config


def test_a_wrong_file_is_refused_with_its_places(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "t.yaml"
    file.write_text("name: a\nfilname: c.yaml\n---\nname: [b]\n")
    code, _, err = run("triggers", "import", "--source", str(file))
    assert code == 2
    assert f"{file}:2:1" in err
    assert f"{file}:4:" in err


def test_all_that_is_wrong_in_a_file_is_told_before_anything_is_made(
    run: Run, server: ApiServer, tmp_path: Path
) -> None:
    end = "build: {steps: [{name: busybox}]}\n"
    texts = (
        f"name: good\n{end}",
        f'name: minute\ncron: {{schedule: "99 * * * *"}}\n{end}',
        f'name: zone\ncron: {{schedule: "0 3 * * *", timeZone: Mars/Base}}\n{end}',
        f'name: never\ncron: {{schedule: "0 0 30 2 *"}}\n{end}',
        f"name: cel\nfilter: a ==(\n{end}",
        f"name: regex\ngithub: {{owner: a, name: b, push: {{branch: (?=x)}}}}\n{end}",
    )
    (tmp_path / "t.yaml").write_text("---\n".join(texts))
    code, _, told = run("triggers", "import", "--source", "t.yaml")
    assert code == 2
    places = [line.partition(": ")[2] for line in told.splitlines()]
    for place in ("t.yaml:5:7: cron", "t.yaml:9:7", "t.yaml:13:7", "t.yaml:17:9: filter"):
        assert any(one.startswith(place) for one in places), told
    assert "github.push.branch: '(?=x)' is no regular expression of RE2" in told
    assert server.http.get("/v1/projects/p/triggers").json()["triggers"] == []


@pytest.mark.parametrize("action", ["describe", "run", "enable", "test"])
def test_a_trigger_that_is_not_there_is_named(run: Run, action: str) -> None:
    more = ("--ref", "main") if action == "test" else ()
    code, _, told = run("triggers", action, "none", *more)
    assert code == 2
    assert 'there is no trigger "none" in p on http' in told


def test_a_trigger_is_disabled_enabled_run_and_deleted(run: Run, server: ApiServer) -> None:
    run("triggers", "create", "github", "--name", "ci", *GITHUB, "--branch-pattern", "x")
    assert run("triggers", "disable", "ci")[2] == "Disabled [ci].\n"
    assert "DISABLED" in run("triggers", "list")[1]
    code, out, err = run(*("triggers", "run", "ci", "--branch", "dev", "--substitutions", "_A=1"))
    assert code == 0, err
    assert "QUEUED" in out
    (build,) = server.store.builds.page("p").builds
    assert build.request["source"]["gitSource"]["revision"] == "refs/heads/dev"
    assert build.request["substitutions"]["_A"] == "1"
    assert run("triggers", "enable", "ci")[2] == "Enabled [ci].\n"
    assert "disabled" not in stored(server) or stored(server)["disabled"] is False
    assert run("triggers", "delete", "ci")[0] == 2  # there is nobody to ask
    assert run("triggers", "delete", "ci", "--quiet")[2] == "Deleted [ci].\n"
    assert run("triggers", "describe", "ci")[0] == 2
    assert run("triggers", "list")[2] == "Listed 0 items.\n"


def test_the_verdict_is_told_rule_by_rule(run: Run, tmp_path: Path) -> None:
    flags = ("--branch-pattern", "^main$", "--included-files", "src/**", "--build-config", "c")
    run("triggers", "create", "github", "--name", "ci", *GITHUB, *flags)
    code, out, err = run("triggers", "test", "ci", "--ref", "main", "--files", "docs/a.md")
    assert code == 0, err
    first, *rules = out.splitlines()
    assert first.startswith("ci would not fire: push of refs/heads/main")
    assert rules[-1].startswith("  NO  files")
    assert rules[0].startswith("  yes enabled")
    file = tmp_path / "push.json"
    file.write_text(json.dumps(PUSH))
    _, out, _ = run("triggers", "test", "ci", "--event", str(file))
    assert out.startswith("ci would fire: push of refs/heads/main to bbbbbbbbbbbb")
    answer = json.loads(run("triggers", "test", "ci", "--ref", "x", "--format", "json")[1])
    assert answer["verdicts"][0]["fires"] is False
    assert run("triggers", "test", "ci")[0] == 2
    file.write_text("{")
    code, _, err = run("triggers", "test", "ci", "--event", str(file))
    assert code == 2
    assert "is not JSON" in err


def test_deliveries_are_listed_shown_and_replayed(run: Run, server: ApiServer) -> None:
    assert run("deliveries", "list")[2] == "Listed 0 deliveries.\n"
    flags = ("--branch-pattern", "^dev$", "--build-config", "c")
    elsewhere = ("--forge", "gitea", "--forge-host", "git.example.com")
    run("triggers", "create", "github", "--name", "another", *GITHUB, *flags, *elsewhere)
    library = ("--repo-owner", "acme", "--repo-name", "lib")
    run("triggers", "create", "github", "--name", "library", *library, *flags)
    run("triggers", "create", "github", "--name", "ci", *GITHUB, *flags)
    number = str(github(server, PUSH).json()["delivery"])
    handle(server)
    _, out, _ = run("deliveries", "list", "--hook", "github")
    assert out.splitlines()[1].split()[0] == number
    assert "push of refs/heads/main" in out
    _, out, _ = run("deliveries", "show", number)
    assert "p/ci did not fire\n" in out
    assert "  NO  branch      branch main does not match ^dev$\n" in out
    assert out.endswith(  # what does not concern a trigger takes it one line
        "p/another did not fire: the trigger is for acme/app on https://git.example.com (gitea),"
        " the event is of acme/app on https://github.com (github)\n"
    )
    assert "library" not in out
    run("triggers", "update", "ci", "--branch-pattern", "^main$")
    assert run("deliveries", "replay", number)[2] == f"Delivery {number} is handled again.\n"
    handle(server)
    (build,) = server.store.builds.page("p").builds
    assert f"p/ci fired: build {build.id}\n" in run("deliveries", "show", number)[1]
    code, _, err = run("deliveries", "show", "99")
    assert code == 2
    assert "there is no delivery 99" in err


def test_triggers_need_a_server(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("BUILDRUNNER_SERVER", raising=False)
    assert main(["triggers", "list"]) == 2
    assert "no server is chosen" in capsys.readouterr().err


def test_the_next_times_of_a_schedule_are_told(run: Run, server: ApiServer) -> None:
    document = {
        "name": "nightly",
        "cron": {"schedule": "0 3 * * *", "timeZone": "Europe/Berlin"},
        "build": {"steps": [{"name": "busybox"}]},
    }
    assert server.http.post("/v1/projects/p/triggers", json=document).status_code == 200
    code, out, err = run("triggers", "next", "nightly")
    assert code == 0, err
    assert out.count("03:00") >= 5
    for command in ("triggers", "schedules"):
        assert run(command, "next")[1] == run("schedules", "list")[1]
    assert run("triggers", "next")[1].splitlines()[1].startswith("nightly")
    assert (
        "refs/heads/main to 111111111111 in some repository (git)"
        in run(*("triggers", "test", "nightly", "--ref", "main"))[1]
    )


def test_what_the_clock_has_nothing_to_say_of_is_told_in_a_sentence(
    run: Run, server: ApiServer
) -> None:
    assert run("schedules", "list") == (0, "", "Listed 0 schedules.\n")
    code, _, told = run("schedules", "settings", "none", "--limit", "1")
    assert (code, told) == (2, 'error: there is no trigger "none" in project p\n')
    document = {
        "name": "pushed",
        "build": {"steps": [{"name": "busybox"}]},
        "github": {"owner": "acme", "name": "app", "push": {"branch": "^main$"}},
    }
    assert server.http.post("/v1/projects/p/triggers", json=document).status_code == 200
    settings = ("schedules", "settings", "pushed", "--approver")
    assert "- alice" in run(*settings, "alice")[1]
    assert "approvers: []" in run(*settings, "")[1]
    wrong = server.http.put(
        "/buildrunner/v1/projects/p/triggers/pushed/settings",
        json={"approval": {"approvers": [""]}},
    )
    assert "a name is empty" in wrong.json()["error"]["message"]
    assert run("schedules", "history", "pushed") == (0, "", "Listed 0 fire times.\n")
    code, _, told = run("triggers", "next", "pushed")
    assert (code, told) == (2, 'error: the trigger "pushed" has no schedule\n')


def test_a_build_that_never_began_has_its_reason_in_place_of_a_log(
    run: Run, server: ApiServer
) -> None:
    build = server.create()
    assert server.http.post(f"/v1/projects/p/builds/{build}:cancel", json={}).status_code == 200
    code, out, told = run("builds", "log", build)
    assert (code, out) == (2, "")
    assert f"build {build} has no log" in told
    assert "it never started: cancelled by local before it began" in told
