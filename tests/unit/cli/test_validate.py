"""``buildrunner validate``: many files, four formats, one exit code."""

from __future__ import annotations

import io
import json
import sys

import pytest

from buildrunner.cli.main import main

GOOD = "steps: [{name: busybox}]\n"
BAD = "steps:\n- name: busybox\n  args: [$HOME]\n"
WARNED = "steps: [{name: busybox}]\nimages: ['i:$TAG_NAME']\n"


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(**texts):
        for name, text in texts.items():
            path = tmp_path / (name.replace("__", "/") + ".yaml")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


def test_good_files_exit_0(files, capsys):
    files(a=GOOD, b=GOOD)
    assert main(["validate", "a.yaml", "b.yaml"]) == 0
    assert capsys.readouterr().out == "2 files checked, no problems\n"


def test_any_error_exits_2_and_every_file_is_checked(files, capsys):
    files(a=BAD, b=GOOD, c=BAD)
    assert main(["validate", "a.yaml", "b.yaml", "nope.yaml", "c.yaml"]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        'error: a.yaml:3:10: steps[0].args[0]: key in the template "HOME" is not a valid built-in '
        "substitution; write $$HOME if it is the shell's [V18]"
    )
    assert lines[1] == (
        "error: nope.yaml: unable to read the file: No such file or directory [unreadable]"
    )
    assert lines[2].startswith("error: c.yaml:3:10: ")
    assert lines[3] == "4 files checked, 3 errors"


def test_warnings_are_errors_only_with_strict(files, capsys):
    files(a=WARNED)
    assert main(["validate", "a.yaml"]) == 0
    assert capsys.readouterr().out.endswith("1 file checked, 1 warning\n")
    assert main(["validate", "--strict", "a.yaml"]) == 2
    assert capsys.readouterr().out.endswith("1 file checked, 1 error\n")


def test_folders_are_searched_for_configs(files, capsys):
    files(cloudbuild=GOOD, other=BAD, sub__cloudbuild_release=BAD, _hidden__x=GOOD)
    files(**{".git__cloudbuild": BAD, "node_modules__p__cloudbuild": BAD, "x__CloudBuild": BAD})
    assert main(["validate"]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[1].strip() for line in lines[:-1]] == [
        "sub/cloudbuild_release.yaml",
        "x/CloudBuild.yaml",
    ]
    assert lines[-1] == "3 files checked, 2 errors"


def test_a_folder_without_configs_is_a_mistake(files, capsys):
    files(empty__other=GOOD)
    assert main(["validate", "empty"]) == 2
    assert "there is no config in empty" in capsys.readouterr().err


def test_standard_input_is_a_file_too(monkeypatch, capsys):
    stdin = io.TextIOWrapper(io.BytesIO(BAD.encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert main(["validate", "-"]) == 2
    assert capsys.readouterr().out.startswith("error: <stdin>:3:10: ")


def test_substitutions_from_outside(files, capsys):
    files(a="steps: [{name: 'busybox:$_T'}]\n")
    assert main(["validate", "a.yaml"]) == 2
    assert main(["validate", "a.yaml", "--substitutions", "_T=1"]) == 0
    assert main(["validate", "a.yaml", "--substitutions", "_T=1,_U=2"]) == 2
    assert main(["validate", "a.yaml", "--triggered"]) == 0  # the trigger may give it
    capsys.readouterr()


def test_a_flag_that_is_no_substitution_is_a_usage_error(files, capsys):
    files(a=GOOD)
    assert main(["validate", "a.yaml", "--substitutions", "_T"]) == 2
    assert "KEY=VALUE" in capsys.readouterr().err


def test_triggered_builds_have_the_repositorys_variables(files, capsys):
    files(a="steps: [{name: 'busybox:$SHORT_SHA'}]\nsubstitutions: {_UNUSED: '${TAG_NAME#v}'}\n")
    assert main(["validate", "a.yaml", "--triggered", "--strict"]) == 0
    assert main(["validate", "a.yaml"]) == 2
    capsys.readouterr()


def test_json_has_every_field_of_a_problem(files, capsys):
    files(a=BAD)
    assert main(["validate", "a.yaml", "--format", "json"]) == 2
    assert json.loads(capsys.readouterr().out) == {
        "files": 1,
        "problems": [
            {
                "message": 'key in the template "HOME" is not a valid built-in substitution',
                "path": "steps[0].args[0]",
                "file": "a.yaml",
                "line": 3,
                "column": 10,
                "hint": "write $$HOME if it is the shell's",
                "rule": "V18",
                "severity": "error",
            }
        ],
    }


def test_github_annotations_are_escaped(files, capsys):
    files(**{"a,b": 'steps: [{name: busybox, env: ["100%\\n::error::x"]}]\n'})
    assert main(["validate", "a,b.yaml", "--format", "github"]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("::error file=a%2Cb.yaml,line=1,col=31,title=V30::steps[0].env[0]: ")
    assert "100%25\\n::error::x" in lines[0]


def test_sarif_has_what_its_schema_requires(files, capsys):
    files(**{"a b": BAD, "w": WARNED})
    assert main(["validate", "a b.yaml", "w.yaml", "nope.yaml", "--format", "sarif"]) == 2
    log = json.loads(capsys.readouterr().out)
    assert log["version"] == "2.1.0"
    assert log["$schema"].endswith("sarif-schema-2.1.0.json")
    (run,) = log["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"] == "buildrunner"
    rules = [rule["id"] for rule in driver["rules"]]
    assert len(set(rules)) == len(rules)
    assert [result["level"] for result in run["results"]] == ["error", "warning", "error"]
    for result in run["results"]:
        assert result["message"]["text"]
        assert rules[result["ruleIndex"]] == result["ruleId"]
        (location,) = result["locations"]
        physical = location["physicalLocation"]
        assert " " not in physical["artifactLocation"]["uri"]
        region = physical.get("region", {"startLine": 1, "startColumn": 1})
        assert region["startLine"] >= 1
        assert region["startColumn"] >= 1


def test_a_config_can_not_write_to_the_terminal(files, capsys):
    files(a='steps: [{name: "\\e[2Jx y"}]\n')
    assert main(["validate", "a.yaml"]) == 2
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert r"\x1b[2J" in out


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_colour_is_for_terminals_that_want_it(files, monkeypatch, no_color, coloured):
    files(a=BAD)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("NO_COLOR", no_color)
    assert main(["validate", "a.yaml"]) == 2
    assert ("\x1b[31merror\x1b[0m: \x1b[1ma.yaml:3:10\x1b[0m: " in terminal.getvalue()) is coloured
    assert ("\x1b" in terminal.getvalue()) is coloured


def test_a_terminal_that_lacks_a_character_gets_an_escape(files, monkeypatch):
    files(a="steps: [{name: 'ä " + "x" * 300 + "'}]\n")
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="ascii"))
    assert main(["validate", "a.yaml"]) == 2
    assert b"\\xe4" in buffer.getvalue()
