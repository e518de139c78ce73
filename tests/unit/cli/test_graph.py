"""``buildrunner graph``: a config drawn, on the terminal or into a file."""

from __future__ import annotations

import io
import sys
from xml.etree import ElementTree as ET

import pytest

from buildrunner.cli.main import main

CONFIG = """\
steps:
- {name: busybox, id: a, args: [$_UNKNOWN]}
- {name: busybox, id: b, waitFor: ['-']}
- {name: busybox, id: c}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cloudbuild.yaml").write_text(CONFIG)
    return tmp_path


def test_the_config_of_this_folder_is_drawn_as_text(capsys):
    assert main(["graph"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "3 steps, the longest chain has 2",
        "",
        "●    0  a  busybox  $_UNKNOWN",
        "│ ●  1  b  busybox",
        "├─╯",
        "●    2  c  busybox",
    ]
    assert captured.err == (
        "cloudbuild.yaml has 1 error: see `buildrunner validate cloudbuild.yaml`\n"
    )


def test_an_output_that_can_not_draw_gets_ascii(monkeypatch):
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="latin-1"))
    assert main(["graph"]) == 0
    assert b"| *  1  b  busybox\n+-'\n*    2  c" in buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "start"), [("g.svg", "<svg"), ("g.MMD", "flow"), ("g.txt", "3 st")]
)
def test_the_ending_tells_the_format(folder, name, start):
    assert main(["graph", "cloudbuild.yaml", "-o", name]) == 0
    assert (folder / name).read_text().startswith(start)


def test_a_format_on_standard_output(capsys):
    assert main(["graph", "--format", "svg"]) == 0
    root = ET.fromstring(capsys.readouterr().out)
    assert root.tag.endswith("svg")


def test_standard_input(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(CONFIG.encode())))
    assert main(["graph", "-", "--format", "mermaid"]) == 0
    assert "s1 --> s2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("steps: [{name: a, waitFor: [b]}]", "which has not been defined"),
        ("steps: []", "no build steps"),
        ("steps: [", "not valid YAML"),
        ("stps: []", "steps"),
    ],
)
def test_what_makes_no_graph_is_an_error(folder, capsys, config, words):
    (folder / "cloudbuild.yaml").write_text(config)
    assert main(["graph"]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["nope.yaml"], ["."], ["cloudbuild.yaml", "-o", "no/such/folder.svg"]]
)
def test_files_that_can_not_be_used(capsys, arguments):
    assert main(["graph", *arguments]) == 2
    assert "unable to" in capsys.readouterr().err
