"""Backups of a server's database, and how they come back."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from buildrunner.cli.main import main
from buildrunner.containers.process_owner import this_process
from buildrunner.errors import Conflict, LeaseLost, NotFound, StoreError, UsageError
from buildrunner.server.http.tokens import caller_of, hash_of, new_token
from buildrunner.store.model.builds import NewBuild
from buildrunner.store.sql.backup import backup, restore
from buildrunner.store.sql.store import open_store
from buildrunner.worker.data_folder import DataFolder
from tests.fixtures_postgres import running_postgres

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)


def new_build(build_id: str) -> NewBuild:
    document = {
        "id": build_id,
        "projectId": "p",
        "status": "QUEUED",
        "createTime": "2026-05-01T12:00:00Z",
        "tags": ["t"],
    }
    return NewBuild(document=document, request={}, expires_at=NOW)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The folder of a server that has two builds and a trigger."""
    folder = tmp_path / "data"
    store = open_store(f"sqlite:///{folder}/server.db")
    store.builds.create(new_build("a1"))
    store.builds.create(new_build("a2"))
    store.triggers.create("p", "global", {"id": "t1", "name": "on-push"})
    store.close()
    return folder


@pytest.fixture
def address(data: Path) -> str:
    return f"sqlite:///{data}/server.db"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return tmp_path / "saved.db"


def builds_of(address: str) -> list[str]:
    store = open_store(address)
    try:
        return [build.id for build in store.builds.page("p", page_size=1000).builds]
    finally:
        store.close()


def test_a_backup_comes_back_whole(
    data: Path, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"sqlite:///{data}/server.db"
    where = ["--data", str(data)]
    assert main(["backup", "create", str(saved), *where]) == 0
    assert f"Backed up to {saved}: builds 2, triggers 1" in capsys.readouterr().err
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    store = open_store(address)
    store.builds.create(new_build("lost"))
    store.close()
    assert main(["backup", "restore", str(saved), *where]) == 2
    assert "--replace" in capsys.readouterr().err
    assert main(["backup", "restore", str(saved), *where, "--replace"]) == 0
    assert f"Restored from {saved}: builds 2, triggers 1" in capsys.readouterr().err
    assert builds_of(address) == ["a1", "a2"]
    assert builds_of(f"{address}.replaced") == ["a1", "a2", "lost"]
    modes = [stat.S_IMODE(one.stat().st_mode) for one in data.glob("server.db*")]
    assert set(modes) == {0o600}
    with sqlite3.connect(data / "server.db") as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_second_restore_keeps_what_the_first_one_moved_aside(
    data: Path, saved: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--data", str(data)]
    assert main(["backup", "create", str(saved), *where]) == 0
    for lost in ("first", "second"):
        store = open_store(address)
        store.builds.create(new_build(lost))
        store.close()
        assert main(["backup", "restore", str(saved), *where, "--replace"]) == 0
    assert builds_of(f"{address}.replaced") == ["a1", "a2", "first"]
    assert builds_of(f"{address}.replaced-2") == ["a1", "a2", "second"]
    moved = f"Moved the existing database to {data}/server.db.replaced-2\n"
    assert moved in capsys.readouterr().err


def test_a_backup_is_restored_where_nothing_is(saved: Path, tmp_path: Path, address: str) -> None:
    backup(address, str(saved))
    restore(str(saved), f"sqlite:///{tmp_path}/new/folder/server.db", replace=False)
    assert builds_of(f"sqlite:///{tmp_path}/new/folder/server.db") == ["a1", "a2"]
    assert sorted(one.name for one in saved.parent.glob("saved*")) == ["saved.db"]


def test_a_backup_holds_what_was_answered_for_while_servers_write(
    address: str, tmp_path: Path
) -> None:
    code = (
        "import itertools, sys\n"
        "from tests.contract.test_server_backup import new_build, open_store\n"
        "store = open_store(sys.argv[1])\n"
        "for number in itertools.count():\n"
        "    store.builds.create(new_build(f'b{number}'))\n"
        "    print(f'b{number}', flush=True)\n"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", code, address], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    try:
        for number in range(3):
            written = [writer.stdout.readline().strip() for _ in range(20)]
            facts = backup(address, str(tmp_path / f"saved{number}.db"))
            kept = builds_of(f"sqlite:///{tmp_path}/saved{number}.db")
            assert set(written) <= set(kept)
            assert len(kept) == facts.builds
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.stdout.close()
        writer.wait()


def test_no_server_may_run_during_a_restore(
    data: Path, saved: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    backup(address, str(saved))
    with DataFolder(str(data)).lock():
        assert main(["backup", "restore", str(saved), "--data", str(data), "--replace"]) == 3
    assert "another server" in capsys.readouterr().err


def test_a_build_that_still_runs_is_in_the_way(saved: Path, address: str) -> None:
    backup(address, str(saved))
    store = open_store(address)
    claimed = store.queue.claim("w", now=NOW, lease_s=30, limit=1)
    assert claimed is not None
    store.queue.set_process(claimed[1], this_process())
    with pytest.raises(Conflict, match=f"a1 still runs .process {os.getpid()}"):
        restore(str(saved), address, replace=True)
    store.close()


def test_leases_from_before_a_restore_are_worth_nothing_after_it(saved: Path, address: str) -> None:
    backup(address, str(saved))
    store = open_store(address)
    before = store.queue.claim("w", now=NOW, lease_s=30, limit=1)
    store.close()
    restore(str(saved), address, replace=True)
    store = open_store(address)
    after = store.queue.claim("w", now=NOW, lease_s=30, limit=1)
    assert before is not None
    assert after is not None
    assert before[0].id == after[0].id
    with pytest.raises(LeaseLost):
        store.queue.record(before[1], {**before[0].document, "status": "SUCCESS"})
    store.close()


def test_a_backup_replaces_no_file(saved: Path, address: str) -> None:
    saved.write_text("precious")
    with pytest.raises(Conflict, match="exists already"):
        backup(address, str(saved))
    assert saved.read_text() == "precious"


def test_what_is_not_there_is_not_found(tmp_path: Path, saved: Path, address: str) -> None:
    with pytest.raises(NotFound, match="no database"):
        backup(f"sqlite:///{tmp_path}/none.db", str(saved))
    with pytest.raises(NotFound, match="no backup"):
        restore(str(saved), address, replace=True)
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(StoreError, match="No such file"):
        backup(address, str(tmp_path / "no" / "folder.db"))


@pytest.mark.parametrize("kind", ["text", "empty", "other", "newer", "torn"])
def test_what_is_no_backup_is_refused_and_changes_nothing(
    saved: Path, data: Path, address: str, kind: str
) -> None:
    if kind == "text":
        saved.write_text("not a database" * 1000)
    elif kind == "empty":
        saved.touch()
    elif kind == "other":
        with sqlite3.connect(saved) as other:
            other.execute("CREATE TABLE x (y)")
        other.close()
    else:
        backup(address, str(saved))
        if kind == "newer":
            with sqlite3.connect(saved) as newer:
                newer.execute("UPDATE alembic_version SET version_num = '9999'")
            newer.close()
        else:
            content = bytearray(saved.read_bytes())
            content[8192:20480] = b"\xff" * 12288
            saved.write_bytes(content)
    with pytest.raises(StoreError) as refused:
        restore(str(saved), address, replace=True)
    assert str(saved) in str(refused.value)
    assert builds_of(address) == ["a1", "a2"]
    assert [one.name for one in data.glob("*.new*")] == []


def test_a_damaged_database_is_replaced_and_kept(saved: Path, data: Path, address: str) -> None:
    backup(address, str(saved))
    (data / "server.db").write_bytes(b"\0" * 5000)
    with pytest.raises(StoreError):
        backup(address, str(saved.with_name("second.db")))
    restore(str(saved), address, replace=True)
    assert builds_of(address) == ["a1", "a2"]
    assert (data / "server.db.replaced").read_bytes() == b"\0" * 5000


def add_token(address: str, name: str) -> str:
    """Add a token to a database; its text."""
    text, token = new_token(name, ("admin",), now=NOW)
    store = open_store(address)
    store.tokens.create(token)
    store.close()
    return text


def is_valid(address: str, text: str) -> bool:
    store = open_store(address)
    try:
        return caller_of(text, store.tokens.find(hash_of(text))) is not None
    finally:
        store.close()


def test_a_token_that_was_revoked_after_the_backup_stays_revoked(
    data: Path, saved: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stays, leaver = add_token(address, "stays"), add_token(address, "leaver")
    backup(address, str(saved))
    store = open_store(address)
    store.tokens.revoke("leaver", now=NOW)
    store.close()
    where = ["--data", str(data), "--replace"]
    for _ in range(2):
        assert main(["backup", "restore", str(saved), *where]) == 0
        said = capsys.readouterr().err
        assert "Tokens revoked after the backup stay revoked: leaver\n" in said
        assert "warning" not in said
        assert is_valid(address, stays)
        assert not is_valid(address, leaver)


@pytest.mark.parametrize("lost", ["gone", "damaged", "new"])
def test_tokens_whose_revocation_would_be_lost_are_named(
    data: Path, saved: Path, address: str, capsys: pytest.CaptureFixture[str], lost: str
) -> None:
    texts = [add_token(address, name) for name in ("first", "second")]
    store = open_store(address)
    store.tokens.revoke("second", now=NOW)
    store.close()
    backup(address, str(saved))
    database = data / "server.db"
    for file in data.glob("server.db*"):
        file.unlink()
    if lost == "damaged":
        database.write_bytes(b"\0" * 5000)
    elif lost == "new":
        add_token(address, "third")
    assert main(["backup", "restore", str(saved), "--data", str(data), "--replace"]) == 0
    said = capsys.readouterr().err
    assert "even if they were revoked after the backup: first\n" in said
    assert "buildrunner tokens revoke NAME" in said
    assert [is_valid(address, text) for text in texts] == [True, False]


@pytest.fixture
def postgres_addresses() -> Iterator[tuple[str, str, dict[str, str]]]:
    server = running_postgres()
    source, target = server.make_database(), server.make_database()
    environment = {**os.environ, "PATH": f"{server.programs}:{os.environ['PATH']}"}
    yield source, target, environment
    server.remove()


def test_postgresql_is_backed_up_by_its_own_tools(
    postgres_addresses: tuple[str, str, dict[str, str]], tmp_path: Path
) -> None:
    source, target, environment = postgres_addresses
    store = open_store(source)
    store.builds.create(new_build("a1"))
    store.close()
    with pytest.raises(UsageError) as refused:
        backup(source, str(tmp_path / "x"))
    assert "pg_dump" in refused.value.hint
    # The commands of docs/how-to/backup.md.
    script = (
        'pg_dump --format=custom --file="$FILE" "$SOURCE"'
        ' && pg_restore --exit-on-error --no-owner --dbname="$TARGET" "$FILE"'
        " && psql --quiet \"$TARGET\" -c 'UPDATE counters SET value = value + 1000000'"
    )
    variables = {"FILE": f"{tmp_path}/server.dump", "SOURCE": source, "TARGET": target}
    subprocess.run(["sh", "-c", script], env=environment | variables, check=True, timeout=60)
    assert builds_of(target) == ["a1"]
    store = open_store(target)
    claimed = store.queue.claim("w", now=NOW, lease_s=1, limit=1)
    assert claimed is not None
    assert claimed[1].fence == 1_000_001
    store.close()
