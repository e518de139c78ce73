"""Secrets of a server's machine, for whoever asks: only what the scopes allow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from msgspec.structs import replace

from buildrunner.errors import SecretNotFound
from buildrunner.plan.build_plan import BuildPlan, SecretReference, StepPlan
from buildrunner.plan.privilege import Privilege
from buildrunner.secrets.provider import ProviderChain, subject_of
from buildrunner.secrets.secret_name import names_of
from buildrunner.secrets.secret_scope import (
    PROJECT_USES,
    Asker,
    Refusal,
    Scope,
    canonical_name,
    refusal_of,
)


class ScopedSecrets:
    """A `SecretResolver` for one asker.

    Every name under which a value could be found is judged by its own scope. A name that is not
    shared with the asker is passed over as if nothing had it; any other limit ends the search, so
    that no less exact name gives another value.

    Args:
        chain: the providers.
        asker: who asks.
        scope_of: the scope of a name; None if it has none. Raises SecretError.
    """

    def __init__(
        self, chain: ProviderChain, asker: Asker, scope_of: Callable[[str], Scope | None]
    ) -> None:
        self._chain = chain
        self._asker = asker
        self._scope_of = scope_of

    def resolve(self, reference: SecretReference, plan: BuildPlan | None = None) -> str:
        """See `SecretResolver.resolve`."""
        steps = [step for step in plan.steps if reference in step.secrets] if plan else []
        rights = Privilege(
            docker_socket=plan is not None and plan.docker_socket,
            privileged=plan is not None and plan.privileged,
        )
        refusal = partial(self._refusal, steps=steps, privilege=rights)
        name = canonical_name(reference.name, self._asker.project)
        reference = replace(reference, name=name)
        misses: list[str] = []
        names = [one for one in names_of(reference) if self._shows(one, reference, refusal, misses)]
        is_mine = self._shows(name, reference, refusal, misses)
        value = self._chain.find(reference, misses, names, with_others=is_mine)
        if value is not None:
            return value
        found = "; ".join(dict.fromkeys(misses))
        raise SecretNotFound(
            f"{subject_of(reference)} was not found: {found}", hint=self._hint(name)
        )

    def _shows(
        self,
        name: str,
        reference: SecretReference,
        refusal_for: Callable[[str], Refusal | None],
        misses: list[str],
    ) -> bool:
        """Whether the asker may have what is kept under a name.

        Raises:
            SecretNotFound: the asker may know that it is there, and may not have it.
        """
        if not name:
            return False
        secret = name.partition("/versions/")[0]
        refusal = refusal_for(secret)
        if refusal is None:
            return True
        if refusal.hides:
            misses.append(refusal.text)
            return False
        raise SecretNotFound(
            f"{subject_of(reference)} is refused: {refusal.text}",
            hint="on the server, as its user, `buildrunner secrets list` shows the scope and"
            " `buildrunner secrets scope` changes it",
        )

    def _refusal(
        self, secret: str, *, steps: Sequence[StepPlan], privilege: Privilege
    ) -> Refusal | None:
        return refusal_of(self._asker, secret, self._scope_of(secret), steps, privilege)

    def _hint(self, name: str) -> str:
        secret = name.partition("/versions/")[0]
        if self._asker.use not in PROJECT_USES:
            return f"on the server, as its user: buildrunner secrets set {secret}"
        return (
            f"on the server, as its user: `buildrunner secrets set {secret}`, or"
            f" `buildrunner secrets scope {secret} --project {self._asker.project}` to share what"
            " is there"
        )
