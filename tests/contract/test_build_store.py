"""What every store of builds must do."""

import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from buildrunner.containers.process_owner import this_process
from buildrunner.engine.deployments import Deployment
from buildrunner.errors import Conflict, NotFound
from buildrunner.store.build_store import BuildStore
from buildrunner.store.local import LocalBuildStore
from buildrunner.store.model.deployments import recorded


def document(build_id, status="WORKING", created="2024-05-31T12:00:00Z", **more):
    return {"id": build_id, "status": status, "createTime": created, **more}


def deployed(build_id, target, *images, at):
    return recorded(
        Deployment(target=target, images=images, reported=True),
        project_id="p",
        build_id=build_id,
        step=0,
        step_id="",
        time=datetime(2024, 5, 31, 12, 0, at, tzinfo=UTC),
    )


def dead_process():
    """The name of a process that has ended."""
    code = "from buildrunner.containers.process_owner import this_process; print(this_process())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


class BuildStoreContract:
    """Subclasses give ``store``, and ``open_another`` onto the same builds."""

    def test_what_was_created_is_read_again_whole(self, store: BuildStore):
        build = document("a1", steps=[{"name": "ünï", "args": ["\x00", "✔"]}])
        store.create(build, owner=this_process())
        assert store.get("a1") == build

    def test_an_update_replaces_the_document(self, store: BuildStore):
        store.create(document("a1", "QUEUED"), owner=this_process())
        store.update(document("a1", "WORKING", startTime="2024-05-31T12:00:01Z"))
        assert store.get("a1")["startTime"] == "2024-05-31T12:00:01Z"

    def test_an_id_is_given_once(self, store: BuildStore):
        store.create(document("a1"), owner=this_process())
        with pytest.raises(Conflict, match="exists already"):
            store.create(document("a1"), owner=this_process())

    def test_a_build_that_is_not_there_is_not_found(self, store: BuildStore):
        for act in (lambda: store.get("a1"), lambda: store.update(document("a1"))):
            with pytest.raises(NotFound):
                act()

    def test_nothing_leaves_a_final_status(self, store: BuildStore):
        store.create(document("a1"), owner=this_process())
        store.update(document("a1", "SUCCESS"))
        with pytest.raises(Conflict, match="ended already, with status SUCCESS"):
            store.update(document("a1", "FAILURE"))
        assert store.get("a1")["status"] == "SUCCESS"

    def test_the_beginning_of_an_id_is_enough_when_it_is_the_only_one(self, store: BuildStore):
        for build_id in ("abc1", "abd2", "b3"):
            store.create(document(build_id), owner=this_process())
        assert store.get("b")["id"] == "b3"
        assert store.get("abd")["id"] == "abd2"
        with pytest.raises(Conflict, match='several builds begin with "ab"'):
            store.get("ab")

    def test_a_whole_id_wins_over_longer_ones(self, store: BuildStore):
        store.create(document("a"), owner=this_process())
        store.create(document("ab"), owner=this_process())
        assert store.get("a")["id"] == "a"

    @pytest.mark.parametrize("pattern", ["", "%", "_", "A", "a1x", "'; DROP TABLE builds; --"])
    def test_nothing_but_a_beginning_matches(self, store: BuildStore, pattern):
        store.create(document("a1"), owner=this_process())
        with pytest.raises(NotFound):
            store.get(pattern)
        assert store.get("a1")

    def test_a_build_that_has_ended_is_deleted(self, store: BuildStore):
        for build_id in ("a1", "a2"):
            store.create(document(build_id), owner=this_process())
        with pytest.raises(Conflict, match="has not ended: it is WORKING"):
            store.delete("a1")
        store.update(document("a1", "SUCCESS"))
        store.delete("a1")
        assert [build["id"] for build in store.find()] == ["a2"]
        for build_id in ("a1", "b", ""):
            with pytest.raises(NotFound):
                store.delete(build_id)

    def test_a_build_whose_process_died_can_be_deleted(self, store: BuildStore):
        store.create(document("a1"), owner=dead_process())
        store.delete("a1")
        assert store.find() == []

    def test_the_newest_come_first(self, store: BuildStore):
        for number in (1, 3, 2):
            created = (
                f"2024-05-3{number}T12:00:00Z" if number < 2 else f"2024-06-0{number}T12:00:00Z"
            )
            store.create(document(f"b{number}", created=created), owner=this_process())
        assert [one["id"] for one in store.find()] == ["b3", "b2", "b1"]
        assert [one["id"] for one in store.find(limit=2)] == ["b3", "b2"]

    def test_builds_are_found_by_status(self, store: BuildStore):
        for build_id, status in (("a", "SUCCESS"), ("b", "FAILURE"), ("c", "WORKING")):
            store.create(document(build_id, status), owner=this_process())
        found = store.find(statuses=["FAILURE", "WORKING"])
        assert {one["id"] for one in found} == {"b", "c"}

    def test_the_owner_is_known_until_the_end(self, store: BuildStore):
        store.create(document("a1"), owner=this_process())
        assert store.owner_of("a1") == this_process()
        store.update(document("a1", "CANCELLED"))
        assert store.owner_of("a1") == ""

    def test_a_build_that_is_created_final_has_no_owner(self, store: BuildStore):
        store.create(document("a1", "SUCCESS"), owner=dead_process())
        assert store.get("a1")["status"] == "SUCCESS"

    def test_a_build_whose_process_died_says_so(self, store: BuildStore):
        steps = [{"name": "a", "status": "SUCCESS"}, {"name": "b", "status": "WORKING"}]
        store.create(document("a1", steps=steps), owner=dead_process())
        store.create(document("b2"), owner=this_process())
        for found in (store.get("a1"), store.find(statuses=["INTERNAL_ERROR"])[0]):
            assert found["status"] == "INTERNAL_ERROR"
            assert found["statusDetail"] == "the buildrunner process died"
            assert found["finishTime"]
            assert [step["status"] for step in found["steps"]] == ["SUCCESS", "CANCELLED"]
        assert store.find(statuses=["WORKING"])[0]["id"] == "b2"
        with pytest.raises(Conflict):
            store.update(document("a1"))

    def test_others_see_every_change(self, store: BuildStore, open_another):
        store.create(document("a1"), owner=this_process())
        other = open_another()
        assert other.get("a1")["status"] == "WORKING"
        store.update(document("a1", "SUCCESS"))
        assert other.get("a1")["status"] == "SUCCESS"
        other.close()

    def test_many_writers_at_once_lose_nothing(self, store: BuildStore, open_another):
        failures = []

        def work(worker):
            mine = open_another()
            try:
                for number in range(10):
                    build_id = f"{worker}-{number}"
                    mine.create(document(build_id), owner=this_process())
                    mine.update(document(build_id, "SUCCESS"))
            except Exception as error:  # noqa: BLE001
                failures.append(error)
            finally:
                mine.close()

        threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert len(store.find(statuses=["SUCCESS"], limit=100)) == 60

    def test_deployments_are_listed_newest_first_and_know_the_one_before(self, store: BuildStore):
        for build_id in ("a1", "a2"):
            store.create(document(build_id), owner=this_process())
        store.record_deployments([deployed("a1", "run://p/r/web", "app@sha256:1", at=1)])
        again = [
            deployed("a2", "run://p/r/api", "api@sha256:1", at=2),
            deployed("a2", "run://p/r/web", "app@sha256:2", at=3),
        ]
        store.record_deployments(again)
        store.record_deployments(again)
        web, api, first = store.deployments()
        assert [one.target for one in (web, api, first)] == [
            "run://p/r/web",
            "run://p/r/api",
            "run://p/r/web",
        ]
        assert web.previous_images == ("app@sha256:1",)
        assert web.previous_id == first.id
        assert first == deployed("a1", "run://p/r/web", "app@sha256:1", at=1)
        assert store.deployments(latest=True) == [web, api]
        assert store.deployments(target="run://p/r/web") == [web, first]
        assert store.deployments(build_id="a2") == [web, api]
        assert store.deployments(limit=1) == [web]

    def test_deployments_go_with_their_build(self, store: BuildStore):
        for build_id in ("a1", "a2"):
            store.create(document(build_id), owner=this_process())
            store.record_deployments([deployed(build_id, "run://p/r/web", at=1)])
            store.update(document(build_id, "SUCCESS"))
        store.delete("a1")
        assert [one.build_id for one in store.deployments()] == ["a2"]

    def test_closing_twice_is_fine(self, open_another):
        other = open_another()
        other.close()
        other.close()


class TestLocalBuildStore(BuildStoreContract):
    @pytest.fixture
    def open_another(self, tmp_path: Path):
        return lambda: LocalBuildStore(str(tmp_path / "data"))

    @pytest.fixture
    def store(self, open_another):
        opened = open_another()
        yield opened
        opened.close()
