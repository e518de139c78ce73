"""The step graph laid out in lanes: one row a step, one column a chain that is still going on.

The layout that text and SVG drawings share. Only edges that say something are kept: when c waits
for a and b, and b for a, then a's edge to c goes without saying.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence


class Link(msgspec.Struct, frozen=True):
    """An edge that ends at a row's step.

    Attributes:
        column: the lane that the edge comes down.
        parent: the row it comes from.
        ends: nothing else waits for the parent: its lane is free from here on.
    """

    column: int
    parent: int
    ends: bool


class Row(msgspec.Struct, frozen=True):
    """One step and its place.

    Attributes:
        column: its lane.
        links: what it waits for, by column.
        passing: lanes of other chains that go past both the links and the step.
    """

    column: int
    links: tuple[Link, ...]
    passing: tuple[int, ...]


def reduced(dependencies: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """The dependencies without those that follow from others, ascending.

    Args:
        dependencies: for each step the indexes of earlier steps.
    """
    ancestors: list[int] = []  # a bit for each step
    result: list[tuple[int, ...]] = []
    for needed in dependencies:
        covered = 0
        kept: list[int] = []
        for index in sorted(set(needed), reverse=True):
            if not covered >> index & 1:
                kept.append(index)
                covered |= ancestors[index] | 1 << index
        ancestors.append(covered)
        result.append(tuple(reversed(kept)))
    return result


def longest_chain(dependencies: Sequence[Sequence[int]]) -> int:
    """How many steps run one after the other at least, however parallel the rest is."""
    depths: list[int] = []
    for needed in dependencies:
        depths.append(1 + max((depths[index] for index in needed), default=0))
    return max(depths, default=0)


def lay_out(dependencies: Sequence[Sequence[int]]) -> list[Row]:
    """A row for each step, in list order, which is an order in which they may run.

    Args:
        dependencies: for each step the indexes of earlier steps, already `reduced`.
    """
    waiting = [0] * len(dependencies)
    for needed in dependencies:
        for index in needed:
            waiting[index] += 1
    column_of: list[int] = []
    lanes: list[int | None] = []
    rows: list[Row] = []
    for step, needed in enumerate(dependencies):
        links: list[Link] = []
        for parent in needed:
            waiting[parent] -= 1
            links.append(Link(column_of[parent], parent, ends=not waiting[parent]))
        links.sort(key=lambda link: link.column)
        linked = {link.column for link in links}
        ended = [link.column for link in links if link.ends]
        column = ended[0] if ended else _free(lanes)
        passing = [
            lane for lane, owner in enumerate(lanes) if owner is not None and lane not in linked
        ]
        for lane in ended:
            lanes[lane] = None
        if column == len(lanes):
            lanes.append(None)
        lanes[column] = step if waiting[step] else None
        column_of.append(column)
        rows.append(Row(column, tuple(links), tuple(passing)))
    return rows


def _free(lanes: Sequence[int | None]) -> int:
    return next((lane for lane, owner in enumerate(lanes) if owner is None), len(lanes))
