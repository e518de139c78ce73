"""Network namespaces made ahead of need and handed from step to step.

Setting up a namespace on a user-defined network is two thirds of a container's start (210 of 290
ms measured). So a pause container holds one on the ``cloudbuild`` network, and steps that come
later join it (`container:ID`), one at a time. The first step waits for it: two containers that set
up namespaces at once take longer than one after the other joins the first's. Others that start at
once with it set up their own meanwhile; a build of one step makes none.

What a namespace hands on: its interface and address. Processes and listening sockets die with
their step's container. A privileged step could change routes or firewall rules for its
successors, so privileged builds don't share.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection

from buildrunner.containers.protocol import ContainerEngine
from buildrunner.containers.types import ContainerSpec
from buildrunner.engine.run_options import RunOptions
from buildrunner.engine.step_container import build_labels
from buildrunner.plan.build_plan import BuildPlan


class Namespace:
    """One namespace.

    Attributes:
        named: set once ``container`` is known, or never will be: who joins can be created.
        opened: set once it runs, or never will: who joins can be started.
        container: the pause container's id; empty before, and when it could not be made.
        line: the steps that have it one after the other: who is in it now, then who is promised.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.named = threading.Event()
        self.opened = threading.Event()
        self.container = ""
        self.line: list[int] = []

    @property
    def is_open(self) -> bool:
        """Whether it can be joined at once."""
        return bool(self.container) and self.opened.is_set()

    def settle(self) -> None:
        """What is not there by now never will be: nobody waits for it any more."""
        self.named.set()
        self.opened.set()


class NamespacePool:
    """The namespaces of one build. A thread of its own makes them; all else belongs to the loop's.

    It can be opened as soon as there is a plan, before whatever else the build needs.
    """

    def __init__(self, plan: BuildPlan, engine: ContainerEngine, options: RunOptions) -> None:
        self._plan = plan
        self._engine = engine
        self._options = options
        self._stopped = False
        self._thread: threading.Thread | None = None
        self._on_opened: Callable[[], None] = _nobody
        self.containers: list[str] = []
        """Ids of all pause containers made, for cleaning up."""
        wanted = namespaces_wanted(plan) if options.pause_image and not plan.privileged else 0
        self._namespaces = [Namespace(number) for number in range(wanted)]

    def __bool__(self) -> bool:
        return bool(self._namespaces)

    def open(self) -> None:
        """Begin to make the pause containers. Further calls do nothing."""
        if self._namespaces and self._thread is None:
            self._thread = threading.Thread(target=self._open_all, daemon=True)
            self._thread.start()

    def listen(self, on_opened: Callable[[], None]) -> None:
        """From now on ``on_opened`` is called after each, in the pool's thread."""
        self._on_opened = on_opened

    def stop(self) -> None:
        """Make no more, and let nobody wait for one."""
        self._stopped = True
        for namespace in self._namespaces:
            namespace.settle()

    def close(self, timeout_s: float | None = None) -> None:
        """`stop`, and wait for what the engine is making right now."""
        self.stop()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def assign(self, step: int, before: Collection[int]) -> Namespace | None:
        """Promise ``step`` a namespace that is free when the steps it waits for have ended.

        Args:
            step: who needs one.
            before: all steps that end before it starts and have not ended yet.

        Returns:
            None when it has to set up its own.
        """
        chosen = self._best(before)
        if chosen is not None:
            chosen.line.append(step)
        return chosen

    def has_for(self, before: Collection[int]) -> bool:
        """Whether `assign` would promise one."""
        return self._best(before) is not None

    def release(self, step: int) -> None:
        """The step's container has ended."""
        for namespace in self._namespaces:
            if step in namespace.line:
                namespace.line.remove(step)

    def _best(self, before: Collection[int]) -> Namespace | None:
        """An open one rather than the one that is being made; none that comes later than that.

        Everyone in a line waits for the one ahead, so that its last member tells enough.
        """
        opening = sum(one.opened.is_set() for one in self._namespaces)
        best = None
        for one in self._namespaces:
            if one.line and one.line[-1] not in before:
                continue
            if one.is_open:
                return one
            if one.number == opening:
                best = one
        return best

    def _open_all(self) -> None:
        """One after another; steps have the machine's other core."""
        for namespace in self._namespaces:
            if not self._stopped:
                try:
                    self._open(namespace)
                except Exception:  # noqa: BLE001  (steps set up their own: slower, not wrong)
                    self._stopped = True
                    namespace.container = ""
            namespace.settle()  # always: somebody may wait for it
            self._on_opened()

    def _open(self, namespace: Namespace) -> None:
        options = self._options
        labels = build_labels(self._plan, options)
        container = self._engine.create_container(
            ContainerSpec(
                name=f"namespace_{namespace.number}-{self._plan.build_id}",
                image=options.pause_image or "",
                network=options.network,
                extra_hosts=options.extra_hosts,
                labels=labels,
                idle=True,
            )
        )
        self.containers.append(container)
        namespace.container = container
        namespace.named.set()
        self._engine.ensure_network(options.network, labels)  # mostly there, or being made
        if not self._stopped:
            self._engine.start_container(container, attach=False)


def _nobody() -> None:
    """Takes the news while nobody listens."""


def namespaces_wanted(plan: BuildPlan) -> int:
    """How many namespaces pay off: as many as steps run at once, among those that don't run first.

    One costs as much as two steps save by it, so there are at most half as many as later steps.
    """
    level: list[int] = []
    for step in plan.steps:
        level.append(1 + max((level[before] for before in step.depends_on), default=-1))
    later = [one for one in level if one > 0]
    if not later:
        return 0
    widest = max(later.count(one) for one in set(later))
    return min(widest, (len(later) + 1) // 2)
