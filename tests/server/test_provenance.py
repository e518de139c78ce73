"""The provenance of builds over HTTP, and on the page of a build."""

from __future__ import annotations

import pytest

from buildrunner.logs.files.log_file import log_folder
from buildrunner.provenance.stored import FILE_NAME, store_attestations
from tests.api_server import api_server

PUBLISHED = [b'{"payload": "MQ=="}', b'{"payload": "Mg=="}']


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with api_server(tmp_path_factory.mktemp("server")) as running:
        yield running


def folder_of(server, build):
    return log_folder(server.context.data_folder, build)


def test_the_provenance_is_served_one_envelope_a_line(server):
    build = server.create()
    server.run(build, "SUCCESS")
    store_attestations(folder_of(server, build), PUBLISHED)
    answer = server.http.get(f"/buildrunner/v1/projects/p/builds/{build}/provenance")
    assert answer.headers["content-type"] == "application/jsonl"
    assert answer.content.splitlines() == PUBLISHED


def test_a_build_without_provenance_is_not_found(server):
    build = server.create()
    server.run(build, "SUCCESS")
    answer = server.http.get(f"/buildrunner/v1/projects/p/builds/{build}/provenance")
    assert answer.status_code == 404


def test_the_page_links_the_provenance_where_there_is_one(server):
    with_it, without = server.create(), server.create()
    for build in (with_it, without):
        server.run(build, "SUCCESS")
    store_attestations(folder_of(server, with_it), PUBLISHED)
    route = f"/buildrunner/v1/projects/p/builds/{with_it}/provenance"
    assert route in server.http.get(f"/builds/p/{with_it}?view=results").text
    assert "provenance" not in server.http.get(f"/builds/p/{without}?view=results").text


def test_nothing_is_written_for_a_build_that_published_nothing(tmp_path):
    store_attestations(str(tmp_path), [])
    assert not (tmp_path / FILE_NAME).exists()
