"""A machine type on a machine that may be smaller."""

from __future__ import annotations

import pytest

from buildrunner.plan.build_plan import ResourceLimits
from buildrunner.plan.compile import fitted

GIB = 2**30
WANTED = ResourceLimits(cpus=8, memory_bytes=8 * GIB)


@pytest.mark.parametrize(
    ("wanted", "machine", "expected"),
    [
        (WANTED, ResourceLimits(cpus=8, memory_bytes=8 * GIB), WANTED),
        (WANTED, ResourceLimits(), WANTED),
        (ResourceLimits(), ResourceLimits(cpus=1, memory_bytes=GIB), ResourceLimits()),
        (
            WANTED,
            ResourceLimits(cpus=2, memory_bytes=9 * GIB),
            ResourceLimits(memory_bytes=8 * GIB),
        ),
        (WANTED, ResourceLimits(cpus=16, memory_bytes=GIB), ResourceLimits(cpus=8)),
        (WANTED, ResourceLimits(cpus=2, memory_bytes=GIB), ResourceLimits()),
    ],
)
def test_what_exceeds_the_machine_is_no_limit(wanted, machine, expected):
    limits, warning = fitted(wanted, machine)
    assert limits == expected
    assert bool(warning) is (limits != wanted)


def test_the_warning_names_both_sizes():
    _, warning = fitted(WANTED, ResourceLimits(cpus=2, memory_bytes=6 * GIB))
    assert warning == (
        "this machine is smaller than the one asked for: "
        "8 CPUs (there are 2) and 8 GiB of memory (there are 6)"
    )
