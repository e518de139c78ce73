"""No request of a project's member, however it is made, keeps the server from answering others.

Times are processor times of the judged function itself: the load of the machine is not in them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildrunner.server.http.requests import MAX_VALUES
from buildrunner.spec.model.git_address import has_password, without_password
from buildrunner.store.sql import builds as sql_lists
from tests.api_server import ApiServer, api_server

MANY = 3_000_000
SOURCES = "/buildrunner/v1/projects/p/sources/manifests"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(tmp_path) as running:
        yield running


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Bodies that were parsed."""
    from buildrunner.server.http import requests

    seen: list[bytes] = []
    real = requests.parsed

    def noting(body: bytes) -> object:
        seen.append(body)
        return real(body)

    monkeypatch.setattr(requests, "parsed", noting)
    return seen


@pytest.mark.parametrize(
    "path",
    [
        "/v1/projects/p/builds",
        "/v1/projects/p/triggers",
        "/buildrunner/v1/projects/p/triggers/any:test",
    ],
)
@pytest.mark.parametrize("value", [b"[]", b"{}", b"0"])
def test_a_body_of_millions_of_values_is_not_even_parsed(
    server: ApiServer, parsed: list[bytes], path: str, value: bytes
) -> None:
    body = b'{"a":[' + (value + b",") * MANY + value + b"]}"
    answer = server.http.post(path, content=body)
    assert answer.status_code == 400, answer.text
    assert "holds more than" in answer.json()["error"]["message"]
    assert parsed == []


def test_a_text_full_of_commas_is_one_value(server: ApiServer) -> None:
    script = ",[{" * MAX_VALUES
    answer = server.http.post(
        "/v1/projects/p/builds", json={"steps": [{"name": "busybox", "script": script}]}
    )
    assert answer.status_code == 200, answer.text


def test_a_manifest_of_what_are_no_files_is_refused_at_the_first(server: ApiServer) -> None:
    body = b'{"files":[' + b"[]," * MANY + b"[]]}"
    answer = server.http.post(SOURCES, content=body)
    assert answer.status_code == 400, answer.text
    assert "files[0]" in answer.json()["error"]["message"]


@pytest.mark.parametrize("text", ["$" * (MAX_VALUES + 1), "a" * 2_000_000])
def test_texts_that_take_long_to_check_are_refused(server: ApiServer, text: str) -> None:
    body = {"steps": [{"name": "busybox", "args": [text]}]}
    answer = server.http.post("/v1/projects/p/builds", json=body)
    assert answer.status_code == 400
    assert "in the body" in answer.text or "the body holds" in answer.text


@pytest.mark.parametrize("tail", ["token" * 200_000, "?x=&" + "token&" * 200_000])
def test_an_address_is_looked_through_for_passwords_in_one_go(tail: str) -> None:
    address = f"https://git.example.com/?x=1&{tail}"
    begun = time.process_time()
    assert not has_password(address)
    assert without_password(address) == address
    assert time.process_time() - begun < 5


def test_a_search_of_builds_stops_when_its_time_is_over_and_goes_on_with_the_next_page(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {server.create() for _ in range(4)}
    monkeypatch.setattr(sql_lists, "_LONGEST_S", 0.0)
    found, token, pages = set(), "", 0
    while pages == 0 or token:
        query = {"filter": '"busybox"', "pageToken": token}
        page = server.http.get("/v1/projects/p/builds", params=query).json()
        found |= {one["id"] for one in page.get("builds", ())}
        token, pages = page.get("nextPageToken", ""), pages + 1
    assert (found, pages) == (wanted, 4)


OF_ACME = {"owner": "acme", "name": "app"}


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"includedFiles": [f"**/{at}" for at in range(90_000)]}, "includedFiles"),
        ({"ignoredFiles": ["["] * 201}, "ignoredFiles"),
        ({"ignoredFiles": ["[" * 1_000_000]}, "ignoredFiles[0]"),
        ({"tags": ["a"] * 90_000}, "tags"),
        ({"substitutions": {f"_A{at}": "$_A1" for at in range(90_000)}}, "substitutions"),
        ({"substitutions": {"_A": "a" * 4001}}, "substitutions._A"),
        ({"github": {**OF_ACME, "push": {"branch": "(" * 1_000_000}}}, "github.push.branch"),
        ({"github": {**OF_ACME, "pullRequest": {"branch": "a" * 1001}}},
         "github.pullRequest.branch"),
    ],
)  # fmt: skip
def test_a_trigger_that_each_delivery_would_take_long_over_is_refused(
    server: ApiServer, fields: dict[str, object], path: str
) -> None:
    document = {"name": "t", "build": {"steps": [{"name": "busybox"}]}, **fields}
    answer = server.http.post("/v1/projects/p/triggers", json=document)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(f"{path}: ")
    assert server.http.get("/v1/projects/p/triggers").json()["triggers"] == []
