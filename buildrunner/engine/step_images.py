"""The images of the steps as far as a build may have them: found on the engine, or pulled.

A trusted build has what the engine has, and what the user's registry logins can pull. The config of
an untrusted build could name a private image that way. It gets only images that everyone can pull:
each is pulled without a login, also where the engine has one of that name, and only from a
registry that the server's source policy allows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

from buildrunner.containers.image_name import ImageName, is_image_id
from buildrunner.containers.protocol import ContainerEngine
from buildrunner.containers.types import ImageInfo, TransferProgress
from buildrunner.errors import ImagePullError

_HINT = (
    "builds from strangers get only images that everyone can pull; the server's administrator can "
    "allow others: [images] untrusted"
)


class PublicImages:
    """Which images the steps of an untrusted build may have.

    Args:
        allowed: names, or patterns with ``*``, of images that they may have in any case.
        refusal: given a registry's host, why it may not be asked; empty when it may.
    """

    def __init__(self, allowed: Iterable[str], refusal: Callable[[str], str]) -> None:
        self._allowed = tuple(allowed)
        self._refusal = refusal

    def allows(self, name: str) -> bool:
        """Return whether the image may be used as the engine has it, or pulled with a login."""
        if is_image_id(name):
            return False
        asked = ImageName.parse(name)
        # Of a name with tag and digest, the digest counts.
        version = f"@{asked.digest}" if asked.digest else f":{asked.tag or 'latest'}"
        names = {asked.familiar, f"{asked.familiar}{version}", asked.reference}
        return any(fnmatchcase(one, pattern) for pattern in self._allowed for one in names)

    def check(self, name: str) -> None:
        """Check whether the image's registry may be asked.

        Raises:
            ImagePullError: it may not.
        """
        if is_image_id(name):
            raise ImagePullError(f"{name} is no image of a registry", hint=_HINT)
        registry = ImageName.parse(name).registry
        reason = self._refusal(registry)
        if reason:
            raise ImagePullError(f"the image {name} can't be pulled: {reason}", hint=_HINT)


class StepImages:
    """Finds and pulls the images of one build's steps. Thread-safe.

    Args:
        engine: where they are needed.
        public: what an untrusted build may have; None for a trusted one.
    """

    def __init__(self, engine: ContainerEngine, public: PublicImages | None) -> None:
        self._engine = engine
        self._public = public
        self._pulled: dict[str, ImageInfo] = {}

    def find(self, name: str) -> ImageInfo | None:
        """Return the image if it is here and the build may have it.

        Raises:
            EngineError: the engine does not tell.
        """
        if self._public is None or self._public.allows(name):
            return self._engine.find_image(name)
        return self._pulled.get(name)

    def pull(
        self,
        name: str,
        *,
        on_progress: Callable[[TransferProgress], None],
        cancel: threading.Event,
    ) -> ImageInfo:
        """See `Images.pull_image`."""
        if self._public is None or self._public.allows(name):
            return self._engine.pull_image(name, on_progress=on_progress, cancel=cancel)
        self._public.check(name)
        try:
            image = self._engine.pull_image(
                name, on_progress=on_progress, cancel=cancel, anonymous=True
            )
        except ImagePullError as error:
            raise ImagePullError(
                str(error),
                transient=error.transient,
                unresolved=error.unresolved,
                retry_after_s=error.retry_after_s,
                hint=error.hint if error.transient else _HINT,
            ) from error
        self._pulled[name] = image
        return image
