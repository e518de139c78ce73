"""What a build may say about what it fetches."""

import pytest

from buildrunner.spec.model.build import Build, BuildStep
from buildrunner.spec.model.source import (
    ConnectedRepository,
    Dependency,
    GitSource,
    GitSourceDependency,
    GitSourceRepository,
    RepoSource,
    Source,
)
from buildrunner.spec.reading.decode import load_build
from buildrunner.spec.validation.check import check_build

STEPS = (BuildStep(name="busybox"),)


def found(**fields):
    return [(one.rule, one.path) for one in check_build(Build(steps=STEPS, **fields))]


def dependency(**changes):
    fields = {
        "repository": GitSourceRepository(url="https://example.com/x.git"),
        "revision": "main",
        "dest_path": "x",
    }
    return (Dependency(git_source=GitSourceDependency(**(fields | changes))),)


@pytest.mark.parametrize("folder", ["", ".", "a/b", "a/../b", "..a"])
def test_a_folder_of_the_source_is_fine(folder):
    assert found(source=Source(git_source=GitSource(url="u", dir=folder))) == []


@pytest.mark.parametrize("folder", ["/", "/a", "..", "../a", "a/../../b"])
def test_a_folder_that_leads_out_of_the_source_is_refused(folder):
    for name, source in (
        ("gitSource", Source(git_source=GitSource(url="u", dir=folder))),
        ("repoSource", Source(repo_source=RepoSource(repo_name="r", dir=folder))),
        (
            "connectedRepository",
            Source(connected_repository=ConnectedRepository(repository="r", dir=folder)),
        ),
    ):
        assert found(source=source) == [("source-dir", f"source.{name}.dir")]


@pytest.mark.parametrize("path", ["x", "a/b", "/workspace/x", "./x", "a/../b"])
def test_a_dependency_goes_below_the_workspace(path):
    assert found(dependencies=dependency(dest_path=path, depth=-1)) == []


@pytest.mark.parametrize(
    "path", [".", "/", "/workspace", "/etc", "../x", "/workspace/../etc", "/x"]
)
def test_and_nowhere_else(path):
    place = ("dependency", "dependencies[0].gitSource.destPath")
    assert found(dependencies=dependency(dest_path=path)) == [place]


def test_a_dependency_says_what_and_where():
    nothing = found(dependencies=(Dependency(git_source=GitSourceDependency()),))
    assert nothing == [("dependency", "dependencies[0].gitSource")] * 3
    assert found(dependencies=dependency(depth=-2)) == [
        ("dependency", "dependencies[0].gitSource.depth")
    ]
    assert found(dependencies=(Dependency(empty=True),)) == []


def test_problems_have_their_place_in_the_file():
    text = b"""\
steps: [{name: busybox}]
dependencies:
- empty: true
- gitSource:
    repository: {url: 'https://example.com/x.git'}
    revision: main
    destPath: /etc
"""
    (problem,) = check_build(load_build(text, file="c.yaml"), file="c.yaml")
    assert problem.text().startswith("c.yaml:7:")
