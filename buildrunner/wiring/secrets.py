"""The sources of secrets, and the user's Google credentials."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from buildrunner.engine.protocols import SecretResolver
    from buildrunner.metadata import GoogleCredentials
    from buildrunner.plan.build_plan import BuildPlan, SecretReference
    from buildrunner.secrets.google import GoogleApi
    from buildrunner.secrets.local_store import LocalSecretStore
    from buildrunner.secrets.provider import SecretProvider
    from buildrunner.secrets.secret_scope import Asker
    from buildrunner.settings import Settings

_GOOGLE_OFF = "Google is not asked without --google-secrets"


def secret_resolver(settings: Settings, asker: Asker | None = None) -> SecretResolver:
    """Return a resolver of secrets. Nothing is imported before a secret is requested.

    Args:
        settings: settings that say where the values are.
        asker: caller that requests secrets from a server; None for the user's own builds, which
            can use all secrets.
    """
    return _SecretsOnDemand(settings, asker)


class _SecretsOnDemand:
    def __init__(self, settings: Settings, asker: Asker | None) -> None:
        self._settings = settings
        self._asker = asker
        self._resolver: SecretResolver | None = None

    def resolve(self, reference: SecretReference, plan: BuildPlan | None = None) -> str:
        if self._resolver is None:
            self._resolver = _resolver(self._settings, self._asker)
        return self._resolver.resolve(reference, plan)


def _resolver(settings: Settings, asker: Asker | None) -> SecretResolver:
    """Return a resolver that tries, in order: mapping, local store, decrypt command, Google."""
    from buildrunner.secrets.local_store import StoredSecrets
    from buildrunner.secrets.provider import DisabledSecrets, MappedSecrets, ProviderChain

    stored = StoredSecrets(secret_store(settings))
    others: list[SecretProvider] = []
    if settings.kms_command:
        from buildrunner.secrets.decrypt_command import CommandSecrets

        others.append(CommandSecrets(settings.kms_command))
    others.extend(_google_secrets() if settings.google_secrets else [DisabledSecrets(_GOOGLE_OFF)])
    chain = ProviderChain([MappedSecrets(settings.secrets, os.environ), stored], others)
    if asker is None:
        return chain
    from buildrunner.secrets.secret_scope import ScopedSecrets

    return ScopedSecrets(chain, asker, lambda name: stored.snapshot.scope_of(name))


class ServerSecrets:
    """Secrets for the parts of a server. They are read at each call, so changes apply at once.

    Args:
        settings: settings of the server.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def value(self, asker: Asker, name: str) -> str:
        """Return the value of a secret, by the name that a config or the server uses for it.

        Raises:
            SecretNotFound: no such secret is available to the asker.
            SecretError: the secret can't be read now.
        """
        from buildrunner.plan.build_plan import SecretReference

        reference = SecretReference("", "secretManager", name)
        return secret_resolver(self._settings, asker).resolve(reference)

    def resolve(self, asker: Asker, reference: SecretReference, plan: BuildPlan) -> str:
        """Return the value of a secret that the plan of a build names; see `value`."""
        return secret_resolver(self._settings, asker).resolve(reference, plan)

    def own_names(self) -> Collection[str]:
        """Return the names of the server's own secrets. No value is fetched.

        Raises:
            SecretError: the store can't be read now.
        """
        stored = secret_store(self._settings).secrets()
        return {*self._settings.secrets, *(name for name, one in stored.items() if one.versions)}

    def unused(self) -> Mapping[str, str]:
        """Return the names of secrets that no build can use, each with its scope in words.

        Raises:
            SecretError: the store can't be read now.
        """
        from buildrunner.secrets.secret_scope import is_unusable, scope_text

        store = secret_store(self._settings)
        names = sorted({*self._settings.secrets, *store.secrets()})
        scopes = store.scopes()
        found = {name: scopes.get(name) for name in names}
        return {n: scope_text(n, scope) for n, scope in found.items() if is_unusable(n, scope)}


def secret_store(settings: Settings) -> LocalSecretStore:
    """Return the user's own encrypted secrets. Nothing is read or created yet."""
    from buildrunner.secrets.local_store import KEY_NAME, LocalSecretStore
    from buildrunner.secrets.store_key import KeyFile, KeyringKey
    from buildrunner.settings import secrets_folder

    folder = secrets_folder()
    if settings.secrets_key == "keyring":
        return LocalSecretStore(folder, KeyringKey(folder))
    return LocalSecretStore(folder, KeyFile(os.path.join(folder, KEY_NAME)))


def _google_secrets() -> list[SecretProvider]:
    import time

    from buildrunner.secrets.google import (
        GoogleApi,
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
    """Return a function that returns access tokens of the user's own Google credentials."""
    loaded: list[GoogleCredentials] = []

    def token() -> str:
        from buildrunner.secrets.google import SCOPES

        # Credentials are searched only when needed: the search may query a metadata server.
        if not loaded:
            from buildrunner.metadata import GoogleCredentials

            loaded.append(GoogleCredentials())
        return loaded[0].access_token(SCOPES).value

    return token
