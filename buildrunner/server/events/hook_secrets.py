"""The secrets of hooks, by which forges sign deliveries, and the secrets of webhook triggers."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from typing import Any, Final, cast

from buildrunner.errors import SecretError, SecretNotFound
from buildrunner.secrets.secret_scope import Asker, Use
from buildrunner.server.context import ServerSecrets
from buildrunner.triggers.forges.catalog import FORGES

LIMIT_S: Final = 8.0
"""The longest wait of a delivery for its hook's secret: GitHub disconnects after 10 seconds."""
_KEPT_S: Final = 2.0
_MOST_KEPT: Final = 1000
_MOST_AT_ONCE: Final = 256
_NAMES: Final = (Asker(use=Use.HOOK), "")

_log = logging.getLogger("buildrunner.server")


class SecretSlow(SecretError):
    """The secret could not be read in time. The sender may retry."""


def secret_name(hook: str) -> str:
    """Return the name of a hook's secret: ``hooks-git-app`` for the hook ``git/app``."""
    return f"hooks-{hook.replace('/', '-')}"


def namesake(forge: str, name: str) -> str:
    """Return another forge whose hook has the same secret name; empty if there is none.

    ``/hooks/bitbucket/server-x`` would have the secret of ``/hooks/bitbucket-server/x``.
    """
    others = (other for other in FORGES if other.startswith(f"{forge}-"))
    return next((other for other in others if f"{forge}-{name}-".startswith(f"{other}-")), "")


class HookSecrets:
    """Reads each secret at most every two seconds, for all waiting callers; in one event loop.

    Each fetch has its own thread: a slow secret delays only its own hook. Any sender can choose
    the name of a hook, so only secrets of the server itself and of bound hooks are fetched. All
    deliveries that wait share one look for these.

    Args:
        secrets: the server's secrets.
        hooks: returns the names of bound hooks.
        now: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        secrets: ServerSecrets,
        hooks: Callable[[], Iterable[str]],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._secrets = secrets
        self._hooks = hooks
        self._now = now
        self._known: OrderedDict[tuple[Asker, str], tuple[float, str]] = OrderedDict()
        self._fetches: dict[tuple[Asker, str], asyncio.Future[Any]] = {}

    async def of(self, asker: Asker, name: str) -> str:
        """Return the value of a secret, without surrounding white space.

        Raises:
            SecretNotFound: there is no such secret, or the asker may not have it.
            SecretSlow: the secret could not be read in time.
            SecretError: the secret can't be read now.
        """
        key = (asker, name)
        read_at, value = self._known.get(key, (0.0, ""))
        if value and self._now() - read_at < _KEPT_S:
            return value
        try:
            async with asyncio.timeout(LIMIT_S):
                if asker.use is Use.HOOK and name not in await self._names():
                    raise SecretNotFound(
                        f"there is no secret {name} on this machine, and elsewhere the server"
                        " looks only for secrets of hooks that are bound"
                    )
                found = await self._fetch(key)
        except TimeoutError:
            text = f"the secret {name} did not come within {LIMIT_S:g} s"
            raise SecretSlow(text) from None
        return str(found)

    async def _names(self) -> Collection[str]:
        """Return the names that a hook's secret may have, as of now or later."""
        under_way = self._fetches.get(_NAMES)
        if under_way is not None:  # it began before this call, and may lack a hook bound since
            await asyncio.shield(under_way)
        return cast("Collection[str]", await self._fetch(_NAMES))

    async def _fetch(self, key: tuple[Asker, str]) -> Any:
        found = await asyncio.shield(self._fetches.get(key) or self._begin(key))
        if isinstance(found, SecretError):
            raise found.with_traceback(None)
        return found

    def _begin(self, key: tuple[Asker, str]) -> asyncio.Future[Any]:
        asker = key[0]
        if key != _NAMES and sum(other == asker for other, _ in self._fetches) >= _MOST_AT_ONCE:
            raise SecretSlow("too many secrets are being fetched")
        loop = asyncio.get_running_loop()
        fetch = self._fetches[key] = loop.create_future()

        def run() -> None:
            found = self._fetched(*key)
            with suppress(RuntimeError):  # the server has ended meanwhile
                loop.call_soon_threadsafe(self._end, key, found)

        threading.Thread(target=run, name="hook-secret", daemon=True).start()
        return fetch

    def _fetched(self, asker: Asker, name: str) -> str | Collection[str] | SecretError:
        try:
            if (asker, name) == _NAMES:
                return {*self._secrets.own_names(), *map(secret_name, self._hooks())}
            return self._secrets.value(asker, name).strip()
        except SecretError as error:
            return error
        except Exception as error:  # noqa: BLE001  (waiting callers must get the error)
            _log.exception("the secret %s can't be fetched", name)
            return SecretError(f"internal error: {type(error).__name__}")

    def _end(self, key: tuple[Asker, str], found: str | Collection[str] | SecretError) -> None:
        if isinstance(found, str):
            self._known[key] = (self._now(), found)
            self._known.move_to_end(key)
            if len(self._known) > _MOST_KEPT:
                self._known.popitem(last=False)
        self._fetches.pop(key).set_result(found)
