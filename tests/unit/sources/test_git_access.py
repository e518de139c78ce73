"""Which credentials of the settings go to which repository, and to no other."""

import subprocess

import pytest

from buildrunner.errors import SourceError
from buildrunner.sources.git.credentials import GitAccess, access_to, credentials_for
from buildrunner.sources.git.url import parse_git_url


def login(url, *keys):
    """User and the key whose token the repository gets."""
    access = GitAccess(tokens={key: f"env:{key}" for key in keys})
    parsed = parse_git_url(url)
    found = credentials_for(parsed, access, {key: key for key in keys})
    if found is None:
        return None
    access = access_to(parsed, found)
    helper = dict(access.config)[f"credential.{parsed.origin}.helper"].removeprefix("!")
    asked = f"protocol={parsed.transport}\nhost={parsed.host}\npath={parsed.path}\n"
    answered = subprocess.run(
        ["sh", "-c", f"{helper} get"],
        input=asked,
        capture_output=True,
        text=True,
        check=True,
        env={**access.environment, "path": "x", "fits": "yes"},
    ).stdout
    given = dict(line.split("=", 1) for line in answered.splitlines())
    user = given["username"]
    return ("" if user == "x-access-token" else user, given["password"]) if given else None


@pytest.mark.parametrize(
    ("url", "key", "user"),
    [
        ("https://git.example.com/team/app.git", "git.example.com", ""),
        ("https://git.example.com/team/app.git", "GIT.example.com", ""),
        ("https://git.example.com/team/app.git", "https://git.example.com", ""),
        ("https://git.example.com/team/app.git", "git.example.com/team", ""),
        ("https://git.example.com/team/app.git", "git.example.com/team/app", ""),
        ("https://git.example.com/team/app.git", "git.example.com/team/app.git", ""),
        ("https://git.example.com/team/app.git", "ci@git.example.com", "ci"),
        ("https://git.example.com/team/app.git", "https://ci@git.example.com/team", "ci"),
        ("https://git.example.com:8443/app.git", "git.example.com:8443", ""),
        ("http://localhost:8080/app.git", "http://localhost:8080", ""),
        ("http://localhost:8080/app.git", "http://ci@localhost:8080", "ci"),
    ],
)
def test_a_token_goes_to_its_host(url, key, user):
    assert login(url, key) == (user, key)


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("https://git.example.com/app.git", "example.com"),
        ("https://git.example.com.evil.test/app.git", "git.example.com"),
        ("https://git.example.com:8443/app.git", "git.example.com"),
        ("https://git.example.com/app.git", "git.example.com:8443"),
        ("http://git.example.com/app.git", "git.example.com"),
        ("https://git.example.com/app.git", "http://git.example.com"),
        ("https://git.example.com/teams/app.git", "git.example.com/team"),
        ("https://git.example.com/team/apple.git", "git.example.com/team/app"),
        ("git://git.example.com/app.git", "git.example.com"),
        ("ssh://git@git.example.com/app.git", "git.example.com"),
    ],
)
def test_and_to_no_other(url, key):
    assert login(url, key) is None


def test_the_longest_key_wins():
    keys = ("example.com", "a@example.com/team", "example.com/team/app")
    assert login("https://example.com/team/app", *keys)[1] == "example.com/team/app"
    assert login("https://example.com/team/b", *keys)[1] == "a@example.com/team"
    assert login("https://example.com/c", *keys)[1] == "example.com"


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("ssh://git@example.com/team/app.git", "example.com"),
        ("git@example.com:team/app.git", "example.com/team"),
        ("ssh://git@example.com:2222/team/app.git", "example.com:2222"),
    ],
)
def test_keys_of_ssh(url, key, tmp_path):
    mine = tmp_path / "k"
    mine.touch()
    access = GitAccess(
        ssh_keys={key: str(mine)}, known_hosts="/h", host_keys={key: "SHA256:a SHA256:b"}
    )
    found = credentials_for(parse_git_url(url), access, {})
    assert (found.ssh_key, found.known_hosts) == (str(mine), "/h")
    assert found.host_fingerprints == ("SHA256:a", "SHA256:b")
    assert credentials_for(parse_git_url(url), GitAccess(), {}) is None
    other = credentials_for(parse_git_url("ssh://other.test/x"), access, {})
    assert (other.ssh_key, other.known_hosts, other.host_fingerprints) == ("", "/h", ())


def test_a_key_that_is_not_there_is_named():
    access = GitAccess(ssh_keys={"example.com": "/nowhere/k"})
    with pytest.raises(SourceError, match="can't be read from /nowhere/k"):
        credentials_for(parse_git_url("git@example.com:x"), access, {})


def test_tokens_come_from_the_environment_and_from_files(tmp_path):
    (tmp_path / "token").write_text("from file\n")
    url = parse_git_url("https://example.com/x")
    by_file = GitAccess(tokens={"example.com": f"file:{tmp_path}/token"})
    assert credentials_for(url, by_file, {}).logins[0].password == "from file"
    by_name = GitAccess(tokens={"example.com": "env:TOKEN"})
    assert credentials_for(url, by_name, {"TOKEN": "from env"}).logins[0].password == "from env"
    for access, message in (
        (by_name, "environment variable TOKEN, which is empty"),
        (GitAccess(tokens={"example.com": f"file:{tmp_path}/none"}), "No such file"),
    ):
        with pytest.raises(SourceError, match=message):
            credentials_for(url, access, {})


def test_submodules_of_the_host_get_the_tokens_of_their_own_paths():
    keys = ["example.com", "a@example.com/team", "example.com/team/app", "other.test/team"]
    access = GitAccess(tokens={key: f"env:{key}" for key in [*keys, "example.com/unset"]})
    url = parse_git_url("https://example.com/team/b")
    found = credentials_for(url, access, {key: key for key in keys})
    assert [(one.path, one.username) for one in found.logins] == [
        ("team/app", ""),
        ("unset", ""),
        ("team", "a"),
        ("", ""),
    ]
    assert [one.password == "" for one in found.logins] == [False, True, False, False]
