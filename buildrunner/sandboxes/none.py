"""No sandbox: the server runs no build itself, and needs no container engine."""

from __future__ import annotations

from typing import NoReturn

from buildrunner.errors import EngineError


class NoSandbox:
    """Implements `Sandbox` for a server whose builds all run on workers elsewhere."""

    name = "none"

    def open(self, build_id: str, *, project: str = "", trusted: bool = True) -> NoReturn:  # noqa: ARG002
        """See `Sandbox.open`.

        Raises:
            EngineError: always.
        """
        raise EngineError(f"this server runs no builds itself (--sandbox none): {build_id}")

    def remove(self, build_id: str) -> None:
        """See `Sandbox.remove`: nothing was made here."""

    def keep_spares(self, count: int) -> None:
        """See `Sandbox.keep_spares`: nothing is started for a build."""

    def drop_spares(self) -> None:
        """See `Sandbox.drop_spares`."""

    def isolation(self) -> str:
        """See `Sandbox.isolation`: each worker has its own."""
        return ""

    def check_engine(self) -> None:
        """See `Sandbox.check_engine`: no engine is needed."""

    def check(self) -> None:
        """See `Sandbox.check`: no engine is needed."""

    def close(self) -> None:
        """See `Sandbox.close`."""

    def builds_left(self) -> tuple[str, ...]:
        """See `Sandbox.builds_left`: no build has anything here."""
        return ()
