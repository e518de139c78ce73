"""Old logs go, newer ones stay, and whoever asks for an old one is told."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from buildrunner.engine.log.pipeline import LogChunk
from buildrunner.errors import NotFound
from buildrunner.logs.files.log_file import LogFileSink, log_folder
from buildrunner.logs.files.reader import LogFileReader
from buildrunner.logs.files.retention import LogRetention, check_not_removed, remove_old_logs

NOW = datetime(2024, 5, 31, 12, tzinfo=UTC)


def log_of(data, build_id, *, days_ago, size=1000):
    folder = log_folder(str(data), build_id)
    sink = LogFileSink(folder)
    sink.write(LogChunk(b"x" * (size - 1) + b"\n", None, NOW))
    sink.close()
    changed = (NOW - timedelta(days=days_ago)).timestamp()
    for path in Path(folder).iterdir():
        os.utime(path, (changed, changed))


def size_of(data, build_id):
    return LogFileReader(log_folder(str(data), build_id)).size()


def test_logs_older_than_the_limit_go(tmp_path):
    for days in (40, 31, 29, 1):
        log_of(tmp_path, f"b{days}", days_ago=days)
    rules = LogRetention(max_age=timedelta(days=30))
    ended = ["b40", "b31", "b29", "b1"]
    assert remove_old_logs(str(tmp_path), ended, rules, now=NOW) == ["b40", "b31"]
    assert [size_of(tmp_path, one) for one in ended] == [0, 0, 1000, 1000]
    assert remove_old_logs(str(tmp_path), ended, rules, now=NOW) == []


def test_the_oldest_go_until_the_rest_is_small_enough(tmp_path):
    for days in (3, 2, 1):
        log_of(tmp_path, f"b{days}", days_ago=days, size=10_000)
    log_of(tmp_path, "running", days_ago=9, size=10_000)
    rules = LogRetention(max_bytes=21_000)
    assert remove_old_logs(str(tmp_path), ["b3", "b2", "b1"], rules, now=NOW) == ["b3", "b2"]
    assert size_of(tmp_path, "running") == 10_000


def test_a_removed_log_says_when_and_why(tmp_path):
    log_of(tmp_path, "b1", days_ago=40)
    check_not_removed(log_folder(str(tmp_path), "b1"), "b1")
    remove_old_logs(str(tmp_path), ["b1"], LogRetention(max_age=timedelta(days=30)), now=NOW)
    with pytest.raises(NotFound, match=r"b1 was removed on 2024-05-31: it is older than 30 days"):
        check_not_removed(log_folder(str(tmp_path), "b1"), "b1")


def test_builds_without_a_log_are_no_matter(tmp_path):
    rules = LogRetention(max_age=timedelta(days=1), max_bytes=1)
    assert remove_old_logs(str(tmp_path), ["gone"], rules, now=NOW) == []
