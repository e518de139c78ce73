"""The server's own tokens for the APIs of forges: each goes to its own host only, encrypted."""

from __future__ import annotations

from buildrunner.errors import SecretError
from buildrunner.secrets.secret_name import forge_host, forge_token_name
from buildrunner.secrets.secret_scope import Asker, Use
from buildrunner.server.context import ServerSecrets
from buildrunner.server.http.pinned import is_private_to_us


class ForgeInClear(SecretError):
    """A forge is called by http, and would get its token unencrypted."""


def forge_token(secrets: ServerSecrets, url: str) -> str:
    """The token for a call of a forge's API, without white space around it.

    Args:
        secrets: the server's.
        url: of the call; its host decides which token it is.

    Raises:
        SecretNotFound: the server has none for that host.
        ForgeInClear: the call is not encrypted and leaves this machine.
        SecretError: the token can't be had now.
    """
    host = forge_host(url)
    if not is_private_to_us(url):
        raise ForgeInClear(
            f"no token is sent to {host} in clear: the forge must be called by https"
        )
    asker = Asker(use=Use.FORGE, forge=host)
    return secrets.value(asker, forge_token_name(host)).strip()
