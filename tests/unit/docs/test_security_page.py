"""Each statement of the page on security ends with the tests that prove it, and they exist."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from buildrunner.server.http.tokens import SCOPES, WORKER

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "explanation" / "security.md"
SERVER_PAGE = ROOT / "docs" / "how-to" / "server.md"
NAMED = re.compile(r"`([a-z0-9]+/[\w/]+)::([\w:]+)`")
TESTS = rf"{NAMED.pattern}(?:,\s+{NAMED.pattern})*"
LEAD = re.compile(rf"(?:.*{NAMED.pattern}\.\s)?[^.`]*:", re.DOTALL)


def statements(text: str) -> list[str]:
    """The paragraphs, list items and cells of tables of a page, without its title."""
    blocks = re.split(r"\n\s*\n|\n(?=[-#|] ?)", text)
    found = []
    for block in map(str.strip, blocks[1:]):
        if block.startswith("|"):
            cells = [cell.strip() for cell in block.strip("|").split("|")]
            is_head = cells[0] in ("scope", "who") or set(block) <= {"|", "-"}
            found += [] if is_head else cells[1:]
        elif block and not block.startswith("#"):
            found.append(block)
    return found


@cache
def ends_with_tests(statement: str) -> bool:
    return re.search(rf"{TESTS}\.?\Z", statement) is not None


@cache
def leads_to_a_list(statement: str) -> bool:
    return LEAD.fullmatch(statement) is not None


def unproved(text: str) -> list[str]:
    """The statements of a page that do not end with the names of tests.

    The words that lead to a list, which end with a colon, are proved by its items.
    """
    return [
        one
        for one in statements(text)
        if not ends_with_tests(one) and not (leads_to_a_list(one) and f"{one}\n\n- " in text)
    ]


def test_a_statement_ends_with_its_tests() -> None:
    assert unproved(PAGE.read_text()) == []


@pytest.mark.parametrize("number", range(len(statements(PAGE.read_text()))))
def test_a_statement_without_its_tests_is_found(number: int) -> None:
    text = PAGE.read_text()
    statement = statements(text)[number]
    without = re.sub(rf":?\s*{TESTS}\.?$", ".", statement)
    if without == statement:  # it leads to a list
        without = f"{statement} Another statement."
    assert unproved(text.replace(statement, without, 1)) == [without]


@cache
def names_in(module: str) -> set[str]:
    """The classes and functions of a module of tests."""
    tree = ast.parse((ROOT / "tests" / f"{module}.py").read_text())
    return {
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }


@pytest.mark.parametrize(("module", "name"), sorted(set(NAMED.findall(PAGE.read_text()))))
def test_a_test_that_is_named_exists(module: str, name: str) -> None:
    assert set(name.split("::")) <= names_in(module)


def test_the_scopes_of_the_page_on_servers_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", SERVER_PAGE.read_text(), re.MULTILINE)
    scopes = (*SCOPES, WORKER)
    told = dict(rows[: len(scopes)])
    assert set(told) == set(scopes)
    assert "root on the server's machine" in told["submit"]
