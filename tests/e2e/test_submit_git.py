"""Git repositories from the shell: on a real engine, from real servers."""

import json
import re
import subprocess
import threading

import pytest

from tests.e2e.submit_bench import Bench, interrupt, read_until
from tests.fixtures_git import DaemonServer, HttpServer, Repository, Shop, SshServer, closing, git
from tests.fixtures_google import write_certificate

pytestmark = pytest.mark.docker

FACTS = """
steps:
- name: IMAGE
  script: |
    cat README; pwd
    echo "$COMMIT_SHA|$REVISION_ID|$SHORT_SHA|$BRANCH_NAME|$TAG_NAME|$REF_NAME|$REPO_NAME|\\
    $REPO_FULL_NAME"
options: {automapSubstitutions: true}
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return Shop(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def http(shop):
    with closing(HttpServer(shop.root)) as server:
        yield server


@pytest.fixture
def bench(tmp_path, docker_engine, busybox):
    folder = tmp_path / "here"
    folder.mkdir()
    made = Bench(folder, tmp_path / "data", docker_engine, busybox)
    made.environ |= {
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path / "tmp"),
    }
    (tmp_path / "tmp").mkdir()
    made.settings = tmp_path / "data" / "config" / "buildrunner" / "config.toml"
    made.settings.parent.mkdir(parents=True)
    made.cache = tmp_path / "cache" / "buildrunner" / "git"
    made.temporary = tmp_path / "tmp"
    return made


@pytest.fixture
def own(tmp_path):
    """A repository that a test may change."""
    return Repository(tmp_path / "own")


@pytest.fixture
def own_http(own):
    with closing(HttpServer(own.root)) as server:
        yield server


def config_of(bench, text):
    return text.replace("IMAGE", bench.image).encode()


def error_of(done):
    (error,) = [line for line in done.out.splitlines() if line.startswith("ERROR: ")]
    return error


def facts_of(shop, *, branch="", tag="", commit=""):
    return f"{commit}|{commit}|{commit[:7]}|{branch}|{tag}|{branch or tag}|shop|team/shop"


def test_a_branch_is_built_with_the_config_of_this_folder(bench, http, shop):
    bench.write("cloudbuild.yaml", FACTS)
    done = bench.run("submit", http.url(), "--git-source-revision=feature/x")
    assert done.code == 0, done.err
    head, _, rest = done.out.partition("BUILD\n")
    assert head.startswith('starting build "')
    assert f"\n\nFETCHSOURCE\nResolving feature/x of {http.url()}\n" in head
    assert f"Source: {http.url()} feature/x at {shop.feature} (fetched)\n" in head
    assert f"two\n/workspace\n{facts_of(shop, branch='feature/x', commit=shop.feature)}\n" in rest
    build = bench.builds("describe", done.build_id)
    requested = {"url": http.url(), "revision": "feature/x"}
    assert build["source"] == {"gitSource": requested}
    assert build["sourceProvenance"] == {
        "resolvedGitSource": requested | {"revision": shop.feature}
    }
    assert set(build["timing"]) == {"SETUPBUILD", "FETCHSOURCE", "BUILD"}
    assert build["timing"]["FETCHSOURCE"]["startTime"] == build["startTime"]
    assert bench.left_behind(done.build_id) == []
    assert list(bench.temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("revision", "facts"),
    [
        ("v1.0", {"tag": "v1.0", "commit": "second"}),
        ("light", {"tag": "light", "commit": "first"}),
        ("refs/tags/v1.0", {"tag": "v1.0", "commit": "second"}),
        ("refs/heads/main", {"branch": "main", "commit": "tip"}),
        ("refs/pull/1/head", {"commit": "pull"}),
        ("", {"branch": "main", "commit": "tip"}),
    ],
)
def test_every_kind_of_revision_sets_what_is_documented(bench, http, shop, revision, facts):
    bench.write("cloudbuild.yaml", FACTS)
    done = bench.run("submit", "--git-source", http.url(), "--revision", revision)
    assert done.code == 0, done.err
    commit = getattr(shop, facts["commit"])
    assert f"\n{facts_of(shop, **{**facts, 'commit': commit})}\n" in done.out


def test_a_commit_is_named_by_its_sha_and_flags_win_over_facts(bench, http, shop):
    bench.write("cloudbuild.yaml", FACTS)
    done = bench.run("submit", http.url(), f"--revision={shop.first}")
    assert f"one\n/workspace\n{facts_of(shop, commit=shop.first)}\n" in done.out
    bench.write("cloudbuild.yaml", FACTS + "tags: ['t$SHORT_SHA']\n")
    done = bench.run(
        "submit", http.url(), f"--revision={shop.first}", "--substitutions=SHORT_SHA=mine"
    )
    assert done.code == 0, done.err
    assert f"one\n/workspace\n{shop.first}|{shop.first}|mine|||" in done.out


def test_every_transport_brings_the_same(bench, shop, tmp_path):
    bench.write("cloudbuild.yaml", FACTS)
    with (
        closing(DaemonServer(shop.root)) as daemon,
        closing(SshServer(shop.root, tmp_path / "ssh")) as ssh,
    ):
        bench.settings.write_text(
            f'[git]\nknown_hosts = "{ssh.known_hosts}"\n'
            f'ssh_keys = {{"127.0.0.1:{ssh.port}" = "{ssh.key}"}}\n'
        )
        for url in (daemon.url(), ssh.url(), f"file://{shop.path}", str(shop.path)):
            done = bench.run("submit", "--git-source", url)
            assert done.code == 0, done.err
            assert f"three\n/workspace\n{shop.tip}|" in done.out


def test_the_second_build_takes_the_repository_from_the_cache(bench, own, own_http):
    bench.write("cloudbuild.yaml", FACTS)
    own.commit({"README": b"one\n", "big": bytes(range(256)) * 4000})
    own.push("main")
    assert bench.run("submit", own_http.url()).code == 0
    before = own_http.sent_bytes
    again = bench.run("submit", own_http.url())
    assert "(in the cache already)" in again.out
    assert own_http.sent_bytes - before < 2000
    commit = own.commit({"README": b"two\n"})
    own.push("main")
    before = own_http.sent_bytes
    changed = bench.run("submit", own_http.url())
    assert f"two\n/workspace\n{commit}|" in changed.out
    assert own_http.sent_bytes - before < 5000
    assert any(bench.cache.iterdir())


def test_without_the_cache_nothing_stays(bench, http):
    bench.write("cloudbuild.yaml", FACTS)
    done = bench.run("submit", http.url(), "--no-git-cache")
    assert done.code == 0, done.err
    assert not bench.cache.exists()
    assert bench.left_behind(done.build_id) == []
    assert list(bench.temporary.iterdir()) == []


def test_a_push_during_the_fetch_changes_nothing(bench, own, own_http):
    bench.write("cloudbuild.yaml", FACTS)
    old = own.commit({"README": b"old\n"})
    own.push("main")
    own.commit({"README": b"new\n"})
    own_http.before_pack = lambda: own.push("main")
    done = bench.run("submit", own_http.url(), "--revision", "main")
    assert done.code == 0, done.err
    assert f"old\n/workspace\n{old}|" in done.out
    assert git(own.path, "rev-parse", "main") != old


def test_a_config_of_the_repository_counts_where_this_folder_has_none(bench, own, own_http):
    own.commit(
        {
            "cloudbuild.yaml": config_of(bench, FACTS),
            "ci/app.yaml": config_of(bench, "steps: [{name: IMAGE, script: 'echo by app'}]\n"),
            "app/README": b"of the app\n",
            "app/cloudbuild.yaml": config_of(bench, FACTS),
            "README": b"of the root\n",
        }
    )
    own.push("main")
    assert "\nof the root\n/workspace\n" in bench.run("submit", own_http.url()).out
    inner = bench.run("submit", own_http.url(), "--git-source-dir", "app")
    assert "\nof the app\n/workspace/app\n" in inner.out
    build = bench.builds("describe", inner.build_id)
    assert build["source"]["gitSource"]["dir"] == "app"
    assert build["sourceProvenance"]["resolvedGitSource"]["dir"] == "app"
    without = bench.run("submit", own_http.url(), "--git-source-dir", "none")
    assert "WARNING: the repository has no folder none" in without.out
    named = bench.run("submit", own_http.url(), "--config", "ci/app.yaml")
    assert "\nby app\n" in named.out
    bench.write("cloudbuild.yaml", "steps: [{name: IMAGE, script: 'echo by this one'}]\n")
    local = bench.run("submit", own_http.url())
    assert "\nby this one\n" in local.out
    assert "not with one of the repository" in local.err


def test_a_bad_config_of_the_repository_is_a_failed_build(bench, own, own_http):
    own.commit({"cloudbuild.yaml": b"steps:\n- nmae: x\n"})
    own.push("main")
    done = bench.run("submit", own_http.url())
    assert done.code == 2
    assert "cloudbuild.yaml:2:3:" in done.err
    assert "Traceback" not in done.err
    build = bench.builds("describe", done.build_id)
    assert build["status"] == "FAILURE"
    assert "failureInfo" not in build or "type" not in build["failureInfo"]
    missing = bench.run("submit", own_http.url(), "--config", "none.yaml")
    assert missing.code == 2
    assert "there is no none.yaml in the repository" in missing.err
    assert bench.left_behind(done.build_id) == []


def test_a_config_that_links_out_of_the_repository_is_not_read(bench, own, own_http):
    own.work.joinpath("cloudbuild.yaml").symlink_to("/etc/passwd")
    own.commit({})
    own.push("main")
    done = bench.run("submit", own_http.url())
    assert done.code == 1
    assert "leads out of the files of the repository" in error_of(done)
    assert "root:" not in done.out + done.err


def test_sources_in_the_config_are_fetched_with_no_source(bench, http, shop):
    bench.settings.write_text(
        f'[git.repositories]\nmirrored = "{http.url()}"\n'
        f'"projects/p/locations/l/connections/c/repositories/r" = "{http.url()}"\n'
    )
    kinds = {
        "gitSource": {"url": http.url(), "revision": "main"},
        "repoSource": {"repoName": "mirrored", "branchName": "main"},
        "connectedRepository": {
            "repository": "projects/p/locations/l/connections/c/repositories/r",
            "revision": "main",
        },
    }
    resolved = {
        "gitSource": {"resolvedGitSource": {"url": http.url(), "revision": shop.tip}},
        "repoSource": {"resolvedRepoSource": {"repoName": "mirrored", "commitSha": shop.tip}},
        "connectedRepository": {
            "resolvedConnectedRepository": {
                "repository": "projects/p/locations/l/connections/c/repositories/r",
                "revision": shop.tip,
            }
        },
    }
    for kind, message in kinds.items():
        bench.write("cloudbuild.yaml", f"source: {json.dumps({kind: message})}\n{FACTS}")
        done = bench.run("submit", "--no-source")
        assert done.code == 0, done.err
        assert f"three\n/workspace\n{shop.tip}|" in done.out
        build = bench.builds("describe", done.build_id)
        assert build["source"] == {kind: message}
        assert build["sourceProvenance"] == resolved[kind]
    refused = bench.run("submit", ".")
    assert refused.code == 2
    assert "--no-source" in refused.err


def test_a_password_in_a_url_is_refused_shown_nowhere_and_kept_nowhere(bench, shop):
    with closing(HttpServer(shop.root)) as server:
        url = server.url().replace("://", "://ci:s3cret%3Ap%40ss@")
        source = {"gitSource": {"url": url}}
        dependency = {
            "gitSource": {"repository": {"url": url}, "revision": "main", "destPath": "d"}
        }
        bench.write("cloudbuild.yaml", FACTS)
        bench.write("source.yaml", f"source: {json.dumps(source)}\n{FACTS}")
        bench.write("dependency.yaml", f"dependencies: [{json.dumps(dependency)}]\n{FACTS}")
        for arguments in (
            (url,),
            (".", "--git-source", url),
            ("--source", url),
            ("--no-source", "--config", "source.yaml"),
            ("--no-source", "--config", "dependency.yaml"),
            ("--no-source", "--config", "dependency.yaml", "--dry-run"),
        ):
            refused = bench.run("submit", *arguments)
            assert refused.code == 2, arguments
            assert "holds a password or token" in refused.err
            assert "[git.tokens]" in refused.err
            assert "s3cret" not in refused.out + refused.err
        assert server.requests == []
    ours = {"source.yaml", "dependency.yaml"}
    kept = [path for path in bench.folder.parent.rglob("*") if path.is_file()]
    assert {path.name for path in kept if b"s3cret" in path.read_bytes()} == ours


def test_a_token_goes_over_https_to_its_host_and_not_over_http(bench, shop, tmp_path):
    bench.write("cloudbuild.yaml", FACTS)
    certificate = tmp_path / "server.pem"
    write_certificate(certificate)
    with (
        closing(HttpServer(shop.root, certificate=certificate)) as secure,
        closing(HttpServer(shop.root)) as plain,
    ):
        secure.users = plain.users = {"x-access-token": "t0ken-of-the-host"}
        (tmp_path / "token").write_text("t0ken-of-the-host\n")
        bench.settings.write_text(
            f'[git.tokens]\n"127.0.0.1:{secure.port}" = "file:{tmp_path}/token"\n'
            f'"127.0.0.1:{plain.port}" = "file:{tmp_path}/token"\n'
        )
        trust = {"GIT_SSL_CAINFO": str(certificate)}
        done = bench.run("submit", secure.url(), environ=trust)
        assert done.code == 0, done.out
        assert "\nthree\n" in done.out
        untrusted = bench.run("submit", secure.url())
        assert "certificate of 127.0.0.1 can't be trusted" in error_of(untrusted)
        refused = bench.run("submit", plain.url())
        assert "asks for credentials, and there are none" in error_of(refused)


def test_a_private_repository_wants_the_token_of_the_settings(bench, shop):
    bench.write("cloudbuild.yaml", FACTS)
    with closing(HttpServer(shop.root)) as server:
        server.users = {"ci": "s3cret-token"}
        bench.settings.write_text(
            f'[git.tokens]\n"http://ci@127.0.0.1:{server.port}/team" = "env:GIT_TOKEN"\n'
        )
        done = bench.run("submit", server.url(), environ={"GIT_TOKEN": "s3cret-token"})
        assert done.code == 0, done.err
        wrong = bench.run("submit", server.url(), environ={"GIT_TOKEN": "wr0ng-token"})
        assert "refused our credentials" in error_of(wrong)
        unset = bench.run("submit", server.url())
        assert "environment variable GIT_TOKEN, which is empty" in error_of(unset)
        (bench.folder.parent / ".netrc").write_text(
            "machine 127.0.0.1 login ci password s3cret-token\n"
        )
        bench.settings.write_text("")
        assert bench.run("submit", server.url()).code == 0
    texts = done.out + done.err + wrong.out + wrong.err
    assert "s3cret" not in texts
    assert "wr0ng" not in texts
    kept = [path for path in bench.folder.parent.rglob("*") if path.is_file()]
    holders = [path.name for path in kept if b"s3cret-token" in path.read_bytes()]
    assert holders == [".netrc"]


@pytest.fixture(scope="module")
def failing(shop, tmp_path_factory):
    """URLs at which something is wrong, by what it is."""
    folder = tmp_path_factory.mktemp("failing")
    with (
        closing(HttpServer(shop.root)) as private,
        closing(SshServer(shop.root, folder / "ssh")) as ssh,
    ):
        private.users = {"someone": "else"}
        yield {"private": private, "ssh": ssh}


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("404", "there is no Git repository at"),
        ("no-server", "the connection to 127.0.0.1 failed"),
        ("no-revision", "has no revision 'no-such-branch'"),
        ("no-commit", "0123456789"),
        ("refused-login", "asks for credentials, and there are none"),
        ("refused-key", "refused our SSH key"),
        ("unknown-host-key", "no host is trusted unseen"),
        ("protocol", "is not allowed"),
        ("unmapped", "nobody says where"),
    ],
)
def test_a_source_that_cannot_be_had_fails_the_build(bench, http, failing, what, sentence):
    ssh = failing["ssh"]
    revision = ()
    url = http.url()
    match what:
        case "404":
            url = http.url("team/none.git")
        case "no-server":
            url = "git://127.0.0.1:1/team/shop.git"
        case "no-revision":
            revision = ("--revision", "no-such-branch")
        case "no-commit":
            revision = ("--revision", "0123456789" * 4)
        case "refused-login":
            url = failing["private"].url()
        case "refused-key":
            url = ssh.url()
            bench.settings.write_text(
                f'[git]\nknown_hosts = "{ssh.known_hosts}"\n'
                f'ssh_keys = {{"127.0.0.1:{ssh.port}" = "{ssh.stranger}"}}\n'
            )
        case "unknown-host-key":
            url = ssh.url()
            bench.settings.write_text(
                f'[git]\nssh_keys = {{"127.0.0.1:{ssh.port}" = "{ssh.key}"}}\n'
            )
        case "protocol":
            url = "ext::sh -c whoami"
        case "unmapped":
            url = "projects/p/locations/l/connections/c/repositories/none"
    bench.write("cloudbuild.yaml", "steps: [{name: IMAGE, script: 'echo $SHORT_SHA'}]\n")
    done = bench.run("submit", "--git-source", url, *revision)
    assert done.code == 1
    assert "Traceback" not in done.out + done.err
    assert sentence in error_of(done)
    build = bench.builds("describe", done.build_id)
    assert build["status"] == "FAILURE"
    assert build["failureInfo"]["type"] == "FETCH_SOURCE_FAILED"
    assert sentence in build["failureInfo"]["detail"]
    assert build["steps"][0]["status"] == "QUEUED"
    assert list(build["timing"]) == ["FETCHSOURCE"]
    assert bench.left_behind(done.build_id) == []
    assert list(bench.temporary.iterdir()) == []


def test_hostile_content_is_refused(bench, own, own_http):
    blob = git(own.work, "hash-object", "-w", __file__)
    inner = git_input(own.work, f"100644 blob {blob}\thooks-config\n", "mktree")
    tree = git_input(own.work, f"040000 tree {inner}\t.git\n", "mktree")
    commit = git(own.work, "commit-tree", "-m", "evil", tree)
    own.push(f"{commit}:refs/heads/main")
    bench.write("cloudbuild.yaml", FACTS)
    done = bench.run("submit", own_http.url())
    assert done.code == 1
    assert "could harm this machine" in error_of(done)
    assert bench.left_behind(done.build_id) == []


def git_input(folder, text, *arguments):
    return subprocess.run(
        ["git", *arguments], cwd=folder, input=text, text=True, capture_output=True, check=True
    ).stdout.strip()


def test_troubles_on_the_way_end_in_a_success(bench, own, own_http):
    bench.write("cloudbuild.yaml", FACTS)
    own.commit({"README": b"rough\n", "big": bytes(range(256)) * 2000})
    own.push("main")
    own_http.refuse = [503]
    own_http.cut_after = 1000
    done = bench.run("submit", own_http.url())
    assert done.code == 0, done.out
    assert done.out.count("Trying again: ") >= 1
    assert "\nrough\n" in done.out


def test_ctrl_c_ends_a_fetch_that_hangs(bench, own, own_http):
    bench.write("cloudbuild.yaml", FACTS)
    own.commit({"README": b"held\n"})
    own.push("main")
    own_http.stall = threading.Event()
    process = bench.start("submit", own_http.url())
    seen = read_until(process, "Fetching http")
    assert own_http.stalled.wait(30)
    done = interrupt(process)
    assert done.code == 130
    own_http.stall.set()
    build_id = re.search(r'starting build "([^"]+)"', seen)[1]
    build = bench.builds("describe", build_id)
    assert build["status"] == "CANCELLED"
    assert bench.left_behind(build_id) == []
    assert list(bench.temporary.iterdir()) == []


def test_a_killed_process_leaves_nothing_of_an_uncached_fetch(bench, own, own_http):
    bench.write("cloudbuild.yaml", FACTS)
    own.commit({"README": b"held\n"})
    own.push("main")
    own_http.stall = threading.Event()
    process = bench.start("submit", own_http.url(), "--no-git-cache")
    seen = read_until(process, "Fetching http")
    assert own_http.stalled.wait(30)
    assert list(bench.temporary.iterdir()) != []
    process.kill()
    process.communicate()
    own_http.stall.set()
    build_id = re.search(r'starting build "([^"]+)"', seen)[1]
    assert bench.left_behind(build_id) == []
    assert list(bench.temporary.iterdir()) == []


def test_the_timeout_of_the_build_ends_a_fetch(bench, own, own_http):
    bench.write("cloudbuild.yaml", f"timeout: 1s\n{FACTS}")
    own.commit({"README": b"held\n"})
    own.push("main")
    own_http.stall = threading.Event()
    done = bench.run("submit", own_http.url())
    assert done.code == 4
    assert done.out.endswith("TIMEOUT\nERROR: context deadline exceeded\n")


def test_submodules_come_when_asked_for(bench, own, own_http, tmp_path):
    part = Repository(tmp_path / "part", "team/part.git")
    part.commit({"inside": b"of the part\n"})
    part.push("main")
    with closing(HttpServer(part.root)) as other:
        git(own.work, "submodule", "--quiet", "add", other.url("team/part.git"), "part")
        own.commit({"README": b"with a part\n"})
        own.push("main")
        bench.write(
            "cloudbuild.yaml", "steps: [{name: IMAGE, script: 'cat part/inside || true'}]\n"
        )
        without = bench.run("submit", own_http.url())
        assert without.code == 0, without.err
        assert "of the part" not in without.out
        done = bench.run("submit", own_http.url(), "--git-submodules")
        assert "\nof the part\n" in done.out


def test_dependencies_are_fetched_beside_the_source(bench, http, shop):
    bench.write(
        "cloudbuild.yaml",
        f"""
dependencies:
- gitSource:
    repository: {{url: '{http.url()}'}}
    revision: main
    depth: '-1'
    fetchTags: true
    destPath: third-party/shop
- gitSource: {{repository: {{url: '{http.url()}'}}, revision: light, destPath: /workspace/old}}
steps:
- name: IMAGE
  script: |
    cat mine third-party/shop/README old/README
    stat -c %u:%a third-party/shop/run.sh
    ls third-party/shop/.git/refs/tags | wc -l
""",
    )
    bench.write("mine", "of this folder\n")
    done = bench.run("submit", ".")
    assert done.code == 0, done.err
    assert "\nof this folder\nthree\none\n0:755\n" in done.out
    assert f"main at {shop.tip} (fetched) in /workspace/third-party/shop\n" in done.out
    head = done.out.partition("BUILD\n")[0]
    assert "in /workspace/old\n" in head
    assert bench.left_behind(done.build_id) == []


def test_a_dependency_that_cannot_be_had_fails_the_build(bench, http):
    bench.write(
        "cloudbuild.yaml",
        f"""
dependencies:
- gitSource: {{repository: {{url: '{http.url()}'}}, revision: none-such, destPath: x}}
steps: [{{name: IMAGE}}]
""",
    )
    done = bench.run("submit", ".")
    assert done.code == 1
    assert "none-such" in error_of(done)
    build = bench.builds("describe", done.build_id)
    assert build["failureInfo"]["type"] == "FETCH_SOURCE_FAILED"
    assert bench.left_behind(done.build_id) == []


def test_an_empty_dependency_leaves_the_source_out(bench):
    bench.write(
        "cloudbuild.yaml", "dependencies: [{empty: true}]\nsteps: [{name: IMAGE, args: [ls, -A]}]\n"
    )
    done = bench.run("submit", ".")
    assert done.code == 0, done.err
    assert done.out.partition("BUILD\n")[2].splitlines()[1:] == ["PUSH", "DONE"]


def test_a_dry_run_shows_the_plan_for_the_commit(bench, http, shop):
    bench.write("cloudbuild.yaml", "steps: [{name: IMAGE, args: [echo, $COMMIT_SHA]}]\n")
    done = bench.run("submit", http.url(), "--dry-run")
    assert done.code == 0, done.err
    assert f"echo {shop.tip}" in done.out
    assert f"source {http.url()}" in done.out
    bad = bench.run("submit", http.url("team/none.git"), "--dry-run")
    assert bad.code == 1
    assert "there is no Git repository" in bad.err


def test_flags_that_contradict_each_other_are_refused(bench, http):
    bench.write("cloudbuild.yaml", FACTS)
    for arguments, message in (
        ([".", "--git-source-revision", "x"], "goes with a Git source"),
        ([".", "--git-source", http.url()], "two sources"),
        ([http.url(), "--no-source"], "contradict each other"),
        ([http.url(), "--git-source-dir", "../x"], "is not a folder of the repository"),
        ([http.url(), "--config", "/none.yaml"], "there is no config"),
    ):
        done = bench.run("submit", *arguments)
        assert done.code == 2, done.err
        assert message in done.err
        assert done.out == ""


def test_a_build_without_a_log_leaves_none_whatever_comes_of_it(bench, http):
    bench.write("cloudbuild.yaml", "options: {logging: NONE}\nsteps: [{name: IMAGE, args: [ls]}]\n")
    done = bench.run("submit", http.url())
    assert done.code == 0, done.err
    failed = bench.run("submit", http.url("team/none.git"))
    assert failed.code == 1
    for build in (done, failed):
        assert bench.run("builds", "log", build.build_id).code != 0
    assert [path for path in bench.temporary.iterdir() if "log" in path.name] == []
