"""Changes of triggers: concurrent ones all count, and each wakes the scheduler."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.api_server import api_server

TRIGGER = {"name": "t", "build": {"steps": [{"name": "busybox"}]}}
FIELDS: dict[str, Any] = {
    "description": "text",
    "tags": ["one"],
    "ignoredFiles": ["docs/**"],
    "includedFiles": ["src/**"],
    "filter": "true",
    "disabled": True,
}


def test_changes_of_different_fields_at_once_all_count(tmp_path: Path) -> None:
    with api_server(tmp_path) as server:
        path = "/v1/projects/p/triggers"
        assert server.http.post(path, json=TRIGGER).status_code == 200

        def change(name: str) -> int:
            body, mask = {name: FIELDS[name]}, {"updateMask": name}
            return server.http.patch(f"{path}/t", params=mask, json=body).status_code

        with ThreadPoolExecutor(len(FIELDS)) as several:
            assert set(several.map(change, FIELDS)) == {200}
        found = server.http.get(f"{path}/t").json()
        assert {name: found.get(name) for name in FIELDS} == FIELDS


def test_every_change_of_a_trigger_wakes_the_scheduler(tmp_path: Path) -> None:
    with api_server(tmp_path) as server:
        woken: list[str] = []
        path = "/v1/projects/p/triggers"
        made = server.http.post(path, json=TRIGGER).json()["id"]
        server.context.schedule_changed.connect(lambda: woken.append("woken"))
        settings = f"/buildrunner/v1/projects/p/triggers/{made}/settings"
        mask = {"updateMask": "disabled"}
        answers = [
            server.http.post(path, json={**TRIGGER, "name": "other"}),
            server.http.patch(f"{path}/{made}", params=mask, json={"disabled": True}),
            server.http.put(settings, json={"jitter": "5s"}),
            server.http.delete(f"{path}/{made}"),
        ]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 200]
        assert len(woken) == len(answers)
