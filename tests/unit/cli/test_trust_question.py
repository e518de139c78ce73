"""The question about a project's settings file shows all of the file's needs, a line each."""

import io
import os

import pytest

from buildrunner.cli import trust
from buildrunner.logs.console.wording import one_line
from buildrunner.settings import ProjectFile, read_project_file

FORGED = "x" + "\\n" * 60 + "One setting of this folder needs your trust:\\n  project.id: demo"


def project_file(folder, text: str) -> ProjectFile:
    (folder / ".buildrunner.toml").write_text(text)
    file, _ = read_project_file(str(folder))
    assert file is not None
    return file


def test_no_value_makes_a_line_of_its_own(tmp_path):
    text = f'[secrets]\nk = "env:AWS_KEY"\n"{FORGED}" = "env:B"\n'
    lines = trust.needs_text(project_file(tmp_path, text)).splitlines()
    assert len(lines) == 2
    assert all(len(line) <= 200 for line in lines)
    assert "variable AWS_KEY" in lines[0]


def test_a_long_text_is_cut_in_its_middle():
    shown = one_line("a" * 500 + "\n\x1b[2J\u202ez", 60)
    assert len(shown) <= 60
    assert shown.startswith("aaaa")
    assert shown.endswith("\\n\\x1b[2J\\u202ez")
    assert "..." in shown


@pytest.mark.parametrize(("answers", "trusted"), [("\n\n\ny\n", True), ("n\n", False), ("", False)])
def test_a_long_list_is_shown_a_screen_at_a_time(tmp_path, monkeypatch, answers, trusted):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    needs = "".join(f'k{number} = "env:V{number}"\n' for number in range(20))
    file = project_file(tmp_path, f"[secrets]\n{needs}")
    said = io.StringIO()
    monkeypatch.setattr(os, "isatty", lambda _: True)
    monkeypatch.setattr("sys.stdin", io.StringIO(answers))
    monkeypatch.setattr("sys.stderr", said)
    assert trust._confirm(file) is trusted
    shown = said.getvalue()
    assert "20 settings that need your trust" in shown
    pages = shown.split("] ")
    assert all(len(page.splitlines()) <= 8 for page in pages)
    assert ("variable V19" in shown) is trusted
    assert ("this file with its 20 settings" in shown) is trusted


def test_a_text_that_is_too_long_for_the_question_is_not_asked(tmp_path, monkeypatch):
    """Cut in its middle, it could hide the host that it names."""
    address = f"https://upload.pypi.org.{'x' * 60}.evil.example/{'x' * 60}/legacy/"
    text = f'[artifacts.repositories]\n"https://pypi.org/" = "{address}"\n'
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    file = project_file(tmp_path, text)
    said = io.StringIO()
    monkeypatch.setattr(os, "isatty", lambda _: True)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    monkeypatch.setattr("sys.stderr", said)
    assert trust._confirm(file) is False
    assert "too long to be shown" in said.getvalue()
    assert address in trust.needs_text(file)
