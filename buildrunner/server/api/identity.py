"""The server as an issuer of identity tokens: the documents that verifiers of tokens fetch.

Source: OpenID Connect Discovery 1.0, section 4; RFC 7517 for the key set.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from buildrunner.server.context import ServerContext
from buildrunner.server.http.answers import json_response

_KEYS_PATH = "/.well-known/jwks.json"
_CACHE = {"Cache-Control": "public, max-age=300"}
_CLAIMS = (
    *("iss", "sub", "aud", "iat", "nbf", "exp", "jti"),
    *("project_id", "build_id", "trigger_id", "trigger_name"),
    *("repository", "ref", "commit", "source"),
)


def router(context: ServerContext) -> APIRouter:
    """Return the routes. They need no token: clouds fetch them to verify the tokens of builds."""
    routes = APIRouter(tags=["more about builds"])

    def configuration() -> Response:
        """Return the OpenID configuration, with which clouds verify identity tokens of builds."""
        issuer = context.settings.public_url
        return _answer(
            {
                "issuer": issuer,
                "jwks_uri": f"{issuer}{_KEYS_PATH}",
                "response_types_supported": ["id_token"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["RS256", "ES256"],
                "scopes_supported": ["openid"],
                "claims_supported": list(_CLAIMS),
            }
        )

    def key_set() -> Response:
        """Return the public keys that verify identity tokens of builds, as a JSON Web Key Set."""
        return _answer({"keys": context.identity_keys()})

    routes.add_api_route("/.well-known/openid-configuration", configuration, methods=["GET"])
    routes.add_api_route(_KEYS_PATH, key_set, methods=["GET"])
    return routes


def _answer(document: dict[str, Any]) -> Response:
    response = json_response(document)
    response.headers.update(_CACHE)
    return response
