"""What a build asks of the machine against what the machine has."""

from __future__ import annotations

from buildrunner.plan.build_plan import ResourceLimits

_GIB = 2**30


def fitted(wanted: ResourceLimits, machine: ResourceLimits) -> tuple[ResourceLimits, str]:
    """The limits to set, and a warning when the machine is smaller than what was asked for.

    A container engine refuses more CPUs than there are, so what exceeds the machine becomes no
    limit: the steps then get all there is.

    Args:
        wanted: `BuildPlan.limits`, from ``options.machineType``.
        machine: what the engine's machine has; None where it is not known.

    Returns:
        The limits, and one sentence; empty when the machine is large enough.
    """
    short: list[str] = []
    cpus, memory = wanted.cpus, wanted.memory_bytes
    if cpus is not None and machine.cpus is not None and cpus > machine.cpus:
        short.append(f"{cpus:g} CPUs (there are {machine.cpus:g})")
        cpus = None
    if memory is not None and machine.memory_bytes is not None and memory > machine.memory_bytes:
        short.append(
            f"{memory / _GIB:.3g} GiB of memory (there are {machine.memory_bytes / _GIB:.3g})"
        )
        memory = None
    warning = f"this machine is smaller than the one asked for: {' and '.join(short)}"
    return ResourceLimits(cpus=cpus, memory_bytes=memory), warning if short else ""
