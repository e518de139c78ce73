"""The seam between a running build and whoever knows secrets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buildrunner.plan.build_plan import SecretReference, StepPlan


class SecretResolver(Protocol):
    """Turns references into values, at run time only."""

    def resolve(self, reference: SecretReference, steps: Sequence[StepPlan] = ()) -> str:
        """The secret's value, unmodified (a trailing newline stays).

        Called once per distinct reference and build, before the first step, from a thread.

        Args:
            reference: the secret.
            steps: the steps that get it.

        Raises:
            SecretError: it can't be had; the message names the secret, never a value.
        """
        ...
