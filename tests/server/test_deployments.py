"""Deployments of a server: the API, the pages, the commands, and rollbacks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from buildrunner.cli.main import main
from buildrunner.file_trees import remove_tree
from tests.api_server import ApiServer, api_server

WEB = "gke://p/europe-west1/prod/shop/Deployment/web"
API = "run://p/europe-west1/api"
ONE, TWO, THREE = (f"registry.example.com/web@sha256:{digit * 64}" for digit in "123")
OURS = "/buildrunner/v1/projects/p"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(tmp_path) as running:
        yield running


@pytest.fixture
def run(
    server: ApiServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "xdg"))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(["deployments", *arguments, "--server", server.url, "--project", "p"])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def listed(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [one["id"] for one in answer.json()["deployments"]]


def test_deployments_are_listed_by_target_by_build_and_the_latest_of_each(
    server: ApiServer,
) -> None:
    first, api, second = server.deploy(WEB, ONE), server.deploy(API), server.deploy(WEB, TWO)
    http = server.http
    assert listed(http.get(f"{OURS}/deployments")) == [second.id, api.id, first.id]
    by_target = http.get(f"{OURS}/deployments", params={"target": WEB})
    assert listed(by_target) == [second.id, first.id]
    assert listed(http.get(f"{OURS}/deployments?latest=true")) == [second.id, api.id]
    assert listed(http.get(f"{OURS}/builds/{api.build_id}/deployments")) == [api.id]
    page = http.get(f"{OURS}/deployments?pageSize=2").json()
    rest = http.get(f"{OURS}/deployments", params={"pageToken": page["nextPageToken"]})
    assert listed(rest) == [first.id]
    pair = server.deploy(WEB, ONE, more=[API])
    whole = f"{OURS}/builds/{pair.build_id}/deployments"
    page = http.get(f"{whole}?pageSize=1").json()
    rest = http.get(whole, params={"pageToken": page["nextPageToken"]})
    both = page["deployments"] + rest.json()["deployments"]
    assert sorted(one["target"] for one in both) == [WEB, API]
    assert http.get("/buildrunner/v1/projects/q/deployments").json() == {"deployments": []}


def test_a_deployment_says_where_what_and_what_ran_before(server: ApiServer) -> None:
    first = server.deploy(WEB, ONE)
    second = server.deploy(WEB, TWO, version="7", url="https://web.example.com")
    shown = server.http.get(f"{OURS}/deployments/{second.id}").json()
    assert shown.pop("time").endswith("Z")
    assert shown == {
        "id": second.id,
        "projectId": "p",
        "buildId": second.build_id,
        "step": 1,
        "stepId": "deploy",
        "target": WEB,
        "images": [TWO],
        "version": "7",
        "url": "https://web.example.com",
        "reported": True,
        "previousImages": [ONE],
        "previousVersion": "",
        "previousId": first.id,
    }
    assert server.http.get(f"{OURS}/deployments/none").status_code == 404
    other = f"/buildrunner/v1/projects/q/deployments/{second.id}"
    assert server.http.get(other).status_code == 404


def test_a_rollback_is_a_retry_of_the_step_alone_with_its_images(server: ApiServer) -> None:
    first = server.deploy(WEB, ONE, "sidecar:1")
    path = f"/v1/projects/p/builds/{first.build_id}:retry?deployment={first.id}"
    answer = server.http.post(path, json={})
    assert answer.status_code == 200, answer.text
    made = server.store.builds.find(answer.json()["metadata"]["build"]["id"])
    wanted = {
        "from_build": first.build_id,
        "from_step": "deploy",
        "rollback_to": first.id,
        "rollback_step": "1",
        "pinned_images": ONE,
    }
    assert {name: made.labels.get(name) for name in wanted} == wanted
    server.run(made.id, "SUCCESS")
    page = server.http.get(f"/builds/p/{made.id}").text
    assert "It rolls back to what step deploy of" in page
    server.keep_workspace(made.id)
    again = server.http.post(f"/v1/projects/p/builds/{made.id}:retry", json={}).json()
    labels = server.store.builds.find(again["metadata"]["build"]["id"]).labels
    assert not labels.keys() & wanted.keys()


def test_what_can_not_be_rolled_back_to_says_why(server: ApiServer) -> None:
    first, other = server.deploy(WEB, ONE), server.deploy(API)
    builds = "/v1/projects/p/builds"

    def refused(build: str, query: str) -> tuple[int, str]:
        answer = server.http.post(f"{builds}/{build}:retry?{query}", json={})
        return answer.status_code, answer.json()["error"]["message"]

    code, said = refused(first.build_id, f"deployment={other.id}")
    assert (code, said) == (400, f"deployment {other.id} is not of build {first.build_id}")
    assert refused(first.build_id, "deployment=none")[0] == 404
    assert refused(first.build_id, f"deployment={first.id}&fromStep=1")[0] == 400
    remove_tree(server.keeping.folder)
    code, said = refused(first.build_id, f"deployment={first.id}")
    assert code == 400
    assert "the workspace of build" in said
    assert "failed or deployed is" in said


# -- pages -----------------------------------------------------------------------------------------


def test_the_page_has_the_latest_of_each_target_and_leads_to_its_history(
    server: ApiServer,
) -> None:
    first = server.deploy(WEB, ONE)
    second = server.deploy(WEB, TWO)
    server.deploy(API, "api:1", reported=False)
    page = server.http.get("/deployments?project=p").text
    assert "registry.example.com/web@sha256:222222222222<" in page
    assert f'title="{TWO}"' in page
    assert first.build_id not in page
    assert "as the step's command says" in page
    (address,) = set(re.findall(r'"(/deployments\?project=p&amp;target=gke[^"]+)"', page))
    history = server.http.get(address.replace("&amp;", "&")).text
    assert history.index(second.build_id) < history.index(first.build_id)
    assert history.count("Roll back to this") == 1
    assert f'name="deployment" value="{first.id}"' in history
    assert "No deployments yet" in server.http.get("/deployments?project=q").text


def test_only_addresses_of_the_web_become_links(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.deploy(WEB, ONE, url="https://web.example.com")
    with monkeypatch.context() as patch:  # as if a record had come past the rules
        patch.setattr("buildrunner.store.sql.queue.checked", lambda made, **_: made)
        made = server.deploy(API, url="javascript:alert(1)")
    for path in ("/deployments?project=p", f"/builds/p/{made.build_id}"):
        page = server.http.get(path).text
        assert "<div>javascript:alert(1)</div>" in page
        assert 'href="javascript' not in page
    assert 'href="https://web.example.com"' in server.http.get("/deployments?project=p").text


def test_the_page_of_a_build_shows_its_first_hundred_deployments(server: ApiServer) -> None:
    targets = [f"run://p/r/{number:03}" for number in range(101)]
    made = server.deploy(targets[0], more=targets[1:])
    page = server.http.get(f"/builds/p/{made.build_id}").text
    assert page.count('<td class="mono"><a href="/deployments?project=p') == 100
    assert f"buildrunner deployments list --build {made.build_id} --limit 1000" in page


def test_the_button_rolls_back_behind_the_right_and_the_form_of_retry(tmp_path: Path) -> None:
    with api_server(tmp_path, auth=True) as server:
        boss = {"Authorization": f"Bearer {server.token('boss', 'admin')}"}
        server.http.headers.update(boss)
        first = server.deploy(WEB, ONE)
        server.deploy(WEB, TWO)
        pages = {}
        for name, scopes in (("reader", ("read",)), ("writer", ("read", "submit"))):
            browser = httpx.Client(base_url=server.url, follow_redirects=True, timeout=30)
            browser.post("/login", data={"token": server.token(name, *scopes), "next": "/builds"})
            shown = browser.get("/deployments", params={"project": "p", "target": WEB})
            csrf = re.search(r'name="csrf" value="([0-9a-f]+)"', shown.text)
            assert csrf
            pages[name] = (browser, shown.text, csrf[1])
        path = f"/builds/p/{first.build_id}/retry"
        reader, text, csrf = pages["reader"]
        assert "Roll back to this" not in text
        form = {"csrf": csrf, "deployment": first.id}
        assert reader.post(path, data=form).status_code == 403
        writer, text, csrf = pages["writer"]
        assert "Roll back to this" in text
        form = {"csrf": csrf, "deployment": first.id}
        assert writer.post(path, data={**form, "csrf": "0"}).status_code == 403
        made = writer.post(path, data=form)
        assert made.status_code == 200
        build = str(made.url).rpartition("/")[2]
        assert server.store.builds.find(build).labels["rollback_to"] == first.id
        for browser, _, _ in pages.values():
            browser.close()


def test_a_builds_page_has_what_it_deployed(server: ApiServer) -> None:
    server.deploy(WEB, ONE)
    second = server.deploy(WEB, TWO, url="https://web.example.com")
    page = server.http.get(f"/builds/p/{second.build_id}").text
    deployed = page.partition("<h2>Deployed</h2>")[2].partition("</table>")[0]
    for part in (WEB, TWO, ONE, 'href="https://web.example.com"'):
        assert part in deployed
    assert "<h2>Deployed</h2>" not in server.http.get(f"/builds/p/{server.create()}").text


# -- commands --------------------------------------------------------------------------------------


def test_the_list_and_the_description_of_commands(server: ApiServer, run: Run) -> None:
    first, api = server.deploy(WEB, ONE), server.deploy(API, "api:1", reported=False)
    code, out, _ = run("list")
    assert code == 0
    head, latest, oldest = (line.split() for line in out.splitlines())
    assert head == ["ID", "TIME", "TARGET", "IMAGES", "BUILD", "STEP"]
    build = api.build_id.partition("-")[0]
    assert latest[2:] == [API, "api:1", "(suggested)", build, "deploy"]
    assert oldest[0] == first.id
    assert oldest[3] == f"registry.example.com/web@sha256:{'1' * 12}"
    assert run("list", "--target", WEB, "--format", "value(id)")[1] == f"{first.id}\n"
    assert run("list", "--build", api.build_id, "--format", "value(id)")[1] == f"{api.id}\n"
    assert run("list", "--limit", "1", "--latest", "--format", "value(id)")[1] == f"{api.id}\n"
    assert run("list", "--target", "run://x") == (0, "", "Listed 0 deployments.\n")
    assert json.loads(run("describe", first.id[:6], "--format", "json")[1])["images"] == [ONE]
    assert run("describe", "nothing")[0] == 2


def test_a_rollback_goes_to_the_last_deployment_with_other_images(
    server: ApiServer, run: Run
) -> None:
    first, second = server.deploy(WEB, ONE), server.deploy(WEB, TWO)
    server.deploy(WEB, TWO)

    def rolled_back(*arguments: str) -> Any:
        code, out, err = run("rollback", *arguments)
        assert code == 0, err
        return server.store.builds.find(out.strip()).labels

    assert rolled_back(WEB)["rollback_to"] == first.id
    assert rolled_back("Deployment/web")["rollback_to"] == first.id
    assert rolled_back("web", "--to", second.id[:8])["rollback_to"] == second.id


@pytest.mark.parametrize("status", ["SUCCESS", "FAILURE"])
def test_after_an_automatic_rollback_the_failed_image_is_not_deployed_again(
    server: ApiServer, run: Run, status: str
) -> None:
    good = server.deploy(WEB, THREE)
    server.deploy(WEB, ONE)
    server.deploy(WEB, TWO, back_to=ONE, status=status)
    code, out, err = run("rollback", WEB)
    assert code == 0, err
    assert server.store.builds.find(out.strip()).labels["rollback_to"] == good.id


def test_a_rollback_passes_over_builds_that_failed(server: ApiServer, run: Run) -> None:
    good = server.deploy(WEB, ONE)
    server.deploy(WEB, TWO, status="FAILURE")
    server.deploy(WEB, THREE, status="FAILURE")
    code, out, err = run("rollback", WEB)
    assert code == 0, err
    assert server.store.builds.find(out.strip()).labels["rollback_to"] == good.id


def test_without_a_good_deployment_a_rollback_asks_for_one(server: ApiServer, run: Run) -> None:
    server.deploy(WEB, TWO, status="FAILURE")
    server.deploy(WEB, ONE)
    code, _, err = run("rollback", WEB)
    assert code == 2
    assert "no earlier deployment to" in err
    assert "--to ID names any deployment" in err


def test_a_rollback_that_can_not_be_says_why(server: ApiServer, run: Run) -> None:
    assert "nothing was deployed to web" in run("rollback", "web")[2]
    server.deploy(WEB, ONE)
    assert "no earlier deployment to" in run("rollback", "web")[2]
    server.deploy("run://p/r/web", TWO)
    code, _, err = run("rollback", "web")
    assert code == 2
    assert "several targets end in web" in err
    server.deploy(WEB, TWO)
    remove_tree(server.keeping.folder)
    code, _, err = run("rollback", WEB)
    assert code == 2
    assert "the workspace of build" in err


def test_a_rollback_without_a_known_digest_warns(server: ApiServer, run: Run) -> None:
    server.deploy(WEB, "web:1", reported=False)
    server.deploy(WEB, "web:2", reported=False)
    code, _, err = run("rollback", WEB)
    assert code == 0
    assert "no digest of that deployment is known" in err
