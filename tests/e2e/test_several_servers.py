"""Two servers on one PostgreSQL are one service: what either is asked, both can answer."""

import functools
import itertools
import signal
import threading

import httpx
import pytest

from buildrunner.store.sql.store import open_store
from tests.conftest import wait_until
from tests.e2e.test_serve import serve  # noqa: F401  (a fixture)
from tests.fixtures_postgres import running_postgres
from tests.server.test_pages import csrf_of

BUILDS = "/v1/projects/local-project/builds"
OWN = f"/buildrunner{BUILDS}"


@pytest.fixture(scope="module")
def address():
    server = running_postgres()
    yield server.make_database()
    server.remove()


@pytest.fixture
def long(busybox):
    """A step that runs until somebody ends it."""
    return {"name": busybox, "args": ["sh", "-c", "echo it runs; sleep 600"]}


@pytest.fixture
def pair(serve, address, tmp_path):  # noqa: F811  (the fixture)
    """Two servers by the names of their workers, and their store."""
    arguments = ("--auth", "none", "--sandbox", "host", "--max-builds", "1")
    database = {"BUILDRUNNER_DATABASE": address}
    store = open_store(address)
    started = [serve(*arguments, data=tmp_path / name, env=database) for name in ("a", "b")]
    own = {serving.url for serving in started}
    assert "" not in own, [serving.stop() for serving in started]
    urls = {one.name: one.url for one in store.servers.all() if one.url in own}
    yield urls, store
    store.close()


def submit(url, *steps):
    answer = httpx.post(f"{url}{BUILDS}", json={"steps": steps}, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()["metadata"]["build"]["id"]


def test_builds_run_on_both_and_each_answers_for_all(pair, long):
    urls, store = pair
    some_url = min(urls.values())
    builds = [submit(some_url, long) for _ in range(2)]

    def runs(url, build):
        return "it runs" in httpx.get(f"{url}{OWN}/{build}/log", timeout=30).text

    for url, build in itertools.product(urls.values(), builds):
        wait_until(functools.partial(runs, url, build))
    # One at a time on each: both servers have one, though one server was asked for both.
    homes = {build: store.servers.log_home(build) for build in builds}
    assert set(homes.values()) == set(urls)
    for build, home in homes.items():
        (elsewhere,) = (url for name, url in urls.items() if name != home)
        ended = threading.Event()
        viewer = threading.Thread(target=watch, args=(f"{elsewhere}{OWN}/{build}", ended))
        viewer.start()
        answer = httpx.post(f"{elsewhere}{BUILDS}/{build}:cancel", json={}, timeout=30)
        assert answer.status_code == 200
        assert ended.wait(60)  # the stream through the other server tells of the end
        viewer.join()
        assert status(elsewhere, build) == "CANCELLED"
        logs = {httpx.get(f"{url}{OWN}/{build}/log", timeout=30).content for url in urls.values()}
        assert len(logs) == 1


def test_a_build_goes_on_from_a_step_by_any_server(pair, busybox):
    urls, store = pair
    first, second = urls.values()
    scripts = ("echo begun; echo of the workspace > file", "cat file; test -e again || exit 3")
    steps = [{"name": busybox, "args": ["sh", "-c", script]} for script in scripts]
    build = submit(first, *steps)
    wait_until(lambda: status(first, build) == "FAILURE")
    home = store.servers.log_home(build)
    elsewhere = first if urls[home] == second else second
    asked = httpx.post(f"{elsewhere}{BUILDS}/{build}:retry?fromStep=1", json={}, timeout=30)
    page = f"{elsewhere}/builds/local-project/{build}"
    form = {"fromStep": "1", "csrf": csrf_of(httpx.get(page, timeout=30))}
    own = {"Origin": elsewhere}
    pressed = httpx.post(f"{page}/retry", data=form, headers=own, timeout=30)
    assert (asked.status_code, pressed.status_code) == (200, 303), (asked.text, pressed.text)
    made = asked.json()["metadata"]["build"]["id"], pressed.headers["location"].split("/")[-1]
    for again in made:
        wait_until(lambda again=again: status(elsewhere, again) == "FAILURE")
        log = httpx.get(f"{elsewhere}{OWN}/{again}/log", timeout=30).text
        assert ("of the workspace" in log, "begun" in log) == (True, False), log
        assert store.servers.log_home(again) == home
    foreign = {"Origin": "http://evil.example"}
    refused = httpx.post(f"{page}/retry", data=form, headers=foreign, timeout=30)
    assert (refused.status_code, "evil.example" in refused.text) == (403, True)


def status(url, build):
    return httpx.get(f"{url}{BUILDS}/{build}", timeout=30).json()["status"]


def watch(build_url, ended):
    with httpx.stream("GET", f"{build_url}/log/stream?offset=0", timeout=90) as answer:
        for line in answer.iter_lines():
            if line == "event: end":
                ended.set()


def test_a_server_that_stops_ends_the_streams_that_it_passes_on(serve, address, tmp_path, long):  # noqa: F811
    arguments = ("--auth", "none", "--sandbox", "host", "--max-builds", "1")
    database = {"BUILDRUNNER_DATABASE": address}
    home = serve(*arguments, data=tmp_path / "home", env=database)
    build = submit(home.url, long)
    wait_until(lambda: "it runs" in httpx.get(f"{home.url}{OWN}/{build}/log", timeout=30).text)
    other = serve(*arguments, data=tmp_path / "other", env=database)
    seen = threading.Event()

    def view():
        url = f"{other.url}{OWN}/{build}/log/stream?offset=0"
        with httpx.stream("GET", url, timeout=90) as answer:
            for _ in answer.iter_lines():
                seen.set()

    viewer = threading.Thread(target=view)
    viewer.start()
    assert seen.wait(60)
    code, _, errors = other.stop(signal.SIGTERM)
    viewer.join(30)
    assert not viewer.is_alive()
    assert (code, "Traceback" in errors) == (0, False), errors
    # The process of a build outlives its server and its database: it would wait for ever.
    httpx.post(f"{home.url}{BUILDS}/{build}:cancel", json={}, timeout=30)
    wait_until(lambda: status(home.url, build) == "CANCELLED")
    home.stop()
