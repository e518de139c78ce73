"""What a server deletes in the background, and what an admin has it delete."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from buildrunner.cli.main import main
from buildrunner.errors import StoreError
from buildrunner.sources.uploads import SourceUploads
from buildrunner.store.keep_rule import parse_keep_rule
from buildrunner.store.model.access import AuditEntry
from buildrunner.store.model.deliveries import NewDelivery
from buildrunner.worker.chores import AUDIT_DAYS, BATCH, KeptTimes, Retention
from buildrunner.worker.data_folder import DataFolder
from tests.api_server import ApiServer, api_server, now


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(tmp_path, auth=True) as running:
        admin = running.token("boss", "admin")
        running.http.headers["Authorization"] = f"Bearer {admin}"
        yield running


@pytest.fixture
def folder(server: ApiServer) -> DataFolder:
    return DataFolder(server.context.data_folder)


def retention(
    server: ApiServer, folder: DataFolder, at: datetime | None = None, **rules: str
) -> Retention:
    builds = {project: parse_keep_rule(rule) for project, rule in rules.items()}
    return Retention(
        server.store,
        folder,
        SourceUploads(f"{folder.path}/sources"),
        KeptTimes(builds=builds),
        lambda: at or now(),
    )


def write_files(folder: DataFolder, build_id: str) -> list[Path]:
    """What a build leaves in the folder of its server."""
    files = [
        Path(folder.log_folder(build_id), "log.txt"),
        Path(folder.log_folder(build_id), "events.jsonl"),
        Path(folder.path, "workspaces", build_id, "workspace.tar"),
        Path(folder.path, "crashes", f"{build_id}.txt"),
    ]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x")
    return files


def ended(server: ApiServer, project: str = "p") -> str:
    build = server.create(project)
    server.run(build, "SUCCESS")
    return build


def test_an_old_build_goes_with_its_files_and_nothing_else_does(
    server: ApiServer, folder: DataFolder
) -> None:
    old, other, running = ended(server), ended(server, "q"), server.create()
    server.run(running, None)
    files = {build: write_files(folder, build) for build in (old, running, other)}
    in_a_month = retention(server, folder, now() + timedelta(days=31), p="30d")
    in_a_month.delete_builds()
    in_a_month.delete_files()
    assert server.http.get(f"/v1/projects/p/builds/{old}").status_code == 404
    assert not any(file.exists() for file in files[old])
    for project, build in (("p", running), ("q", other)):
        assert server.http.get(f"/v1/projects/{project}/builds/{build}").status_code == 200
        assert all(file.exists() for file in files[build])


def test_the_rule_of_a_project_wins_over_that_of_all(server: ApiServer, folder: DataFolder) -> None:
    builds = {project: ended(server, project) for project in ("p", "q", "r")}
    rules = {"*": "30d", "p": "all", "q": "90d"}
    retention(server, folder, now() + timedelta(days=60), **rules).delete_builds()
    found = {project: len(server.store.builds.page(project).builds) for project in builds}
    assert found == {"p": 1, "q": 1, "r": 0}


def test_every_server_of_a_database_deletes_its_own_files(
    server: ApiServer, folder: DataFolder, tmp_path: Path
) -> None:
    build = ended(server)
    other = DataFolder(str(tmp_path / "other"))
    here, there = write_files(folder, build), write_files(other, build)
    ours, theirs = retention(server, folder), retention(server, other)
    for each in (ours, theirs):
        each.delete_files()
    assert all(file.exists() for file in (*here, *there))
    server.store.retention.delete("p", build, now=now())
    ours.delete_files()
    assert not any(file.exists() for file in here)
    assert all(file.exists() for file in there)
    theirs.delete_files()
    assert not any(file.exists() for file in there)


def test_a_server_that_was_down_deletes_the_files_when_it_is_back(
    server: ApiServer, folder: DataFolder
) -> None:
    build = ended(server)
    files = write_files(folder, build)
    server.store.retention.delete("p", build, now=now() - timedelta(days=80))
    retention(server, folder).delete_files()
    assert not any(file.exists() for file in files)


def test_files_of_builds_that_the_database_does_not_know_stay(
    server: ApiServer, folder: DataFolder
) -> None:
    """A database that was put back, or the wrong one, must not cost the logs of another."""
    files = write_files(folder, "11111111-2222-3333-4444-555555555555")
    each = retention(server, folder, now() + timedelta(days=999), **{"*": "1d"})
    each.delete_builds()
    each.delete_files()
    assert all(file.exists() for file in files)


@pytest.mark.parametrize("build_id", ["", ".", "..", "a/b", "../logs", "a\0b"])
def test_nothing_but_the_folder_of_a_build_is_removed(folder: DataFolder, build_id: str) -> None:
    files = write_files(folder, "b")
    with pytest.raises(StoreError, match="no id of a build"):
        folder.remove_build(build_id)
    assert all(file.exists() for file in files)


def test_deliveries_and_the_audit_log_are_pruned_without_a_rule_for_builds(
    server: ApiServer, folder: DataFolder
) -> None:
    begun = now() - timedelta(days=AUDIT_DAYS + 1)
    for number in range(BATCH + 5):
        entry = AuditEntry(at=begun, who="t", action="x", target=f"p/{number}", outcome="200")
        server.store.audit.add(entry)
        server.store.deliveries.refuse(
            NewDelivery(hook="github", delivery_id="", headers={}, body=b""), "no", now=begun
        )
    server.create()
    retention(server, folder).delete_records()
    assert [entry.action for entry in server.store.audit.page()] == ["builds.create"]
    assert server.store.deliveries.page() == []


def test_deliveries_and_uploads_go_earlier_where_builds_do(
    server: ApiServer, folder: DataFolder
) -> None:
    new = NewDelivery(hook="github", delivery_id="", headers={}, body=b"")
    server.store.deliveries.refuse(new, "no", now=now() - timedelta(days=8))
    upload = Path(folder.path, "sources", "p", "blobs", "ab", "abc")
    upload.parent.mkdir(parents=True)
    upload.write_text("x")
    eight_days_ago = (now() - timedelta(days=8)).timestamp()
    os.utime(upload, (eight_days_ago, eight_days_ago))
    for rules, left in (({}, 1), ({"*": "7d"}, 0)):
        each = retention(server, folder, **rules)
        each.delete_records()
        each.delete_uploads()
        assert len(server.store.deliveries.page()) == left
        assert upload.exists() is bool(left)


def test_an_admin_deletes_a_build(server: ApiServer) -> None:
    build = ended(server)
    path = f"/buildrunner/v1/projects/p/builds/{build}"
    for token in (server.token("s", "submit"), server.token("q", "admin", projects=("q",))):
        headers = {"Authorization": f"Bearer {token}"}
        assert server.http.delete(path, headers=headers).status_code == 403
    assert server.http.delete(path.replace("/p/", "/q/")).status_code == 404
    assert server.http.delete(path).status_code == 200
    assert server.http.get(f"/v1/projects/p/builds/{build}").status_code == 404
    assert server.http.delete(path).status_code == 404
    entries = [(one.action, one.target, one.outcome) for one in server.store.audit.page(limit=3)]
    assert ("builds.delete", f"p/{build}", "200") in entries


def test_a_build_that_runs_is_not_deleted(server: ApiServer) -> None:
    build = server.create()
    answer = server.http.delete(f"/buildrunner/v1/projects/p/builds/{build}")
    assert answer.json()["error"]["status"] == "FAILED_PRECONDITION"
    assert server.store.builds.find(build).status == "QUEUED"


def test_the_command_deletes_builds_of_a_server(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = ended(server), ended(server)
    monkeypatch.setenv("BUILDRUNNER_TOKEN", server.token("cli", "admin"))
    given = ["--server", server.url, "builds", "delete", first[:8], second, "--project", "p"]
    assert main(given) == 0
    assert f"Deleted [{first}]." in capsys.readouterr().err
    assert server.store.builds.page("p").builds == ()
