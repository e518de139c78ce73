"""Verification of the tokens by which workers in Pods authenticate.

Kubernetes writes a token into each Pod, for the audience `AUDIENCE` and for an hour. The token
names its Pod, and the name of the Pod has the id of the build. The name of a spare Pod has the name
of its Job, under which the server notes the build that it has claimed.

Source: https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import jwt

from buildrunner.errors import KubernetesError
from buildrunner.kubernetes.decisions import POD
from buildrunner.kubernetes.manifest import AUDIENCE, job_name, pool_digest
from buildrunner.kubernetes.pool import Pool
from buildrunner.store.model.remote import WorkerIdentity

_UUID: Final = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_POD: Final = re.compile(rf"{job_name(f'(?P<build>{_UUID})')}-[a-z0-9]+")
_SPARE_POD: Final = re.compile(rf"(?P<job>spare-(?P<pool>[0-9a-f]{{10}})-{_UUID})-[a-z0-9]+")
_ALGORITHMS: Final = ("RS256", "RS384", "RS512", "ES256", "ES384", "ES512")
_CLOCKS_DIFFER_S: Final = 30
_KEYS_HOLD_S: Final = 3600.0
_PAUSE_S: Final = 10.0

AccountKeys = Callable[[], tuple[str, Mapping[str, Any]]]


class PodTokens:
    """Finds the worker of a token. Returns None for all but tokens of the pools' Pods. Thread-safe.

    Args:
        account_keys: see `KubernetesApi.account_keys`.
        pools: the pools of the settings, by name.
        pool_of: returns the pool of a build; empty if the build has none or does not exist.
        claim_of: returns the build that a spare Job has claimed; empty if it has claimed none.
        clock: seconds that only go forward.
    """

    def __init__(
        self,
        account_keys: AccountKeys,
        pools: Mapping[str, Pool],
        pool_of: Callable[[str], str],
        claim_of: Callable[[str], str],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._account_keys = account_keys
        self._pools = pools
        self._pool_of = pool_of
        self._claim_of = claim_of
        self._by_digest = {pool_digest(pool): pool for pool in pools.values()}
        self._clock = clock
        self._lock = threading.Lock()
        self._issuer = ""
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_at = self._asked_at = float("-inf")

    def __call__(self, token: str) -> WorkerIdentity | None:
        """Return the worker of a token.

        Raises:
            KubernetesError: the cluster does not give the keys now.
        """
        claims = self._claims(token)
        facts = claims.get("kubernetes.io")
        if not isinstance(facts, dict):
            return None
        pod, account = facts.get("pod") or {}, facts.get("serviceaccount") or {}
        of_build = _POD.fullmatch(str(pod.get("name", "")))
        of_spare = _SPARE_POD.fullmatch(str(pod.get("name", "")))
        if of_build is not None:
            pool = self._pools.get(self._pool_of(of_build["build"]))
        elif of_spare is not None:
            pool = self._by_digest.get(of_spare["pool"])
        else:
            return None
        if pool is None or pool.namespace != facts.get("namespace") or not pod.get("uid"):
            return None
        if pool.service_account != account.get("name"):
            return None
        job = of_spare["job"] if of_spare is not None else ""
        build_id = of_build["build"] if of_build is not None else self._claim_of(job)
        name = f"{POD}{pod['uid']}"
        return WorkerIdentity(name=name, pool=pool.name, build_id=build_id, spare=job)

    def _claims(self, token: str) -> dict[str, Any]:
        try:
            key_id = jwt.get_unverified_header(token).get("kid", "")
            issuer, key = self._key(str(key_id))
            if key is None:
                return {}
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=_ALGORITHMS,
                audience=AUDIENCE,
                issuer=issuer,
                leeway=_CLOCKS_DIFFER_S,
                options={"require": ["exp"]},
            )
        except jwt.PyJWTError:
            return {}
        return claims

    def _key(self, key_id: str) -> tuple[str, jwt.PyJWK | None]:
        """Return the issuer and a key. The cluster may replace keys at any time.

        Cached keys stay valid while the cluster does not answer, so that running builds keep
        their leases.
        """
        now = self._clock()
        with self._lock:
            known = self._keys.get(key_id)
            is_old = known is None or now - self._fetched_at > _KEYS_HOLD_S
            asks = is_old and now - self._asked_at > _PAUSE_S
            is_asked = self._asked_at > self._fetched_at
            if asks:
                self._asked_at = now
        if known is None and not asks and is_asked:
            raise KubernetesError("the keys of the cluster are not read yet")
        if asks:
            try:
                self._fetch(now)
            except KubernetesError:
                if known is None:
                    raise
        with self._lock:
            return self._issuer, self._keys.get(key_id)

    def _fetch(self, now: float) -> None:
        issuer, found = self._account_keys()
        keys = jwt.PyJWKSet.from_dict(dict(found)).keys
        with self._lock:
            self._issuer = issuer
            self._keys = {str(key.key_id): key for key in keys}
            self._fetched_at = now
