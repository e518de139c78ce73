"""The dashboard over HTTP: what is shown, to whom, and what can be done from it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from buildrunner.engine.events import StepFinished
from buildrunner.logs.files.events import EventLog
from buildrunner.logs.files.log_file import log_folder
from buildrunner.server.events.handling import DeliveryHandler
from buildrunner.server.http import bodies
from buildrunner.server.pages.triggers import edit as trigger_texts
from buildrunner.store.model.deliveries import NewDelivery
from tests.api_server import ApiServer, api_server, now

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(tmp_path) as found:
        yield found


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(tmp_path, auth=True) as found:
        yield found


def csrf_of(page: httpx.Response) -> str:
    found = re.search(r'name="csrf" value="([0-9a-f]+)"', page.text)
    assert found, page.text
    return found[1]


@contextmanager
def signed_in(
    server: ApiServer, *scopes: str, projects: tuple[str, ...] = ()
) -> Iterator[httpx.Client]:
    token = server.token("-".join((*scopes, *projects)), *scopes, projects=projects)
    with httpx.Client(base_url=server.url, follow_redirects=True, timeout=30) as browser:
        answer = browser.post("/login", data={"token": token, "next": "/builds"})
        assert answer.status_code == 200, answer.text
        yield browser


def test_the_list_shows_builds_newest_first(server: ApiServer) -> None:
    first, second = server.create(tags=["one"]), server.create(tags=["two"])
    text = server.http.get("/builds?project=p").text
    assert text.index(second) < text.index(first)
    assert 'href="/deployments?project=p"' in text
    filtered = server.http.get('/builds?project=p&filter=tags="one"').text
    assert first in filtered
    assert second not in filtered


def test_a_filter_that_is_none_is_told_on_the_page(server: ApiServer) -> None:
    page = server.http.get("/builds?project=p&filter=nosuch=1")
    assert page.status_code == 200
    assert 'role="alert"' in page.text


def test_an_empty_list_says_how_to_begin(server: ApiServer) -> None:
    assert "buildrunner submit" in server.http.get("/builds").text


def test_a_failed_build_says_which_step_and_its_last_lines(
    server: ApiServer, tmp_path: Path
) -> None:
    build = server.create(steps=[{"name": "busybox", "id": "test"}])
    log = EventLog(log_folder(str(tmp_path), build))
    log.on_event(
        StepFinished(at=now(), step=0, status="FAILURE", exit_code=7, last_lines=(EVIL, "boom"))
    )
    log.close()
    steps = [{"name": "busybox", "id": "test", "status": "FAILURE", "exitCode": 7}]
    server.run(build, "FAILURE", steps=steps, failureInfo={"detail": f"it broke {EVIL}"})
    text = server.http.get(f"/builds/p/{build}").text
    head = text[text.index('id="failure"') :]
    assert "#0 test" in head
    assert "exited with 7" in head
    assert "boom" in head
    assert EVIL not in text
    assert "&lt;img src=x" in text


@pytest.mark.parametrize("view", ["steps", "waterfall", "graph", "inputs", "results", "nosuch"])
def test_each_view_is_there(server: ApiServer, view: str) -> None:
    build = server.create(steps=[{"name": "busybox", "args": ["$_X"]}], substitutions={"_X": EVIL})
    server.run(build, "SUCCESS")
    page = server.http.get(f"/builds/p/{build}?view={view}")
    assert page.status_code == 200
    assert EVIL not in page.text


def test_a_page_allows_nothing_from_elsewhere_and_one_script_inline(server: ApiServer) -> None:
    build = server.create()
    for path in ("/builds", f"/builds/p/{build}", "/login"):
        page = server.http.get(path)
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert page.headers["x-content-type-options"] == "nosniff"
        assert " style=" not in page.text
        (inline,) = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
        known = b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert f"script-src 'self' 'sha256-{known}';" in policy
        assert not re.search(r"\son[a-z]+=", page.text)


def test_static_files_may_be_kept_for_ever(server: ApiServer) -> None:
    address = re.search(r'href="(/static/[0-9a-f]+/style\.css)"', server.http.get("/builds").text)
    assert address
    answer = server.http.get(address[1])
    assert answer.status_code == 200
    assert "immutable" in answer.headers["cache-control"]
    assert server.http.get("/static/x/nosuch.css").status_code == 404
    assert server.http.get("/static/x/..%2Flook.py").status_code == 404


def test_what_is_not_there_is_a_page_too(server: ApiServer) -> None:
    page = server.http.get("/builds/p/00000000-0000-0000-0000-000000000000")
    assert page.status_code == 404
    assert page.headers["content-type"].startswith("text/html")


def test_a_build_is_cancelled_and_run_again_from_its_page(server: ApiServer) -> None:
    build = server.create()
    csrf = csrf_of(server.http.get(f"/builds/p/{build}"))
    answer = server.http.post(f"/builds/p/{build}/cancel", data={"csrf": csrf})
    assert answer.headers["location"] == f"/builds/p/{build}"
    assert server.store.builds.find(build).status == "CANCELLED"
    answer = server.http.post(f"/builds/p/{build}/retry", data={"csrf": csrf})
    again = answer.headers["location"].rpartition("/")[2]
    assert again != build
    assert server.store.builds.find(again).labels["retry_of"] == build


def test_what_can_not_be_done_is_told_where_one_was(server: ApiServer) -> None:
    build = server.create()
    csrf = csrf_of(server.http.get(f"/builds/p/{build}"))
    server.run(build, "SUCCESS")
    answer = server.http.post(f"/builds/p/{build}/cancel", data={"csrf": csrf})
    page = server.http.get(answer.headers["location"])
    assert 'role="alert"' in page.text
    assert server.http.post(f"/builds/p/{build}/explode", data={"csrf": csrf}).status_code == 404


@pytest.mark.parametrize("csrf", ["", "0" * 64])
def test_a_forged_form_does_nothing(server: ApiServer, csrf: str) -> None:
    build = server.create()
    answer = server.http.post(f"/builds/p/{build}/cancel", data={"csrf": csrf})
    assert answer.status_code == 403
    assert server.store.builds.find(build).status == "QUEUED"


def test_a_form_of_another_site_does_nothing(guarded: ApiServer) -> None:
    with signed_in(guarded, "admin") as browser:
        csrf = csrf_of(browser.get("/builds"))
        answer = browser.post(
            "/logout", data={"csrf": csrf}, headers={"Sec-Fetch-Site": "cross-site"}
        )
        assert answer.status_code == 403


def test_nobody_sees_anything_without_signing_in(guarded: ApiServer) -> None:
    answer = guarded.http.get("/builds?project=p&status=FAILURE")
    assert answer.status_code == 303
    login = "/login?next=/builds%3Fproject%3Dp%26status%3DFAILURE"
    assert answer.headers["location"] == login
    assert guarded.http.post("/builds/p/x/cancel", data={}).status_code == 303


def test_a_wrong_token_opens_nothing(guarded: ApiServer) -> None:
    answer = guarded.http.post("/login", data={"token": "brt_wrong", "next": "/"})
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers
    assert "unknown or was revoked" in answer.text


def test_the_cookie_is_out_of_reach_of_scripts_and_of_other_sites(guarded: ApiServer) -> None:
    token = guarded.token("t", "read")
    answer = guarded.http.post("/login", data={"token": token, "next": "//evil.example"})
    assert answer.headers["location"] == "/"
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert "secure" not in cookie  # over http; https sets it


def test_the_cookie_reads_the_api_and_changes_nothing_by_it(guarded: ApiServer) -> None:
    with signed_in(guarded, "admin") as browser:
        assert browser.get("/v1/projects/p/builds").status_code == 200
        answer = browser.post("/v1/projects/p/builds", json={"steps": [{"name": "busybox"}]})
        assert answer.status_code == 403


def test_a_reader_sees_no_buttons_and_may_not_press_them(guarded: ApiServer) -> None:
    owner = guarded.token("owner", "admin")
    made = guarded.http.post(
        "/v1/projects/p/builds",
        json={"steps": [{"name": "busybox"}]},
        headers={"Authorization": f"Bearer {owner}"},
    )
    build = made.json()["metadata"]["build"]["id"]
    with signed_in(guarded, "read") as browser:
        page = browser.get(f"/builds/p/{build}")
        assert f"/builds/p/{build}/cancel" not in page.text
        answer = browser.post(f"/builds/p/{build}/cancel", data={"csrf": csrf_of(page)})
        assert answer.status_code == 403
        assert guarded.store.builds.find(build).status == "QUEUED"


def test_a_token_of_another_project_sees_nothing_of_this_one(guarded: ApiServer) -> None:
    with signed_in(guarded, "read", projects=("q",)) as browser:
        assert browser.get("/builds?project=p").status_code == 403
        assert browser.get("/builds/p/x").status_code == 403
        assert browser.get("/builds").status_code == 200


def test_signing_out_forgets_the_token(guarded: ApiServer) -> None:
    with signed_in(guarded, "read") as browser:
        browser.post("/logout", data={"csrf": csrf_of(browser.get("/builds"))})
        assert "Sign in" in browser.get("/builds").text


TRIGGER = {
    "name": "nightly",
    "description": EVIL,
    "build": {"steps": [{"name": "busybox", "args": ["$_WHAT"]}]},
    "substitutions": {"_WHAT": "world"},
    "cron": {"schedule": "30 2 * * *", "timeZone": "Europe/Berlin"},
}


@pytest.fixture
def trigger(server: ApiServer) -> str:
    made = server.http.post("/v1/projects/p/triggers", json=TRIGGER)
    assert made.status_code == 200, made.text
    return str(made.json()["id"])


def test_triggers_say_what_fires_them_and_when_next(server: ApiServer, trigger: str) -> None:
    text = server.http.get("/triggers?project=p").text
    assert f"/triggers/p/{trigger}" in text
    assert "the clock" in text
    assert re.search(r"02:30 CES?T|03:00 CEST", text)
    assert EVIL not in text


def test_a_trigger_is_run_by_hand_with_other_values(server: ApiServer, trigger: str) -> None:
    page = server.http.get(f"/triggers/p/{trigger}")
    assert "_WHAT=world" in page.text
    form = {"csrf": csrf_of(page), "substitutions": "_WHAT=moon\n"}
    answer = server.http.post(f"/triggers/p/{trigger}/run", data=form)
    build = answer.headers["location"].rpartition("/")[2]
    assert server.store.builds.find(build).document["substitutions"]["_WHAT"] == "moon"
    assert build in server.http.get(f"/triggers/p/{trigger}").text


def test_a_trigger_is_switched_off_and_on(server: ApiServer, trigger: str) -> None:
    csrf = csrf_of(server.http.get(f"/triggers/p/{trigger}"))
    for action, disabled in (("disable", True), ("enable", False)):
        server.http.post(f"/triggers/p/{trigger}/{action}", data={"csrf": csrf})
        stored = server.store.triggers.get("p", trigger)
        assert bool(stored.get("disabled", False)) is disabled
        assert stored["cron"] == TRIGGER["cron"]


def test_a_run_that_can_not_be_is_told_on_the_triggers_page(
    server: ApiServer, trigger: str
) -> None:
    csrf = csrf_of(server.http.get(f"/triggers/p/{trigger}"))
    form = {"csrf": csrf, "substitutions": "lower=1"}
    answer = server.http.post(f"/triggers/p/{trigger}/run", data=form)
    page = server.http.get(answer.headers["location"])
    assert 'role="alert"' in page.text


def test_to_switch_a_trigger_needs_admin(guarded: ApiServer) -> None:
    owner = {"Authorization": f"Bearer {guarded.token('owner', 'admin')}"}
    made = guarded.http.post("/v1/projects/p/triggers", json=TRIGGER, headers=owner).json()
    with signed_in(guarded, "read", "submit") as browser:
        page = browser.get(f"/triggers/p/{made['id']}")
        assert "/disable" not in page.text
        answer = browser.post(f"/triggers/p/{made['id']}/disable", data={"csrf": csrf_of(page)})
        assert answer.status_code == 403


def test_the_system_page_shows_work_and_who_did_what(server: ApiServer) -> None:
    build = server.create()
    server.run(build, None)
    text = server.http.get("/system").text
    assert build[:8] in text
    assert "builds.create" in text


def test_the_system_page_is_for_admins_of_everything(guarded: ApiServer) -> None:
    with signed_in(guarded, "read", "submit") as browser:
        assert browser.get("/system").status_code == 403
    with signed_in(guarded, "admin", projects=("p",)) as browser:
        assert browser.get("/system").status_code == 403
    with signed_in(guarded, "admin") as browser:
        assert browser.get("/system").status_code == 200


def test_trends_are_of_the_builds_that_one_asks_for(server: ApiServer) -> None:
    build = server.create()
    server.run(build, "FAILURE")
    text = server.http.get("/trends?project=p").text
    assert "100 %" in text
    assert f"/builds/p/{build}" in text
    none = server.http.get('/trends?project=p&branch=ma"in\\')
    assert none.status_code == 200
    assert "No build of these has run" in none.text


def push_to(server: ApiServer, branch: str) -> None:
    """Deliver a push as GitHub does, and have it handled."""
    server.hook("github", "secret", owners=["acme"])
    repository = {"full_name": "acme/app", "clone_url": "https://github.com/acme/app.git"}
    body = {
        "ref": f"refs/heads/{branch}",
        "before": "a" * 40,
        "after": "b" * 40,
        "head_commit": {"id": "b" * 40, "message": EVIL},
        "commits": [],
        "repository": repository,
    }
    new = NewDelivery(
        hook="github",
        delivery_id=branch,
        headers={"x-github-event": "push"},
        body=json.dumps(body).encode(),
    )
    server.store.deliveries.add([new], now=now())
    (claimed,) = server.store.deliveries.claim(now=now(), lease_s=60, limit=1)
    outcome = DeliveryHandler(server.context).handle(claimed)
    server.store.deliveries.finish([(claimed, outcome)])


def test_a_delivery_says_why_each_trigger_fired_or_did_not(server: ApiServer) -> None:
    github = {"owner": "acme", "name": "app", "push": {"branch": "^main$"}}
    steps = {"steps": [{"name": "busybox"}]}
    server.http.post(
        "/v1/projects/p/triggers", json={"name": "t", "github": github, "build": steps}
    )
    library = {"name": "library", "github": {**github, "name": "lib"}, "build": steps}
    server.http.post("/v1/projects/p/triggers", json=library)
    server.http.post(
        "/v1/projects/p/triggers",
        json={"name": "other", "github": github, "build": steps},
        params={"forge": "gitea", "forgeHost": "git.example.com"},
    )
    push_to(server, "main")
    push_to(server, "dev")
    text = server.http.get("/deliveries").text
    assert "/deliveries/1" in text
    assert "/deliveries/2" in text
    fired, silent = (server.http.get(f"/deliveries/{number}").text for number in (1, 2))
    assert re.search(r"/builds/p/[0-9a-f-]+\">fired", fired)
    assert "branch dev does not match ^main$" in silent
    assert "did not fire" in silent
    assert EVIL not in fired
    for page in (fired, silent):  # what does not concern a trigger takes it one line, folded away
        assert page.count('<section class="card">') == 1
        assert "Triggers of other repositories: 1</summary>" in page
        where = "on https://git.example.com (gitea)"
        assert f"other</a>: the trigger is for acme/app {where}, the event is of acme/app" in page
        assert "library" not in page


def test_a_delivery_is_handled_again_from_its_page(server: ApiServer) -> None:
    push_to(server, "main")
    csrf = csrf_of(server.http.get("/deliveries/1"))
    assert server.http.post("/deliveries/1/replay", data={"csrf": csrf}).status_code == 303
    assert server.store.deliveries.get(1).replays == 1
    assert server.http.get("/deliveries/99").status_code == 404


def test_what_came_is_for_admins_only(guarded: ApiServer) -> None:
    push_to(guarded, "main")
    with signed_in(guarded, "read") as browser:
        page = browser.get("/deliveries/1")
        assert "head_commit" not in page.text
        answer = browser.post("/deliveries/1/replay", data={"csrf": csrf_of(page)})
        assert answer.status_code == 403
    with signed_in(guarded, "admin") as browser:
        assert "head_commit" in browser.get("/deliveries/1").text
    with signed_in(guarded, "admin", projects=("p",)) as browser:
        assert browser.get("/deliveries").status_code == 403


def test_what_runs_is_told_when_it_will_have_ended(server: ApiServer) -> None:
    build = {"steps": [{"name": "busybox"}]}
    made = server.http.post("/v1/projects/p/triggers", json={"name": "t", "build": build}).json()

    def run() -> str:
        ran = server.http.post(f"/v1/projects/p/triggers/{made['id']}:run", json={}).json()
        return str(ran["metadata"]["build"]["id"])

    first = run()
    in_an_hour = (now() + timedelta(hours=1)).isoformat().replace("+00:00", "Z")
    server.run(first, "SUCCESS", finishTime=in_an_hour)
    second = run()
    server.run(second, None)
    for path in ("/builds?project=p", f"/builds/p/{second}"):
        text = server.http.get(path).text
        assert "about 60 min left" in text or "about 1.0 h left" in text
        assert "<progress" in text


LOOSE = {"substitutionOption": "ALLOW_LOOSE"}


def test_a_search_finds_any_text_of_a_build(server: ApiServer) -> None:
    found = server.create(substitutions={"_SIZE": "Größe 4"}, options=LOOSE)
    other = server.create(tags=["other"])
    for text in ("größe", 'gr"', "\\"):
        page = server.http.get("/builds", params={"project": "p", "q": text}).text
        assert (found in page) is (text == "größe")
        assert other not in page


def test_a_page_token_that_is_none_is_told_on_the_page(server: ApiServer) -> None:
    page = server.http.get("/builds?project=p&page=nonsense")
    assert page.status_code == 200
    assert 'role="alert"' in page.text


def test_attempts_of_a_build_are_on_the_pages_of_all_of_them(server: ApiServer) -> None:
    first = server.create()
    server.run(first, "FAILURE")
    csrf = csrf_of(server.http.get(f"/builds/p/{first}"))
    second = server.http.post(f"/builds/p/{first}/retry", data={"csrf": csrf}).headers["location"]
    for path in (f"/builds/p/{first}", second):
        text = server.http.get(path).text
        assert f'href="/builds/p/{first}"' in text
        assert f'href="{second}"' in text


def test_only_admins_make_and_change_triggers(guarded: ApiServer, trigger_text: str) -> None:
    with signed_in(guarded, "read", "submit") as browser:
        csrf = csrf_of(browser.get("/builds?project=p"))
        form = {"csrf": csrf, "text": trigger_text}
        assert browser.post("/triggers/p/-/new", data=form).status_code == 403
        assert browser.get("/triggers/p/-/new").status_code == 403
        assert "New trigger" not in browser.get("/triggers?project=p").text
    with signed_in(guarded, "admin") as browser:
        form["csrf"] = csrf_of(browser.get("/builds?project=p"))
        made = browser.post("/triggers/p/-/new", data=form)
        assert made.status_code == 200
        path = made.url.path
        assert browser.post(f"{path}/delete", data={"csrf": "0" * 64}).status_code == 403
        assert browser.get(path).status_code == 200
    with signed_in(guarded, "read", "submit", projects=("p",)) as browser:
        csrf = csrf_of(browser.get("/builds?project=p"))
        for action in ("delete", "edit", "settings"):
            form = {"csrf": csrf, "text": trigger_text}
            assert browser.post(f"{path}/{action}", data=form).status_code == 403
        assert browser.get(path).status_code == 200


@pytest.fixture
def trigger_text() -> str:
    return "name: made-here\nbuild:\n  steps:\n  - name: busybox\n"


def test_neither_yaml_nor_large_json_is_parsed_in_the_event_loop(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch, trigger_text: str
) -> None:
    in_loop: list[bool] = []

    def watched(parse: Callable[..., Any]) -> Callable[..., Any]:
        def parse_here(*given: Any, **named: Any) -> Any:
            try:
                asyncio.get_running_loop()
                in_loop.append(True)
            except RuntimeError:
                in_loop.append(False)
            return parse(*given, **named)

        return parse_here

    monkeypatch.setattr(trigger_texts, "load_triggers", watched(trigger_texts.load_triggers))
    monkeypatch.setattr(bodies, "parsed", watched(bodies.parsed))
    form = {"csrf": csrf_of(server.http.get("/triggers/p/-/new")), "text": trigger_text}
    made = server.http.post("/triggers/p/-/new", data=form)
    changed = server.http.post(f"{made.headers['location']}/edit", data=form)
    step = {"name": "busybox", "args": ["x" * 3000] * 90}
    queued = server.http.post("/v1/projects/p/builds", json={"steps": [step]})
    assert [made.status_code, changed.status_code, queued.status_code] == [303, 303, 200]
    assert in_loop == [False, False, False]


def test_a_build_whose_workspace_is_not_kept_is_not_gone_on_with(server: ApiServer) -> None:
    build = server.create()
    server.run(build, "FAILURE")
    page = server.http.get(f"/builds/p/{build}")
    assert "Run again from" not in page.text
    form = {"csrf": csrf_of(page), "fromStep": "0"}
    told = server.http.post(f"/builds/p/{build}/retry", data=form, follow_redirects=True)
    assert "is not kept" in told.text
    answer = server.http.post(f"/v1/projects/p/builds/{build}:retry?fromStep=0", json={})
    assert (answer.status_code, answer.json()["error"]["status"]) == (400, "FAILED_PRECONDITION")
