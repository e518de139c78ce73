"""The step graph drawn in lanes: as text, SVG and Mermaid."""

from __future__ import annotations

import time
from textwrap import dedent
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildrunner.plan.drawing import (
    ASCII,
    Node,
    display_width,
    draw_mermaid,
    draw_svg,
    draw_text,
    lay_out,
    longest_chain,
    nodes_of_build,
    reduced,
    short_image,
    summary,
)
from buildrunner.spec.model.build import Build, BuildStep


def step(step_id, *waits, **fields):
    return BuildStep(**{"name": "r/busybox:1", "id": step_id, "wait_for": waits, **fields})


PIPELINE = Build(
    steps=(
        step("deps", args=("ci",)),
        step("lint", "deps", allow_failure=True),
        step("unit", "deps"),
        step("types", "deps"),
        step("image", "unit", "types"),
        step("licences", "-", script="#!/bin/sh\n# all\n\ncheck  it\n"),
        step("scan", "image", "licences"),
        step("deploy"),
    )
)


def test_text_shows_what_runs_side_by_side():
    expected = """\
        ●      0  deps      busybox  ci
        ├─╮
        │ ○    1  lint      busybox
        ├─│─╮
        │ │ ●  2  unit      busybox
        │ │ │
        ● │ │  3  types     busybox
        ├─│─╯
        ● │    4  image     busybox
        │ │ ●  5  licences  busybox  script: check it
        ├─│─╯
        ● │    6  scan      busybox
        ├─╯
        ●      7  deploy    busybox

        ○ may fail without failing the build
        """
    assert draw_text(nodes_of_build(PIPELINE)) == dedent(expected)


def test_text_makes_do_with_ascii():
    drawing = draw_text(nodes_of_build(PIPELINE), glyphs=ASCII)
    assert drawing.isascii()
    assert drawing.splitlines()[1:5] == [
        "+-.",
        "| o    1  lint      busybox",
        "+-|-.",
        "| | *  2  unit      busybox",
    ]


def test_steps_without_ids_are_named_by_their_image():
    build = Build(steps=(step("", entrypoint="sh", args=("-c", "x\ny")), step("")))
    assert draw_text(nodes_of_build(build)).splitlines() == [
        "●  0  busybox  sh -c x y",
        "│",
        "●  1  busybox",
    ]


def test_text_fits_the_terminal():
    build = Build(steps=(step("a", args=("x" * 500,)),))
    assert [len(line) for line in draw_text(nodes_of_build(build), width=60).splitlines()] == [60]


def test_columns_stand_below_each_other_where_ids_have_wide_letters():
    build = Build(steps=(step("漢字", args=("x" * 500,)), step("e\u0301x")))
    first, _, second = draw_text(nodes_of_build(build), width=60).splitlines()
    assert first.startswith("●  0  漢字  busybox  xxx")
    assert second.startswith("●  1  e\u0301x    busybox")
    assert display_width(first) == 60


@pytest.mark.parametrize(
    ("waits", "expected"),
    [
        ([()], "1 step"),
        ([(), ()], "2 steps, one after the other"),
        ([("-",), ("-",)], "2 steps, all at once"),
        ([("-",), ("-",), ()], "3 steps, the longest chain has 2"),
    ],
)
def test_the_summary_tells_the_longest_chain(waits, expected):
    build = Build(steps=tuple(BuildStep(name="i", wait_for=wait) for wait in waits))
    assert summary(nodes_of_build(build)) == expected


def test_edges_that_follow_from_others_are_left_out():
    assert reduced([(), (0,), (0, 1), (0, 1, 2)]) == [(), (0,), (1,), (2,)]
    assert longest_chain([(), (0,), (0, 1)]) == 3


def test_mermaid_has_an_arrow_for_every_edge_that_says_something():
    drawing = draw_mermaid(nodes_of_build(PIPELINE)).splitlines()
    assert drawing[0] == "flowchart TD"
    assert '  s0["deps<br><small>busybox</small>"]' in drawing
    assert [line for line in drawing if "-->" in line and "s4" in line] == [
        "  s2 --> s4",
        "  s3 --> s4",
        "  s4 --> s6",
    ]
    assert drawing[-1] == "  class s1 mayFail"


HOSTILE = '"]<script>alert(1)</script>--> end\n;#&"\x1b[31m\u202e'


def test_names_can_not_break_out_of_a_drawing():
    nodes = nodes_of_build(Build(steps=(step(HOSTILE, name=HOSTILE, args=(HOSTILE,)),)))
    mermaid = draw_mermaid(nodes)
    assert len(mermaid.splitlines()) == 2
    assert mermaid.count('"') == 2
    assert "<script" not in mermaid
    svg = draw_svg(nodes, name=HOSTILE)
    assert "<script" not in svg
    ET.fromstring(svg)
    assert "\x1b" not in draw_text(nodes)


def test_the_svg_is_one_readable_file():
    root = ET.fromstring(draw_svg(nodes_of_build(PIPELINE), name="cloudbuild.yaml"))
    space = "{http://www.w3.org/2000/svg}"
    titles = [title.text or "" for title in root.iter(f"{space}title")]
    assert titles[0].startswith("cloudbuild.yaml: 8 steps, the longest chain has 5")
    assert titles[1:] == [
        f"{node.index} {node.title}: {node.image} {node.command}".rstrip()
        for node in nodes_of_build(PIPELINE)
    ]
    text = ET.tostring(root, encoding="unicode")
    assert "prefers-color-scheme: dark" in text
    assert "href" not in text
    assert "url(" not in text


def test_thirty_steps_stay_narrow_and_three_hundred_stay_quick():
    build = Build(
        steps=tuple(
            step(f"s{n}", *((f"s{n - 1}", f"s{n - 2}") if n > 1 else ("-",))) for n in range(30)
        )
    )
    root = ET.fromstring(draw_svg(nodes_of_build(build)))
    assert int(root.attrib["width"]) < 900
    started = time.process_time()
    many = nodes_of_build(Build(steps=tuple(step(f"s{n}") for n in range(300))))
    draw_text(many)
    draw_svg(many)
    draw_mermaid(many)
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("image", "short"),
    [
        ("gcr.io/cloud-builders/docker:latest", "docker"),
        ("host:5000/a/b@sha256:00", "b"),
        ("busybox", "busybox"),
        ("", ""),
    ],
)
def test_the_short_name_of_an_image(image, short):
    assert short_image(image) == short


@st.composite
def dependencies(draw):
    count = draw(st.integers(1, 14))
    return [
        tuple(sorted(draw(st.sets(st.integers(0, index - 1), max_size=4)))) if index else ()
        for index in range(count)
    ]


def closure(needs):
    reach = []
    for each in needs:
        reach.append(set(each).union(*(reach[index] for index in each)))
    return reach


@given(dependencies())
def test_any_graph_is_drawn_without_losing_an_edge(needs):
    edges = reduced(needs)
    assert closure(edges) == closure(needs)
    rows = lay_out(edges)
    owners: dict[int, int] = {}
    for index, (row, each) in enumerate(zip(rows, edges, strict=True)):
        assert sorted(link.parent for link in row.links) == sorted(each)
        assert all(owners[link.column] == link.parent for link in row.links)
        assert not {row.column, *(link.column for link in row.links)} & set(row.passing)
        if row.column in owners:
            free = [link for link in row.links if link.column == row.column and link.ends]
            assert free or owners[row.column] not in {p for later in edges[index:] for p in later}
        owners[row.column] = index
    nodes = [
        Node(index=index, id=f"s{index}", image="i", command="", depends_on=tuple(each))
        for index, each in enumerate(needs)
    ]
    drawn = draw_text(nodes, width=200)
    assert all(f"  s{index}" in drawn for index in range(len(nodes)))
    ET.fromstring(draw_svg(nodes))
    assert draw_mermaid(nodes).count("-->") == sum(map(len, edges))
