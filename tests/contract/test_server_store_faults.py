"""What becomes of a server's store when the world around it breaks."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData, insert, text

from buildrunner.errors import BuildrunnerError, StoreError, StoreUnavailable, UsageError
from buildrunner.server.services.triggers import trigger_problems
from buildrunner.store.model.access import AccessToken
from buildrunner.store.model.builds import ClaimScope, NewBuild
from buildrunner.store.sql.database import Database, parse_url
from buildrunner.store.sql.migrate import REVISIONS, alembic_config, migrate
from buildrunner.store.sql.schema import metadata
from buildrunner.store.sql.store import ServerStore, open_store
from buildrunner.triggers.hook_binding import unbound
from buildrunner.triggers.repository import RepositoryNames
from tests.fixtures_postgres import PostgresServer, running_postgres

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
PASSWORD = "hunter2-%25"


def new_build(build_id: str) -> NewBuild:
    document = {
        "id": build_id,
        "projectId": "p",
        "status": "QUEUED",
        "createTime": "2026-05-01T12:00:00Z",
    }
    return NewBuild(document=document, request={}, expires_at=NOW)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "server.db"


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    server = running_postgres()
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request: pytest.FixtureRequest, path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{path}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.make_database()


class TestLockedSqlite:
    def test_a_lock_that_stays_is_reported(self, path: Path) -> None:
        store = open_store(f"sqlite:///{path}", busy_timeout_s=0.1)
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked by another process") as refused:
            store.builds.create(new_build("a1"))
        assert str(path) in str(refused.value)
        assert "INSERT" not in str(refused.value)
        assert store.builds.page("p").builds == ()  # readers go on
        holder.execute("ROLLBACK")
        assert store.builds.create(new_build("a1")).id == "a1"
        holder.close()
        store.close()

    def test_a_lock_that_goes_is_waited_for(self, path: Path) -> None:
        store = open_store(f"sqlite:///{path}")
        holder = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        holder.execute("BEGIN IMMEDIATE")
        threading.Timer(0.3, lambda: holder.execute("ROLLBACK")).start()
        assert store.builds.create(new_build("a1")).id == "a1"
        holder.close()
        store.close()


class TestDurability:
    def test_sqlite_writes_through_to_the_disk(self, path: Path) -> None:
        database = Database(f"sqlite:///{path}")
        migrate(database)
        with database.write() as connection:
            pragmas = {
                name: connection.execute(text(f"PRAGMA {name}")).scalar()
                for name in ("journal_mode", "synchronous", "foreign_keys")
            }
        assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
        database.close()

    def test_only_the_user_reads_the_files(self, path: Path) -> None:
        before = os.umask(0)
        try:
            store = open_store(f"sqlite:///{path}")
            store.builds.create(new_build("a1"))
            modes = {one.name: stat.S_IMODE(one.stat().st_mode) for one in path.parent.iterdir()}
            store.close()
        finally:
            os.umask(before)
        assert modes == dict.fromkeys(("server.db", "server.db-wal", "server.db-shm"), 0o600)

    def test_what_was_answered_for_survives_a_kill(self, address: str) -> None:
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITE_ON, address], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        written = [writer.stdout.readline().strip() for _ in range(20)]
        writer.send_signal(signal.SIGKILL)
        written += writer.stdout.read().split()
        writer.stdout.close()
        writer.wait()
        store = open_store(address)
        kept = {build.id for build in store.builds.page("p", page_size=1000).builds}
        assert kept >= set(written)
        assert len(kept) <= len(written) + 1
        assert store.queue.length() == len(kept)
        store.close()

    def test_a_full_disk_is_reported_and_spoils_nothing(self, path: Path) -> None:
        open_store(f"sqlite:///{path}").close()
        done = subprocess.run(
            [sys.executable, "-c", FILL, f"sqlite:///{path}", str(path.stat().st_size + 100_000)],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        said, _, written = done.stdout.partition("\n")
        assert said.startswith(f"the database {path} ")
        assert "disk" in said
        store = open_store(f"sqlite:///{path}")
        kept = {build.id for build in store.builds.page("p", page_size=1000).builds}
        assert kept == set(written.split())
        assert kept
        store.builds.create(new_build("more"))
        store.close()


WRITE_ON = """
import itertools, sys
from tests.contract.test_server_store_faults import new_build, open_store

store = open_store(sys.argv[1])
for number in itertools.count():
    store.builds.create(new_build(f"a{number}"))
    print(f"a{number}", flush=True)
"""

# A file that can't grow is to a program what a full disk is.
FILL = """
import resource, signal, sys
from buildrunner.errors import StoreUnavailable
from tests.contract.test_server_store_faults import new_build, open_store

store = open_store(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
kept = []
try:
    while True:
        kept.append(store.builds.create(new_build(f"a{len(kept)}")).id)
except StoreUnavailable as error:
    print(error)
print(*kept)
"""


class TestLostPostgres:
    def test_a_restart_between_two_calls_is_not_noticed(self) -> None:
        server = running_postgres()
        try:
            store = open_store(server.make_database())
            store.builds.create(new_build("a1"))
            server.stop()
            server.start()
            assert store.builds.get("p", "a1").id == "a1"
            server.stop(at_once=True)
            with pytest.raises(StoreUnavailable, match="does not answer"):
                store.builds.get("p", "a1")
            server.start()
            claimed = store.queue.claim("w", now=NOW, lease_s=1, limit=1)
            assert claimed is not None
            store.close()
        finally:
            server.remove()

    def test_a_connection_that_breaks_in_mid_call_is_one_clear_error(
        self, postgres: PostgresServer
    ) -> None:
        address = postgres.make_database()
        store = open_store(address)
        database = postgres.name(address)

        def throw_out() -> None:
            with store._database.write() as connection:
                postgres.sql(
                    "postgres",
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    f" WHERE datname = '{database}'",
                )
                connection.execute(text("SELECT 1"))

        with pytest.raises(StoreUnavailable, match="does not answer"):
            throw_out()
        assert store.builds.create(new_build("a1")).id == "a1"
        store.close()

    def test_rows_that_stay_locked_are_reported(self, postgres: PostgresServer) -> None:
        address = postgres.make_database()
        holder, store = Database(address), open_store(address, busy_timeout_s=0.1)
        store.builds.create(new_build("a1"))
        with holder.write() as connection:
            connection.execute(text("SELECT * FROM builds FOR UPDATE"))
            with pytest.raises(StoreUnavailable, match="locked by another process"):
                store.builds.request_cancel("p", "a1", now=NOW)
            # A claim passes over what somebody else is just changing.
            assert store.queue.claim("w", now=NOW, lease_s=1, limit=1) is None
        assert store.builds.request_cancel("p", "a1", now=NOW).status == "CANCELLED"
        holder.close()
        store.close()

    @pytest.mark.parametrize(
        ("database", "said"),
        [("nothing", "is not there"), ("postgres&port=1", "does not answer")],
    )
    def test_a_database_that_is_not_there_is_reported(
        self, postgres: PostgresServer, database: str, said: str
    ) -> None:
        name, _, more = database.partition("&")
        with pytest.raises(StoreError, match=said):
            open_store(f"{postgres.address(name)}&{more}")

    def test_no_message_holds_the_password(
        self, postgres: PostgresServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        plain = "hunter2-%"
        addresses = [
            f"postgresql://tests:{PASSWORD}@/nothing?host={postgres.folder}",
            f"postgres://tests:{PASSWORD}@127.0.0.1:1/x",
            f"postgresql+psycopg://tests:{PASSWORD}@nowhere.invalid/x?connect_timeout=2",
            f"mysql://tests:{PASSWORD}@127.0.0.1/x",
            f"postgresql://tests:{PASSWORD}@127.0.0.1:port/x",
            f"sqlite://tests:{PASSWORD}@/x",
            f"{PASSWORD}",
        ]
        caplog.set_level(0)
        for address in addresses:
            with pytest.raises(BuildrunnerError) as refused:
                open_store(address)
            said = f"{refused.value} {refused.value.hint} {refused.value!r} {caplog.text}"
            assert plain not in said
            assert PASSWORD not in said


class TestAddress:
    @pytest.mark.parametrize(
        "address",
        ["", "server.db", "sqlite://", "sqlite:///:memory:", "sqlite:////x?mode=ro", "http://x/y"],
    )
    def test_other_forms_are_refused(self, address: str) -> None:
        with pytest.raises(UsageError) as refused:
            open_store(address)
        assert "sqlite:////folder/server.db" in refused.value.hint

    def test_forms_that_are_known(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert parse_url("sqlite:////a/b.db").database == "/a/b.db"
        assert parse_url("sqlite:///b.db").database == f"{tmp_path}/b.db"
        for name in ("postgres", "postgresql", "postgresql+psycopg"):
            assert parse_url(f"{name}://h/d").drivername == "postgresql+psycopg"

    def test_a_path_with_odd_letters_is_a_path(self, tmp_path: Path) -> None:
        folder = tmp_path / "a b%20ü#1"
        store = open_store(f"sqlite:///{folder}/server.db")
        store.ping()
        store.close()
        assert (folder / "server.db").exists()

    def test_a_place_that_can_not_be_is_reported(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("not a folder")
        for place in ("file/server.db", "."):
            with pytest.raises(StoreError, match="can't be opened"):
                open_store(f"sqlite:///{tmp_path}/{place}")

    def test_a_file_that_is_no_database_is_reported(self, path: Path) -> None:
        path.write_bytes(b"something else altogether" * 100)
        with pytest.raises(StoreError, match="is not a database"):
            open_store(f"sqlite:///{path}")
        assert path.read_bytes().startswith(b"something else")


# What a database of each revision may hold: rows as that revision's program wrote them.
BUILD_0001 = {
    "id": "old",
    "project_id": "p",
    "location": "global",
    "request_id": "r",
    "status": "QUEUED",
    "phase": "waiting",
    "create_time": 1_777_636_800_000_000,
    "start_time": None,
    "finish_time": None,
    "ended_at": None,
    "trigger_id": "",
    "priority": 0,
    "group_name": "",
    "group_limit": 0,
    "expires_at": 4_102_444_800_000_000,
    "worker": "",
    "process": "",
    "fence": 0,
    "lease_until": None,
    "attempts": 0,
    "cancel_requested": False,
    "push": True,
    "untrusted": False,
    "labels": b"{}",
    "document": b'{"id":"old","projectId":"p","status":"QUEUED",'
    b'"createTime":"2026-05-01T12:00:00Z","tags":["t"]}',
    "request": b"{}",
}
ROWS: dict[str, dict[str, list[dict[str, Any]]]] = {
    "": {},
    "0001": {
        "builds": [BUILD_0001],
        "build_tags": [{"build_id": "old", "tag": "t"}],
        "plans": [{"build_id": "old", "plan": b"{}"}],
        "triggers": [
            {
                "project_id": "p",
                "id": "t1",
                "name": "a",
                "location": "global",
                "document": b'{"id":"t1","name":"a"}',
            }
        ],
        "tokens": [
            {
                "name": "ci",
                "hash_hex": "ab",
                "scopes": b'["read"]',
                "projects": b"[]",
                "create_time": 1_777_636_800_000_000,
                "revoke_time": None,
            }
        ],
        "audit_log": [
            {
                "at": 1_777_636_800_000_000,
                "who": "ci",
                "action": "x",
                "target": "p",
                "outcome": "ok",
                "address": "",
            }
        ],
    },
}
ROWS["0002"] = {
    **ROWS["0001"],
    "build_tags": [
        {"build_id": "old", "tag": "t", "project_id": "p", "create_time": BUILD_0001["create_time"]}
    ],
}
ROWS["0003"] = ROWS["0002"]
ROWS["0004"] = ROWS["0003"]
ROWS["0005"] = ROWS["0004"]
ROWS["0006"] = ROWS["0005"]
ROWS["0007"] = ROWS["0006"]
ROWS["0008"] = ROWS["0007"]
ROWS["0009"] = ROWS["0008"]
ROWS["0010"] = ROWS["0009"]
ROWS["0011"] = ROWS["0010"]
ROWS["0012"] = ROWS["0011"]
ROWS["0013"] = ROWS["0012"]
ROWS["0014"] = ROWS["0013"]
ROWS["0015"] = ROWS["0014"]
ROWS["0016"] = ROWS["0015"]
ROWS["0017"] = ROWS["0016"]
ROWS["0018"] = ROWS["0017"]
ROWS["0019"] = ROWS["0018"]
ROWS["0020"] = ROWS["0019"]
ROWS["0021"] = ROWS["0020"]
ROWS["0022"] = ROWS["0021"]
ROWS["0023"] = ROWS["0022"]
ROWS["0024"] = ROWS["0023"]
ROWS["0025"] = ROWS["0024"]
ROWS["0026"] = ROWS["0025"]


def check_rows(store: ServerStore) -> None:
    """What `ROWS` holds is there, by the store's own words."""
    assert store.builds.get("p", "old").document["tags"] == ["t"]
    assert [one.id for one in store.builds.page("p", filter="tags=t").builds] == ["old"]
    assert store.builds.plan("old") == b"{}"
    assert store.triggers.get("p", "a") == {"id": "t1", "name": "a"}
    token = AccessToken(name="ci", hash_hex="ab", scopes=("read",), create_time=NOW)
    assert store.tokens.all() == [token]
    assert [entry.who for entry in store.audit.page()] == ["ci"]
    claimed = store.queue.claim("w", now=NOW, lease_s=1, limit=1)
    assert claimed is not None
    assert claimed[0].id == "old"


class TestMigrations:
    def test_every_revision_is_known_in_its_order(self) -> None:
        script = ScriptDirectory.from_config(alembic_config())
        walked = [one.revision for one in script.walk_revisions()]
        assert tuple(reversed(walked)) == REVISIONS
        assert set(ROWS) == {"", *REVISIONS}

    @pytest.mark.parametrize("revision", ["", *REVISIONS])
    def test_an_older_database_is_brought_up_to_date(self, address: str, revision: str) -> None:
        database = Database(address)
        if revision:
            migrate(database, to=revision)
        with database.write() as connection:
            tables = MetaData()
            tables.reflect(connection)
            for name, rows in ROWS[revision].items():
                connection.execute(insert(tables.tables[name]), rows)
        database.close()
        store = open_store(address)
        if revision:
            check_rows(store)
        assert store.builds.create(new_build("new")).id == "new"
        store.close()

    def test_a_build_that_waits_for_a_kept_workspace_stays_with_its_server(
        self, address: str
    ) -> None:
        database = Database(address)
        migrate(database, to="0021")
        row = {**BUILD_0001, "only_worker": "w", "labels": b'{"from_build":"a0"}'}
        with database.write() as connection:
            tables = MetaData()
            tables.reflect(connection)
            connection.execute(insert(tables.tables["builds"]), [row])
        database.close()
        store = open_store(address)
        requested: dict[str, Any] = {"now": NOW, "lease_s": 1, "limit": 1}
        scope = ClaimScope(servers=("another",))
        assert store.queue.claim("worker:w1/host", scope=scope, **requested) is None
        assert store.queue.claim("w", **requested) is not None
        store.close()

    def test_what_deliveries_said_of_repositories_is_not_trusted_but_told(
        self, address: str
    ) -> None:
        database = Database(address)
        migrate(database, to="0012")

        def trigger(name: str, **fields: object) -> dict[str, object]:
            document = msgspec.json.encode({"id": name, "name": name, **fields})
            row = {"project_id": "p", "id": name, "name": name, "location": "global"}
            return {**row, "document": document}

        def github(name: str) -> dict[str, str]:
            return {"owner": "Acme", "name": name}

        def told(name: str, forge: str, url: str) -> dict[str, str]:
            row = {"repository": f"addresses of {name}", "ref": forge, "seen_by": "delivery 1"}
            return {**row, "commit_sha": url}

        with database.write() as connection:
            tables = MetaData()
            tables.reflect(connection)
            connection.execute(
                insert(tables.tables["triggers"]),
                [
                    trigger("at-gitea", github=github("app")),
                    trigger("at-github", github=github("lib")),
                    trigger("at-both", github=github("both")),
                    trigger("never", github=github("never")),
                    trigger("nested", gitlabEnterpriseEventsConfig={"projectNamespace": "g/s/a"}),
                    trigger(
                        "stash", bitbucketServerTriggerConfig={"projectKey": "P", "repoSlug": "r"}
                    ),
                    trigger("bare", repositoryEventConfig={"repository": "bare"}),
                ],
            )
            settings = msgspec.json.encode({"jitter": "1s"})
            row = {"project_id": "p", "trigger_id": "at-gitea", "settings": settings}
            connection.execute(insert(tables.tables["trigger_settings"]), [row])
            connection.execute(
                insert(tables.tables["known_refs"]),
                [
                    told("acme/app", "gitea", "https://git.example.com/acme/app.git"),
                    told("acme/lib", "github", "https://github.com/acme/lib.git"),
                    told("acme/both", "github", "https://github.com/acme/both.git"),
                    told("acme/both", "gitlab", "https://evil.example.com/acme/both.git"),
                    told("g/s/a", "gitlab", "https://host/gitlab/g/s/a.git"),
                    told("p/r", "bitbucket-server", "https://bb.example.com/scm/p/r.git"),
                    told("bare", "git", "file:///srv/bare.git"),
                    {**told("x", "y", "c"), "repository": "github.com/acme/lib"},
                ],
            )
            delivery = {
                "received_at": 0,
                "status": "handled",
                "headers": b"{}",
                "body": b"",
                "address": "",
                "attempts": 1,
                "replays": 0,
                "outcome": b"{}",
            }
            hooks = [{**delivery, "hook": hook} for hook in ("git/Bare", "gitea", "git/other")]
            connection.execute(insert(tables.tables["deliveries"]), hooks)
        database.close()
        store = open_store(address)
        guesses = {one.document["id"]: one.settings.get("forge") for one in store.triggers.every()}
        guessed = {"unconfirmed": True}
        assert guesses == {
            "at-gitea": {"kind": "gitea", "host": "https://git.example.com", **guessed},
            "at-github": None,
            "at-both": None,
            "never": None,
            "nested": {"kind": "gitlab", "host": "https://host/gitlab", **guessed},
            "stash": {"kind": "bitbucket-server", "host": "https://bb.example.com", **guessed},
            "bare": None,
        }
        assert store.triggers.settings("p", "at-gitea")["jitter"] == "1s"
        assert store.hooks.all() == {"git/Bare": {"repository": "file:///srv/bare.git"}}
        problems = trigger_problems(store, RepositoryNames())
        assert [one.partition(" of project")[0] for one in problems[:3]] == [
            "trigger at-gitea", "trigger nested", "trigger stash"
        ]  # fmt: skip
        assert "update at-gitea --forge gitea --forge-host https://git.example.com" in problems[0]
        assert problems[3:] == [unbound("gitea")]
        store.close()

    def test_waiting_messages_of_notifiers_keep_their_build_as_a_change(self, address: str) -> None:
        database = Database(address)
        migrate(database, to="0017")
        held = {"notifier": {}, "facts": {"build": {"id": "b", "status": "SUCCESS"}}, "key": "k"}
        row = {
            "lane": "l",
            "kind": "notify",
            "project_id": "p",
            "build_id": "b",
            "target": "t",
            "message": msgspec.json.encode(held),
            "created_at": 0,
            "next_try": 0,
            "attempts": 0,
            "last_error": "",
            "state": "waiting",
            "claim": 0,
            "claimed_until": 0,
        }
        with database.write() as connection:
            tables = MetaData()
            tables.reflect(connection)
            rows = [{**row, "key": f"notify/7/{name}"} for name in ("one", "two")]
            connection.execute(insert(tables.tables["outbox"]), rows)
        database.close()
        store = open_store(address)
        (first,) = store.outbox.claim(now=NOW, lease_s=60, limit=9)
        assert first.message == {"notifier": "one", "receiver": ""}
        assert store.outbox.changed_build(first.change_id) == {"id": "b", "status": "SUCCESS"}
        assert store.outbox.changes(limit=9) == []
        store.close()

    def test_the_migrations_make_the_tables_that_the_code_expects(self, address: str) -> None:
        database = Database(address)
        migrate(database)
        with database.read() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert compare_metadata(context, metadata) == []
        database.close()

    def test_a_newer_database_is_refused_untouched(self, address: str) -> None:
        open_store(address).close()
        database = Database(address)
        with database.write() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        with pytest.raises(StoreError, match="version 9999, which is newer") as refused:
            open_store(address)
        assert "backup" in refused.value.hint
        with database.read() as connection:
            found = connection.execute(text("SELECT version_num FROM alembic_version"))
            assert found.scalars().all() == ["9999"]
        database.close()

    def test_a_migration_that_fails_leaves_the_old_tables(
        self, address: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise RuntimeError("broken in mid upgrade")

        with monkeypatch.context() as patched:
            patched.setattr("secrets.token_bytes", fail)  # the last thing that 0001 does
            with pytest.raises(RuntimeError):
                open_store(address)
        database = Database(address)
        with database.read() as connection:
            tables = MetaData()
            tables.reflect(connection)
            assert set(tables.tables) == set()
        database.close()
        store = open_store(address)
        store.ping()
        store.close()
