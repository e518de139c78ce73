"""Files that a build writes into its volumes on this machine, before its first step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from buildrunner.containers.fake import FakeEngine
from buildrunner.engine.resources import BuildResources
from buildrunner.engine.run_options import RunOptions
from buildrunner.plan.build_plan import BuildPlan
from tests.unit.engine.conftest import BUILD_ID, step


class Engine(FakeEngine):
    """An engine whose volumes are folders here."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def create_volume(
        self, name: str, labels: Mapping[str, str], *, options: Mapping[str, str] | None = None
    ) -> str:
        super().create_volume(name, labels, options=options)
        made = self.folder / name / "_data"
        made.mkdir(parents=True, exist_ok=True)
        return str(made)


def resources(engine: Engine) -> BuildResources:
    plan = BuildPlan(build_id=BUILD_ID, project_id="p1", steps=(step(),))
    return BuildResources(plan, engine, RunOptions(home_files={"a/b/file": b"text"}))


def test_the_home_of_steps_has_its_files_in_their_folders(tmp_path: Path) -> None:
    made = resources(Engine(tmp_path))
    made.make_volumes()
    home = Path(made.home_folder)
    assert (home / "a/b/file").read_text() == "text"
    assert (home / "a/b/file").stat().st_mode & 0o777 == 0o600
    assert (home / ".gitconfig").stat().st_mode & 0o777 == 0o644
    assert made.home_missing == {}


def test_no_file_is_written_through_a_link_that_a_step_left(tmp_path: Path) -> None:
    """A step of an earlier build can put links in the place of folders of its engine."""
    victim = tmp_path / "victim" / "_data"
    victim.mkdir(parents=True)
    volumes = tmp_path / "volumes"
    volumes.mkdir()
    engine = Engine(volumes)
    (volumes / f"buildrunner-{BUILD_ID}-home").symlink_to(victim.parent)
    made = resources(engine)
    made.make_volumes()
    assert not list(victim.iterdir())
    assert set(made.home_missing) == {"/builder/home/.gitconfig", "/builder/home/a/b/file"}
