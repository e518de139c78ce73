"""The page on which somebody decides about a fork's pull request."""

import pytest
from playwright.sync_api import expect

from buildrunner.sources.policy import SourcePolicy
from tests.api_server import api_server
from tests.security.test_approvals import Place
from tests.server.test_forge_api import Forge
from tests.web.browser import serious_findings

PHONE = {"width": 375, "height": 800}


@pytest.fixture
def place(tmp_path):
    forge = Forge()
    try:
        with api_server(tmp_path, auth=True, sources=SourcePolicy(private=True)) as server:
            yield Place(server, forge)
    finally:
        forge.close()


def test_a_fork_s_pull_request_is_judged_on_its_page(page, place, axe):
    place.trigger()
    build = place.comment(title="Faster " * 40)
    server = place.server
    page.goto(f"{server.url}/login?next=/builds/p/{build}")
    page.get_by_label("Token").fill(server.token("alice", "read", "approve"))
    page.get_by_role("button", name="Sign in").click()
    card = page.locator("#decide")
    expect(card.get_by_role("heading")).to_have_text("Code of a fork, mallory/app by mallory")
    expect(card).to_contain_text("It gets no secret")
    expect(page.locator("dl.facts .fork")).to_be_visible()
    expect(page.get_by_role("link", name="#7")).to_have_attribute(
        "href", f"{place.forge.url}/acme/app/pulls/7"
    )
    assert serious_findings(page, axe) == []
    page.set_viewport_size(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.get_by_label("Comment").fill("read all of it")
    page.get_by_role("button", name="Approve").click()
    expect(page.locator("dl.facts")).to_contain_text("by alice: read all of it")
    expect(card).to_have_count(0)
