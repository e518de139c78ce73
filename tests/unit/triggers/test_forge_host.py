"""Forges: who they are, where their repositories and APIs are, and which addresses are the same."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from buildrunner.errors import UsageError
from buildrunner.triggers.forge_host import (
    is_full_name,
    named_forge,
    public_forge,
    reported_forge,
    repository_key,
)


@pytest.mark.parametrize(
    ("kind", "text", "url"),
    [
        ("github", "", "https://github.com"),
        ("gitlab", "", "https://gitlab.com"),
        ("bitbucket", "https://bitbucket.org/", "https://bitbucket.org"),
        ("github", "GitHub.com", "https://github.com"),
        ("github", "https://github.com:443", "https://github.com"),
        ("gitea", "git.example.com", "https://git.example.com"),
        ("forgejo", "https://Git.Example.com./", "https://git.example.com"),
        ("gitea", "http://10.0.0.7:3000", "http://10.0.0.7:3000"),
        ("gitea", "http://[::1]:3000/", "http://[::1]:3000"),
        ("gitlab", "https://example.com/gitlab/", "https://example.com/gitlab"),
        ("gitlab", "https://example.com/~ci/v1.2_a-b", "https://example.com/~ci/v1.2_a-b"),
    ],
)
def test_a_forge_is_named_by_host_or_url(kind: str, text: str, url: str) -> None:
    assert named_forge(kind, text).url == url


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("", ""),
        ("git", "git.example.com"),
        ("subversion", "svn.example.com"),
        ("gitea", ""),
        ("bitbucket-server", ""),
        ("gitea", "github.com"),  # github.com is not a Gitea
        ("github", "gitlab.com"),
        ("github", "http://github.com"),
        ("gitea", "https://user:pw@git.example.com"),
        ("gitea", "ssh://git.example.com"),
        ("gitea", "file:///srv"),
        ("gitea", "https://git.example.com?x=1"),
        ("gitea", "https://"),
        ("gitea", "https://git_example.com"),
        ("gitea", "https://g\u0131t.example.com"),
        ("gitea", "https://git.example.com:99999"),
        ("gitea", "https://git.example.com/%67itea"),
        ("gitea", "https://git.example.com/x/../gitea"),
        ("gitea", "https://git.example.com/./gitea"),
        ("gitea", "https://git.example.com//gitea"),
        ("gitea", "https://git.example.com/gitea;x"),
        ("gitea", "https://git.example.com/git\u0435a"),
    ],
)
def test_what_names_no_forge_is_refused(kind: str, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        named_forge(kind, text)
    assert "pw" not in str(caught.value)


CLONES = {
    "github": "https://github.com/acme/app.git",
    "gitlab": "https://gitlab.com/acme/app.git",
    "gitea": "https://git.example.com/acme/app.git",
    "bitbucket": "https://bitbucket.org/acme/app.git",
    "bitbucket-server": "https://git.example.com/scm/acme/app.git",
}
PULLS = {
    "github": "https://github.com/acme/app/pull/7",
    "gitlab": "https://gitlab.com/acme/app/-/merge_requests/7",
    "gitea": "https://git.example.com/acme/app/pulls/7",
    "bitbucket": "https://bitbucket.org/acme/app/pull-requests/7",
    "bitbucket-server": "https://git.example.com/projects/ACME/repos/app/pull-requests/7",
}
RIGHTS = {
    "github": "https://api.github.com/repos/acme/app/collaborators/e%2Fve/permission",
    "gitlab": "https://gitlab.com/api/v4/projects/acme%2Fapp/members/all/e%2Fve",
    "gitea": "https://git.example.com/api/v1/repos/acme/app/collaborators/e%2Fve/permission",
    "bitbucket": "https://api.bitbucket.org/2.0/workspaces/acme/permissions/repositories/app"
    "?q=user.uuid%3D%22e/ve%22",
    "bitbucket-server": "https://git.example.com/rest/api/latest/users?permission.1=REPO_WRITE"
    "&permission.1.projectKey=ACME&permission.1.repositorySlug=app&filter=e%2Fve",
}


@pytest.mark.parametrize("kind", CLONES)
def test_all_addresses_come_of_host_and_name(kind: str) -> None:
    forge = named_forge(
        kind, "" if kind in ("github", "gitlab", "bitbucket") else "git.example.com"
    )
    name = "ACME/app" if kind == "bitbucket-server" else "acme/app"
    assert forge.clone_url(name) == CLONES[kind]
    assert forge.pull_request_page(name, 7) == PULLS[kind]
    assert forge.rights_api(name, "e/ve") == RIGHTS[kind]
    assert forge.full_name(CLONES[kind]) == "acme/app"
    assert forge.has(PULLS[kind])
    told = forge.pull_request_api(name, 7)
    assert bool(told) is (kind in ("github", "gitea"))


def test_an_enterprise_server_has_its_api_below_its_own_host() -> None:
    forge = named_forge("github", "ghe.example.com")
    pull = "https://ghe.example.com/api/v3/repos/acme/app/pulls/7"
    assert forge.pull_request_api("acme/app", 7) == pull


def test_only_an_address_below_the_forge_is_on_it() -> None:
    forge = named_forge("gitea", "https://example.com/gitea")
    assert forge.has("https://example.com/gitea/acme/app")
    assert forge.full_name("ssh://git@example.com:2222/gitea/acme/app.git") == "acme/app"
    for url in (
        "https://example.com/acme/app",
        "https://example.com/gitea2/acme/app",
        "https://example.com.evil.example/gitea/acme/app",
        "https://evil.example/gitea/acme/app",
        "https://example.com@evil.example/gitea/acme/app",
        "https://example.com:8443/gitea/acme/app",
    ):
        assert not forge.has(url)
        assert forge.full_name(url) == ""


def test_one_repository_has_one_key_whatever_the_transport() -> None:
    addresses = (
        "https://github.com/Acme/app.git",
        "HTTPS://GitHub.com/acme/app",
        "git@github.com:acme/app.git",
        "ssh://git@github.com/acme/app",
        "ssh://git@github.com:22/acme/app",
        "https://user:pw@github.com:443/acme/app/",
        "http://github.com:80/acme/app",
        "https://github.com./acme/app",
    )
    assert {repository_key(address) for address in addresses} == {"github.com/acme/app"}
    assert repository_key("") == ""


def test_different_repositories_have_different_keys() -> None:
    addresses = (
        "https://github.com/acme/app",
        "https://github.com:8443/acme/app",
        "https://github.com/acme/app/x",
        "https://github.com/acme/\u017fapp",
        "https://github.com/acme/\u212aapp",
        "https://github.com/acme/kapp",
        "https://github.com/acme/sapp",
        "https://github.com/acme%2Fapp",
        "https://github.com//acme/app",
        "https://gitlab.com/acme/app",
        "file:///srv/App.git",
        "file:///srv/app.git",
        "/srv/git/app.git",
    )
    assert len({repository_key(address) for address in addresses}) == len(addresses)


@given(address=st.text(alphabet="ahtps:/.@[]09\u0663 #?%-", max_size=30))
@example(address="https://x:" + "9" * 5000 + "/a")
def test_any_text_has_a_key(address: str) -> None:
    """Issue: one address with a port of 5,000 digits ended the handling of all deliveries."""
    key = repository_key(address)
    assert repository_key(f" {address} ") == key


def test_a_port_has_one_form() -> None:
    assert repository_key("https://github.com:00443/a/b") == "github.com/a/b"
    assert repository_key("https://github.com:08443/a/b") == "github.com:8443/a/b"


def test_public_forges_are_known_by_their_hosts() -> None:
    assert public_forge("git@github.com:acme/app.git") == named_forge("github")
    assert public_forge("https://gitlab.com/g/s/app") == named_forge("gitlab")
    for url in ("https://github.com.evil.example/a/b", "https://github.com:8443/a/b", "app", ""):
        assert public_forge(url) is None


@pytest.mark.parametrize(
    ("urls", "full_name", "url"),
    [
        (("https://git.example.com/acme/app.git",), "acme/app", "https://git.example.com"),
        (("http://host:3000/Acme/App",), "acme/app", "http://host:3000"),
        (("https://host/gitlab/a/b/c.git",), "a/b/c", "https://host/gitlab"),
        (("https://host/bb/scm/k/app.git",), "K/app", "https://host/bb"),
        (("git@host:acme/app.git", "https://host/acme/app"), "acme/app", "https://host"),
        (("file:///srv/git/app.git",), "other", None),
        (("https://host/elsewhere",), "acme/app", None),
    ],
)
def test_the_forge_that_a_payload_names(urls: tuple[str, ...], full_name: str, url: str) -> None:
    found = reported_forge("gitea", full_name, urls)
    assert (found.url if found else None) == url


@pytest.mark.parametrize("name", ["acme/app", "g/s/app", "~eve/app", "a.b/c_d", "A-1/x+y"])
def test_full_names(name: str) -> None:
    assert is_full_name(name)


@pytest.mark.parametrize(
    "name",
    ["app", "", "/app", "acme/", "acme//app", "acme/..", "../app", "acme/./app", "a/b?c", "a/b#c",
     "a/b c", "a@b/c", "a:b/c", "a/b%2e", "a/\u017f", "a/b\n", "acme/app/.."],
)  # fmt: skip
def test_what_is_no_full_name(name: str) -> None:
    assert not is_full_name(name)
