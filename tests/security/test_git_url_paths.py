"""A repository's URL and a config's path state what is fetched and read, and nothing else."""

from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import pytest

from buildrunner.build_run.compile import _origin
from buildrunner.errors import SourceError
from buildrunner.plan.build_plan import BuildOrigin
from buildrunner.sources.git.url import parse_git_url
from buildrunner.spec.reading.decode import load_build


@pytest.mark.parametrize(
    "path",
    [
        "acme/../evil/app.git",
        "acme/./app.git",
        "acme//app.git",
        "/acme/app.git",
        "..",
        "acme/%2e%2e/evil/app.git",
        "acme/%2E./evil/app.git",
        "acme/..%2fevil%2fapp.git",
        "acme%2fapp.git",
        "acme%5capp.git",
        "acme\\..\\evil",
        "acme/%252e%252e/evil/app.git",
        "acme%252fapp.git",
        "acme/..;/evil/app.git",
        "acme/..;x=y/evil/app.git",
        "acme/.;/app.git",
        "acme/;x/app.git",
        "acme/app%00.git",
        "acme/app%0a.git",
    ],
)
@pytest.mark.parametrize(
    "host",
    ["https://git.example.com/", "http://h/", "ssh://git@h/", "git://h/", "git@git.example.com:"],
)
def test_no_url_states_another_repository_than_the_one_that_is_fetched(host, path):
    if host.endswith(":") and path.startswith("/"):
        path = f"/x/{path}"  # git@host://path is no address of ssh
    with pytest.raises(SourceError, match="more than one way"):
        parse_git_url(host + path)


@pytest.mark.parametrize(
    "url",
    [
        "https://git.example.com/acme/app.git",
        "https://dev.azure.com/acme/my%20project/_git/app/",
        "ssh://git@git.example.com/~user/app..x/.github",
        "git@git.example.com:acme/app.git",
        "git@git.example.com:/srv/git/app.git",
        "file:///srv/git/app.git",
    ],
)
def test_usual_urls_are_taken(url):
    assert parse_git_url(url).text == url


@pytest.mark.parametrize(
    ("path", "stated"), [("./ci//a.yaml", "ci/a.yaml"), ("ci/../evil.yaml", ""), ("../a.yaml", "")]
)
def test_no_config_states_another_path_than_its_own(path, stated):
    checkout: Any = SimpleNamespace(
        resolved=SimpleNamespace(url="https://h/a/b", commit_sha="c" * 40, branch="", tag="")
    )
    request: Any = SimpleNamespace(origin=BuildOrigin(), repository=object())
    config = load_build(b"steps: [{name: x}]", file=path)
    if stated:
        assert _origin(request, config, checkout).config == stated
        return
    with pytest.raises(SourceError, match="has a segment"):
        _origin(request, config, checkout)


def test_a_path_that_is_encoded_again_and_again_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each decoding removes one of 100,000 layers, so they must not all be removed."""
    decodings: list[int] = []

    def counted(text: str) -> str:
        decodings.append(1)
        return unquote(text)

    monkeypatch.setattr("urllib.parse.unquote", counted)
    with pytest.raises(SourceError, match="can be read in more than one way"):
        parse_git_url("https://git.example.com/acme/app%" + "25" * 100_000 + "2f")
    assert len(decodings) < 10
