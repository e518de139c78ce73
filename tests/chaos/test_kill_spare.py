"""kill -9 of a server that has a sandbox ready ahead of its builds."""

import pytest

from buildrunner.containers.process_owner import is_alive
from buildrunner.containers.protocol import LABEL_BUILD
from buildrunner.sandboxes.nested.folders import SandboxFolders
from buildrunner.sandboxes.nested.spare import left_spares, sweep_spares
from tests.chaos.kill_bench import KillBench, until
from tests.chaos.test_kill_matrix import COUNT, RAN, VICTIMS, kill

pytestmark = pytest.mark.docker

SLOW = f"{RAN}; for n in $(seq 1 15); do echo line $n end; sleep 0.1; done"
_TRIES = 10


class SpareBench(KillBench):
    """A server with one spare sandbox."""

    def __init__(self, path, engine, image):
        super().__init__(path, engine, image, sandbox="nested", spares=1)
        self.sandboxes = SandboxFolders(str(path))

    def ready(self, but=""):
        """The place of a spare sandbox that may be handed out, and is not ``but``."""

        def found():
            for place in self.sandboxes.spares():
                if place != but and (self.path / "spares" / place / "spare.json").exists():
                    return place
            return None

        return until(found, "a spare sandbox")

    def build_in_spare(self, *steps):
        """A build that got one, and its place. (Who tags images meanwhile makes them unfit.)"""
        for _ in range(_TRIES):
            place = self.ready()
            build_id = self.create(*steps)
            self.wait_for_log(build_id, "line 5 end")
            if self.sandboxes.place(build_id) == place:
                return build_id, place
        raise AssertionError("no build gets the spare sandbox")

    def left(self, place):
        owned = self.engine.list_owned({LABEL_BUILD: place})
        return [*owned.containers, *owned.volumes]

    def check_gone(self, place):
        try:
            until(lambda: not self.left(place), f"the removal of {place}")
            until(lambda: place not in self._known(), f"the removal of the folder of {place}")
        except AssertionError as error:
            said = self.server_log.read_text()
            raise AssertionError(f"{error}; left: {self.left(place)}\n{said}") from error

    def _known(self):
        return {*self.sandboxes.spares(), *self.sandboxes.owners()}

    def close(self):
        if self.server is not None:
            self.kill_server()
        self.builds += self.sandboxes.owners()  # a place that has a build has its label
        super().close()
        sweep_spares(self.engine, is_alive)


@pytest.fixture
def bench(tmp_path, docker_engine, busybox):
    made = SpareBench(tmp_path / "data", docker_engine, busybox)
    yield made
    made.close()


@pytest.mark.parametrize(
    "victim",
    [pytest.param(v, marks=[] if v == "both" else [pytest.mark.chaos]) for v in VICTIMS],
)
def test_a_build_in_a_spare_sandbox_goes_on(bench, victim):
    bench.start()
    build_id, place = bench.build_in_spare(SLOW, f"{RAN}; {COUNT}")
    kill(bench, build_id, victim)
    sweep_spares(bench.engine, is_alive)  # leaves it alone, whether its server lives or not
    assert bench.left(place)
    document = bench.wait_for_end(build_id)
    assert document["status"] == "SUCCESS", bench.account(build_id)
    assert "runs: 2\n" in bench.check_log(build_id, lines=15)
    bench.check_nothing_left(build_id)
    bench.check_gone(place)


def test_nothing_is_left_of_a_spare_sandbox_however_its_server_ends(bench):
    bench.start()
    first = bench.ready()
    assert bench.left(first)
    bench.kill_server()
    bench.start()
    second = bench.ready(but=first)
    bench.check_gone(first)
    bench.kill_server()
    found = left_spares(bench.engine, is_alive)
    assert {*bench.left(second)} <= {*found.containers, *found.volumes}
    sweep_spares(bench.engine, is_alive)  # a test beside this one may do it, too
    bench.check_gone(second)
    bench.start()
    third = bench.ready(but=second)
    assert third not in str(left_spares(bench.engine, is_alive))
    bench.stop_server()
    bench.check_gone(third)
    bench.start()
    fourth = bench.ready(but=third)
    bench.kill_server()
    bench.spares = 0
    bench.start()
    bench.check_gone(fourth)
    assert bench.sandboxes.spares() == ()
