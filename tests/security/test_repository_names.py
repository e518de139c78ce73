"""A name means a repository for one project: nobody's hook or settings change it for another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from buildrunner.settings import Settings
from tests.api_server import api_server
from tests.security.test_forge_identity import (
    POLICY,
    SECRET,
    Host,
    Place,
    bare_push,
    gitea_push,
)

EVENTS: dict[str, Any] = {
    "triggerTemplate": {"repoName": "app", "branchName": "^main$"},
    "repositoryEventConfig": {"repository": "app", "push": {"branch": "^main$"}},
}


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Host]:
    (tmp_path / "home").mkdir()
    made = Host(tmp_path / "home", "acme/app", "acme/other", "eve/app")
    yield made
    made.server.close()


@pytest.fixture
def place(home: Host, tmp_path: Path) -> Iterator[Place]:
    """A server that maps the name app in the settings of project ``ours``."""
    tables = {"git": {"repositories": {"app": f"{home.url}/acme/other.git"}}}
    machine = Settings(projects={"ours": tables})
    with api_server(tmp_path / "server", sources=POLICY, machine=machine) as server:
        found = Place(server, home, home, tmp_path)
        mine = machine.of_project("ours")
        found.settings = replace(mine, git=replace(mine.git, cache=str(tmp_path / "cache")))
        home.commit("acme/other", "of ours")
        yield found


def bind(place: Place, *projects: str) -> str:
    """Bind the hook of the bare repository app; where that is."""
    place.server.secrets["hooks-git-app"] = SECRET
    url = f"file://{place.home.repositories['eve/app'].path}"
    binding = {"repository": url, "projects": projects}
    answer = place.server.http.put("/buildrunner/v1/hooks/git/app", json=binding)
    assert answer.status_code == 200, answer.text
    return url


def run(place: Place, project: str, name: str) -> dict[str, Any]:
    """Run a trigger; the source of its build, or the error."""
    path = f"/v1/projects/{project}/triggers/{name}:run"
    body = place.server.http.post(path, json={"branchName": "main"}).json()
    return dict(body["metadata"]["build"]["source"] if "metadata" in body else body["error"])


@pytest.mark.parametrize("form", EVENTS)
def test_the_hook_of_a_bare_repository_names_nothing_in_another_project(
    place: Place, form: str
) -> None:
    """Issue: polling, runs and schedules built the code of a hook that only `eve` may use."""
    name = place.trigger(kind="", github=None, project="theirs", **{form: EVENTS[form]})
    place.home.commit("eve/app", "before")
    url = bind(place, "eve")
    place.look()
    place.push("git/app", bare_push(place, url, place.home.commit("eve/app", "evil")))
    place.look()
    assert place.builds("theirs") == []
    assert url not in str(run(place, "theirs", name))


def test_the_hook_of_a_bare_repository_names_it_in_its_own_projects(place: Place) -> None:
    name = place.trigger(
        kind="", github=None, project="eve", triggerTemplate=EVENTS["triggerTemplate"]
    )
    url = bind(place, "eve")
    place.look()
    place.home.commit("eve/app", "missed")
    place.look()
    assert [place.code(build) for build in place.builds("eve")] == ["missed"]
    assert run(place, "eve", name)["gitSource"]["url"] == url


@pytest.mark.parametrize("projects", [["eve"], []])
@pytest.mark.parametrize("form", EVENTS)
def test_a_name_in_a_project_s_settings_is_no_bare_repository_s(
    place: Place, form: str, projects: list[str]
) -> None:
    """Issue: a bare repository's hook replaced what the project's own settings name."""
    name = place.trigger(kind="", github=None, **{form: EVENTS[form]})
    place.home.commit("eve/app", "before")
    url = bind(place, *projects)
    place.look()
    run(place, "ours", name)
    place.push("git/app", bare_push(place, url, place.home.commit("eve/app", "evil")))
    place.look()
    assert [place.code(build) for build in place.builds()] == ["of ours"]
    place.home.commit("acme/other", "newer")
    place.look()
    assert place.code(place.builds()[0]) == "newer"
    assert len(place.builds()) == 2


def test_a_forge_s_push_fires_the_trigger_whose_project_names_its_repository(place: Place) -> None:
    for project in ("ours", "theirs"):
        place.trigger(
            kind="", github=None, project=project, triggerTemplate=EVENTS["triggerTemplate"]
        )
    place.server.hook("gitea", SECRET, host=place.home.url, owners=["acme"])
    place.push("gitea", gitea_push("acme/other", place.home.commit("acme/other", "newer")))
    assert [place.code(build) for build in place.builds()] == ["newer"]
    assert place.builds("theirs") == []
