"""Scopes of secrets: which builds, notifiers and webhooks of a server may read a secret.

A secret that is named ``projects/P/secrets/S`` belongs to the project P. A secret with a short
name, ``S``, belongs to no project until the server's administrator shares it (`Scope.projects`).
The secrets that the server itself signs and logs in with (`is_servers_own`) are never given to
builds, whatever their scope says. An untrusted build gets no secret at all. `ScopedSecrets` reads
values under these rules.

`buildrunner submit` without a server does not use scopes: the user's own builds may read the user's
own secrets.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Final

import msgspec
from msgspec.structs import replace

from buildrunner.builders.catalog import BUILDERS, drop_in
from buildrunner.errors import SecretNotFound
from buildrunner.plan.build_plan import BuildPlan, SecretReference, StepPlan, project_number
from buildrunner.plan.pinned_images import pinned_variable
from buildrunner.plan.privilege import NO_PRIVILEGE, Privilege
from buildrunner.secrets.provider import ProviderChain, subject_of
from buildrunner.secrets.secret_name import (
    OLD_FORGE_PREFIX,
    forge_token_name,
    has_project_number,
    is_servers_own,
    names_of,
    without_version,
)
from buildrunner.spec.substitutions.variables import BUILT_IN, PULL_REQUEST

EVERY_PROJECT: Final = "*"
_OWNED: Final = re.compile(r"projects/([^/]+)/.+")
_HARMLESS: Final = BUILT_IN.union(PULL_REQUEST)
"""Variables that Cloud Build names, and so the config does not."""
_DIGEST: Final = re.compile(r"@sha256:[0-9a-f]{64}$")
_TAG: Final = re.compile(r":[^/:@]+$")


class Use(enum.Enum):
    """The purpose of a secret. The values of the first three are those of ``secrets set --for``."""

    BUILD = "builds"
    NOTIFIER = "notifiers"
    WEBHOOK = "webhooks"
    HOOK = "hook"
    FORGE = "forge"


PROJECT_USES: Final = (Use.BUILD, Use.NOTIFIER, Use.WEBHOOK)
"""The uses of a project. The other ones are the server's own."""


class Scope(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """The readers of one secret. An empty tuple sets no limit, except for ``projects``.

    Attributes:
        projects: ids of projects beside the one that the secret belongs to; `EVERY_PROJECT` for
            all.
        triggers: names or ids of triggers.
        refs: patterns of ``refs/heads/BRANCH`` or ``refs/tags/TAG``; ``*`` matches any text.
        images: images of steps, by digest; the name of a builder image matches all of its tags.
        variables: names of the secret variables that a step of ``images`` may get; empty for the
            one that `variable_of` returns.
        uses: values of `PROJECT_USES`.
        forge: host of the forge that the token is for, with the port unless it is 443.
    """

    projects: tuple[str, ...] = ()
    triggers: tuple[str, ...] = ()
    refs: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    forge: str = ""


def scope_text(name: str, scope: Scope | None) -> str:
    """Describe a scope in one line: ``projects shop, web; triggers deploy``.

    Args:
        name: name of the secret or key.
        scope: its scope; None if it has none.
    """
    if name.startswith(OLD_FORGE_PREFIX):
        return "nobody: set it again with --forge HOST"
    if is_servers_own(name):
        return f"the server, for {scope.forge}" if scope and scope.forge else "the server"
    scope = scope or Scope()
    owner = _OWNED.fullmatch(name)
    projects = dict.fromkeys((*([owner[1]] if owner else ()), *scope.projects))
    parts = {
        "projects": ["all"] if EVERY_PROJECT in projects else list(projects),
        "triggers": scope.triggers,
        "branches": _short_refs(scope.refs, "refs/heads/"),
        "tags": _short_refs(scope.refs, "refs/tags/"),
        "images": scope.images,
        "variables": scope.variables,
        "for": scope.uses,
    }
    limits = [f"{what} {', '.join(values)}" for what, values in parts.items() if values]
    return "; ".join(limits) if projects else "no project"


def _short_refs(refs: Sequence[str], kind: str) -> list[str]:
    return [ref.removeprefix(kind) for ref in refs if ref.startswith(kind)]


def is_unusable(name: str, scope: Scope | None) -> bool:
    """Return whether a server gives a secret neither to a project nor to itself."""
    if is_servers_own(name):
        return name.startswith(OLD_FORGE_PREFIX)
    return "/" not in name and not (scope and scope.projects)


class Asker(msgspec.Struct, frozen=True, kw_only=True):
    """The build, notifier, webhook or part of the server that requests a secret.

    Attributes:
        use: the purpose of the request.
        project: its project; empty for the server.
        trusted: whether the build's config is from an author who may use secrets.
        triggers: id and name of the trigger that made the build; empty for a build without one.
        ref: the built ``refs/heads/BRANCH`` or ``refs/tags/TAG`` of the trigger's repository,
            recorded by the server, not taken from the build; empty if the server does not know it.
        is_named_commit: the caller of a manual run named the commit, which may be a fork's.
        forge: host of the forge, for `Use.FORGE`.
    """

    use: Use
    project: str = ""
    trusted: bool = True
    triggers: tuple[str, ...] = ()
    ref: str = ""
    is_named_commit: bool = False
    forge: str = ""


class Refusal(msgspec.Struct, frozen=True):
    """The reason why an asker may not have a secret.

    Attributes:
        missing: the part of the scope that is missing: ``trust``, ``server``, ``project``, ``use``,
            ``trigger``, ``ref`` or ``image``.
        text: one sentence. For ``project`` it is the same whether or not there is such a secret.
    """

    missing: str
    text: str

    @property
    def hides(self) -> bool:
        """Return whether the asker must not learn that the secret exists."""
        return self.missing in ("server", "project")


def refusal_of(
    asker: Asker,
    name: str,
    scope: Scope | None,
    steps: Sequence[StepPlan] = (),
    privilege: Privilege = NO_PRIVILEGE,
) -> Refusal | None:
    """Decide whether an asker may have a secret.

    Args:
        asker: the asker.
        name: name of the secret, or of the key that decrypts it, without a version.
        scope: the scope of that name; None if it has none.
        steps: the build's steps that would get the secret.
        privilege: rights of all steps of the build.

    Returns:
        None if the asker may have it.
    """
    if asker.use not in PROJECT_USES:
        return _servers_refusal(asker, name, scope)
    if not asker.trusted:
        return Refusal("trust", "a build from somebody who is not trusted gets no secrets")
    if is_servers_own(name):
        return Refusal("server", f"{name} would be the server's own, which no project gets")
    scope = scope or Scope()
    if not _is_shared(name, scope, asker.project):
        return Refusal("project", f"no secret {name} is shared with project {asker.project}")
    return _limit(asker, name, scope, steps, privilege)


def _servers_refusal(asker: Asker, name: str, scope: Scope | None) -> Refusal | None:
    if not is_servers_own(name):
        return Refusal("server", f"{name} is not a name of the server's own secrets")
    if asker.use is not Use.FORGE:
        return None
    is_mine = asker.forge and name == forge_token_name(asker.forge)
    if is_mine and (scope is None or scope.forge == asker.forge):
        return None
    return Refusal("server", f"{name} is not the token of {asker.forge}")


def _is_shared(name: str, scope: Scope, project: str) -> bool:
    owner = _OWNED.fullmatch(name)
    if owner is not None and owner[1] == project:
        return True
    return project in scope.projects or EVERY_PROJECT in scope.projects


def _limit(
    asker: Asker, name: str, scope: Scope, steps: Sequence[StepPlan], privilege: Privilege
) -> Refusal | None:
    """Return the limit of a shared secret that the asker violates."""
    if scope.uses and asker.use.value not in scope.uses:
        text = f"the secret {name} is for {_listed(scope.uses)} only, not for {asker.use.value}"
        return Refusal("use", text)
    is_of_trigger = bool(set(scope.triggers) & set(asker.triggers)) and not asker.is_named_commit
    if scope.triggers and not is_of_trigger:
        text = f"the secret {name} is limited to the triggers {_listed(scope.triggers)}"
        return Refusal("trigger", f"{text}, and {_whose(asker)}")
    if scope.refs and not any(fnmatchcase(asker.ref, pattern) for pattern in scope.refs):
        text = f"the secret {name} is limited to {_listed(scope.refs)}"
        return Refusal("ref", f"{text}, and {_built(asker)}")
    if scope.images:
        return _image_limit(asker, name, scope, steps, privilege)
    return None


def variable_of(name: str) -> str:
    """Return a secret's default variable: ``API_KEY`` for ``projects/p/secrets/api-key``."""
    return re.sub(r"[^A-Za-z0-9]", "_", name.rpartition("/")[2]).upper()


def _image_limit(
    asker: Asker, name: str, scope: Scope, steps: Sequence[StepPlan], privilege: Privilege
) -> Refusal | None:
    """Return the violated limit to images; None if the steps keep to it.

    The environment of a step can make the image's program load other code (``LD_PRELOAD``,
    ``_JAVA_OPTIONS``, ``NODE_OPTIONS``), and no list of such variables is complete. So a step gets
    only variables whose names neither the config nor the substitutions choose.

    The limit has no effect if a step controls the containers of other steps, so such builds are
    refused. A step that holds the engine's socket can build an image of any name for a later step,
    and read the environment of each container. A privileged step can do the same through the
    kernel.
    """
    limited = f"the secret {name} is limited to steps with the image {_listed(scope.images)}"
    allowed = scope.variables or (variable_of(name),)
    if asker.use is not Use.BUILD:
        return Refusal("image", f"{limited}, and {asker.use.value} have none")
    if loose := [image for image in scope.images if not is_fixed_image(image)]:
        text = f"{limited}, and {loose[0]} can be another image after the next push"
        return Refusal("image", f"{text}: name its digest with buildrunner secrets scope --image")
    for step in steps:
        if not any(_is_image(step.image, image) for image in scope.images):
            return Refusal("image", f"{limited}, and {step.label} runs {step.image}")
        if step.entrypoint is not None or step.script is not None:
            how = "a script" if step.script is not None else "an entrypoint of its own"
            return Refusal("image", f"{limited} as it is, and {step.label} has {how}")
        if step.volumes:
            text = f"{step.label} mounts volumes, which could cover its programs"
            return Refusal("image", f"{limited} as it is, and {text}")
        of_config = (entry for entry in step.env if entry != pinned_variable(step))
        if own := [key for key in map(_key, of_config) if key not in _HARMLESS]:
            text = f"{step.label} sets {_listed(own)}, which could make it run another program"
            return Refusal("image", f"{limited} as it is, and {text}")
        if own := [secret.env for secret in step.secrets if secret.env not in allowed]:
            text = f"{step.label} gets secrets as {_listed(own)}, not as {_listed(allowed)} only"
            cure = f"buildrunner secrets scope --env {own[0]}"
            return Refusal("image", f"{limited}, and {text}: see {cure}")
    if privilege != NO_PRIVILEGE:
        held = "hold the engine's socket" if privilege.docker_socket else "are privileged"
        text = f"the steps of this build {held}, so that any of them could read it"
        return Refusal("image", f"{limited}, and {text}: set options.dockerDaemon to NO_DOCKER")
    return None


def _key(entry: str) -> str:
    return entry.partition("=")[0]


def is_fixed_image(image: str) -> bool:
    """Return whether no build can replace an image: it has a digest, or is a builder image."""
    return _DIGEST.search(image) is not None or _is_builder(image)


def _is_builder(image: str) -> bool:
    return drop_in(image) is not None or image in {builder.image for builder in BUILDERS}


def _is_image(image: str, wanted: str) -> bool:
    """Return whether a step's image is the one of a scope, which is fixed."""
    if image == wanted:
        return True
    if _without_tag(image) != _without_tag(wanted):
        return False
    digest = _DIGEST.search(wanted)
    if digest is not None:
        return image.endswith(digest[0])
    return not _TAG.search(wanted)


def _without_tag(image: str) -> str:
    return _TAG.sub("", _DIGEST.sub("", image))


def _whose(asker: Asker) -> str:
    if asker.use is not Use.BUILD:
        return f"{asker.use.value} run outside of them"
    if asker.is_named_commit:
        return "this build is of a commit that its caller named: run a branch or tag"
    return (
        f"this build is of {asker.triggers[-1]}" if asker.triggers else "this build has no trigger"
    )


def _built(asker: Asker) -> str:
    if asker.use is not Use.BUILD:
        return f"{asker.use.value} build none of them"
    return (
        f"this build is of {asker.ref}"
        if asker.ref
        else ("this build is of no branch or tag of a trigger's repository")
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


def canonical_name(name: str, project: str) -> str:
    """Return the name with the project's id in place of the project's number."""
    prefix = f"projects/{project_number(project)}/"
    return f"projects/{project}/{name.removeprefix(prefix)}" if name.startswith(prefix) else name


class ScopedSecrets:
    """A `SecretResolver` for one asker.

    Every name under which a value could be found is checked by its own scope. A name that is not
    shared with the asker is skipped as if it did not exist; any other limit ends the search, so
    that no less specific name yields another value.

    Args:
        chain: the providers.
        asker: the asker.
        scope_of: returns the scope of a name; None if it has none. Raises SecretError.
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
        """Return whether the asker may have the value under a name.

        Raises:
            SecretNotFound: the asker may know that the secret exists, but may not have it.
        """
        if not name:
            return False
        secret = without_version(name)
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
        secret = without_version(name)
        if has_project_number(secret):  # of another project: no scope can share it by this name
            secret = secret.rpartition("/")[2]
        if self._asker.use not in PROJECT_USES:
            return f"on the server, as its user: buildrunner secrets set {secret}"
        return (
            f"on the server, as its user: `buildrunner secrets set {secret}`, or"
            f" `buildrunner secrets scope {secret} --project {self._asker.project}` to share what"
            " is there"
        )
