"""The pages, on `buildrunner serve` with builds that run in containers."""

import re
from urllib.parse import quote

import pytest
from playwright.sync_api import expect

from tests.chaos.kill_bench import let_go
from tests.web.browser import serious_findings
from tests.web.serving import serving

pytestmark = pytest.mark.docker

PROJECT, PUBLIC = "shop", "open"
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
    folder = tmp_path_factory.mktemp("serve")
    (folder / "config/buildrunner").mkdir(parents=True)
    (folder / "config/buildrunner/config.toml").write_text(
        f'[storage.folders]\n"gs://shop" = "file://{folder}/bucket"\n'
    )
    public = ("--public-project", PUBLIC)
    with serving(folder, "--sandbox", "host", *public) as server:
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


def sign_in(page, server):
    page.goto(f"{server.url}/builds?project={PROJECT}")
    page.get_by_label("Token").fill(server.token)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Builds")).to_be_visible()


@pytest.fixture(scope="module")
def session():
    """The cookies of somebody who is signed in, from the first test that needs them."""
    return {}


@pytest.fixture
def signed_in(new_page, server, session):
    """Makes pages of somebody who is signed in, at a path of the server."""

    def make(path=f"/builds?project={PROJECT}", **options):
        if not session:
            page = new_page()
            sign_in(page, server)
            session.update(page.context.storage_state())
        page = new_page(storage_state=session, **options)
        page.goto(server.url + path)
        return page

    return make


def at(build_id, rest=""):
    return f"/builds/{PROJECT}/{build_id}{rest}"


def address(server, build_id, rest=""):
    return server.url + at(build_id, rest)


def test_signing_in_keeps_the_token_where_no_script_reads_it(page, server, failed):
    sign_in(page, server)
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
    # The page asks last for the lines of each step; before that, the key goes to what looks like
    # an error.
    with page.expect_request_finished(lambda request: request.url.endswith("/log/steps")):
        failure.get_by_role("link", name="All of its log").click()
    expect(page.locator("#log[data-ready]")).to_be_attached()
    expect(page.locator(".row", has_text="test_cart: expected 3, got 4")).to_be_in_viewport()
    page.keyboard.press("e")
    expect(page.locator("#told")).to_contain_text("end of a step that failed")


def test_the_first_error_leads_to_its_line_in_the_log(signed_in, server, failed):
    page = signed_in(at(failed))
    error = page.locator("#failure pre.numbered .hit")
    expect(error).to_have_text("test_cart: expected 3, got 4")
    number = page.locator("#failure .where a").inner_text().removeprefix("line ")
    page.locator("#failure .where a").click()
    row = page.locator(".row.chosen")
    expect(row.locator(".n")).to_have_text(number)
    expect(row).to_contain_text("test_cart: expected 3, got 4")
    expect(row).to_be_in_viewport()


def test_a_build_goes_on_from_the_step_that_failed(signed_in, server, busybox):
    steps = [
        {"name": busybox, "id": "compile", "script": "date +%N > compiled; echo compiling"},
        {
            "name": busybox,
            "id": "unit",
            "script": "cat compiled; echo try >> tries; [ $(wc -l < tries) = 2 ] || exit 4",
        },
    ]
    build_id = server.create(PROJECT, {"steps": steps})
    assert server.ended(PROJECT, build_id) == "FAILURE"
    page = signed_in(at(build_id))
    page.get_by_role("button", name="Run again from #1").click()
    expect(page.locator("#head")).to_contain_text("It goes on from step unit of")
    expect(page.locator("#build-title .badge")).to_contain_text("success")
    expect(page.locator("ol.steps > li")).to_have_count(2)  # the first was run by the other build
    attempts = page.locator(".attempts a")
    expect(attempts).to_have_count(2)
    expect(attempts.nth(0)).to_contain_text("failure")
    expect(attempts.nth(1)).to_contain_text("from unit")
    attempts.nth(0).click()
    expect(page).to_have_url(address(server, build_id))


def test_what_changed_since_a_success_is_told_and_compared(signed_in, server, busybox):
    step = {"name": busybox, "id": "check", "script": "[ $_MODE = good ]", "env": ["_MODE=$_MODE"]}
    trigger = {"name": "compare", "build": {"steps": [step]}, "substitutions": {"_MODE": "good"}}
    path = f"/v1/projects/{PROJECT}/triggers"
    trigger_id = server.http.post(path, json=trigger).json()["id"]

    def run(mode):
        source = {"substitutions": {"_MODE": mode}}
        made = server.http.post(f"{path}/{trigger_id}:run", json=source).json()
        build_id = made["metadata"]["build"]["id"]
        server.ended(PROJECT, build_id)
        return build_id

    green, red = run("good"), run("bad")
    page = signed_in(at(red))
    row = page.locator("#failure table.changes tr", has_text="_MODE").first
    expect(row).to_contain_text("good")
    expect(row).to_contain_text("bad")
    page.get_by_role("link", name="Compare the times of each step").click()
    expect(page.get_by_label("With build")).to_have_value(green)
    expect(page.locator("#view")).to_contain_text("How long steps took")
    page.goto(address(server, green, f"?view=compare&with={red}"))
    expect(page.locator("#view .badge").first).to_contain_text("failure")


def test_files_of_a_build_are_listed_and_downloaded(signed_in, server, busybox):
    build = {
        "steps": [{"name": busybox, "script": "mkdir out; echo hello > 'out/<b>a file.html'"}],
        "artifacts": {"objects": {"location": "gs://shop/v1", "paths": ["out/*"]}},
    }
    build_id = server.create(PROJECT, build)
    assert server.ended(PROJECT, build_id) == "SUCCESS"
    page = signed_in(at(build_id, "?view=results"))
    with page.expect_download() as download:
        page.get_by_role("link", name="<b>a file.html").click()
    assert download.value.path().read_text() == "hello\n"
    answer = page.request.get(address(server, build_id, "/artifacts/0"))
    assert "attachment" in answer.headers["content-disposition"]
    assert "sandbox" in answer.headers["content-security-policy"]
    assert page.request.get(address(server, build_id, "/artifacts/1")).status == 404


def test_the_plan_is_shown_exactly_as_it_ran(signed_in, server, failed):
    page = signed_in(at(failed, "?view=inputs"))
    page.locator("details.card summary", has_text="#1 unit").click()
    step = page.locator("details.card[open]")
    expect(step).to_contain_text("LEVEL=<b>1</b>")
    expect(step).to_contain_text("exit 7")
    expect(step).to_contain_text("/workspace")


def test_the_keyboard_goes_through_builds_and_steps(signed_in, server, failed):
    page = signed_in(f"/builds?project={PROJECT}&status=FAILURE")
    page.keyboard.press("/")
    expect(page.get_by_label("Search")).to_be_focused()
    page.keyboard.press("Escape")
    page.keyboard.press("e")
    expect(page.locator("tr[data-failed] a.mono").first).to_be_focused()
    page.goto(address(server, failed))
    page.keyboard.press("e")
    expect(page.locator("#step-1 a").first).to_be_focused()
    page.keyboard.press("k")
    expect(page.locator("#step-0 a").first).to_be_focused()
    page.keyboard.press("2")
    expect(page).to_have_url(address(server, failed, "?view=waterfall"))
    page.keyboard.press("?")
    help_ = page.get_by_role("dialog", name="Keys")
    expect(help_).to_contain_text("next step that failed")
    page.keyboard.press("Escape")
    expect(help_).to_be_hidden()
    page.get_by_role("button", name="Keys").click()
    expect(help_).to_be_visible()
    page.get_by_role("button", name="Close").click()
    page.keyboard.press("l")
    expect(page).to_have_url(address(server, failed, "/log"))
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_contain_text("search the whole log")


def test_without_scripts_everything_can_be_read(new_page, server, failed):
    page = new_page(java_script_enabled=False)
    page.goto(f"{server.url}/builds?project={PROJECT}")
    page.get_by_label("Token").fill(server.token)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("link", name=failed[:8]).click()
    expect(page.locator("#failure pre")).to_contain_text("test_cart: expected 3, got 4")
    page.get_by_role("link", name="Waterfall").click()
    expect(page.locator("svg.waterfall")).to_be_visible()
    page.locator(".actions a", has_text="Log").click()
    expect(page.locator("#tail")).to_contain_text("test_cart: expected 3, got 4")


def test_a_public_project_is_read_without_a_token_and_not_changed(new_page, server, busybox):
    build_id = server.create(PUBLIC, {"steps": [{"name": busybox, "script": "echo hello world"}]})
    assert server.ended(PUBLIC, build_id) == "SUCCESS"
    page = new_page()
    page.goto(f"{server.url}/builds")
    page.get_by_role("link", name=build_id[:8]).click()
    expect(page.get_by_role("link", name="Sign in")).to_be_visible()
    expect(page.get_by_role("button", name="Run again")).to_have_count(0)
    page.locator(".actions a", has_text="Log").click()
    expect(page.locator(".row", has_text="hello world")).to_be_visible()
    path = f"{server.url}/builds/{PUBLIC}/{build_id}"
    assert "/login" in page.request.post(f"{path}/retry").url
    api = f"{server.url}/v1/projects"
    assert page.request.get(f"{api}/{PUBLIC}/builds").status == 200
    assert page.request.get(f"{api}/{PROJECT}/builds").status == 403
    assert page.request.post(f"{api}/{PUBLIC}/builds/{build_id}:retry").status == 403
    assert page.request.get(f"{server.url}/metrics").status == 403
    for closed in (f"/builds?project={PROJECT}", "/system", "/deliveries", "/outbox"):
        page.goto(server.url + closed)
        expect(page.get_by_label("Token")).to_be_visible()


def test_what_a_build_brings_along_is_nothing_but_text(signed_in, server, failed):
    page = signed_in(at(failed, "?view=inputs"))
    expect(page.locator("#view")).to_contain_text("<script>window.pwned = 1</script>")
    assert page.evaluate("window.pwned") is None


def test_a_running_build_is_live_on_its_page_and_in_its_log(
    signed_in, server, busybox, docker_engine
):
    steps = [{"name": busybox, "script": WAITS}, {"name": busybox, "script": "echo second"}]
    build_id = server.create(PROJECT, {"steps": steps})
    page, log = signed_in(at(build_id)), signed_in(at(build_id, "/log"))
    expect(page.locator("#build-title .badge")).to_contain_text("working")
    expect(log.locator(".row", has_text="waiting")).to_be_visible()
    expect(page.locator("#step-0 .badge")).to_contain_text("working")
    let_go(docker_engine, build_id)
    expect(log.locator(".row", has_text="second")).to_be_in_viewport()
    expect(page.locator("#build-title .badge")).to_contain_text("success")
    expect(page.locator("#step-1 .badge")).to_contain_text("success")
    expect(log.locator("h1 .badge")).to_contain_text("success")


def test_a_build_is_cancelled_and_run_again_from_its_page(
    signed_in, server, busybox, docker_engine
):
    build_id = server.create(PROJECT, {"steps": [{"name": busybox, "script": WAITS}]})
    page = signed_in(at(build_id))
    expect(page.locator("#step-0 .badge")).to_contain_text("working")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#build-title .badge")).to_contain_text("cancelled")
    page.get_by_role("button", name="Run again").click()
    expect(page).not_to_have_url(address(server, build_id))
    assert page.url.startswith(f"{server.url}/builds/{PROJECT}/")
    expect(page.locator(".attempts a").first).to_have_attribute(
        "href", f"/builds/{PROJECT}/{build_id}"
    )
    expect(page.locator("#step-0 .badge")).to_contain_text("working")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#build-title .badge")).to_contain_text("cancelled")


def test_a_build_that_waits_for_approval_is_approved_on_its_page(signed_in, server, busybox):
    build = {"steps": [{"name": busybox, "script": "echo ok"}]}
    trigger = {"name": "deploy", "build": build, "approvalConfig": {"approvalRequired": True}}
    made = server.http.post(f"/v1/projects/{PROJECT}/triggers", json=trigger)
    assert made.status_code == 200, made.text
    ran = server.http.post(f"/v1/projects/{PROJECT}/triggers/{made.json()['id']}:run", json={})
    assert ran.status_code == 200, ran.text
    build_id = ran.json()["metadata"]["build"]["id"]
    page = signed_in(at(build_id))
    expect(page.locator("#build-title .badge")).to_contain_text("pending")
    page.get_by_label("Comment").fill("looks good")
    page.get_by_role("button", name="Approve").click()
    expect(page.locator("#build-title .badge")).to_contain_text("success")


def test_a_list_shows_new_builds_by_itself(signed_in, server, failed, busybox):
    page = signed_in()
    page.clock.install()
    page.goto(f"{server.url}/builds?project={PROJECT}")
    build_id = server.create(PROJECT, {"steps": [{"name": busybox, "script": "echo new"}]})
    page.clock.fast_forward(20_000)
    expect(page.get_by_role("link", name=build_id[:8])).to_be_visible()


def test_what_could_not_be_told_is_seen_with_its_reason(signed_in, server, failed):
    page = signed_in()
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
    "BUILD?view=compare",
    "BUILD/log",
    f"/triggers?project={PROJECT}",
    f"/triggers/{PROJECT}/-/new",
    f"/trends?project={PROJECT}",
    f"/outbox?project={PROJECT}",
    f"/deployments?project={PROJECT}",
    "HISTORY",
    "/system",
)

TARGET = "gke://shop/europe-west1/prod/web/Deployment/a-name-that-is-rather-long"
HISTORY = f"/deployments?project={PROJECT}&target={quote(TARGET, safe='')}"
ONE, TWO = (f"registry.example.com/shop/web@sha256:{digit * 64}" for digit in "12")


@pytest.fixture(scope="module")
def rollout(server, busybox):
    """Two builds that deployed to one target."""
    builds = []
    for image in (ONE, TWO):
        report = f'{{"target": "{TARGET}", "images": ["{image}"], "url": "https://shop.test/"}}'
        script = f"echo '{report}' > $BUILDER_OUTPUT/deployments.jsonl"
        steps = [{"name": busybox, "id": "deploy", "script": script}]
        build_id = server.create(PROJECT, {"steps": steps})
        assert server.ended(PROJECT, build_id) == "SUCCESS"
        builds.append(build_id)
    return builds


def test_what_runs_where_is_seen_and_rolled_back_from_the_pages(signed_in, server, rollout):
    page = signed_in()
    page.get_by_role("link", name="What runs where").click()
    expect(page.locator("#deployments")).to_contain_text("web@sha256:222222222222")
    page.get_by_role("link", name=TARGET).click()
    rows = page.locator("#deployments tr[data-item]")
    expect(rows.first).to_contain_text("the latest")
    earlier = rows.filter(has=page.locator(f'a[href*="{rollout[0]}"]'))
    earlier.get_by_role("button", name="Roll back to this").click()
    expect(page.locator("#build-title .badge")).to_contain_text("success")
    expect(page.locator("#head")).to_contain_text("It rolls back to what step deploy of")
    expect(page.locator("table.deployed")).to_contain_text("web@sha256:111111111111")
    page.goto(f"{server.url}{HISTORY}")
    expect(rows.first).to_contain_text("web@sha256:111111111111")
    expect(rows.first).to_contain_text("web@sha256:222222222222")


def path_of(path, failed):
    return path.replace("BUILD", f"/builds/{PROJECT}/{failed}").replace("HISTORY", HISTORY)


@pytest.mark.usefixtures("rollout")
@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(signed_in, server, failed, axe, path, scheme):
    page = signed_in(path_of(path, failed), color_scheme=scheme)
    if path.endswith("/log"):
        expect(page.locator("#log[data-ready] .row .x").first).to_be_visible()
    assert serious_findings(page, axe) == []


@pytest.mark.usefixtures("rollout")
@pytest.mark.parametrize("path", PAGES)
def test_a_phone_shows_everything_without_scrolling_sideways(signed_in, server, failed, path):
    page = signed_in(
        path_of(path, failed),
        viewport={"width": 375, "height": 700},
        has_touch=True,
        is_mobile=True,
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


@pytest.mark.usefixtures("rollout")
@pytest.mark.parametrize("path", PAGES)
def test_a_page_weighs_little_and_is_one_request_beside_its_files(signed_in, server, failed, path):
    page = signed_in(path_of(path, failed))
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
