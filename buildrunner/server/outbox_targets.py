"""Where messages of the outbox may go, and which forges are called: the rules of sources.

Whoever may configure a project's notifiers need not be the server's administrator. A private
address must therefore be one that the administrator named: ``serve --allow-notify-host``. A forge
at a private address must be named for fetching from it, too: ``serve --allow-source-host``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from buildrunner.errors import BuildrunnerError
from buildrunner.sources.source_gate import look_up
from buildrunner.sources.source_policy import (
    SourcePolicy,
    refusal_of_addresses,
    refusal_of_url,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import timedelta

    from buildrunner.server.context import ServerSettings

_NOTIFY_FLAG: Final = "--allow-notify-host"
_SOURCE_FLAG: Final = "--allow-source-host"


class NotDelivered(BuildrunnerError):
    """It did not arrive.

    Attributes:
        is_final: it never will.
        wait: how long the receiver wants us to wait; None when it does not say.
        no_answer: the receiver did not answer at all.
    """

    def __init__(
        self,
        message: str,
        *,
        is_final: bool = False,
        wait: timedelta | None = None,
        no_answer: bool = False,
    ) -> None:
        super().__init__(message)
        self.no_answer = no_answer
        self.is_final = is_final
        self.wait = wait


class HostNotFound(NotDelivered):
    """The name of the host has no address now."""


class TargetGate:
    """Says where messages may go. Thread-safe.

    Args:
        policy: what is allowed.
        addresses_of: looks a name up. Raises `OSError`.
        flag: of ``serve``, which allows more.
    """

    def __init__(
        self,
        policy: SourcePolicy,
        addresses_of: Callable[[str], Sequence[str]] = look_up,
        *,
        flag: str = _NOTIFY_FLAG,
    ) -> None:
        self._policy = policy
        self._addresses_of = addresses_of
        self._flag = flag

    def addresses(self, host: str) -> Sequence[str]:
        """The addresses of a host that may be talked to; at least one.

        Raises:
            NotDelivered: it may not be, or can't be found.
        """
        self.check_name(host)
        try:
            found = self._addresses_of(host)
        except (OSError, UnicodeError) as error:
            said = getattr(error, "strerror", "") or error
            raise HostNotFound(f"the host {host} can't be found ({said})") from error
        if not found:
            raise HostNotFound(f"the host {host} can't be found")
        if refusal_of_addresses(self._policy, host, found):
            raise self._refused(host, f"{host} is at {found[0]}, a private address")
        return found

    def check_name(self, host: str) -> None:
        """Whether a host may be talked to, as far as its name tells.

        Raises:
            NotDelivered: it may not.
        """
        shown = f"[{host}]" if ":" in host else host
        if refusal_of_url(self._policy, f"https://{shown}/"):
            raise self._refused(host, f"{host} is inside the server's network")

    def _refused(self, host: str, why: str) -> NotDelivered:
        allowed = f"the server's administrator can allow it: serve {self._flag} {host}"
        return NotDelivered(f"{why}; {allowed}")


class Gates(NamedTuple):
    """The gates of a server: for what projects configure, and for the APIs of forges."""

    notifiers: TargetGate
    forges: TargetGate


def gates(settings: ServerSettings) -> Gates:
    """The gates that a server's settings mean."""
    return Gates(TargetGate(settings.notify), TargetGate(settings.sources, flag=_SOURCE_FLAG))
