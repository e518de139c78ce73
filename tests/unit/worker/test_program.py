"""What a server's builds are told apart by when their place is opened."""

import pytest

from buildrunner.addresses import Egress
from buildrunner.containers.fake import FakeEngine
from buildrunner.engine.cancellation import CancelToken
from buildrunner.errors import EngineError, SourceError, UsageError
from buildrunner.plan.build_plan import BuildOrigin
from buildrunner.sandboxes.host import HostPlace, HostSandbox
from buildrunner.sandboxes.pod import PodSandbox
from buildrunner.settings import Settings
from buildrunner.store.model.builds import StoredBuild
from buildrunner.worker.execution import RunWiring
from buildrunner.worker.identity import BuildIdentities
from buildrunner.worker.program import ServerProgram, _Metadata, _Watch


class NoSandbox:
    """A sandbox that can't be made."""

    def __init__(self) -> None:
        self.requested: list[tuple] = []

    def open(self, build_id, *, project="", trusted=True):
        self.requested.append((build_id, project, trusted))
        raise EngineError("no")

    def unenforced(self, egress):
        return ()


DENIED = "10.0.0.0/8"
HOLE = Egress(deny=(DENIED,), allow=("10.1.0.0/16",))
WIRING = RunWiring(
    sink=None,
    on_event=lambda _: None,
    on_plan=lambda _: None,
    on_workspace=lambda _: None,
    cancel=CancelToken(),
)


@pytest.mark.parametrize(
    "sandbox",
    [
        HostSandbox(FakeEngine(), {}),
        PodSandbox(FakeEngine(), {}, "capabilities"),
        PodSandbox(FakeEngine(), {}, "user-namespace", egress=Egress()),
        PodSandbox(FakeEngine(), {}, "user-namespace", egress=HOLE),
    ],
    ids=["host", "pod", "another wall", "a hole"],
)
def test_a_build_is_refused_where_nothing_keeps_it_from_what_its_project_denies(sandbox):
    settings = Settings(projects={"p": {"egress_deny": (DENIED,)}})
    program = ServerProgram(sandbox, settings, {})
    stored = StoredBuild(document={"id": "b", "projectId": "p"}, request={})
    with pytest.raises(UsageError, match=r"must not reach 10\.0\.0\.0/8") as caught:
        program.run(stored, WIRING)
    assert "--sandbox nested" in caught.value.hint


def test_a_pod_whose_engine_keeps_steps_from_what_a_project_denies_runs_its_builds():
    wall = Egress(deny=("10.0.0.0/8", "192.168.0.0/16"), allow=("10.1.2.3",))
    wanted = Egress(deny=(*Egress().deny, "10.2.0.0/16", "10.1.0.0/16"), allow=("10.1.2.0/24",))
    sandbox = PodSandbox(FakeEngine(), {}, "user-namespace", egress=wall)
    assert sandbox.unenforced(wanted) == ()


@pytest.mark.parametrize("untrusted", [False, True])
def test_a_sandbox_knows_whose_build_it_is_for_and_whether_it_is_a_strangers(untrusted):
    sandbox = NoSandbox()
    stored = StoredBuild(document={"id": "b", "projectId": "p"}, request={}, untrusted=untrusted)
    program = ServerProgram(sandbox, Settings(), {})
    with pytest.raises(EngineError):
        program.run(
            stored,
            RunWiring(
                sink=None,
                on_event=lambda _: None,
                on_plan=lambda _: None,
                on_workspace=lambda _: None,
                cancel=CancelToken(),
            ),
        )
    assert sandbox.requested == [("b", "p", not untrusted)]


@pytest.mark.parametrize(
    ("audiences", "warnings"),
    [
        ((), ()),
        (("a",), ("the build gets no identity tokens: they need serve --sandbox nested",)),
    ],
)
def test_builds_that_share_an_engine_get_no_identity_tokens_and_are_told_why(audiences, warnings):
    settings = {"identity": {"audiences": audiences}}
    identities = BuildIdentities(
        "https://ci", Settings(), lambda *_: settings, lambda: None, lambda: None
    )
    document = {"id": "b", "projectId": "p", "buildTriggerId": "t"}
    stored = StoredBuild(document=document, request={})
    metadata = _Metadata(identities, stored, HostPlace(FakeEngine()))
    assert (metadata.env, metadata.hosts, metadata.warnings) == ((), (), warnings)
    metadata.start(BuildOrigin())
    metadata.close()


def test_a_build_that_goes_on_with_a_workspace_fails_where_none_is_kept():
    stored = StoredBuild(document={"id": "b"}, request={}, labels={"from_build": "a"})
    program = ServerProgram(NoSandbox(), Settings(), {})
    watch = _Watch(run=None, log_upload=None)
    with pytest.raises(SourceError, match="the workspace of build a, and none is kept here"):
        program._kept(stored, source=None, opened=None, watch=watch)
