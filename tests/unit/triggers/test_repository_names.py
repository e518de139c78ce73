"""Addresses of repositories: which are the same, and which forge they are on."""

from __future__ import annotations

import pytest

from buildrunner.spec.decode import decode_message
from buildrunner.spec.trigger import BuildTrigger
from buildrunner.triggers.events import Repository
from buildrunner.triggers.repository_names import (
    address_of_trigger,
    forge_address,
    repository_key,
)


@pytest.mark.parametrize(
    ("clone_url", "urls", "full_name", "address"),
    [
        ("https://github.com/acme/app.git", (), "acme/app", ""),
        ("https://eve@bitbucket.org/acme/app.git", (), "acme/app", ""),
        ("https://git.example.com/acme/app.git", (), "acme/app", "https://git.example.com"),
        ("http://host:3000/Acme/App", (), "acme/app", "http://host:3000"),
        ("https://host/gitlab/a/b/c.git", (), "a/b/c", "https://host/gitlab"),
        ("https://host/bb/scm/k/app.git", (), "K/app", "https://host/bb"),
        ("", ("git@host:acme/app.git", "https://host/acme/app"), "acme/app", "https://host"),
        ("https://eve:pw@host/acme/app.git", (), "acme/app", "https://host"),
        ("file:///srv/git/app.git", (), "other", ""),
        ("https://host/elsewhere", (), "acme/app", ""),
    ],
)
def test_a_self_hosted_forge_is_found_by_its_repositories(
    clone_url: str, urls: tuple[str, ...], full_name: str, address: str
) -> None:
    repository = Repository(full_name=full_name, clone_url=clone_url, urls=urls)
    assert forge_address(repository) == address


def test_one_repository_has_one_key_whatever_the_transport() -> None:
    addresses = (
        "https://github.com/Acme/app.git",
        "git@github.com:acme/app.git",
        "ssh://git@github.com/acme/app",
        "https://user:pw@github.com:443/acme/app/",
    )
    assert {repository_key(address) for address in addresses} == {"github.com/acme/app"}
    assert repository_key("file:///srv/git/app.git") == "/srv/git/app"
    assert repository_key("") == ""


@pytest.mark.parametrize(
    ("fields", "address"),
    [
        ({"github": {"owner": "o", "name": "r"}}, "https://github.com/o/r.git"),
        ({"repositoryEventConfig": {"repository": "c/r"}}, "ssh://git@inside/r"),
        ({"repositoryEventConfig": {"repository": "file:///srv/r.git"}}, "file:///srv/r.git"),
        ({"repositoryEventConfig": {"repository": "git@h:o/r"}}, "git@h:o/r"),
        ({"repositoryEventConfig": {"repository": "nobody"}}, ""),
        ({"webhookConfig": {"secret": "s"}}, ""),
    ],
)
def test_a_trigger_s_repository_is_somewhere(fields: dict[str, object], address: str) -> None:
    trigger = decode_message(BuildTrigger, {"name": "t", **fields}).value
    assert address_of_trigger(trigger, {"c/r": "ssh://git@inside/r"}) == address
