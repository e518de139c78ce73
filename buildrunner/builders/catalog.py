"""The builder images, and the public images that each of them can serve.

This module is imported by every build (for `DEFAULT_ALIASES`): it must stay literal and light.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import msgspec

REPOSITORY = "buildrunner"
"""Builder images are called ``buildrunner/NAME:latest``."""

ROOT_FILESYSTEM = f"{REPOSITORY}/debian"
"""Repository of the root file system that is made here when none can be pulled."""


class BuilderImage(msgspec.Struct, frozen=True, kw_only=True):
    """One builder image.

    Attributes:
        name: last part of its name: ``docker`` is ``buildrunner/docker``.
        folder: folder under steps/ with its Dockerfile.
        summary: its purpose, in a few words.
        target: stage of the Dockerfile; empty for the last one.
        parents: build argument -> name of a builder image that this one starts from or copies from.
        settings: build arguments that this machine's settings give (mirrors).
        arguments: build arguments that ``--build-arg`` may give (versions, addresses of archives).
        serves: public images that it replaces without asking the user.
        stands_in_for: public images that it may replace if the user names it in an alias.
        host_sdk: whether it holds this machine's Google Cloud SDK, if there is one.
        test: arguments for its entrypoint that must succeed once it is made.
        test_program: the program that runs with them instead of the entrypoint.
        common: whether ``builders install`` without names makes it.
    """

    name: str
    folder: str
    summary: str
    target: str = ""
    parents: dict[str, str] = {}
    settings: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    serves: tuple[str, ...] = ()
    stands_in_for: tuple[str, ...] = ()
    host_sdk: bool = False
    test: tuple[str, ...] = ("--version",)
    test_program: str = ""
    common: bool = True

    @property
    def image(self) -> str:
        """The image's name on the engine, with the tag."""
        return f"{REPOSITORY}/{self.name}:latest"


_GOOGLE = "gcr.io/cloud-builders"
PROJECT_IMAGE = "PROJECT/"
"""Stands for an image that a project built from cloud-builders-community: gcr.io/PROJECT/NAME."""

_ON_BASE = {"BASE": "base"}
_ON_GIT = {"GIT": "git"}
_ON_GCC = {"GCC": "gcc"}
_ON_PYTHON = {"PYTHON": "python"}
_APT = ("DEBIAN_MIRROR",)
_PIP = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")
_NPM = ("NPM_CONFIG_REGISTRY",)
_GO = ("GOPROXY", "GOSUMDB")

_HELM = {"GIT": "git", "FETCH": "fetch"}
_TERRAFORM = {"GIT": "git", "FETCH": "fetch", "GOLANG": "golang"}
_SKAFFOLD = {
    "HELM_GCLOUD": "helm-gcloud",
    "DOCKER": "docker",
    "FETCH": "fetch",
    "GOLANG": "golang",
}

# In the order of `builders list`. `parents` says which image starts from which.
BUILDERS: tuple[BuilderImage, ...] = (
    BuilderImage(
        name="base",
        folder="base",
        summary="Debian, slim, with certificates; base of all others",
        settings=_APT,
        stands_in_for=("debian", "ubuntu"),
        test=("bash", "-c", "test -s /etc/ssl/certs/ca-certificates.crt"),
    ),
    BuilderImage(
        name="gcc",
        folder="gcc",
        summary="the C and C++ compilers, Python, make, git, curl; base of the languages",
        parents=_ON_GIT,
        settings=_APT,
        stands_in_for=("gcc", "buildpack-deps"),
        test=("make", "--version"),
    ),
    BuilderImage(
        name="docker",
        folder="docker",
        summary="docker with compose and buildx, make, curl, git",
        target="docker",
        parents=_ON_GIT,
        settings=_APT,
        serves=(f"{_GOOGLE}/docker", f"{_GOOGLE}/gcb-internal"),
    ),
    BuilderImage(
        name="docker-compose",
        folder="docker",
        summary="docker-compose",
        target="docker-compose",
        parents=_ON_GIT,
        settings=_APT,
        stands_in_for=("docker/compose", PROJECT_IMAGE + "docker-compose"),
    ),
    BuilderImage(
        name="git",
        folder="git",
        summary="git over https and ssh, curl, make, archives; base of the tools",
        parents=_ON_BASE,
        settings=_APT,
        serves=(f"{_GOOGLE}/git",),
        stands_in_for=("alpine/git",),
    ),
    BuilderImage(
        name="curl",
        folder="curl",
        target="curl",
        summary="curl",
        parents=_ON_GIT,
        serves=(f"{_GOOGLE}/curl",),
        stands_in_for=("curlimages/curl",),
    ),
    BuilderImage(
        name="wget",
        folder="curl",
        target="wget",
        summary="wget",
        parents=_ON_GIT,
        serves=(f"{_GOOGLE}/wget",),
    ),
    BuilderImage(
        name="python",
        folder="python",
        summary="Python with pip and venv, git, the compilers",
        parents=_ON_GCC,
        stands_in_for=("python",),
        test=("python3", "-c", "import ssl, venv"),
    ),
    BuilderImage(
        name="node",
        folder="node",
        target="node",
        summary="Node.js with npm and yarn",
        parents=_ON_PYTHON,
        settings=(*_PIP, *_NPM),
        arguments=("NODE_VERSION", "YARN_VERSION"),
        stands_in_for=("node",),
        test=("node", "--eval", "require('https')"),
    ),
    BuilderImage(
        name="npm",
        folder="node",
        target="npm",
        summary="npm",
        parents=_ON_PYTHON,
        settings=(*_PIP, *_NPM),
        arguments=("NODE_VERSION", "YARN_VERSION"),
        serves=(f"{_GOOGLE}/npm",),
    ),
    BuilderImage(
        name="yarn",
        folder="node",
        target="yarn",
        summary="yarn",
        parents=_ON_PYTHON,
        settings=(*_PIP, *_NPM),
        arguments=("NODE_VERSION", "YARN_VERSION"),
        serves=(f"{_GOOGLE}/yarn",),
    ),
    BuilderImage(
        name="golang",
        folder="go",
        target="golang",
        summary="Go with git and the C compiler",
        parents=_ON_GCC,
        settings=_PIP,
        arguments=("GO_VERSION",),
        stands_in_for=("golang",),
        test=("go", "version"),
    ),
    BuilderImage(
        name="go",
        folder="go",
        target="go",
        summary="go, in the GOPATH that the workspace asks for",
        parents=_ON_GCC,
        settings=_PIP,
        arguments=("GO_VERSION",),
        serves=(f"{_GOOGLE}/go",),
        test_program="sh",
        test=("-c", "GOPATH=/tmp go.bash version"),
    ),
    BuilderImage(
        name="java",
        folder="java",
        target="java",
        summary="a Java development kit",
        parents=_ON_GCC,
        settings=_APT,
        stands_in_for=("openjdk", "eclipse-temurin", "amazoncorretto"),
        test=("java", "-version"),
    ),
    BuilderImage(
        name="javac",
        folder="java",
        target="javac",
        summary="javac",
        parents=_ON_GCC,
        settings=_APT,
        serves=(f"{_GOOGLE}/javac", f"{_GOOGLE}/java/javac"),
        common=False,
    ),
    BuilderImage(
        name="maven",
        folder="maven",
        target="maven",
        summary="Apache Maven",
        parents={"JAVA": "java", "FETCH": "fetch"},
        settings=_APT,
        arguments=("MAVEN_URL", "MAVEN_SHA256"),
        stands_in_for=("maven",),
        test=("mvn", "--version"),
    ),
    BuilderImage(
        name="mvn",
        folder="maven",
        target="mvn",
        summary="mvn",
        parents={"JAVA": "java", "FETCH": "fetch"},
        settings=_APT,
        arguments=("MAVEN_URL", "MAVEN_SHA256"),
        serves=(f"{_GOOGLE}/mvn", f"{_GOOGLE}/java/mvn"),
    ),
    BuilderImage(
        name="gradle-jdk",
        folder="gradle",
        target="gradle-jdk",
        summary="Gradle, as the image of its makers",
        parents={"JAVA": "java", "FETCH": "fetch"},
        settings=_APT,
        arguments=("GRADLE_URL", "GRADLE_SHA256"),
        stands_in_for=("gradle",),
        test=("gradle", "--version"),
        common=False,
    ),
    BuilderImage(
        name="gradle",
        folder="gradle",
        target="gradle",
        summary="gradle",
        parents={"JAVA": "java", "FETCH": "fetch"},
        settings=_APT,
        arguments=("GRADLE_URL", "GRADLE_SHA256"),
        serves=(f"{_GOOGLE}/gradle", f"{_GOOGLE}/java/gradle"),
        common=False,
    ),
    BuilderImage(
        name="bazel",
        folder="bazel",
        summary="Bazel with Java, Python, git and docker",
        parents={"JAVA": "java", "DOCKER": "docker", "FETCH": "fetch"},
        settings=_APT,
        arguments=("BAZEL_URL", "BAZEL_SHA256"),
        serves=(f"{_GOOGLE}/bazel",),
        stands_in_for=("gcr.io/bazel-public/bazel", "l.gcr.io/google/bazel"),
        test_program="sh",
        test=("-c", "test -x /usr/local/bin/bazel && /builder/bazel --version"),
        common=False,
    ),
    BuilderImage(
        name="cloud-sdk",
        folder="gcloud",
        target="cloud-sdk",
        summary="Google's command line: gcloud, gsutil, bq",
        parents={"GIT": "git", "FETCH": "fetch"},
        arguments=("GCLOUD_URL", "GCLOUD_SHA256"),
        serves=(
            "gcr.io/google.com/cloudsdktool/cloud-sdk",
            "gcr.io/google.com/cloudsdktool/google-cloud-cli",
        ),
        stands_in_for=("google/cloud-sdk",),
        host_sdk=True,
        test=("gcloud", "version"),
    ),
    BuilderImage(
        name="gcloud",
        folder="gcloud",
        target="gcloud",
        summary="gcloud",
        parents={"GIT": "git", "FETCH": "fetch"},
        arguments=("GCLOUD_URL", "GCLOUD_SHA256"),
        serves=(f"{_GOOGLE}/gcloud", f"{_GOOGLE}/gcloud-slim"),
        host_sdk=True,
        test=("version",),
    ),
    BuilderImage(
        name="kubectl",
        folder="kubectl",
        summary="kubectl on the GKE cluster that the environment names",
        parents={"CLOUD_SDK": "cloud-sdk", "FETCH": "fetch"},
        settings=_PIP,
        arguments=("KUBECTL_URL", "KUBECTL_SHA256"),
        serves=(f"{_GOOGLE}/kubectl",),
        test_program="sh",
        test=("-c", "kubectl version --client && test -x /builder/kubectl.bash"),
    ),
    BuilderImage(
        name="gke-deploy",
        folder="gke-deploy",
        summary="deploy to Kubernetes and wait until all is ready",
        parents={"KUBECTL": "kubectl"},
        settings=_APT,
        serves=(f"{_GOOGLE}/gke-deploy",),
        test=("--help",),
        common=False,
    ),
    BuilderImage(
        name="gsutil",
        folder="gsutil",
        summary="gsutil",
        parents=_ON_PYTHON,
        settings=_PIP,
        serves=(f"{_GOOGLE}/gsutil",),
        test=("version",),
    ),
    BuilderImage(
        name="helm",
        folder="helm",
        target="helm",
        summary="Helm",
        parents=_HELM,
        settings=_PIP,
        arguments=("HELM_URL", "HELM_SHA256"),
        stands_in_for=("alpine/helm",),
        test=("version",),
        common=False,
    ),
    BuilderImage(
        name="helm-gcloud",
        folder="helm",
        target="helm-gcloud",
        summary="Helm on the GKE cluster that the environment names",
        parents={**_HELM, "KUBECTL": "kubectl"},
        settings=_PIP,
        arguments=("HELM_URL", "HELM_SHA256"),
        stands_in_for=(PROJECT_IMAGE + "helm",),
        test_program="sh",
        test=("-c", "SKIP_CLUSTER_CONFIG=true /builder/helm.bash version"),
        common=False,
    ),
    BuilderImage(
        name="terraform",
        folder="terraform",
        target="terraform",
        summary="Terraform",
        parents=_TERRAFORM,
        settings=_GO,
        arguments=("TERRAFORM_URL", "TERRAFORM_SHA256"),
        stands_in_for=("hashicorp/terraform",),
        common=False,
    ),
    BuilderImage(
        name="terraform-gcloud",
        folder="terraform",
        target="terraform-gcloud",
        summary="Terraform with an account of gcloud",
        parents={**_TERRAFORM, "CLOUD_SDK": "cloud-sdk"},
        settings=_GO,
        arguments=("TERRAFORM_URL", "TERRAFORM_SHA256"),
        stands_in_for=(PROJECT_IMAGE + "terraform",),
        test_program="sh",
        test=("-c", "terraform version && test -x /builder/entrypoint.bash"),
        common=False,
    ),
    BuilderImage(
        name="skaffold",
        folder="skaffold",
        target="skaffold",
        summary="Skaffold with gcloud, kubectl, helm and docker",
        parents=_SKAFFOLD,
        settings=_GO,
        arguments=("SKAFFOLD_URL", "SKAFFOLD_SHA256"),
        serves=("gcr.io/k8s-skaffold/skaffold",),
        test=("skaffold", "version"),
        common=False,
    ),
    BuilderImage(
        name="skaffold-gcloud",
        folder="skaffold",
        target="skaffold-gcloud",
        summary="Skaffold on the GKE cluster that the environment names",
        parents=_SKAFFOLD,
        settings=_GO,
        arguments=("SKAFFOLD_URL", "SKAFFOLD_SHA256"),
        stands_in_for=(PROJECT_IMAGE + "skaffold",),
        test_program="sh",
        test=("-c", "skaffold version && test -x /builder/skaffold.bash"),
        common=False,
    ),
    BuilderImage(
        name="kaniko",
        folder="kaniko",
        summary="Kaniko's executor",
        parents={"BASE": "base", "GOLANG": "golang"},
        settings=(*_APT, *_GO),
        arguments=("KANIKO_VERSION",),
        serves=("gcr.io/kaniko-project/executor",),
        test=("version",),
        common=False,
    ),
    BuilderImage(
        name="twine",
        folder="twine",
        summary="twine, which publishes Python packages",
        parents=_ON_PYTHON,
        settings=_PIP,
        serves=(f"{_GOOGLE}/twine",),
    ),
    BuilderImage(
        name="alpine",
        folder="alpine",
        target="alpine",
        summary="a shell and busybox's programs; `apk add` by Debian's packages",
        parents=_ON_BASE,
        settings=_APT,
        stands_in_for=("alpine",),
        test=("ash", "-c", "true"),
    ),
    BuilderImage(
        name="busybox",
        folder="alpine",
        target="busybox",
        summary="busybox",
        parents=_ON_BASE,
        settings=_APT,
        stands_in_for=("busybox",),
        test=("sh", "-c", "true"),
    ),
    BuilderImage(
        name="bash",
        folder="alpine",
        target="bash",
        summary="bash",
        parents=_ON_BASE,
        settings=_APT,
        stands_in_for=("bash",),
        test=("-c", "true"),
    ),
    BuilderImage(
        name="fetch",
        folder="fetch",
        summary="fetches vendors' archives for the making of other images",
        parents=_ON_GIT,
        settings=_APT,
        test=("fetch-archive", "--help"),
    ),
    BuilderImage(
        name="engine",
        folder="engine",
        summary="a Docker engine, for the sandbox that gives each build its own",
        parents=_ON_BASE,
        settings=_APT,
        test_program="sh",
        test=("-c", "dockerd --version && test -x /usr/local/sbin/start-engine"),
    ),
)

ENGINE_IMAGE = f"{REPOSITORY}/engine:latest"
"""The image of nested engines."""

GATEWAY_PORT = 6500
"""The port on the loopback address of a Pod's engine that leads to the worker's gateways."""

DEFAULT_ALIASES: dict[str, str] = {
    public: builder.image for builder in BUILDERS for public in builder.serves
}
"""Public repository (without a tag: all tags) -> the builder image that may serve it.

An entry holds only where the engine has the builder image and not the public one. Images that
people write their own programs for (`BuilderImage.stands_in_for`) are not here: they are served
only where the user says so (``[images] aliases``, ``--image-alias``).
"""

# Other prefixes under which Docker Hub's official images can be pulled.
_HUB = ("docker.io/", "index.docker.io/", "mirror.gcr.io/", "public.ecr.aws/docker/", "library/")
_PROJECT_REGISTRY = re.compile(r"(?:(?:[a-z-]+\.)?gcr\.io/[^/]+|[a-z0-9-]+\.pkg\.dev/[^/]+/[^/]+)/")


def installed_aliases(
    images: Iterable[str], find_image: Callable[[str], str | None]
) -> dict[str, str]:
    """Return the ``images`` that builder images serve, on an engine without the real ones.

    Args:
        images: names as the steps of a build give them.
        find_image: the id of the engine's image of that name; None where it has none.

    Returns:
        Name in the config -> builder image. The public name may be a tag of the builder image.
    """
    aliases = {}
    for image in dict.fromkeys(images):
        serving = DEFAULT_ALIASES.get(_repository(image))
        if serving and (ours := find_image(serving)) and find_image(image) in (None, ours):
            aliases[image] = serving
    return aliases


def drop_in(image: str) -> BuilderImage | None:
    """Return the builder image that serves a public image once it is installed, or None."""
    serving = DEFAULT_ALIASES.get(_repository(image))
    return next((builder for builder in BUILDERS if builder.image == serving), None)


def stand_in(image: str) -> BuilderImage | None:
    """Return the builder image that may replace a public image if the user agrees, or None."""
    repository = _repository(image)
    for prefix in _HUB:
        repository = repository.removeprefix(prefix)
    repository = _PROJECT_REGISTRY.sub(PROJECT_IMAGE, repository)
    return next((builder for builder in BUILDERS if repository in builder.stands_in_for), None)


def advice(image: str) -> str:
    """Return a hint that names a builder image in place of a public one; empty if none fits."""
    if builder := drop_in(image):
        return f"`buildrunner builders install {builder.name}` makes a drop-in for it"
    if builder := stand_in(image):
        return (
            f"`buildrunner builders install {builder.name}` makes a stand-in for it, and "
            f"`--image-alias {image}={REPOSITORY}/{builder.name}` uses that"
        )
    return ""


def _repository(image: str) -> str:
    name = image.partition("@")[0]
    head, colon, tag = name.rpartition(":")
    return head if colon and "/" not in tag else name


def builder_named(name: str) -> BuilderImage | None:
    """Return the builder image of that name (``docker``), or None."""
    return next((builder for builder in BUILDERS if builder.name == name), None)
