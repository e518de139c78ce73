"""The options of a build that count, which are not always those that were written."""

from __future__ import annotations

import msgspec

from buildrunner.spec.model import BuildOptions, SubstitutionOption


def effective_options(options: BuildOptions | None, *, triggered: bool) -> BuildOptions:
    """The options that count: a triggered build is always loose and dynamic.

    Source: the API text of ``substitutionOption`` and ``dynamicSubstitutions``.
    """
    given = options or BuildOptions()
    if not triggered:
        return given
    return msgspec.structs.replace(
        given,
        substitution_option=SubstitutionOption.ALLOW_LOOSE,
        dynamic_substitutions=True,
    )
