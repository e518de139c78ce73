"""The hook of a bare repository reports many refs in parts, as the server takes them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from buildrunner.cli.triggers import bare_hook
from buildrunner.server.events.reconcile import Reconciler, RemoteRefs
from buildrunner.store.model.deliveries import Watched
from buildrunner.triggers.forges.forge import MOST_REFS
from tests.api_server import api_server
from tests.conftest import wait_until
from tests.fixtures_git import Repository
from tests.server.test_hooks import BARE_TRIGGER, SECRET, TRIGGER, builds, delivery, handle

URL = "https://git.example.com/app.git"
NAMES = ("main", "a", "b", "c", "d")


def test_the_hook_and_the_server_have_the_same_limit() -> None:
    assert bare_hook.MOST_REFS == MOST_REFS


def test_more_refs_than_a_report_has_are_reported_in_parts(tmp_path: Path) -> None:
    repository = Repository(tmp_path, "app.git")
    old = repository.commit({"a": b"a"})
    repository.push(*(f"main:{name}" for name in NAMES))
    hooks = repository.path / "hooks"
    text = Path(bare_hook.__file__).read_text("utf-8")
    program = hooks / "hook.py"
    program.write_text(text.replace("MOST_REFS = 1000", "MOST_REFS = 2"))
    with api_server(tmp_path / "server") as server:
        facts = {"server": server.url, "name": "app", "secret": SECRET, "repository": URL}
        (hooks / bare_hook.SETTINGS).write_text(json.dumps(facts))
        server.hook("git/app", SECRET)

        def run(*arguments: str, lines: str = "") -> None:
            command = [sys.executable, "-I", str(program), *arguments]
            subprocess.run(command, cwd=repository.path, input=lines.encode(), check=True)

        def numbers() -> list[int]:
            listed = server.http.get("/buildrunner/v1/deliveries").json()["deliveries"]
            return [int(one["number"]) for one in reversed(listed)]

        run("--installed")
        installed = numbers()
        handle(server)
        kinds = [delivery(server, number)["outcome"]["kind"] for number in installed]
        assert kinds == ["installing", "installing", "installed"]
        known = server.store.refs.known(Watched("", "git/app git.example.com/app"))
        assert set(known) == {"", *(f"refs/heads/{name}" for name in NAMES)}

        trigger = {**TRIGGER, **BARE_TRIGGER}
        trigger["repositoryEventConfig"] = {"repository": "app", "push": {"branch": "."}}
        del trigger["github"]
        made = server.http.post("/v1/projects/p/triggers", json=trigger)
        assert made.status_code == 200, made.text
        new = repository.commit({"a": b"b"})
        repository.push(*(f"main:{name}" for name in NAMES))
        run(lines="".join(f"{old} {new} refs/heads/{name}\n" for name in NAMES))
        wait_until(lambda: len(numbers()) == len(installed) + 3)
        handle(server)
        branches = sorted(one["substitutions"]["BRANCH_NAME"] for one in builds(server))
        assert branches == sorted(NAMES)

        # Installed again, the record goes with the next look: it would become old news later.
        again = Watched("", "git/app git.example.com/app")
        refs = {f"refs/heads/{name}": new for name in NAMES}
        remote = RemoteRefs(list_refs=lambda _: dict(refs), message=lambda *_: "m")
        for _ in range(2):
            run("--installed")
            handle(server)
            assert server.store.refs.known(again)
            assert Reconciler(server.context, remote).look() == 0
            assert server.store.refs.known(again) == {}
