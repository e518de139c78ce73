"""The pages that are made from the code are up to date, complete, and name real tests."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
TESTS = ROOT / "tests"
sys.path.insert(0, str(DOCS))

import generate  # noqa: E402
from pages import (  # noqa: E402
    behaviours,
    cli,
    compatibility,
    engines,
    events,
    layers,
    rules,
    settings,
)

from buildrunner import errors  # noqa: E402
from buildrunner.builders.catalog import BUILDERS  # noqa: E402
from buildrunner.builders.host_settings import PROXY_VARIABLES  # noqa: E402
from buildrunner.spec.model import stands  # noqa: E402
from buildrunner.spec.model.stands import Stand  # noqa: E402

FOUND = behaviours.load(DOCS / "behaviours.toml")


def text_of(page: str) -> str:
    return (DOCS / page).read_text()


@pytest.mark.parametrize("name", sorted(generate.PAGES))
def test_a_page_is_what_the_code_says(name):
    assert text_of(name) == generate.written(name), "run: make docs"


def test_every_command_and_flag_is_in_the_docs():
    page = text_of("reference/cli.md")
    missing = []
    for name, parser in cli.parsers().items():
        pending = [parser, *(below for below, _ in cli.subcommands(parser).values())]
        flags = (
            flag for one in pending for action in one._actions for flag in action.option_strings
        )
        missing += [f"{name} {flag}" for flag in flags if f"`{flag}" not in page]
    assert [one for one in missing if not one.endswith(("--help", " -h"))] == []


def test_every_flag_and_argument_has_a_help_text_that_names_its_default():
    found = []
    for name, parser in cli.parsers().items():
        for one in (parser, *(below for below, _ in cli.subcommands(parser).values())):
            for action in filter(cli._is_shown, one._actions):
                text = action.help or ""
                if not text or re.search(r"\((?:[0-9]+|no limit|nested|tokens)\)", text):
                    found.append(f"{name} {action.metavar or action.dest}: {text!r}")
    assert found == []


def test_every_key_of_the_settings_has_a_text():
    assert set(settings.texts(DOCS / "settings.toml")["keys"]) == set(settings.keys())


def test_every_environment_variable_has_a_text():
    said = settings.texts(DOCS / "settings.toml")["environment"]
    documented = {name for group in said.values() for name in group}
    from_tables = {name for builder in BUILDERS for name in builder.settings} | {*PROXY_VARIABLES}
    assert (variables_read() | from_tables) - documented == set()


def variables_read() -> set[str]:
    """Every name that the code asks an ``environ`` for in so many words."""
    found = set()
    for module in (ROOT / "buildrunner").rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            name = None
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                if node.func.attr == "get" and "environ" in ast.unparse(node.func.value):
                    name = node.args[0]
            elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
                name = node.slice if "environ" in ast.unparse(node.value) else None
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                found.add(name.value)
    return found


def test_every_rule_has_a_text_and_every_text_a_rule():
    described = [rule for one in rules.texts(DOCS / "rules.toml").values() for rule in one]
    assert sorted(described) == sorted(rules.rules_in_code())


def test_every_event_is_in_the_docs():
    page = text_of("reference/events.md")
    assert [word for word in events.kinds() if f"### {word}\n" not in page] == []


def test_every_error_is_in_the_docs():
    page = text_of("reference/exit-codes.md")
    found = vars(errors).values()
    kinds = [one for one in found if isinstance(one, type) and issubclass(one, Exception)]
    names = [one.__name__ for one in kinds if one.__subclasses__() or "Error" in one.__name__]
    names.remove("BuildrunnerError")
    assert [name for name in names if f"`{name}`" not in page] == []


def test_every_field_that_is_implemented_names_a_test():
    proved = {name for entry in FOUND.fields for name in entry.names}
    silent = [
        field.key
        for field in compatibility.build_fields()
        if field.verdict.stand is Stand.IMPLEMENTED and not field.output and field.key not in proved
    ]
    assert silent == []


def test_only_fields_that_there_are_are_named():
    known = {one.key for one in compatibility.build_fields() + compatibility.trigger_fields()}
    named = {name for entry in FOUND.fields for name in entry.names}
    tables = stands._RECORDED | stands._DIFFERS | stands._NEVER_SET
    assert (named | set(tables)) - known == set()


def test_every_behaviour_has_a_known_stand_and_a_test():
    assert [one.what for one in FOUND.behaviours if one.stand not in behaviours.STANDS] == []
    assert [one.what for one in FOUND.behaviours if not one.tests] == []


def test_every_open_point_is_decided():
    numbers = [number for number in range(1, 45) if number != 39]
    assert [point.id for point in FOUND.open_points] == [f"O-{number}" for number in numbers]
    assert [point.id for point in FOUND.open_points if not point.tests] == []


@cache
def body_of(module: Path) -> list[ast.stmt]:
    """The statements of a module of tests."""
    return ast.parse(module.read_text()).body


@pytest.mark.parametrize("name", sorted(set(FOUND.all_tests())))
def test_a_test_that_is_named_exists(name):
    if name.startswith("corpus/"):
        assert [*TESTS.glob(f"{name}.yaml"), *TESTS.glob(f"{name}.json")]
        return
    file, *parts = name.split("::")
    if not parts:
        assert (TESTS / file / "expected.json").is_file()
        return
    body = body_of(TESTS / f"{file}.py")
    for part in parts:
        kinds = (ast.FunctionDef, ast.ClassDef)
        found = [one for one in body if isinstance(one, kinds) and one.name == part]
        assert found, f"{part} is not in {file}.py"
        body = found[0].body


@pytest.mark.parametrize("start", [start for row in engines.CAPABILITIES for start in row.tests])
def test_a_capability_of_engines_has_tests(start):
    """``start`` begins names as ``tests.contract.test_x.TestY.test_z[parameter]``."""
    words = start.split("[")[0].rstrip(".").split(".")
    length = next(at for at, word in enumerate(words) if word.startswith("test_")) + 1
    file = ROOT.joinpath(*words[:length]).with_suffix(".py")
    body = body_of(file)
    for word in words[length:]:
        kinds = (ast.FunctionDef, ast.ClassDef)
        found = [one for one in body if isinstance(one, kinds) and one.name.startswith(word)]
        assert found, f"{word} is not in {file.name}"
        body = found[0].body


def test_the_table_of_engines_has_every_engine_that_is_tested():
    names = subprocess.run(
        [ROOT / "scripts" / "engines.sh", "--list"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert sorted(tomllib.loads(text_of("engines.toml"))) == sorted(names)


def test_the_architecture_page_names_modules_that_exist():
    named = set(re.findall(r"`([\w/]+\.py)`", text_of("explanation/architecture.md")))
    assert len(named) > 40
    assert [path for path in sorted(named) if not (ROOT / "buildrunner" / path).is_file()] == []


def test_the_layers_are_drawn_with_every_package():
    drawn = {name for layer in layers.layers(ROOT / "pyproject.toml") for name in layer}
    assert set(layers.rooms(ROOT / "buildrunner")) <= drawn


PACKAGES = sorted(init.parent for init in (ROOT / "buildrunner").rglob("__init__.py"))
NOT_MODULES = {"command", "filter"}  # a module of each command; a parameter of the API


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_that_a_package_docstring_names_exist(package):
    docstring = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
    missing = []
    for name in set(re.findall(r"(?<!`)`([a-z_.]+)`(?!`)", docstring)) - NOT_MODULES:
        path = name.replace(".", "/")
        places = (package / path, ROOT / "buildrunner" / path)
        if not any(one.is_dir() or one.with_suffix(".py").is_file() for one in places):
            missing.append(name)
    assert missing == []


def test_no_page_is_without_a_place_in_the_manual():
    index = text_of("index.md")
    pages = {str(path.relative_to(DOCS))[:-3] for path in DOCS.rglob("*.md")}
    pages = {page for page in pages if not page.startswith(("_build", "decisions/0"))} - {"index"}
    listed = set(re.findall(r"^[\w-]+/[\w-]+$", index, re.MULTILINE))
    assert pages == listed
