"""The API of the cluster: the only module that imports lightkube.

Objects are plain dictionaries, in the form that the API documents.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from buildrunner.errors import KubernetesError

_ACCOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
_OWN_FILE: Final = "~/.kube/config"
_ACCESS_HINT: Final = (
    "in a Pod, the server uses its service account; elsewhere, name a file by KUBECONFIG"
)
_OF_RIGHTS: Final = re.compile(r"\bcannot \w+ resource\b")
_ROLE_HINT: Final = "the Role of the chart has the rights that the server needs"


class KubernetesApi:
    """A connection to the API of one cluster. Thread-safe.

    The cluster is that of ``KUBECONFIG``, else that of the server's own Pod, else that of
    ``~/.kube/config``.

    Args:
        environ: environment variables.

    Raises:
        KubernetesError: no cluster is configured, or lightkube is not installed.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        try:
            from lightkube import Client
            from lightkube.config.client_adapter import Client as HttpClient
            from lightkube.config.client_adapter import ConnectionParams
        except ModuleNotFoundError as error:
            raise KubernetesError(
                "pools on Kubernetes need the package lightkube",
                hint="in the source folder of buildrunner: pip install '.[kubernetes]'",
            ) from error
        config, origin = _config(environ)
        self.url = str(config.cluster.server)
        try:
            self._client = Client(config, field_manager="buildrunner")
            self._http = HttpClient(config, ConnectionParams())
        except Exception as error:
            raise _no_access(origin, error) from error

    def create_job(self, manifest: Mapping[str, Any]) -> None:
        """Create a Job. A Job of that name that exists already stays as it is.

        Raises:
            KubernetesError: the cluster refuses it, or does not answer.
        """
        from lightkube.resources.batch_v1 import Job

        namespace = str(manifest["metadata"]["namespace"])
        try:
            with self._translated(f"create a Job in the namespace {namespace}", namespace):
                job: Any = Job.from_dict(dict(manifest))
                self._client.create(job, namespace=namespace)
        except KubernetesError as error:
            if error.reason != "AlreadyExists":
                raise

    def owner(self, namespace: str, role: str) -> dict[str, str]:
        """Return a Role as the owner of other objects of its namespace.

        Raises:
            KubernetesError: the cluster has no such Role, refuses that, or does not answer.
        """
        from lightkube.resources.rbac_authorization_v1 import Role

        with self._translated(f"read the Role {role} in the namespace {namespace}", namespace):
            found: Any = self._client.get(Role, role, namespace=namespace)
        return {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "name": role,
            "uid": str(found.metadata.uid),
        }

    def delete_job(self, namespace: str, name: str) -> None:
        """Delete a Job and its Pod. Idempotent.

        Raises:
            KubernetesError: the cluster refuses it, or does not answer.
        """
        from lightkube.resources.batch_v1 import Job
        from lightkube.types import CascadeType

        try:
            with self._translated(f"delete the Job {name}", namespace):
                self._client.delete(Job, name, namespace=namespace, cascade=CascadeType.BACKGROUND)
        except KubernetesError as error:
            if error.reason != "NotFound":
                raise

    def jobs(self, namespace: str, labels: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return the Jobs with the given labels.

        Raises:
            KubernetesError: the cluster refuses that, or does not answer.
        """
        from lightkube.resources.batch_v1 import Job

        return self._listed(Job, "Jobs", namespace, labels=dict(labels))

    def pods(self, namespace: str, labels: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return the Pods with the given labels. Raises as `jobs`."""
        from lightkube.resources.core_v1 import Pod

        return self._listed(Pod, "Pods", namespace, labels=dict(labels))

    def warnings(self, namespace: str) -> list[dict[str, Any]]:
        """Return the events of a namespace that are warnings. Raises as `jobs`."""
        from lightkube.resources.core_v1 import Event

        return self._listed(Event, "events", namespace, fields={"type": "Warning"})

    def account_keys(self) -> tuple[str, dict[str, Any]]:
        """Return the issuer of tokens of service accounts, and its public keys as a JWKS.

        Raises:
            KubernetesError: the cluster refuses that, or does not answer.
        """
        with self._translated("read the keys of service accounts", ""):
            issuer = self._answer("/.well-known/openid-configuration")["issuer"]
            return str(issuer), self._answer("/openid/v1/jwks")

    def close(self) -> None:
        """Drop the connections. Idempotent."""
        self._client.close()
        self._http.close()

    def _answer(self, path: str) -> dict[str, Any]:
        answer = self._http.get(path)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    def _listed(self, kind: Any, what: str, namespace: str, **chosen: Any) -> list[dict[str, Any]]:
        with self._translated(f"list {what} in the namespace {namespace}", namespace):
            found = self._client.list(kind, namespace=namespace, **chosen)
            return [one.to_dict() for one in found]

    @contextmanager
    def _translated(self, action: str, namespace: str) -> Iterator[None]:
        import httpx2
        from lightkube.core.exceptions import ApiError, ConfigError

        try:
            yield
        except ApiError as error:
            status = error.status
            raise _refused(
                self.url,
                action,
                namespace,
                code=status.code or error.response.status_code,
                reason=status.reason or "",
                message=status.message or "",
                kind=(status.details.kind if status.details else "") or "",
            ) from error
        except httpx2.HTTPStatusError as error:
            code = error.response.status_code
            raise _refused(self.url, action, namespace, code=code) from error
        except httpx2.HTTPError as error:
            raise KubernetesError(
                f"Kubernetes at {self.url} does not answer: {str(error) or type(error).__name__}",
                reason="Unavailable",
            ) from error
        except (ConfigError, ValueError, KeyError) as error:
            raise KubernetesError(
                f"{self.url} does not answer as Kubernetes does, when asked to {action}: {error}",
                hint=_ACCESS_HINT,
            ) from error


def _refused(
    url: str,
    action: str,
    namespace: str,
    *,
    code: int,
    reason: str = "",
    message: str = "",
    kind: str = "",
) -> KubernetesError:
    """Return the exception for an error response."""
    if code == 404 and kind == "namespaces":
        return KubernetesError(
            f"the cluster has no namespace {namespace}",
            hint="create it, or correct `namespace` in [pools.NAME]",
            reason="NoNamespace",
        )
    if code == 403 and "exceeded quota" in message:
        return KubernetesError(
            f"the quota of the namespace {namespace} is used up: {message}", reason="Quota"
        )
    text = f": {message}" if message else f" (HTTP {code})"
    if code == 403 and message and not _OF_RIGHTS.search(message):  # an admission controller
        return KubernetesError(
            f"Kubernetes at {url} refuses to {action}{text}",
            hint="change the policy of the cluster, or the build's options",
            reason="Denied",
        )
    if code in (401, 403):
        hint = _ROLE_HINT if code == 403 else _ACCESS_HINT
        return KubernetesError(
            f"Kubernetes at {url} does not allow the server to {action}{text}",
            hint=hint,
            reason=reason or "Forbidden",
        )
    if code == 429 or code >= 500:
        return KubernetesError(
            f"Kubernetes at {url} can't {action} now{text}", reason=reason or "Unavailable"
        )
    return KubernetesError(f"Kubernetes at {url} refuses to {action}{text}", reason=reason)


def _config(environ: Mapping[str, str]) -> tuple[Any, str]:
    """Return the access to the cluster, and where it is configured."""
    from lightkube.config.kubeconfig import KubeConfig

    named = environ.get("KUBECONFIG", "")
    is_in_pod = not named and os.path.isdir(_ACCOUNT)
    origin = named or (_ACCOUNT if is_in_pod else _OWN_FILE)
    try:
        if is_in_pod:
            config = KubeConfig.from_service_account(_ACCOUNT).get()
        else:
            config = KubeConfig.from_file(origin).get()
    except Exception as error:  # a kubeconfig can be invalid in many ways
        raise _no_access(origin, error) from error
    if config is None or config.user is None:
        raise _no_access(origin, "it names no user")
    return config, origin


def _no_access(origin: str, error: object) -> KubernetesError:
    text = " ".join(str(error).split()) or type(error).__name__
    return KubernetesError(
        f"the access to Kubernetes in {origin} can't be used: {text}", hint=_ACCESS_HINT
    )
