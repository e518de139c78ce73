"""Steps that mount /workspace by a path, which only works on an engine of their own."""

from __future__ import annotations

import msgspec
import pytest

from buildrunner.containers.fake import FakeEngine
from buildrunner.containers.protocol import EngineInfo
from buildrunner.engine.build_loop import mounting_steps
from buildrunner.plan.build_plan import BuildPlan
from buildrunner.workspace.protocol import PreparedWorkspace
from tests.unit.engine.conftest import Build, step

MOUNTS = [
    ("run", "-v", "/workspace:/src", "image"),
    ("run", "--volume=/workspace/sub:/src:ro", "image"),
    ("run", "-v", "$PWD:/src", "image"),
    ("-c", "docker run --rm -v $(pwd)/out:/out image"),
    ("-c", 'docker run -v "${PWD}":/src image'),
    ("-c", "docker run -v`pwd`:/src image"),
    ("run", "--mount", "type=bind,source=/workspace,target=/src", "image"),
    ("-c", "docker run --mount=type=bind,src=$PWD,dst=/src image"),
]
OTHERS = [
    ("test", "-v", "/workspace/pkg"),
    ("run", "-v", "cache:/workspace", "image"),
    ("run", "-v", "/workspaces:/src", "image"),
    ("run", "--volumes-from", "step", "image"),
    ("build", "-t", "image", "/workspace"),
    ("-c", "echo $PWD:/x; rsync -v a:/b"),
]


@pytest.mark.parametrize("args", MOUNTS)
def test_a_mount_of_the_workspace_is_seen(args: tuple[str, ...]) -> None:
    plan = BuildPlan(build_id="b", project_id="p", steps=(step(0, args=args), step(1)))
    assert [one.index for one in mounting_steps(plan)] == [0]
    (script,) = args[1:] if args[0] == "-c" else (f"docker {' '.join(args)}",)
    plan = BuildPlan(build_id="b", project_id="p", steps=(step(0, script=script),))
    assert [one.index for one in mounting_steps(plan)] == [0]


@pytest.mark.parametrize("args", OTHERS)
def test_nothing_else_is_taken_for_one(args: tuple[str, ...]) -> None:
    plan = BuildPlan(build_id="b", project_id="p", steps=(step(0, args=args),))
    assert mounting_steps(plan) == ()


class EngineOfThisMachine(FakeEngine):
    def info(self) -> EngineInfo:
        return msgspec.structs.replace(super().info(), local=True)


@pytest.mark.parametrize(("engine", "has_nested"), [(FakeEngine, 0), (EngineOfThisMachine, 1)])
def test_a_build_on_a_shared_engine_warns_of_it_and_proposes_what_works_there(
    engine: type[FakeEngine], has_nested: bool
) -> None:
    build = Build(step(0, args=MOUNTS[0]))
    build.engine = engine(["busybox"])
    (warning,) = build.run().warnings
    assert "mounts /workspace into a container of its own" in warning
    assert ("--sandbox nested" in warning) == has_nested
    assert "--volumes-from" in warning


def test_a_build_whose_engine_has_the_workspace_there_does_not_warn() -> None:
    class AtThatPath:
        def prepare(self, *_: object) -> PreparedWorkspace:
            return PreparedWorkspace(volume="/workspace", bind=True)

        def changed_on_host(self) -> tuple[str, ...]:
            return ()

        def release(self) -> None: ...

    build = Build(step(0, args=MOUNTS[0]))
    build.workspace = AtThatPath()  # type: ignore[assignment]
    assert build.run().warnings == ()


def test_a_build_whose_steps_have_no_engine_does_not_warn() -> None:
    assert Build(step(0, args=MOUNTS[0]), docker_socket=False).run().warnings == ()
