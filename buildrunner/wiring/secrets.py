"""Who knows secrets, and the user's Google credentials."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from buildrunner.engine.secret_resolver import SecretResolver
    from buildrunner.metadata.google_credentials import GoogleCredentials
    from buildrunner.plan.build_plan import SecretReference
    from buildrunner.secrets.google_api import GoogleApi
    from buildrunner.secrets.local_store import LocalSecretStore
    from buildrunner.secrets.provider import SecretProvider
    from buildrunner.settings import Settings

_GOOGLE_OFF = "Google is not asked without --google-secrets"


def secret_resolver(settings: Settings, *, on_server: bool = False) -> SecretResolver:
    """Whoever knows secrets. Most builds have none: nothing is imported before one is asked for.

    Args:
        settings: say who.
        on_server: for builds of a server, which don't get what it signs and logs in with.
    """
    return _SecretsOnDemand(settings, on_server)


class _SecretsOnDemand:
    def __init__(self, settings: Settings, on_server: bool) -> None:
        self._settings = settings
        self._on_server = on_server
        self._providers: SecretResolver | None = None

    def resolve(self, reference: SecretReference) -> str:
        if self._providers is None:
            self._providers = _secret_providers(self._settings, self._on_server)
        return self._providers.resolve(reference)


def _secret_providers(settings: Settings, on_server: bool) -> SecretResolver:
    """In this order: mapping, local store, decrypt command, Google."""
    from buildrunner.secrets.mapped import MappedSecrets
    from buildrunner.secrets.provider import NotAsked, ProviderChain
    from buildrunner.secrets.secret_name import is_servers_own
    from buildrunner.secrets.stored import StoredSecrets

    def withheld(name: str) -> bool:
        return on_server and is_servers_own(name)

    providers: list[SecretProvider] = [
        MappedSecrets(settings.secrets, os.environ, withheld),
        StoredSecrets(secret_store(settings), withheld),
    ]
    if settings.kms_command:
        from buildrunner.secrets.decrypt_command import CommandSecrets

        providers.append(CommandSecrets(settings.kms_command))
    providers.extend(_google_secrets() if settings.google_secrets else [NotAsked(_GOOGLE_OFF)])
    return ProviderChain(providers)


def secret_store(settings: Settings) -> LocalSecretStore:
    """The user's own encrypted secrets. Nothing is read or made yet."""
    from buildrunner.secrets.local_store import KEY_NAME, LocalSecretStore
    from buildrunner.secrets.store_key import KeyFile, KeyringKey
    from buildrunner.settings import secrets_folder

    folder = secrets_folder()
    if settings.secrets_key == "keyring":
        return LocalSecretStore(folder, KeyringKey(folder))
    return LocalSecretStore(folder, KeyFile(os.path.join(folder, KEY_NAME)))


def _google_secrets() -> list[SecretProvider]:
    import time

    from buildrunner.secrets.google_api import GoogleApi
    from buildrunner.secrets.google_secrets import (
        KmsSecrets,
        SecretManagerSecrets,
    )
    from buildrunner.settings import google_endpoint

    token = google_token()

    def secret_manager(endpoint: str) -> GoogleApi:
        return GoogleApi(google_endpoint("SECRETMANAGER", endpoint), token, time.sleep)

    def kms(endpoint: str) -> GoogleApi:
        return GoogleApi(google_endpoint("CLOUDKMS", endpoint), token, time.sleep)

    return [SecretManagerSecrets(secret_manager), KmsSecrets(kms)]


def google_token() -> Callable[[], str]:
    """Gives access tokens of the user's own Google credentials; looks for them when called."""
    loaded: list[GoogleCredentials] = []

    def token() -> str:
        from buildrunner.secrets.google_api import SCOPES

        # Credentials are looked for when something needs them: that may ask a metadata server.
        if not loaded:
            from buildrunner.metadata.google_credentials import GoogleCredentials

            loaded.append(GoogleCredentials())
        return loaded[0].access_token(SCOPES).value

    return token
