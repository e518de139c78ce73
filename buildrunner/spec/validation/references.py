"""Rules about substituted values: V07, V09, V64, V69-V71, and a few with names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import msgspec

from buildrunner.spec.model.build import Build, DockerDaemon
from buildrunner.spec.model.results import Artifacts
from buildrunner.spec.model.source import BUCKET_NAME
from buildrunner.spec.substitutions.expressions import BadExpression, Budget
from buildrunner.spec.substitutions.fields import templates
from buildrunner.spec.substitutions.templates import (
    MAX_SUBSTITUTED_LENGTH,
    SUBSTITUTED_TOO_LONG,
    ValuesTooLong,
    names_in,
    substitute,
)
from buildrunner.spec.substitutions.variables import OVERRIDABLE, is_user_variable, may_be_set
from buildrunner.spec.validation.findings import Findings, shortened

MAX_REPOSITORY_LENGTH: Final = 255
_LONGEST_REFERENCE: Final = 1000  # repository, tag and the digest of any algorithm

_PATH_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_HOST_PART = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST = rf"(?:{_HOST_PART}(?:\.{_HOST_PART})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_REFERENCE = re.compile(
    rf"((?:{_HOST}/)?{_PATH_PART}(?:/{_PATH_PART})*)"
    r"(?::([a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}))?"
    r"(?:@([A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}))?"
)

_ATTACHMENT_TAG = re.compile(r"sha(?:256|512)-[0-9a-f]{64,}(?:\..*)?", re.IGNORECASE)


class ImageReference(msgspec.Struct, frozen=True):
    """The parts of an image's name.

    Attributes:
        repository: host and path.
        tag: empty for none.
        digest: ``sha256:...``; empty for none.
    """

    repository: str
    tag: str = ""
    digest: str = ""


def parse_image_reference(text: str) -> ImageReference | None:
    """Return the parts of ``text``, or None if it is no image reference."""
    return _parsed(text) if len(text) <= _LONGEST_REFERENCE else None


@lru_cache(maxsize=1024)
def _parsed(text: str) -> ImageReference | None:
    match = _REFERENCE.fullmatch(text)
    if match is None or len(match.group(1)) > MAX_REPOSITORY_LENGTH:
        return None
    return ImageReference(match.group(1), match.group(2) or "", match.group(3) or "")


def attachment_refusal(tag: str) -> str:
    """Return why no image is pushed to a tag; empty if one may be.

    Registries store signatures and attestations of an image under a tag with the image's digest.
    The author of that tag decides which signatures others find.

    Source: the OCI distribution specification 1.1, "Referrers Tag Schema" (``sha256-DIGEST``), and
    cosign, which writes ``sha256-DIGEST.att``, ``.sig`` and ``.sbom``.
    """
    if _ATTACHMENT_TAG.fullmatch(tag) is None:
        return ""
    return (
        f"no image is pushed to the tag {tag}: registries keep signatures and attestations of the "
        "image with that digest there"
    )


# Compiled on first use, since most builds have none of them.
_TAG = r"(?a:\w[\w.-]{0,127})"
_LOGS_BUCKET = rf"(?s:(?:gs://)?{BUCKET_NAME}(?:/.*)?)"
_SERVICE_ACCOUNT = r"projects/[^/\s]+/serviceAccounts/[^/\s]+"
_LOCATION = r"(?s:(?:gs://|file:///).*)"
_IN_BUCKET = rf"(?s:gs://{BUCKET_NAME}(?:/.*)?|(?!gs://).*)"
_PLACE = (
    r"https?://.+|projects/[^/]+/locations/[^/]+/repositories/[^/]+/packages/[^/]+/versions/[^/]+/?"
)


class Values:
    """Evaluates templates with the values of the build.

    Args:
        variables: every known variable.
        user: the user variables, unevaluated.
        dynamic: evaluate bash-style expressions.
        budget: the work that bash-style expressions may take.
        complete: the templates have passed their checks; otherwise only plain text can be checked.
        assumed: the environment, and so the given values, are unknown.

    Attributes:
        are_too_long: the values so far would exceed `MAX_SUBSTITUTED_LENGTH`; no more are made.
    """

    def __init__(
        self,
        variables: Mapping[str, str],
        user: Mapping[str, str],
        *,
        dynamic: bool,
        budget: Budget,
        complete: bool,
        assumed: bool,
    ) -> None:
        self._variables = variables
        self._user = user
        self._dynamic = dynamic
        self._budget = budget
        self._complete = complete
        self._mentions: dict[str, tuple[str, ...]] = {}
        self._assumed = assumed
        self._room = MAX_SUBSTITUTED_LENGTH
        self.are_too_long = False

    def text(self, template: str) -> str | None:
        """Return the value of a template; None if the value is unknown."""
        if "$" not in template:
            return template
        if not self._complete:
            return None
        try:
            text = substitute(
                template,
                self._variables.get,
                dynamic=self._dynamic,
                budget=self._budget,
                longest=max(self._room, 0),
            )
        except ValuesTooLong:
            self.are_too_long = True
            return None
        except BadExpression:
            return None
        self._room -= len(text)
        return text

    @property
    def are_final(self) -> bool:
        """Return whether bash-style expressions can be checked: the values are a real build's."""
        return self._complete and self._dynamic and not self._assumed

    def failure(self, template: str) -> str:
        """Return why the template can't be evaluated with these values; empty if it can."""
        try:
            substitute(template, self._variables.get, dynamic=True, budget=self._budget)
        except BadExpression as error:
            return str(error)
        return ""

    def unset(self, template: str) -> list[str]:
        """Return the variables of the template that lack a value here but perhaps not elsewhere.

        With dynamic substitutions, the variables in the values of these variables count, too.
        """
        return self.without_value(template) if self._assumed else []

    def without_value(self, template: str) -> list[str]:
        """Return the variables without a value that the template depends on, as `unset` does."""
        pending = list(names_in(template, dynamic=self._dynamic))
        seen: set[str] = set()
        unset: list[str] = []
        for name in pending:  # grows during the loop
            if name in seen:
                continue
            seen.add(name)
            others = [other for other in self._mentioned(name) if other != name]
            pending += others
            if not others and may_be_set(name) and not self._variables.get(name):
                unset.append(name)
        return unset

    def _mentioned(self, name: str) -> tuple[str, ...]:
        found = self._mentions.get(name)
        if found is None:
            is_template = self._dynamic and is_user_variable(name)
            text = self._user.get(name, "") if is_template else ""
            found = self._mentions[name] = tuple(dict.fromkeys(names_in(text, dynamic=True)))
        return found


def check_results(build: Build, values: Values, findings: Findings) -> None:
    """Check that every template can be evaluated, and that its value is valid."""
    for path, template in templates(build) if values.are_final else ():
        failure = values.failure(template)
        if failure:
            message = f"{shortened(template)} can't be evaluated: {failure}"
            findings.error("expression", path, message)
    check = _ResultCheck(values, findings)
    check.images(build)
    check.names(build)
    if build.artifacts:
        check.uploads(build.artifacts)
    if values.are_too_long:
        findings.error("substituted-size", "", SUBSTITUTED_TOO_LONG)
    has_images = build.images or (build.artifacts and build.artifacts.images)
    if has_images and build.options and build.options.docker_daemon is DockerDaemon.NO_DOCKER:
        message = "images can't be pushed by a build with options.dockerDaemon: NO_DOCKER"
        findings.error("no-docker-images", "options.dockerDaemon", message)


class _ResultCheck:
    """Checks the value of each template."""

    def __init__(self, values: Values, findings: Findings) -> None:
        self._values = values
        self._findings = findings

    def images(self, build: Build) -> None:
        """Check the images of steps, and the images to push."""
        for index, step in enumerate(build.steps):
            # An empty name is reported by V22, unless a variable made it empty.
            if step.name:
                self._image(f"steps[{index}].name", step.name, rule="V69")
        for index, image in enumerate(build.images):
            self._image(f"images[{index}]", image, rule="V70")
        if build.artifacts and build.artifacts.images != build.images:
            for index, image in enumerate(build.artifacts.images):
                self._image(f"artifacts.images[{index}]", image, rule="V70")

    def names(self, build: Build) -> None:
        """Check tags, the logs bucket and the account; each of them may be empty."""
        for index, tag in enumerate(build.tags):
            text = self._mismatch(tag, f"(?:{_TAG})?")
            if text is not None:
                message = f'invalid build tag "{text}": must match format ^[\\w][\\w.-]{{0,127}}$'
                self._report(f"tags[{index}]", tag, message, rule="V71")
        bucket = self._mismatch(build.logs_bucket, f"(?:{_LOGS_BUCKET})?")
        if bucket is not None:
            message = f'invalid logs bucket "{bucket}": it is not the name of a bucket'
            hint = "write gs://BUCKET or gs://BUCKET/FOLDER"
            self._report("logsBucket", build.logs_bucket, message, hint, rule="V07")
        account = self._mismatch(build.service_account, f"(?:{_SERVICE_ACCOUNT})?")
        if account is not None:
            message = f'invalid serviceAccount "{account}": want projects/P/serviceAccounts/A'
            self._report("serviceAccount", build.service_account, message, rule="V09")

    def uploads(self, artifacts: Artifacts) -> None:
        """Check the addresses that objects and generic artifacts are uploaded to."""
        location = artifacts.objects.location if artifacts.objects else ""
        # An empty location is reported by V63, unless a variable made it empty.
        text = self._mismatch(location, _LOCATION) if location else None
        if text is not None:
            message = (
                f'invalid .artifacts.location value "{text}"; '
                "Google Cloud Storage URLs must begin with 'gs://'"
            )
            self._report("artifacts.objects.location", location, message, rule="V64")
        elif location and (text := self._mismatch(location, _IN_BUCKET)) is not None:
            message = f'"{text}" names no bucket'
            hint = "write gs://BUCKET or gs://BUCKET/FOLDER"
            self._report("artifacts.objects.location", location, message, hint, rule="bucket-name")
        for index, generic in enumerate(artifacts.generic_artifacts):
            place = generic.registry_path
            text = self._mismatch(place, _PLACE) if place else None
            if text is not None:
                path = f"artifacts.genericArtifacts[{index}].registryPath"
                message = f'"{text}" is not an address that files can be uploaded to'
                hint = (
                    "write projects/P/locations/L/repositories/R/packages/NAME/versions/VERSION, "
                    "or the https:// address of a folder"
                )
                self._report(path, place, message, hint, rule="artifact-field")

    def _image(self, path: str, template: str, *, rule: str) -> None:
        image = self._values.text(template)
        if image is None:
            return
        parsed = parse_image_reference(image)
        if parsed is not None:
            if rule == "V70" and (refusal := attachment_refusal(parsed.tag)):
                self._findings.error("attachment-tag", path, refusal, "choose another tag")
            return
        what = "build step name" if rule == "V69" else "image name"
        message = f'invalid {what} "{shortened(image, 200)}"'
        if parse_image_reference(image.lower()) is not None:
            self._findings.error(rule, path, f"{message} contains uppercase letters")
        else:
            self._report(path, template, message, self._image_hint(image, template), rule=rule)

    def _image_hint(self, image: str, template: str) -> str:
        if "$" in image:
            return "a variable in it is not replaced"
        empty = self._values.without_value(template)
        if empty and re.search("[:@]$|^/|//|/:", image):
            has = "has" if len(empty) == 1 else "have"
            cure = f"give it one with --substitutions={empty[0]}=..."
            if not OVERRIDABLE.isdisjoint(empty):
                cure += " or, from the folder's Git repository, with `submit --triggered`"
            return f"{' and '.join(empty)} {has} no value; {cure}"
        if image.startswith(("http://", "https://")):
            return "leave out http://"
        if image != image.strip() or " " in image:
            return "blanks are not allowed"
        return ""

    def _mismatch(self, template: str, pattern: str) -> str | None:
        """Return the template's value, shortened, if it is known and does not match; else None."""
        text = self._values.text(template)
        if text is None or re.fullmatch(pattern, text):
            return None
        return shortened(text)

    def _report(self, path: str, template: str, message: str, hint: str = "", *, rule: str) -> None:
        """Report an error; a warning if a missing value may still be given."""
        unset = self._values.unset(template)
        if not unset:
            self._findings.error(rule, path, message, hint)
            return
        has = "has" if len(unset) == 1 else "have"
        message += f" as long as {' and '.join(unset)} {has} no value"
        first = unset[0]
        hint = f"a trigger or --substitutions={first}=... gives it one"
        if first in OVERRIDABLE:
            hint = f"a trigger, `submit --triggered` or --substitutions={first}=... gives it one"
        self._findings.warning(rule, path, message, hint)
