"""Tokens for steps from the user's own Google credentials, by google-auth.

The library ships types only in parts, so its untyped modules are held as `Any`.
"""

from __future__ import annotations

import datetime
import importlib
from typing import Any

from buildrunner.errors import SecretError
from buildrunner.metadata.server import DEFAULT_SCOPES, AccessToken


class GoogleCredentials:
    """The application default credentials, or those of one key file. Thread-safe."""

    def __init__(self, key_file: str = "") -> None:
        """Load them; no request is made yet.

        Args:
            key_file: a credentials file; empty takes the application default credentials.

        Raises:
            SecretError: there are none, or the file is not one.
        """
        from google.auth.exceptions import GoogleAuthError

        auth: Any = importlib.import_module("google.auth")

        scopes = list(DEFAULT_SCOPES)
        try:
            if key_file:
                loaded = auth.load_credentials_from_file(key_file, scopes=scopes)
            else:
                loaded = auth.default(scopes=scopes)
        except (GoogleAuthError, OSError, ValueError) as error:
            place = f"in {key_file}" if key_file else "on this machine"
            raise SecretError(
                f"no usable Google credentials {place}: {str(error).rstrip('.')}",
                hint="run `gcloud auth application-default login` or name a key file",
            ) from error
        self._credentials: Any = loaded[0]

    @property
    def email(self) -> str:
        """The service account's address; empty for a person's credentials."""
        return getattr(self._credentials, "service_account_email", "") or ""

    def access_token(self, scopes: tuple[str, ...]) -> AccessToken:
        """See `Credentials.access_token`."""
        from google.auth.exceptions import GoogleAuthError
        from google.auth.transport.requests import Request

        credentials = self._credentials
        if scopes and getattr(credentials, "requires_scopes", None) is not None:
            credentials = credentials.with_scopes(list(scopes))
        try:
            if not credentials.valid:
                credentials.refresh(Request())
        except GoogleAuthError as error:
            raise SecretError(f"no access token from the Google credentials: {error}") from error
        now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
        left = (credentials.expiry - now).total_seconds() if credentials.expiry else 3600
        return AccessToken(credentials.token, max(int(left), 0))

    def identity_token(self, audience: str) -> str:
        """See `Credentials.identity_token`."""
        from google.auth.exceptions import GoogleAuthError
        from google.auth.transport.requests import Request

        id_token: Any = importlib.import_module("google.oauth2.id_token")

        try:
            return str(id_token.fetch_id_token(Request(), audience))
        except GoogleAuthError as error:
            raise SecretError(f"no identity token for {audience}: {error}") from error
