"""Logs of builds that want none kept go, a moment after their end, and no others."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from buildrunner.engine.log.pipeline import LogChunk
from buildrunner.errors import NotFound, StoreError
from buildrunner.logs.files.log_file import LogFileSink, log_folder
from buildrunner.logs.files.reader import LogFileReader
from buildrunner.logs.files.retention import GRACE, UnkeptLogs, check_not_removed

NOW = datetime(2024, 5, 31, 12, tzinfo=UTC)


def log_of(data, build_id):
    sink = LogFileSink(log_folder(str(data), build_id))
    sink.write(LogChunk(b"hello\n", None, NOW))
    sink.close()
    return LogFileReader(log_folder(str(data), build_id))


def test_only_those_of_logging_none_go_and_only_after_a_moment(tmp_path):
    silent, kept = log_of(tmp_path, "silent"), log_of(tmp_path, "kept")
    logs = UnkeptLogs(str(tmp_path))
    logs.ended({"id": "silent", "options": {"logging": "NONE"}}, NOW)
    logs.ended({"id": "kept", "options": {"logging": "GCS_ONLY"}}, NOW)
    logs.ended({"id": "kept"}, NOW)
    assert logs.remove_due(NOW + GRACE - timedelta(seconds=1)) == []
    assert silent.size() == 6
    assert logs.remove_due(NOW + GRACE) == ["silent"]
    assert logs.remove_due(NOW + GRACE) == []
    assert (silent.size(), kept.size()) == (0, 6)
    with pytest.raises(NotFound, match="its options say logging: NONE"):
        check_not_removed(log_folder(str(tmp_path), "silent"), "silent")


def test_what_can_not_be_removed_is_tried_again(tmp_path):
    logs = UnkeptLogs(str(tmp_path))
    logs.ended({"id": "b", "options": {"logging": "NONE"}}, NOW)
    (tmp_path / "logs").write_text("in the way")
    with pytest.raises(StoreError, match="can't be removed"):
        logs.remove_due(NOW + GRACE)
    Path(tmp_path / "logs").unlink()
    log_of(tmp_path, "b")
    assert logs.remove_due(NOW + GRACE) == ["b"]
