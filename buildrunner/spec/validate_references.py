"""Rules about what comes out of the templates: V07, V09, V69-V71 and what contradicts it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from buildrunner.spec.expression import BadExpression
from buildrunner.spec.image_reference import parse_image_reference
from buildrunner.spec.model import DockerDaemon
from buildrunner.spec.substituted_fields import templates
from buildrunner.spec.substitutions import names_in, substitute
from buildrunner.spec.validate_findings import shortened
from buildrunner.spec.variables import OVERRIDABLE, is_user_variable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from buildrunner.spec.model import Build
    from buildrunner.spec.validate_findings import Findings

# Compiled on first use: most builds have none of them, and compiling takes time.
_TAG = r"(?a:\w[\w.-]{0,127})"
_BUCKET = r"(?s:(?:gs://)?[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](?:/.*)?)"
_SERVICE_ACCOUNT = r"projects/[^/\s]+/serviceAccounts/[^/\s]+"


class Values:
    """Gives the text of a template as the build will have it.

    Args:
        variables: every known variable.
        dynamic: evaluate bash-style expressions.
        complete: the templates have passed their checks; else only plain text can be looked at.
        assumed: it is not known where the build will run, and so what it will be given.
    """

    def __init__(
        self, variables: Mapping[str, str], *, dynamic: bool, complete: bool, assumed: bool
    ) -> None:
        self._variables = variables
        self._dynamic = dynamic
        self._complete = complete
        self._assumed = assumed

    def text(self, template: str) -> str | None:
        """The text; None when it can't be known."""
        if "$" not in template:
            return template
        if not self._complete:
            return None
        try:
            return substitute(template, self._variables.get, dynamic=self._dynamic)
        except BadExpression:
            return None

    @property
    def are_final(self) -> bool:
        """Whether bash-style expressions can be judged: the values are those of a real build."""
        return self._complete and self._dynamic and not self._assumed

    def failure(self, template: str) -> str:
        """Why the template can't be evaluated with the values of this build; empty if it can."""
        try:
            substitute(template, self._variables.get, dynamic=True)
        except BadExpression as error:
            return str(error)
        return ""

    def unset(self, template: str) -> list[str]:
        """The variables in the template that are empty here and may have a value elsewhere."""
        if not self._assumed:
            return []
        names = names_in(template, dynamic=self._dynamic)
        return [name for name in dict.fromkeys(names) if self._is_unset(name)]

    def _is_unset(self, name: str) -> bool:
        may_be_given = name in OVERRIDABLE or is_user_variable(name)
        return may_be_given and not self._variables.get(name)


def check_results(build: Build, values: Values, findings: Findings) -> None:
    """Whether every template can be evaluated and names are valid once it is: V07, V09, V69-V71."""
    for path, template in templates(build) if values.are_final else ():
        failure = values.failure(template)
        if failure:
            message = f"{shortened(template)} can't be evaluated: {failure}"
            findings.error("expression", path, message)
    for index, step in enumerate(build.steps):
        # An empty name is V22 already, unless a variable made it empty.
        if step.name:
            _check_image(f"steps[{index}].name", step.name, values, findings, rule="V69")
    for index, image in enumerate(build.images):
        _check_image(f"images[{index}]", image, values, findings, rule="V70")
    if build.artifacts and build.artifacts.images != build.images:
        for index, image in enumerate(build.artifacts.images):
            path = f"artifacts.images[{index}]"
            _check_image(path, image, values, findings, rule="V70")
    _check_names(build, values, findings)
    has_images = build.images or (build.artifacts and build.artifacts.images)
    if has_images and build.options and build.options.docker_daemon is DockerDaemon.NO_DOCKER:
        message = "images can't be pushed by a build with options.dockerDaemon: NO_DOCKER"
        findings.error("no-docker-images", "options.dockerDaemon", message)


def _check_names(build: Build, values: Values, findings: Findings) -> None:
    for index, tag in enumerate(build.tags):
        text = values.text(tag)
        if text and re.fullmatch(_TAG, text) is None:
            message = (
                f'invalid build tag "{shortened(text)}": must match format ^[\\w][\\w.-]{{0,127}}$'
            )
            findings.error("V71", f"tags[{index}]", message)
    bucket = values.text(build.logs_bucket)
    if bucket and re.fullmatch(_BUCKET, bucket) is None:
        message = f'invalid logs bucket "{shortened(bucket)}": it is no name of a bucket'
        findings.error("V07", "logsBucket", message, "write gs://BUCKET or gs://BUCKET/FOLDER")
    account = values.text(build.service_account)
    if account and re.fullmatch(_SERVICE_ACCOUNT, account) is None:
        message = (
            f'invalid serviceAccount "{shortened(account)}": want projects/P/serviceAccounts/A'
        )
        findings.error("V09", "serviceAccount", message)


def _check_image(
    path: str, template: str, values: Values, findings: Findings, *, rule: str
) -> None:
    image = values.text(template)
    if image is None or parse_image_reference(image) is not None:
        return
    what = "build step name" if rule == "V69" else "image name"
    message = f'invalid {what} "{shortened(image, 200)}"'
    if parse_image_reference(image.lower()) is not None:
        findings.error(rule, path, f"{message} contains uppercase letters")
        return
    unset = values.unset(template)
    if unset:
        names = ", ".join(unset)
        findings.warning(
            rule,
            path,
            f"{message} unless the build is given more: {names} has no value here",
            f"a trigger or --substitutions={unset[0]}=... gives it one",
        )
        return
    findings.error(rule, path, message, _image_hint(image))


def _image_hint(image: str) -> str:
    if image.endswith((":", "@")):
        return "a variable in it is empty"
    if "$" in image:
        return "a variable in it is not replaced"
    if image.startswith(("http://", "https://")):
        return "leave out http://"
    if image != image.strip() or " " in image:
        return "blanks are not allowed"
    return ""
