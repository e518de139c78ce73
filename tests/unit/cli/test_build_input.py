"""What `[CONFIG | SOURCE]` and the flags around it mean together."""

import argparse

import pytest

from buildrunner.cli.arguments import CommandParser
from buildrunner.cli.submit import flags as submit_flags
from buildrunner.cli.submit.build_input import find_input
from buildrunner.errors import UsageError
from buildrunner.spec.model.source import ConnectedRepository, GitSource, Source

CONFIG = "steps: [{name: busybox}]\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parsed(*arguments: str) -> argparse.Namespace:
    parser = CommandParser(prog="buildrunner submit")
    submit_flags.add_flags(parser)
    return parser.parse_args(arguments)


def request(*arguments: str):
    found = find_input(parsed(*arguments))
    return found.config, found.folder


def test_nothing_is_the_config_of_this_folder_on_this_folder(folder):
    (folder / "cloudbuild.yaml").write_text(CONFIG)
    assert request() == ("cloudbuild.yaml", ".")


@pytest.mark.parametrize("name", ["cloudbuild.yaml", "cloudbuild.yml", "cloudbuild.json"])
def test_a_folder_brings_its_own_config(folder, name):
    (folder / "app").mkdir()
    (folder / "app" / name).write_text(CONFIG)
    assert request("app") == (f"app/{name}", "app")


def test_a_folder_without_one_is_built_by_the_config_here_as_gcloud_does(folder):
    (folder / "app").mkdir()
    (folder / "cloudbuild.yaml").write_text(CONFIG)
    assert request("app") == ("cloudbuild.yaml", "app")


def test_two_configs_are_told_apart_aloud(folder):
    (folder / "app").mkdir()
    (folder / "app" / "cloudbuild.yaml").write_text(CONFIG)
    (folder / "cloudbuild.yaml").write_text(CONFIG)
    found = find_input(parsed("app"))
    assert found.config == "app/cloudbuild.yaml"
    assert "not with ./cloudbuild.yaml" in found.note


def test_a_config_runs_on_this_folder_or_on_the_source(folder):
    (folder / "ci.yaml").write_text(CONFIG)
    (folder / "app").mkdir()
    assert request("ci.yaml") == ("ci.yaml", ".")
    assert request("ci.yaml", "--source", "app") == ("ci.yaml", "app")
    assert request("--config", "ci.yaml", "app") == ("ci.yaml", "app")
    assert request("ci.yaml", "--no-source") == ("ci.yaml", None)


def test_a_tag_needs_a_dockerfile_and_no_config(folder):
    (folder / "Dockerfile").write_text("FROM scratch\n")
    found = find_input(parsed("--tag", "registry.example/app:1"))
    assert (found.tag, found.config, found.folder) == ("registry.example/app:1", "", ".")


def test_an_archive_and_an_object_are_built_with_the_config_here(folder):
    (folder / "cloudbuild.yaml").write_text(CONFIG)
    (folder / "src.tar.gz").write_bytes(b"")
    found = find_input(parsed("src.tar.gz"))
    assert (found.config, found.folder, found.archive) == ("cloudbuild.yaml", None, "src.tar.gz")
    found = find_input(parsed("gs://bucket/a.tgz", "--config", "cloudbuild.yaml"))
    assert (found.folder, found.object_url) == (None, "gs://bucket/a.tgz")
    found = find_input(parsed("cloudbuild.yaml", "--source", "gs://bucket/a.tgz"))
    assert (found.config, found.object_url) == ("cloudbuild.yaml", "gs://bucket/a.tgz")
    found = find_input(parsed("gs://bucket/a.tgz", "--tag", "registry.example/app:1"))
    assert (found.tag, found.object_url) == ("registry.example/app:1", "gs://bucket/a.tgz")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is no cloudbuild.yaml in this folder"),
        (["app"], "there is no cloudbuild.yaml in app"),
        (["nothing"], r"could not find source \[nothing\]"),
        (["ci.yml"], "there is no config ci.yml"),
        (["--config", "app"], "app is a folder"),
        (["ci.yaml", "--config", "ci.yaml"], "two configs"),
        (["app", "--source", "app"], "two sources"),
        (["app", "--no-source"], "contradict each other"),
        (["src.tgz"], r"could not find source \[src.tgz\]"),
        (["src.zip", "--source", "app"], "two sources"),
        (["gs://bucket/object.tgz", "--source", "app"], "two sources"),
        (["gs://bucket/object.tgz", "--no-source"], "contradict each other"),
        (["https://example.com/app.git", "--source", "app"], "two sources"),
        (["https://example.com/app.git", "--no-source"], "contradict each other"),
        (["app", "--git-source-revision", "main"], "goes with a Git source"),
        (["https://example.com/app.git", "--dir", "/x"], "is not a folder of the repository"),
        (["https://example.com/app.git", "--config", "../x.yaml"], "no path in the repository"),
        (["projects/p/locations/l/connections/c/gitRepositoryLinks/x"], "Developer Connect"),
        (["--tag", "x", "ci.yaml"], "--tag builds without a config"),
        (["--tag", "x", "app"], "there is no Dockerfile in app"),
        (["--tag", "x", "--no-source"], "--no-source leaves none"),
    ],
)
def test_contradictions_and_what_is_not_there_are_refused(folder, arguments, message):
    (folder / "app").mkdir()
    (folder / "ci.yaml").write_text(CONFIG)
    with pytest.raises(UsageError, match=message):
        find_input(parsed(*arguments))


def test_a_near_name_is_suggested(folder):
    (folder / "cloudbuild.yaml").write_text(CONFIG)
    with pytest.raises(UsageError) as caught:
        find_input(parsed("cludbuild.yaml"))
    assert caught.value.hint == "did you mean cloudbuild.yaml?"


def test_flags_of_the_hosted_service_are_refused_or_warned_about():
    with pytest.raises(UsageError, match="--async can't be honoured"):
        submit_flags.check_gcloud_flags(parsed("--async"))
    warnings = submit_flags.check_gcloud_flags(parsed("--polling-interval", "1"))
    assert warnings == ["--polling-interval has no effect on a local build"]
    habits = ["--account=a", "--billing-project=b", "--configuration=c", "--verbosity=error"]
    assert len(submit_flags.check_gcloud_flags(parsed(*habits))) == len(habits)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/app.git",
        "http://example.com/app.tgz",
        "ssh://git@example.com/app",
        "git@example.com:team/app.git",
        "git://example.com/app",
        "file:///srv/app.git",
    ],
)
def test_a_url_is_a_git_source_with_its_revision_and_folder(folder, url):
    found = find_input(parsed(url, "--revision", "v1", "--git-source-dir", "inner"))
    assert found.git == Source(git_source=GitSource(url=url, revision="v1", dir="inner"))
    assert (found.folder, found.in_repository, found.config) == (None, True, "")
    assert find_input(parsed("--git-source", url, "--dir", "x")).git.git_source.dir == "x"


def test_a_path_is_a_git_source_only_when_a_flag_says_so(folder):
    (folder / "bare.git").mkdir()
    (folder / "cloudbuild.yaml").write_text(CONFIG)
    assert find_input(parsed("bare.git")).git is None
    assert find_input(parsed("--git-source", "bare.git")).git.git_source.url == "bare.git"


def test_a_connected_repository_is_named_by_its_resource_name(folder):
    name = "projects/p/locations/l/connections/c/repositories/r"
    found = find_input(parsed(name, "--revision", "main"))
    wanted = ConnectedRepository(repository=name, revision="main")
    assert found.git == Source(connected_repository=wanted)


def test_a_config_of_this_folder_counts_before_one_of_the_repository(folder):
    (folder / "cloudbuild.yaml").write_text(CONFIG)
    url = "https://example.com/app.git"
    found = find_input(parsed(url))
    assert (found.config, found.in_repository) == ("cloudbuild.yaml", False)
    assert "not with one of the repository" in found.note
    named = find_input(parsed(url, "--config", "ci/app.yaml"))
    assert (named.config, named.in_repository) == ("ci/app.yaml", True)
