"""A server's secrets in memory, under the real rules of scopes."""

from __future__ import annotations

from collections.abc import Collection

from buildrunner.errors import SecretError, SecretNotFound
from buildrunner.plan.build_plan import BuildPlan, SecretReference
from buildrunner.secrets.secret_name import forge_host, forge_token_name, is_servers_own
from buildrunner.secrets.secret_scope import EVERY_PROJECT, Asker, Scope, refusal_of


def token_name(url: str) -> str:
    """The name of the token of a forge at that address."""
    return forge_token_name(forge_host(url))


class HeldSecrets(dict[str, str]):
    """`server.context.ServerSecrets`: what is not the server's own is shared with every project."""

    def __init__(self, **values: str) -> None:
        super().__init__(values)
        self.broken = ""
        """Why no secret can be had now; empty when they can."""

    def hold(self, **values: str) -> None:
        """Have these, and no others."""
        self.clear()
        self.update(values)

    def value(self, asker: Asker, name: str) -> str:
        if self.broken:
            raise SecretError(self.broken)
        scope = None if is_servers_own(name) else Scope(projects=(EVERY_PROJECT,))
        refusal = refusal_of(asker, name.partition("/versions/")[0], scope)
        if refusal is not None or name not in self:
            raise SecretNotFound(refusal.text if refusal else f"there is no secret {name}")
        return self[name]

    def resolve(self, asker: Asker, reference: SecretReference, plan: BuildPlan) -> str:
        return self.value(asker, reference.name)

    def own_names(self) -> Collection[str]:
        if self.broken:
            raise SecretError(self.broken)
        return self.keys()
