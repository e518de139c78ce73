"""The dashboard in a real browser, on a real server."""

import subprocess
from pathlib import Path

import pytest
from playwright.sync_api import Error, expect

from tests.conftest import program
from tests.log_servers import log_server
from tests.web.browser import chromium, complaints_of

AXE = "axe-core@4.14.1"
_HERE = Path(__file__).parent
_ON_ITS_WAY = ("Execution context was destroyed", "Access is denied for this document")

# On a busy machine a page may wait for a processor longer than Playwright's five seconds.
expect.set_options(timeout=30_000)


@pytest.hookimpl(tryfirst=True)  # before ``-m`` chooses
def pytest_collection_modifyitems(items):
    """A browser is nothing for the quick tests, and breaks off when networks come and go."""
    for item in items:
        if item.path.parent == _HERE:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.alone)


# Not longer than a module: while Playwright lives, no other test can start an event loop.
@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server whose builds the test writes."""
    with log_server(str(tmp_path_factory.mktemp("server"))) as server:
        yield server


def persistent(page):
    """The page's ``goto``, which leaves when all of it is there.

    A network of the machine that comes or goes, as with each build on it, makes a browser break
    off what it loads. One with a window tries the page again by itself, and the page its parts.
    """
    goto = page.goto

    def go(*arguments, **options):
        while True:
            try:
                response = goto(*arguments, **options)
            except Error as error:
                if "net::ERR_NETWORK_CHANGED" not in error.message:
                    raise
                continue
            while not page.url.startswith("chrome-error:"):  # it may load itself again
                if _is_whole(page):
                    return response

    return go


def _is_whole(page):
    try:
        return page.evaluate("sessionStorage.getItem('arrival') === null")
    except Error as error:
        if not any(sign in error.message for sign in _ON_ITS_WAY):
            raise
        return False


@pytest.fixture
def new_page(browser):
    """Makes pages; afterwards none of them may have had anything to complain about."""
    contexts, complaints = [], []

    def make(**options):
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 800}, **options})
        contexts.append(context)
        page = context.new_page()
        page.goto = persistent(page)
        complaints.append(complaints_of(page))
        return page

    yield make
    for context in contexts:
        context.close()
    assert [text for found in complaints for text in found] == []


@pytest.fixture
def page(new_page):
    return new_page()


@pytest.fixture(scope="session")
def axe(tmp_path_factory):
    """The source of axe-core, from npm."""
    folder = tmp_path_factory.mktemp("axe")
    argv = [program("npm", "npm"), "install", "--no-save", "--no-audit", "--no-fund", AXE]
    subprocess.run(argv, cwd=folder, check=True, capture_output=True)
    return (folder / "node_modules/axe-core/axe.min.js").read_text()
