"""Settings files and environment."""

import os

import pytest

from buildrunner.errors import ConfigError, UsageError
from buildrunner.settings import (
    config_folder,
    data_folder,
    load_settings,
    own_settings,
    server_database,
    terminal,
)


def trusted(_):
    return True


def load(folder, text, environ=None, confirm=trusted):
    (folder / ".buildrunner.toml").write_text(text)
    environ = environ or {"HOME": str(folder), "XDG_CONFIG_HOME": "/none"}
    return load_settings(str(folder), environ, confirm=confirm)


def test_without_files_there_are_defaults(tmp_path):
    settings = load_settings(str(tmp_path), {"XDG_CONFIG_HOME": "/none"})
    assert settings.project_id == "local-project"
    assert settings.docker_socket
    assert not settings.privileged


def test_a_file_above_the_folder_counts(tmp_path):
    (tmp_path / ".buildrunner.toml").write_text('[project]\nid = "mine"\n')
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    settings = load_settings(str(inner), {"XDG_CONFIG_HOME": "/none"}, confirm=trusted)
    assert settings.project_id == "mine"


def test_the_projects_file_wins_over_the_users_and_that_over_the_environment(tmp_path):
    user = tmp_path / "config" / "buildrunner"
    user.mkdir(parents=True)
    (user / "config.toml").write_text(
        '[project]\nid = "user"\n[sandbox]\nprivileged = true\n'
        '[images]\naliases = {a = "x", b = "y"}\n'
    )
    project = tmp_path / "project"
    project.mkdir()
    environ = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "GOOGLE_CLOUD_PROJECT": "environment"}
    assert load_settings(str(project), environ).project_id == "user"
    settings = load(project, '[project]\nid = "p"\n[images]\naliases = {a = "z"}', environ)
    assert settings.project_id == "p"
    assert settings.privileged
    assert settings.image_aliases == {"a": "z", "b": "y"}


def test_secret_files_are_looked_for_beside_the_settings(tmp_path):
    settings = load(tmp_path, '[secrets]\nkey = "file:secret/key"\nother = "env:KEY"\n')
    assert settings.secrets == {"key": f"file:{tmp_path}/secret/key", "other": "env:KEY"}


@pytest.mark.parametrize(
    ("text", "place", "rest"),
    [
        ("[imagse]\n", "imagse", "did you mean images?"),
        ("[images]\nalias = {}\n", "images.alias", "did you mean images.aliases?"),
        ("project = 3\n", "project", "must be a table"),
        ("[project]\nid = 3\n", "project.id", "must be a string"),
        ("[sandbox]\nprivileged = 'yes'\n", "sandbox.privileged", "true or false"),
        ("[images]\naliases = {a = 1}\n", "images.aliases", "a table of strings"),
        ("[secrets]\nkey = 'hunter2'\n", 'secrets."key"', "starts with env: or file:"),
    ],
)
def test_what_is_unknown_or_wrong_is_named_with_its_file(tmp_path, text, place, rest):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    (problem,) = caught.value.problems
    assert problem.file == str(tmp_path / ".buildrunner.toml")
    assert problem.path == place
    assert rest in problem.text()
    assert "hunter2" not in problem.text()


def test_all_problems_are_reported_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "[project]\nid = 3\nname = 'x'\n[sandbox]\nroot = true\n")
    assert len(caught.value.problems) == 3


def test_what_is_not_toml_says_where(tmp_path):
    with pytest.raises(ConfigError, match="line 1"):
        load(tmp_path, "[project\n")


def test_a_file_of_somebody_else_is_not_obeyed(tmp_path, monkeypatch):
    (tmp_path / ".buildrunner.toml").write_text("[sandbox]\nprivileged = true\n")
    inner = tmp_path / "inner"
    inner.mkdir()
    real_stat = os.stat

    def stat_of_stranger(path, **options):
        status = real_stat(path, **options)
        if str(path).endswith(".buildrunner.toml"):
            fields = list(status)
            fields[4] = 4242
            return os.stat_result(fields)
        return status

    monkeypatch.setattr(os, "stat", stat_of_stranger)
    assert not load_settings(str(inner), {"XDG_CONFIG_HOME": "/none"}).privileged


def test_data_lies_in_the_xdg_folder():
    assert data_folder({"XDG_DATA_HOME": "/data"}) == "/data/buildrunner"


def test_a_relative_xdg_folder_is_ignored_and_no_home_is_no_folder_named_so(monkeypatch):
    # Either would lie in the source folder, and travel with the next build.
    monkeypatch.setenv("HOME", "/home/me")
    assert data_folder({"XDG_DATA_HOME": "data"}) == "/home/me/.local/share/buildrunner"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)
    assert data_folder({}) == "/nonexistent/.local/share/buildrunner"
    assert config_folder({}) == "/nonexistent/.config/buildrunner"


@pytest.mark.parametrize(
    ("environ", "is_terminal", "colour", "live"),
    [
        ({"TERM": "xterm"}, True, True, True),
        ({"TERM": "xterm"}, False, False, False),
        ({"TERM": "dumb"}, True, False, False),
        ({}, True, False, False),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, False, True),
        ({"TERM": "xterm", "NO_COLOR": ""}, True, True, True),
        ({"FORCE_COLOR": "1"}, False, True, False),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False, False, False),
    ],
)
def test_the_environment_decides_on_colours(environ, is_terminal, colour, live):
    look = terminal(output_is_terminal=is_terminal, encoding="utf-8", environ=environ)
    assert (look.colour, look.live) == (colour, live)


def own(tmp_path, text):
    folder = tmp_path / "config" / "buildrunner"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(text)
    return own_settings({"XDG_CONFIG_HOME": str(tmp_path / "config")})


def test_a_project_has_settings_of_its_own(tmp_path):
    settings = own(
        tmp_path,
        """
[git]
cache_gib = 5
tokens = { "a.example.com" = "env:A", "b.example.com" = "env:B" }
[storage]
buckets = []
[projects.shop.git]
tokens = { "b.example.com" = "file:shop", "c.example.com" = "env:C" }
[projects.shop.storage]
buckets = ["shop"]
folders = { "gs://shop" = "file:///srv/shop" }
[projects.shop.sandbox]
docker_socket = false
[projects.shop.images]
untrusted = ["base"]
""",
    )
    shop = settings.of_project("shop")
    assert shop.git.cache_gib == 5
    assert shop.git.tokens == {
        "a.example.com": "env:A",
        "b.example.com": f"file:{tmp_path}/config/buildrunner/shop",
        "c.example.com": "env:C",
    }
    assert (shop.storage_buckets, shop.docker_socket) == (("shop",), False)
    assert shop.storage_folders == {"gs://shop": "file:///srv/shop"}
    assert shop.untrusted_images == ("base",)
    other = settings.of_project("other")
    assert other.git.tokens == {"a.example.com": "env:A", "b.example.com": "env:B"}
    assert (other.storage_buckets, other.docker_socket) == ((), True)
    assert other.storage_folders == {}
    assert (settings.git.project, shop.git.project, other.git.project) == ("", "shop", "other")


@pytest.mark.parametrize(
    ("text", "place", "rest"),
    [
        ("[projects]\nshop = 1", "projects.shop", "must be a table of tables"),
        ("[projects.shop.secrets]\na = 'env:A'", "projects.shop.secrets", "no such table"),
        ("[projects.shop.gti]\n", "projects.shop.gti", "did you mean projects.shop.git?"),
        ("[registries]\nlogins = '/x'", "registries.logins", "is for one project of a server"),
        ("[projects.shop.registries]\nlogins = []", "projects.shop.registries.logins", "a string"),
        ("[projects.shop]\ngit = 1", "projects.shop.git", "must be a table"),
        ("[projects.shop.git]\ncache_gib = 'x'", "projects.shop.git.cache_gib", "whole number"),
        ("[projects.shop.git]\ncahce = 'x'", "projects.shop.git.cahce", "shop.git.cache?"),
        (
            "[projects.shop.git.tokens]\nh = 'hunter2'",
            'projects.shop.git.tokens."h"',
            "starts with env: or file:",
        ),
    ],
)
def test_what_is_wrong_for_a_project_is_named(tmp_path, text, place, rest):
    with pytest.raises(ConfigError) as caught:
        own(tmp_path, text)
    (problem,) = caught.value.problems
    assert problem.path == place
    assert rest in problem.text()
    assert "hunter2" not in problem.text()


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[projects.p.git]\ncache_gib = 1", "projects"),
        ("[images]\nuntrusted = ['*']", "images.untrusted"),
        ("[provenance]\npush = true", "provenance"),
    ],
)
def test_a_project_s_file_says_nothing_of_projects_and_of_strangers(tmp_path, text, place):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert [problem.path for problem in caught.value.problems] == [place]


def test_provenance_is_set_by_the_user_and_for_each_project(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "buildrunner"
    folder.mkdir()
    (folder / "config.toml").write_text(
        "[provenance]\nkey = 'own.pem'\nsbom = ['spdx']\nsbom_wait = true\n"
        "[projects.shop.provenance]\npush = true\n"
    )
    settings = own_settings()
    assert (settings.provenance, settings.provenance_push) == (True, False)
    assert settings.provenance_key == str(folder / "own.pem")
    assert (settings.provenance_sbom, settings.provenance_sbom_wait) == (("spdx",), True)
    shop = settings.of_project("shop")
    assert (shop.provenance_push, shop.provenance_sbom) == (True, ("spdx",))
    served = settings.of_server("/srv", "https://ci.example.com")
    assert (served.provenance_folder, served.provenance_builder) == (
        "/srv",
        "https://ci.example.com",
    )


def test_sigstore_is_the_public_instance_or_a_file_beside_the_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "buildrunner"
    folder.mkdir()
    (folder / "config.toml").write_text(
        "[provenance]\nsigstore = 'public'\nidentity_token = '/run/token'\n"
        "[projects.shop.provenance]\nsigstore = 'trust.json'\n"
    )
    settings = own_settings()
    assert settings.provenance_sigstore == "public"
    assert settings.provenance_identity_token == "/run/token"
    assert settings.of_project("shop").provenance_sigstore == str(folder / "trust.json")


def test_the_key_of_a_kms_is_no_path(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "buildrunner").mkdir()
    (tmp_path / "buildrunner/config.toml").write_text("[provenance]\nkey = 'gcpkms:projects/p'\n")
    assert own_settings().provenance_key == "gcpkms:projects/p"


def test_an_unknown_format_of_an_sbom_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "buildrunner").mkdir()
    (tmp_path / "buildrunner/config.toml").write_text(
        "[provenance]\nsbom = ['spdx2']\n[projects.p.provenance]\nsbom = ['swid']\n"
    )
    with pytest.raises(ConfigError) as caught:
        own_settings()
    places = [problem.path for problem in caught.value.problems]
    assert places == ["projects.p.provenance.sbom", "provenance.sbom"]
    assert "'spdx2' is no format of an SBOM; formats are spdx and cyclonedx" in str(caught.value)


def test_a_project_has_logins_of_its_own(tmp_path):
    settings = own(tmp_path, "[projects.shop.registries]\nlogins = 'shop'\n")
    environ = {"HOME": "/home/ci", "DOCKER_CONFIG": "/d", "NETRC": "/n", "PATH": "/bin"}
    assert settings.of_project("web").logins_environ(environ) == environ
    found = settings.of_project("shop").logins_environ(environ)
    assert found == {"HOME": f"{tmp_path}/config/buildrunner/shop", "PATH": "/bin"}


POOL = """
[pools.arm]
server = "http://ci"
worker_image = "worker"
engine_image = "engine"
"""


def with_pools(folder, text):
    (folder / "buildrunner").mkdir()
    (folder / "buildrunner" / "config.toml").write_text(text)
    return own_settings({"XDG_CONFIG_HOME": str(folder)})


def test_a_pool_on_kubernetes_is_a_table_of_the_own_file(tmp_path):
    more = 'namespace = "builds"\nmax_builds = 3\ntolerations = ["spot"]\nnode_selector = {a = "b"}'
    settings = with_pools(tmp_path, POOL + more)
    assert list(settings.pools) == ["arm"]
    pool = settings.pools["arm"]
    assert (pool.name, pool.namespace, pool.max_builds) == ("arm", "builds", 3)
    assert (pool.tolerations, pool.node_selector) == (("spot",), {"a": "b"})


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("[pools.arm]\nserver = 'http://ci'\nworker_image = 'w'", "engine_image", "is missing"),
        ("pools = 1", "pools", "must be a table"),
        ("[pools]\narm = 1", "pools.arm", "must be a table"),
        (f"{POOL}max_build = 3", "pools.arm.max_build", "did you mean pools.arm.max_builds"),
        (f"{POOL}max_builds = '3'", "pools.arm.max_builds", "must be a whole number"),
        (f"{POOL}max_builds = 0", "pools.arm.max_builds", "is a number from 1"),
        (f"{POOL}memory = 'much'", "pools.arm.memory", "is a quantity"),
        (f"{POOL}tolerations = ['a:b:c']", "pools.arm.tolerations", "has another form"),
        (POOL.replace("arm", "Arm"), "pools.Arm", "small letters"),
    ],
)
def test_what_is_wrong_with_a_pool_is_said_with_its_place(tmp_path, text, place, message):
    with pytest.raises(ConfigError) as caught:
        with_pools(tmp_path, text)
    assert place in str(caught.value)
    assert message in str(caught.value)


def test_a_project_s_file_has_no_pools(tmp_path):
    with pytest.raises(ConfigError, match=r"pools: is not for a project's file"):
        load(tmp_path, POOL)


def test_the_url_of_a_server_s_database_may_be_in_a_file(tmp_path):
    file = tmp_path / "url"
    named = {"BUILDRUNNER_DATABASE_FILE": str(file)}
    with pytest.raises(UsageError, match="can't be read: No such file"):
        server_database(named)
    file.write_text("\n")
    with pytest.raises(UsageError, match="is empty"):
        server_database(named)
    file.write_text("postgresql://u:p@db/n\n")
    assert server_database(named) == "postgresql://u:p@db/n"
    assert server_database({**named, "BUILDRUNNER_DATABASE": "postgresql://other"}) == (
        "postgresql://other"
    )
    assert server_database({}) == ""
