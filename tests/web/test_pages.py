"""The pages, on `buildrunner serve` with builds that run in containers."""

import re
import subprocess

import pytest
from playwright.sync_api import expect

from buildrunner.containers.engine_protocol import LABEL_BUILD, LABEL_STEP
from tests.web.browser import serious_findings
from tests.web.serving import serving

pytestmark = pytest.mark.docker

PROJECT = "shop"
WAITS = "echo waiting; until [ -e /workspace/go ]; do sleep 0.05; done; echo went on"


# Nobody listens there: the page of notifications has reasons to show.
NOTIFIER = {
    "apiVersion": "buildrunner/v1",
    "kind": "HTTPNotifier",
    "metadata": {"name": "hook"},
    "spec": {
        "notification": {
            "filter": 'build.status == Build.Status.FAILURE && "nightly" in build.tags',
            "delivery": {"url": "http://127.0.0.1:1/" + "long/" * 30},
        }
    },
}


@pytest.fixture(scope="module")
def server(tmp_path_factory, docker_engine):
    with serving(tmp_path_factory.mktemp("serve"), "--sandbox", "host") as server:
        yield server


@pytest.fixture(scope="module")
def failed(server, busybox):
    """A build of three steps whose second one fails."""
    build = {
        "steps": [
            {"name": busybox, "id": "compile", "script": "echo compiled"},
            {
                "name": busybox,
                "id": "unit",
                "script": "echo one passes; echo 'test_cart: expected 3, got 4' >&2; exit 7",
                "env": ["LEVEL=<b>1</b>"],
            },
            {"name": busybox, "id": "publish", "script": "echo never"},
        ],
        "substitutions": {"_NOTE": "<script>window.pwned = 1</script>"},
        "options": {"substitutionOption": "ALLOW_LOOSE"},
        "tags": ["nightly"],
    }
    path = f"/buildrunner/v1/projects/{PROJECT}/notifiers/hook"
    assert server.http.put(path, json=NOTIFIER).status_code == 200
    build_id = server.create(PROJECT, build)
    assert server.ended(PROJECT, build_id) == "FAILURE"
    return build_id


@pytest.fixture
def signed_in(new_page, server):
    """Makes pages of somebody who is signed in."""

    def make(**options):
        page = new_page(**options)
        page.goto(f"{server.url}/builds?project={PROJECT}")
        page.get_by_label("Token").fill(server.token)
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("heading", name="Builds")).to_be_visible()
        return page

    return make


def address(server, build_id, rest=""):
    return f"{server.url}/builds/{PROJECT}/{build_id}{rest}"


def let_go(docker_engine, build_id):
    [container] = docker_engine.list_owned({LABEL_BUILD: build_id, LABEL_STEP: "0"}).containers
    subprocess.run(["docker", "exec", container, "touch", "/workspace/go"], check=True)


def test_signing_in_keeps_the_token_where_no_script_reads_it(signed_in, server, failed):
    page = signed_in()
    assert page.url == f"{server.url}/builds?project={PROJECT}"
    [cookie] = page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Lax", "/")
    assert page.evaluate("document.cookie") == ""
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Token")).to_be_visible()
    assert page.context.cookies() == []
    page.goto(address(server, failed))
    expect(page.get_by_label("Token")).to_be_visible()


def test_a_wrong_token_does_not_sign_in(page, server):
    page.goto(f"{server.url}/login")
    page.get_by_label("Token").fill("brt_wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_have_text("This token is unknown or was revoked.")
    assert page.context.cookies() == []


def test_a_form_that_is_not_of_the_session_is_refused(signed_in, server, failed):
    page = signed_in()
    for form in ({}, {"csrf": "0" * 64}):
        answer = page.request.post(address(server, failed, "/retry"), form=form)
        assert answer.status == 403
    answer = page.request.post(
        f"{server.url}/v1/projects/{PROJECT}/builds", data={"steps": [{"name": "busybox"}]}
    )
    assert answer.status in (401, 403)  # the cookie opens what is read, and nothing else


def test_the_reason_of_a_failure_stands_on_top(signed_in, server, failed):
    page = signed_in()
    page.get_by_role("link", name=failed[:8]).click()
    failure = page.locator("#failure")
    expect(failure).to_be_in_viewport()
    expect(failure.get_by_role("heading").first).to_contain_text("#1 unit exited with 7")
    expect(failure.locator("pre")).to_contain_text("test_cart: expected 3, got 4")
    failure.get_by_role("link", name="All of its log").click()
    expect(page.locator("#log[data-ready]")).to_be_attached()
    expect(page.locator(".row", has_text="test_cart: expected 3, got 4")).to_be_in_viewport()
    page.keyboard.press("e")
    expect(page.locator("#told")).to_contain_text("end of a step that failed")


def test_what_a_build_brings_along_is_nothing_but_text(signed_in, server, failed):
    page = signed_in()
    page.goto(address(server, failed, "?view=inputs"))
    expect(page.locator("#view")).to_contain_text("<script>window.pwned = 1</script>")
    assert page.evaluate("window.pwned") is None


def test_a_running_build_is_live_on_its_page_and_in_its_log(
    signed_in, server, busybox, docker_engine
):
    steps = [{"name": busybox, "script": WAITS}, {"name": busybox, "script": "echo second"}]
    build_id = server.create(PROJECT, {"steps": steps})
    page, log = signed_in(), signed_in()
    page.goto(address(server, build_id))
    log.goto(address(server, build_id, "/log"))
    expect(page.locator("#head .badge")).to_contain_text("working", timeout=30_000)
    expect(log.locator(".row", has_text="waiting")).to_be_visible(timeout=30_000)
    expect(page.locator("#step-0 .badge")).to_contain_text("working")
    let_go(docker_engine, build_id)
    expect(log.locator(".row", has_text="second")).to_be_in_viewport(timeout=30_000)
    expect(page.locator("#head .badge")).to_contain_text("success", timeout=30_000)
    expect(page.locator("#step-1 .badge")).to_contain_text("success")
    expect(log.locator("h1 .badge")).to_contain_text("success")


def test_a_build_is_cancelled_and_run_again_from_its_page(
    signed_in, server, busybox, docker_engine
):
    build_id = server.create(PROJECT, {"steps": [{"name": busybox, "script": WAITS}]})
    page = signed_in()
    page.goto(address(server, build_id))
    expect(page.locator("#step-0 .badge")).to_contain_text("working", timeout=30_000)
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#head .badge")).to_contain_text("cancelled", timeout=30_000)
    page.get_by_role("button", name="Run again").click()
    expect(page).not_to_have_url(address(server, build_id))
    assert page.url.startswith(f"{server.url}/builds/{PROJECT}/")
    expect(page.locator("#head")).to_contain_text(build_id[:8])
    expect(page.locator("#step-0 .badge")).to_contain_text("working", timeout=30_000)
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#head .badge")).to_contain_text("cancelled", timeout=30_000)


def test_a_build_that_waits_for_approval_is_approved_on_its_page(signed_in, server, busybox):
    build = {"steps": [{"name": busybox, "script": "echo ok"}]}
    trigger = {"name": "deploy", "build": build, "approvalConfig": {"approvalRequired": True}}
    made = server.http.post(f"/v1/projects/{PROJECT}/triggers", json=trigger)
    assert made.status_code == 200, made.text
    ran = server.http.post(f"/v1/projects/{PROJECT}/triggers/{made.json()['id']}:run", json={})
    assert ran.status_code == 200, ran.text
    build_id = ran.json()["metadata"]["build"]["id"]
    page = signed_in()
    page.goto(address(server, build_id))
    expect(page.locator("#head .badge")).to_contain_text("pending")
    page.get_by_label("Comment").fill("looks good")
    page.get_by_role("button", name="Approve").click()
    expect(page.locator("#head .badge")).to_contain_text("success", timeout=30_000)


def test_a_list_shows_new_builds_by_itself(signed_in, server, failed, busybox):
    page = signed_in()
    page.clock.install()
    page.goto(f"{server.url}/builds?project={PROJECT}")
    build_id = server.create(PROJECT, {"steps": [{"name": busybox, "script": "echo new"}]})
    page.clock.fast_forward(20_000)
    expect(page.get_by_role("link", name=build_id[:8])).to_be_visible()


def test_what_could_not_be_told_is_seen_with_its_reason(signed_in, server, failed):
    page = signed_in()
    page.goto(f"{server.url}/builds?project={PROJECT}")
    page.get_by_role("link", name="Notifications").click()
    page.goto(f"{server.url}/outbox?project={PROJECT}&build={failed}")
    row = page.get_by_role("row").filter(has_text="hook: HTTPNotifier to 127.0.0.1").last
    expect(row).to_contain_text("inside the server's network")
    page.on("dialog", lambda dialog: dialog.accept())
    row.get_by_role("button", name="Send now").click()
    expect(page.get_by_role("row").filter(has_text=failed[:8])).to_contain_text("waiting")


PAGES = (
    "/login",
    f"/builds?project={PROJECT}",
    "BUILD",
    "BUILD?view=waterfall",
    "BUILD?view=graph",
    "BUILD?view=inputs",
    "BUILD?view=results",
    "BUILD/log",
    f"/triggers?project={PROJECT}",
    f"/trends?project={PROJECT}",
    f"/outbox?project={PROJECT}",
    "/system",
)


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(signed_in, server, failed, axe, path, scheme):
    page = signed_in(color_scheme=scheme)
    page.goto(server.url + path.replace("BUILD", f"/builds/{PROJECT}/{failed}"))
    if path.endswith("/log"):
        expect(page.locator("#log[data-ready] .row .x").first).to_be_visible()
    assert serious_findings(page, axe) == []


@pytest.mark.parametrize("path", PAGES)
def test_a_phone_shows_everything_without_scrolling_sideways(signed_in, server, failed, path):
    page = signed_in(viewport={"width": 375, "height": 700}, has_touch=True, is_mobile=True)
    page.goto(server.url + path.replace("BUILD", f"/builds/{PROJECT}/{failed}"))
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


@pytest.mark.parametrize("path", PAGES)
def test_a_page_weighs_little_and_is_one_request_beside_its_files(signed_in, server, failed, path):
    page = signed_in()
    page.goto(server.url + path.replace("BUILD", f"/builds/{PROJECT}/{failed}"))
    page.wait_for_load_state("load")
    if path.endswith("/log"):
        expect(page.locator("#log[data-ready]")).to_be_attached()
    loaded = page.evaluate(
        """['navigation', 'resource'].flatMap(kind => performance.getEntriesByType(kind))
          .map(entry => [new URL(entry.name).pathname, entry.decodedBodySize])"""
    )
    weight = sum(size for _, size in loaded)
    print(f"{path}: {weight:,} bytes")
    assert weight < 150_000
    others = [name for name, _ in loaded[1:] if not name.startswith("/static/")]
    assert path.endswith("/log") or others == []


def test_dark_mode_is_dark(signed_in, server):
    colours = {}
    for scheme in ("light", "dark"):
        page = signed_in(color_scheme=scheme)
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        colours[scheme] = sum(int(part) for part in re.findall(r"\d+", colour)[:3])
    assert colours["light"] > 600
    assert colours["dark"] < 150
