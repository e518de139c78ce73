"""What browsers may do with answers: headers on every answer, also of failures and of the API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from starlette.datastructures import MutableHeaders

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

# An answer that says nothing else is data: nothing in it may be run, loaded, sent or framed.
_DEFAULTS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_HSTS: Final = "max-age=31536000"


class SecureHeaders:
    """Adds the headers that an answer lacks (pure ASGI, so that streams pass untouched).

    Args:
        app: the application.
        https: people reach the server by https only, and their browsers shall know that.
    """

    def __init__(self, app: ASGIApp, *, https: bool) -> None:
        self._app = app
        self._headers = {**_DEFAULTS, **({"Strict-Transport-Security": _HSTS} if https else {})}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""

        async def adding(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, adding)


def policy(*, script: str, image: str = "'self'") -> str:
    """The content security policy of a page.

    Nothing comes from elsewhere and nothing else is inline: what a build writes can't become a
    program on a page.

    Args:
        script: sources of scripts.
        image: sources of images.
    """
    return (
        f"default-src 'none'; script-src {script}; style-src 'self'; img-src {image}; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
