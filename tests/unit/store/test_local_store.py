"""The embedded store: files, migrations, several processes."""

import os
import sqlite3
import subprocess
import sys

import pytest

from buildrunner.containers.process_owner import is_alive, pid_of, this_process
from buildrunner.errors import StoreError
from buildrunner.store.local import DATABASE_NAME, LocalBuildStore


def test_only_the_user_can_read_it(tmp_path):
    LocalBuildStore(str(tmp_path / "data")).close()
    assert (tmp_path / "data").stat().st_mode & 0o077 == 0


def test_a_store_of_a_newer_version_is_left_alone(tmp_path):
    LocalBuildStore(str(tmp_path)).close()
    with sqlite3.connect(tmp_path / DATABASE_NAME) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreError, match="newer buildrunner"):
        LocalBuildStore(str(tmp_path))


def test_a_file_that_is_no_database_is_a_sentence(tmp_path):
    (tmp_path / DATABASE_NAME).write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match="can't be used") as caught:
        LocalBuildStore(str(tmp_path))
    assert "XDG_DATA_HOME" in caught.value.hint


def test_a_folder_that_can_not_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="Not a directory") as caught:
        LocalBuildStore(str(tmp_path / "file" / "data"))
    assert caught.value.hint == "point XDG_DATA_HOME to a folder that this user may write to"


def test_several_processes_may_make_the_store_at_once(tmp_path):
    code = (
        "import sys; from buildrunner.store.local import LocalBuildStore as S\n"
        "s = S(sys.argv[1]); n = sys.argv[2]\n"
        "s.create({'id': n, 'status': 'SUCCESS', 'createTime': n}, owner='')\n"
    )
    argv = [sys.executable, "-c", code, str(tmp_path / "data")]
    processes = [subprocess.Popen([*argv, str(n)], stderr=subprocess.PIPE) for n in range(8)]
    for process in processes:
        _, complaint = process.communicate(timeout=60)
        assert process.returncode == 0, complaint.decode()
    store = LocalBuildStore(str(tmp_path / "data"))
    assert len(store.find()) == 8
    store.close()


def test_this_process_is_alive():
    assert is_alive(this_process())
    assert pid_of(this_process()) == os.getpid()


def test_the_same_number_with_another_start_is_another_process():
    assert not is_alive(f"{os.getpid()}:12345@00000000")
    assert not is_alive(f"{os.getpid()}:")


def test_a_process_that_ended_but_was_not_waited_for_is_dead():
    code = "from buildrunner.containers.process_owner import this_process; print(this_process())"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    owner = process.stdout.readline().strip()
    process.stdout.read()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(owner)
    process.communicate()
