"""`submit --triggered` and `submit --trigger FILE`: what a build gets as a trigger's."""

import os

import pytest
from msgspec.structs import replace

from buildrunner.cli.submit.build_input import find_input, ignore_file_of, trigger_values
from buildrunner.cli.submit.request import compile_submission, read_submission
from buildrunner.errors import ConfigError, UsageError
from buildrunner.plan.privilege import Privilege
from buildrunner.settings import Settings
from buildrunner.spec.model.build import SubstitutionOption
from tests.fixtures_git import git
from tests.unit.cli.test_build_input import parsed

NAMES = (
    *("COMMIT_SHA", "SHORT_SHA", "BRANCH_NAME", "TAG_NAME", "REF_NAME", "REPO_NAME"),
    *("REPO_FULL_NAME", "TRIGGER_NAME", "TRIGGER_BUILD_CONFIG_PATH", "SERVICE_ACCOUNT_EMAIL"),
    *("_HEAD_BRANCH", "_BASE_BRANCH", "_HEAD_REPO_URL", "_PR_NUMBER", "_OWN", "_UNSET"),
)
CONFIG = f"""\
steps:
- name: busybox
  env: [{", ".join(f"'{name}=${name}'" for name in NAMES)}]
substitutions: {{_UNUSED: x, _OWN: file}}
tags: [config]
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "cloudbuild.yaml").write_text(CONFIG)
    git(folder, "init", "-q", "-b", "feature/x", ".")
    git(folder, "remote", "add", "origin", "git@example.com:acme/app.git")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "first")
    monkeypatch.chdir(folder)
    return folder


def compiled(*arguments):
    """The build, its plan, and warnings, as `submit` makes them."""
    args = parsed(*arguments)
    request = find_input(args)
    given = dict(pair.split("=") for text in args.substitutions for pair in text.split(","))
    values = trigger_values(request, request.trigger, given)
    request = replace(request, triggered=values)
    submission = read_submission(request, Settings(), args, "some-id", Privilege())
    made, warnings = compile_submission(submission)
    return made.compiled.build, made.compiled.plan, [*values.warnings, *warnings]


def environment(*arguments):
    _, plan, _ = compiled(*arguments)
    return dict(entry.split("=", 1) for entry in plan.steps[0].env)


def trigger(folder, text, name="trigger.yaml"):
    path = folder.parent / name
    path.write_text(text)
    return str(path)


def test_values_of_the_repository_come_from_the_folders_git(repository):
    sha = git(repository, "rev-parse", "HEAD")
    assert environment(".", "--triggered") == {
        **dict.fromkeys(NAMES, ""),
        "COMMIT_SHA": sha,
        "SHORT_SHA": sha[:7],
        "BRANCH_NAME": "feature/x",
        "REF_NAME": "feature/x",
        "REPO_NAME": "app",
        "REPO_FULL_NAME": "acme/app",
        "TRIGGER_BUILD_CONFIG_PATH": "cloudbuild.yaml",
        "_OWN": "file",
    }


def test_the_build_is_loose_and_dynamic_and_is_kept_so(repository):
    build, _, warnings = compiled(".", "--triggered")
    assert warnings == []
    assert build.options.substitution_option is SubstitutionOption.ALLOW_LOOSE
    assert build.options.dynamic_substitutions
    assert build.substitutions["BRANCH_NAME"] == "feature/x"


@pytest.mark.parametrize(
    ("prepare", "given", "branch", "tag"),
    [
        ((), "", "feature/x", ""),
        (("tag", "v1"), "", "feature/x", ""),
        (("checkout", "-q", "--detach"), "", "", ""),
        (("tag", "v1"), "TAG_NAME=v2", "", "v2"),
        ((), "TAG_NAME=v2,BRANCH_NAME=b", "b", "v2"),
        ((), "BRANCH_NAME=b", "b", ""),
    ],
)
def test_a_branch_or_a_tag_is_built_and_flags_say_which(repository, prepare, given, branch, tag):
    if prepare:
        git(repository, *prepare)
    flags = ("--substitutions", given) if given else ()
    found = environment(".", "--triggered", *flags)
    assert (found["BRANCH_NAME"], found["TAG_NAME"]) == (branch, tag)
    if not ("TAG_NAME" in given and "BRANCH_NAME" in given):
        assert found["REF_NAME"] == (tag or branch)


def test_a_detached_head_at_a_tag_is_a_build_of_the_tag(repository):
    git(repository, "tag", "v1")
    git(repository, "checkout", "-q", "--detach")
    assert environment(".", "--triggered")["TAG_NAME"] == "v1"


def test_a_trigger_brings_its_config_values_and_settings(repository):
    (repository / "ci").mkdir()
    (repository / "cloudbuild.yaml").rename(repository / "ci" / "build.yaml")
    path = trigger(
        repository,
        """\
        name: release
        github: {owner: o, name: n, push: {branch: .*}}
        filename: ci/build.yaml
        serviceAccount: projects/p/serviceAccounts/me@p.example.com
        substitutions: {_OWN: 'for ${BRANCH_NAME##*/}'}
        tags: [nightly, config]
        """,
    )
    build, plan, _ = compiled(".", "--trigger", path)
    found = dict(entry.split("=", 1) for entry in plan.steps[0].env)
    assert found["TRIGGER_NAME"] == "release"
    assert found["TRIGGER_BUILD_CONFIG_PATH"] == "ci/build.yaml"
    assert (found["REPO_NAME"], found["REPO_FULL_NAME"]) == ("n", "o/n")
    assert found["SERVICE_ACCOUNT_EMAIL"] == "me@p.example.com"
    assert found["_OWN"] == "for x"
    assert build.tags == ("config", "nightly")
    assert build.service_account == "projects/p/serviceAccounts/me@p.example.com"
    flag = ("--substitutions", "_OWN=flag")
    assert environment(".", "--trigger", path, *flag)["_OWN"] == "flag"


def test_a_trigger_of_tags_builds_the_tag_of_the_commit(repository):
    text = "{name: t, github: {owner: o, name: n, push: {tag: ^v}}, autodetect: true}"
    path = trigger(repository, text)
    _, _, warnings = compiled(".", "--trigger", path)
    assert "has none: $TAG_NAME is empty" in warnings[0]
    git(repository, "tag", "v1")
    found = environment(".", "--trigger", path)
    assert (found["TAG_NAME"], found["REF_NAME"], found["BRANCH_NAME"]) == ("v1", "v1", "")


def test_a_trigger_of_pull_requests_has_their_values(repository):
    text = "{name: t, github: {owner: o, name: n, pullRequest: {branch: ^main$}}, autodetect: true}"
    found = environment(".", "--trigger", trigger(repository, text))
    assert found["_HEAD_BRANCH"] == "feature/x"
    assert found["_BASE_BRANCH"] == "main"
    assert found["_HEAD_REPO_URL"] == "https://example.com/acme/app"
    assert found["_PR_NUMBER"] == ""


def test_an_inline_build_needs_no_config_and_its_problems_have_a_place(repository):
    (repository / "cloudbuild.yaml").unlink()
    text = "name: t\nbuild:\n  steps:\n  - {name: busybox, args: [echo, $COMMIT_SHA]}\n"
    path = trigger(repository, text)
    _, plan, _ = compiled(".", "--trigger", path)
    assert plan.steps[0].args == ("echo", git(repository, "rev-parse", "HEAD"))
    bad = trigger(repository, text.replace("$COMMIT_SHA", "$HOME"))
    with pytest.raises(ConfigError) as caught:
        compiled(".", "--trigger", bad)
    problem = caught.value.problems[0]
    assert (problem.file, problem.line, problem.rule) == (path, 4, "V18")


def test_a_triggers_folder_is_where_steps_begin(repository):
    text = "{name: t, triggerTemplate: {repoName: r, branchName: b, dir: sub}, autodetect: true}"
    _, plan, _ = compiled(".", "--trigger", trigger(repository, text))
    assert plan.steps[0].workdir == "/workspace/sub"


def test_a_value_that_only_the_event_has_is_empty_and_said(repository):
    text = """\
        name: t
        webhookConfig: {secret: projects/p/secrets/s/versions/1}
        autodetect: true
        substitutions: {_OWN: 'a$(body.b)c'}
        """
    path = trigger(repository, text)
    build, _, warnings = compiled(".", "--trigger", path)
    assert build.substitutions["_OWN"] == "ac"
    assert warnings == [
        "$(body.b) comes from the event that fires the trigger and is empty here: "
        "--substitutions=_OWN=... gives a value"
    ]
    build, _, warnings = compiled(".", "--trigger", path, "--substitutions", "_OWN=x")
    assert (build.substitutions["_OWN"], warnings) == ("x", [])


def test_several_triggers_of_a_file_are_chosen_by_name(repository):
    path = trigger(repository, "{name: a, autodetect: true}\n---\n{name: b, autodetect: true}\n")
    assert environment(".", "--trigger", f"{path}#b")["TRIGGER_NAME"] == "b"
    with pytest.raises(UsageError, match="holds 2 triggers"):
        find_input(parsed(".", "--trigger", path))
    with pytest.raises(UsageError, match="has no trigger c"):
        find_input(parsed(".", "--trigger", f"{path}#c"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("cloudbuild.yaml",), "so does cloudbuild.yaml"),
        ((".", "--config", "cloudbuild.yaml"), "so does cloudbuild.yaml"),
        ((".", "--tag", "image"), "so does --tag image"),
    ],
)
def test_a_trigger_and_a_config_contradict_each_other(repository, arguments, words):
    path = trigger(repository, "{name: t, autodetect: true}")
    with pytest.raises(UsageError, match=words):
        find_input(parsed(*arguments, "--trigger", path))


def test_a_config_in_the_place_of_a_trigger_is_called_that(repository):
    with pytest.raises(UsageError, match="is a build config, not a trigger") as caught:
        find_input(parsed(".", "--trigger", "cloudbuild.yaml"))
    assert caught.value.hint.startswith("--config cloudbuild.yaml --triggered ")


@pytest.mark.parametrize(
    ("uri", "refused"),
    [("https://example.com/acme/app", False), ("https://example.com/acme/other", True)],
)
def test_a_config_of_another_repository_is_refused(repository, uri, refused):
    text = f"{{name: t, gitFileSource: {{path: cloudbuild.yaml, uri: '{uri}', revision: r}}}}"
    path = trigger(repository, text)
    if not refused:
        assert environment(".", "--trigger", path)["REPO_NAME"] == "app"
        return
    with pytest.raises(UsageError, match="another repository"):
        compiled(".", "--trigger", path)


def test_a_missing_config_of_a_trigger_is_named(repository):
    path = trigger(repository, "{name: t, filename: nothing.yaml}")
    with pytest.raises(ConfigError) as caught:
        compiled(".", "--trigger", path)
    assert caught.value.problems[0].file == "nothing.yaml"


def test_changes_that_are_not_committed_are_said(repository):
    (repository / "new").write_text("")
    _, _, warnings = compiled(".", "--triggered")
    assert warnings[0].startswith("the source holds changes that commit ")


def test_a_folder_without_git_has_no_values(tmp_path, monkeypatch):
    (tmp_path / "cloudbuild.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    _, plan, warnings = compiled(".", "--triggered")
    assert "COMMIT_SHA=" in plan.steps[0].env
    assert "is at no commit of a Git repository" in warnings[0]


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give files away")
def test_a_repository_of_another_user_has_no_values_and_says_what_to_do(repository):
    os.chown(repository, 1234, 1234)
    os.chown(repository / ".git", 1234, 1234)
    _, plan, warnings = compiled(".", "--triggered")
    assert "COMMIT_SHA=" in plan.steps[0].env
    assert "belongs to another user" in warnings[0]
    assert "safe.directory" in warnings[0]


def test_a_folder_of_the_repository_is_not_what_a_trigger_builds(repository):
    (repository / "sub").mkdir()
    (repository / "cloudbuild.yaml").rename(repository / "sub" / "cloudbuild.yaml")
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "moved")
    _, plan, warnings = compiled("sub", "--triggered")
    assert "TRIGGER_BUILD_CONFIG_PATH=sub/cloudbuild.yaml" in plan.steps[0].env
    assert warnings == [
        f"a trigger builds the whole repository, and the source is a folder of {repository}"
    ]


def test_what_is_left_out_is_what_git_ignores(repository):
    args = parsed(".", "--triggered")
    (repository / ".gcloudignore").write_text("docs\n")
    assert ignore_file_of(find_input(args), args) == os.devnull
    (repository / ".gitignore").write_text("dist\n")
    assert ignore_file_of(find_input(args), args) == ".gitignore"
    args = parsed(".", "--triggered", "--ignore-file", "mine")
    assert ignore_file_of(find_input(args), args) == "mine"


def test_bindings_of_the_config_itself_are_empty_too(repository):
    config = CONFIG.replace("_OWN: file", "_OWN: 'a$(push.ref)${BRANCH_NAME##*/}'")
    (repository / "cloudbuild.yaml").write_text(config)
    build, _, warnings = compiled(".", "--triggered")
    assert build.substitutions["_OWN"] == "ax"
    assert [text for text in warnings if "$(push.ref)" in text] == [
        "$(push.ref) comes from the event that fires the trigger and is empty here: "
        "--substitutions=_OWN=... gives a value"
    ]


@pytest.mark.parametrize(
    ("given", "told"),
    [({}, ["$SHORT_SHA, $BRANCH_NAME"]), ({"SHORT_SHA": "1", "BRANCH_NAME": "b"}, [])],
)
def test_variables_of_the_repository_that_are_empty_without_a_trigger_are_told(
    repository, given, told
):
    step = "{name: busybox, args: ['app:$SHORT_SHA', '${BRANCH_NAME}', $BUILD_ID, $_OWN]}"
    text = f"steps: [{step}]\nsubstitutions: {{_OWN: x}}\n"
    (repository / "cloudbuild.yaml").write_text(text)
    pairs = [f"{name}={value}" for name, value in given.items()]
    args = parsed(".", *(("--substitutions", ",".join(pairs)) if pairs else ()))
    submission = read_submission(find_input(args), Settings(), args, "some-id", Privilege())
    _, warnings = compile_submission(submission)
    assert [warning.partition(":")[0] for warning in warnings] == told
