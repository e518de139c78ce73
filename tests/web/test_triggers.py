"""The pages of triggers and deliveries: run by hand, switch off and on, handle again."""

import hashlib
import hmac
import json

import pytest
from playwright.sync_api import expect

from buildrunner.server.events.handling import DeliveryHandler
from buildrunner.server.events.loop import DeliveryLoop
from tests.api_server import api_server
from tests.web.browser import serious_findings

SECRET = "It's a Secret to Everybody"
BUILD = {"steps": [{"name": "busybox", "args": ["echo", "$_WHOM"]}], "substitutions": {}}
BY_HAND = {"name": "greet", "build": BUILD, "substitutions": {"_WHOM": "world"}}
ON_PUSH = {
    "name": "main-only",
    "github": {"owner": "acme", "name": "app", "push": {"branch": "^main$"}},
    "build": {"steps": [{"name": "busybox"}]},
}
PUSH = {
    "ref": "refs/heads/dev",
    "before": "a" * 40,
    "after": "b" * 40,
    "repository": {"full_name": "acme/app", "clone_url": "https://github.com/acme/app.git"},
    "pusher": {"name": "<b>eve</b>"},
    "head_commit": {"id": "b" * 40, "message": "<script>window.pwned = 1</script>"},
    "commits": [],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with api_server(tmp_path_factory.mktemp("server")) as server:
        server.hook("github", SECRET, owners=["acme"])
        yield server


@pytest.fixture(scope="module")
def greet(server):
    return server.http.post("/v1/projects/p/triggers", json=BY_HAND).json()["id"]


@pytest.fixture(scope="module")
def delivery(server):
    """Number of a push to a branch that no trigger wants."""
    made = server.http.post("/v1/projects/p/triggers", json=ON_PUSH)
    assert made.status_code == 200, made.text
    body = json.dumps(PUSH).encode()
    signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    headers = {
        "X-GitHub-Event": "push",
        "X-GitHub-Delivery": "1234",
        "X-Hub-Signature-256": f"sha256={signature}",
    }
    answer = server.http.post("/hooks/github", content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    handle(server)
    return answer.json()["delivery"]


def handle(server):
    """Handle what waits, as the loop of a server does."""
    loop = DeliveryLoop(server.context, DeliveryHandler(server.context))
    while loop.turn():
        pass


def test_a_trigger_is_run_by_hand_with_values(page, server, greet):
    page.goto(f"{server.url}/triggers?project=p")
    page.get_by_role("link", name="greet").click()
    values = page.get_by_label("Values")
    expect(values).to_have_value("_WHOM=world\n")
    values.fill("_WHOM=everybody")
    page.get_by_role("button", name="Run").click()
    expect(page.locator("#build-title .badge")).to_contain_text("queued")
    page.get_by_role("link", name="Inputs").click()
    row = page.get_by_role("row", name="_WHOM")
    expect(row).to_contain_text("everybody")
    page.goto(f"{server.url}/triggers/p/{greet}")
    expect(page.locator("table.list tbody tr")).to_have_count(1)


def test_values_that_are_none_are_refused_on_the_page(page, server, greet):
    page.goto(f"{server.url}/triggers/p/{greet}")
    page.get_by_label("Values").fill("lower=case")
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_role("alert")).to_contain_text("lower")
    assert f"/triggers/p/{greet}" in page.url


def test_a_trigger_is_switched_off_and_on(page, server, greet):
    page.goto(f"{server.url}/triggers/p/{greet}")
    page.get_by_role("button", name="Disable").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("disabled")
    assert server.http.get(f"/v1/projects/p/triggers/{greet}").json()["disabled"] is True
    page.get_by_role("button", name="Enable").click()
    expect(page.get_by_role("button", name="Disable")).to_be_visible()
    assert not server.http.get(f"/v1/projects/p/triggers/{greet}").json().get("disabled")


def test_a_trigger_is_made_changed_and_deleted_on_its_pages(page, server):
    page.goto(f"{server.url}/triggers?project=p")
    page.get_by_role("link", name="New trigger").click()
    page.get_by_role("link", name="nothing: it is run by hand").click()
    text = page.get_by_label("The trigger, as YAML or JSON")
    text.fill("name: fresh\nbuild:\n  stepz: []\n")
    page.get_by_role("button", name="Create").click()
    expect(page.get_by_role("alert")).to_contain_text("line:3:3")
    expect(page.get_by_role("alert")).to_contain_text("stepz")
    expect(text).to_have_value("name: fresh\nbuild:\n  stepz: []\n")
    text.fill("name: fresh\nbuild:\n  steps:\n  - name: busybox\n")
    page.get_by_role("button", name="Create").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("fresh")
    page.get_by_role("link", name="Edit").click()
    text.fill(text.input_value().replace("fresh", "fresher"))
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("fresher")
    with page.expect_download() as download:
        page.get_by_role("link", name="Export").first.click()
    assert download.value.path().read_text().startswith("name: fresher")
    page.get_by_text("Delete this trigger").click()
    page.get_by_role("button", name="Delete fresher").click()
    expect(page).to_have_url(f"{server.url}/triggers?project=p")
    expect(page.get_by_role("link", name="fresher")).to_have_count(0)


def test_a_trial_tells_rule_by_rule_whether_a_trigger_would_fire(page, server, delivery):
    page.goto(f"{server.url}/triggers?project=p")
    page.get_by_role("link", name="main-only").click()
    page.get_by_label("Push or pull request of").fill("dev")
    page.get_by_role("button", name="Ask").click()
    verdict = page.locator(".verdict")
    expect(verdict).to_contain_text("It would not fire")
    page.get_by_label("Push or pull request of").fill("main")
    page.get_by_role("button", name="Ask").click()
    expect(verdict).to_contain_text("It would fire")


def test_settings_beside_a_trigger_are_set_on_its_page(page, server, greet):
    page.goto(f"{server.url}/triggers/p/{greet}")
    page.get_by_text("Schedule, concurrency, approval").click()
    page.get_by_label("Jitter").fill("soon")
    page.get_by_role("button", name="Save settings").click()
    expect(page.locator("main")).to_contain_text("no duration")
    page.get_by_role("link", name="Back").click()
    page.get_by_text("Schedule, concurrency, approval").click()
    page.get_by_label("Jitter").fill("300s")
    page.get_by_label("Limit").fill("2")
    page.get_by_label("While the last one runs").select_option("skip")
    page.get_by_label("not the author").check()
    page.get_by_role("button", name="Save settings").click()
    expect(page.get_by_label("Jitter")).to_have_value("300s")
    path = f"/buildrunner/v1/projects/p/triggers/{greet}/settings"
    assert server.http.get(path).json() == {
        "jitter": "300s",
        "overlap": "skip",
        "concurrency": {"limit": 2},
        "approval": {"notAuthor": True},
    }


def test_the_page_of_a_trigger_has_its_deliveries_and_replays_them(page, server, delivery):
    page.goto(f"{server.url}/triggers?project=p")
    page.get_by_role("link", name="main-only").click()
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name=str(delivery)))
    expect(row.first).to_contain_text("did not fire")
    row.first.get_by_role("button", name="Replay").click()
    expect(page).to_have_url(f"{server.url}/deliveries/{delivery}")
    handle(server)


def test_a_delivery_tells_why_nothing_fired_and_is_handled_again(page, server, delivery):
    page.goto(f"{server.url}/deliveries")
    page.get_by_role("link", name=str(delivery), exact=True).click()
    verdict = page.locator("section.card", has_text="main-only")
    expect(verdict).to_contain_text("did not fire")
    expect(verdict.locator("ol.rules")).to_contain_text("✗")
    expect(verdict.locator("ol.rules")).to_contain_text("dev")
    page.get_by_text("As it came").click()
    expect(page.locator("pre.lines")).to_contain_text("<script>window.pwned = 1</script>")
    assert page.evaluate("window.pwned") is None
    with page.expect_navigation():  # a click does not wait for what its form asks for
        page.get_by_role("button", name="Handle it again").click()
    handle(server)
    page.reload()
    expect(page.locator("dl.facts")).to_contain_text("Replayed")
    expect(page.locator("dl.facts")).to_contain_text("times")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    "path", ["/triggers?project=p", "/triggers/p/TRIGGER", "/deliveries", "/deliveries/DELIVERY"]
)
def test_axe_finds_nothing_serious(new_page, server, greet, delivery, axe, path, scheme):
    page = new_page(color_scheme=scheme)
    path = path.replace("TRIGGER", greet).replace("DELIVERY", str(delivery))
    page.goto(server.url + path)
    assert serious_findings(page, axe) == []
    page.set_viewport_size({"width": 375, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
