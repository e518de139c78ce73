"""A folder on its way to a server: what arrives is what was there; what is there stays here."""

import hashlib
import os
import tarfile
import threading

import pytest

from buildrunner.cli.submit.remote import upload_archive, upload_folder
from buildrunner.client.client import ServerClient
from buildrunner.errors import SourceError
from tests.log_servers import PROJECT, log_server


@pytest.fixture
def server(tmp_path):
    with log_server(str(tmp_path / "server")) as server:
        yield server


@pytest.fixture
def client(server):
    client = ServerClient(server.url, project=PROJECT)
    yield client
    client.close()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "source"
    (folder / "deep/er").mkdir(parents=True)
    (folder / "empty").mkdir(mode=0o700)
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "deep/er/naïve name").write_bytes(b"\0\xff" * 3000)
    (folder / "deep/same").write_text("#!/bin/sh\n")
    (folder / "nothing").write_text("")
    (folder / "link").symlink_to("deep/er")
    os.utime(folder / "nothing", ns=(0, 1_700_000_000_123_456_789))
    (folder / "left-out.log").write_text("x")
    (folder / ".gcloudignore").write_text("*.log\n")
    return folder


def archive_of(server, source):
    place = source["storageSource"]
    assert place["bucket"] == "buildrunner-sources"
    return f"{server.folder}/sources/{place['object']}"


def test_modes_links_times_and_empty_folders_arrive(server, client, folder):
    said = []
    source = upload_folder(client, str(folder), ignore_file="", say=said.append)
    with tarfile.open(archive_of(server, source)) as archive:
        members = {member.name: member for member in archive}
        assert sorted(members) == [
            ".gcloudignore",
            "deep",
            "deep/er",
            "deep/er/naïve name",
            "deep/same",
            "empty",
            "link",
            "nothing",
            "run.sh",
        ]
        assert members["run.sh"].mode == 0o755
        assert members["empty"].isdir()
        assert members["empty"].mode == 0o700
        assert (members["link"].issym(), members["link"].linkname) == (True, "deep/er")
        assert members["nothing"].pax_headers["mtime"] == "1700000000.123456789"
        assert {member.uid for member in members.values()} == {0}
        content = archive.extractfile("deep/er/naïve name")
        assert content
        assert content.read() == b"\0\xff" * 3000
    assert said[0].startswith("Source: 6 files totalling 5.9 KiB; 1 path left out")
    assert said[1].startswith("Uploading 4 of 4 files (5.9 KiB) to [http://")


def test_what_the_server_has_does_not_travel_again(client, folder):
    first = upload_folder(client, str(folder), ignore_file="", say=lambda _: None)
    said = []
    assert upload_folder(client, str(folder), ignore_file="", say=said.append) == first
    assert said[1].startswith("Uploading nothing")
    (folder / "run.sh").write_text("#!/bin/sh\nexit 1\n")
    changed = upload_folder(client, str(folder), ignore_file="", say=said.append)
    assert changed != first
    assert said[3].startswith("Uploading 1 of 5 files (17 bytes)")


def test_another_project_does_not_get_at_what_one_uploaded(server, client, folder):
    upload_folder(client, str(folder), ignore_file="", say=lambda _: None)
    other = ServerClient(server.url, project="other")
    said = []
    upload_folder(other, str(folder), ignore_file="", say=said.append)
    assert said[1].startswith("Uploading 4 of 4 files")
    other.close()


def test_an_archive_travels_as_it_is(server, client, tmp_path, folder):
    with tarfile.open(tmp_path / "source.tgz", "w:gz") as archive:
        archive.add(folder, ".")
    source = upload_archive(client, str(tmp_path / "source.tgz"), say=lambda _: None)
    assert source["storageSource"]["object"].endswith(".tgz")
    with open(archive_of(server, source), "rb") as stored:
        assert stored.read() == (tmp_path / "source.tgz").read_bytes()


def test_a_name_that_is_no_text_travels_as_it_is(server, client, folder):
    with open(os.fsencode(folder) + b"/bad\xff", "wb"):
        pass
    source = upload_folder(client, str(folder), ignore_file="", say=lambda _: None)
    with tarfile.open(archive_of(server, source), errors="surrogateescape") as archive:
        assert b"bad\xff" in [os.fsencode(name) for name in archive.getnames()]


@pytest.mark.parametrize("text", ["something else\n", "", "#!/bin/ps\n"])
def test_a_file_that_changes_meanwhile_is_a_sentence(client, folder, text):
    def change(said):
        if said.startswith("Uploading"):
            (folder / "run.sh").write_text(text)

    (folder / "deep/same").unlink()
    with pytest.raises(SourceError, match=r"run\.sh changed while it was uploaded"):
        upload_folder(client, str(folder), ignore_file="", say=change)


def test_nothing_goes_on_behind_an_upload_that_failed(client, tmp_path):
    folder = tmp_path / "two"
    folder.mkdir()
    with open(folder / "large", "wb") as large:
        large.truncate(256 << 20)  # takes a thousand times as long as the other
    (folder / "small").write_text("before\n")

    def change(said):
        if said.startswith("Uploading"):
            (folder / "small").write_text("behind\n")

    with pytest.raises(SourceError, match="small changed while it was uploaded"):
        upload_folder(client, str(folder), ignore_file="", say=change)
    assert [one.name for one in threading.enumerate() if one.name.startswith("upload")] == []
    with open(folder / "large", "rb") as large:
        sha256 = hashlib.file_digest(large, "sha256").hexdigest()
    assert client.sources.missing_blobs([sha256]) == {sha256}


def test_many_files_are_hashed_and_uploaded_at_the_same_time(server, client, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(500):
        (folder / f"f{number:03}").write_text(f"{number}\n" * number)
    source = upload_folder(client, str(folder), ignore_file="", say=lambda _: None)
    with tarfile.open(archive_of(server, source)) as archive:
        assert [member.name for member in archive] == [f"f{number:03}" for number in range(500)]
        last = archive.extractfile("f499")
        assert last
        assert last.read() == b"499\n" * 499
