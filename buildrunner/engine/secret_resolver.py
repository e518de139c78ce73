"""The seam between a running build and whoever knows secrets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from buildrunner.plan.build_plan import SecretReference


class SecretResolver(Protocol):
    """Turns references into values, at run time only."""

    def resolve(self, reference: SecretReference) -> str:
        """The secret's value, unmodified (a trailing newline stays).

        Called once per distinct reference and build, before the first step, from a thread.

        Raises:
            SecretError: it can't be had; the message names the secret, never a value.
        """
        ...
