"""Each statement of the page on security names tests, and they are there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "explanation" / "security.md"
NAMED = re.compile(r"`((?:security|unit|contract|server)/[\w/]+)::([\w:]+)`")


def statements() -> list[str]:
    """The list items below the headings that say what an actor can't do."""
    text = PAGE.read_text().partition("\n## ")[2]
    return re.findall(r"^- (.*?)(?=\n- |\n\n)", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("statement", statements(), ids=lambda text: text[:60])
def test_a_statement_names_its_tests(statement: str) -> None:
    assert NAMED.search(statement), statement


@pytest.mark.parametrize(("module", "name"), sorted(set(NAMED.findall(PAGE.read_text()))))
def test_a_test_that_is_named_exists(module: str, name: str) -> None:
    tree = ast.parse((ROOT / "tests" / f"{module}.py").read_text())
    names = {
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    assert set(name.split("::")) <= names
