"""Requests to the API server: raw JSON, each with a time limit, tried again where that may help.

An answer is a `dict`; a refusal is `Refused`, with the server's own word and sentence; no answer, after all
tries, is `ClusterUnavailable`. Every request here may be sent twice: names are deterministic, deletes
carry a uid, patches a resource version. So a connection that breaks in the middle is no reason to give up.

The generated client is used for what it does well (finding the cluster, credentials and their renewal, TLS,
proxies). Its calls for each kind are not: they build models of everything that they read.
"""

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

from runyard.errors import ClusterUnavailable, ConfigError
from runyard.executors.kubernetes import fields
from runyard.metrics import NO_METRICS, Metrics

_REQUEST_S = 15.0
_PATIENCE_S = 60.0  # how long a request is tried again; whoever asked may ask again after that
_PAUSE_S, _PAUSE_MAX_S = 0.1, 5.0
_AGAIN = frozenset({429, 500, 502, 503, 504})
_NO_ANSWER = (aiohttp.ClientError, TimeoutError, OSError)


class Refused(Exception):
    """The API server's no. ``word`` is its short reason (`NotFound`), ``message`` its sentence."""

    def __init__(self, status: int, word: str, message: str, details: Mapping[str, object]) -> None:
        super().__init__(f"{status} {word}: {message}")
        self.status = status
        self.word = word
        self.message = message
        self.details = details


class Api:
    """One namespace of one cluster. ``skew_s`` is how far its clock is ahead of ours."""

    def __init__(self, client: ApiClient, namespace: str, metrics: Metrics = NO_METRICS) -> None:
        self.metrics = metrics
        self.namespace = namespace
        self.server = str(client.configuration.host)
        self.requests: Counter[str] = Counter()  # by verb and kind: what benchmarks and metrics read
        self.skew_s = 0.0
        self._client = client
        self._base = f"/api/v1/namespaces/{quote(namespace, safe='')}"

    @classmethod
    async def open(
        cls, *, kubeconfig: Path | None, context: str, namespace: str, metrics: Metrics = NO_METRICS
    ) -> "Api":
        """Raises ConfigError where no cluster is configured or its configuration cannot be read."""
        configuration = Configuration()
        configuration.retries = None  # not False: that is the number 0 there, which its loop never meets
        try:
            named = await _configure(configuration, kubeconfig, context)
        except (ConfigException, OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"the configuration of the cluster cannot be used: {error}") from error
        return cls(ApiClient(configuration), namespace or named or "default", metrics)

    async def close(self) -> None:
        await self._client.close()  # type: ignore[no-untyped-call]

    def now(self) -> datetime:
        """The time at the API server, as far as it has told: to whole seconds."""
        return datetime.fromtimestamp(datetime.now(UTC).timestamp() + self.skew_s, UTC)

    async def get(self, kind: str, name: str) -> dict[str, Any]:
        return await self._ask("GET", f"{kind}/{quote(name, safe='')}")

    async def create(self, kind: str, body: Mapping[str, object], *, dry_run: bool = False) -> dict[str, Any]:
        """``dry_run``: as if, with all that decides on it."""
        return await self._ask("POST", kind, query={"dryRun": "All"} if dry_run else None, body=body)

    async def may(self, verb: str, resource: str) -> bool:
        """Whether this account may do that in this namespace."""
        attributes = {"namespace": self.namespace, "verb": verb, "resource": resource}
        answer = await self._review(
            "authorization.k8s.io", "SelfSubjectAccessReview", resourceAttributes=attributes
        )
        return bool(fields.part(answer, "status").get("allowed"))

    async def account(self) -> str:
        """Whose credentials these are, as the cluster names them: `system:serviceaccount:NAMESPACE:NAME`."""
        answer = await self._review("authentication.k8s.io", "SelfSubjectReview")
        return fields.text(answer, "status", "userInfo", "username")

    async def _review(self, group: str, kind: str, **spec: object) -> dict[str, Any]:
        """A question about ourselves; everybody may ask it. Raises Refused, ClusterUnavailable."""
        body: dict[str, object] = {"apiVersion": f"{group}/v1", "kind": kind, **({"spec": spec} if spec else {})}
        return await self._ask("POST", f"/apis/{group}/v1/{kind.lower()}s", body=body)

    async def patch(self, kind: str, name: str, body: Mapping[str, object]) -> dict[str, Any]:
        """A merge patch: with a resource version in it, it changes just what was read."""
        return await self._ask("PATCH", f"{kind}/{quote(name, safe='')}", body=body)

    async def delete(self, kind: str, name: str, *, uid: str, grace_s: int | None = None) -> dict[str, Any]:
        """Only the object of that uid; 409 = it is another by now."""
        body: dict[str, object] = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": uid}}
        if grace_s is not None:
            body["gracePeriodSeconds"] = grace_s
        return await self._ask("DELETE", f"{kind}/{quote(name, safe='')}", body=body)

    async def page(self, kind: str, *, token: str = "", limit: int = 100, **query: str) -> dict[str, Any]:
        asked = {"limit": str(limit), **query, **({"continue": token} if token else {})}
        return await self._ask("GET", kind, query=asked)

    async def server_metrics(self) -> str:
        """The API server's own count of everything, where we may read it."""
        response = await self._send("GET", f"{self.server}/metrics", None, aiohttp.ClientTimeout(total=_REQUEST_S))
        async with response:
            data = await response.read()
        if response.status != 200:
            raise _refusal(response.status, data)
        return data.decode()

    async def watch(self, kind: str, *, idle_s: float, query: Mapping[str, str]) -> AsyncIterator[dict[str, Any]]:
        """Events, until the server ends the stream. Raises Refused, ClusterUnavailable; never tries again."""
        limit = aiohttp.ClientTimeout(total=None, sock_connect=_REQUEST_S, sock_read=idle_s)
        url = self._url(kind, {**query, "watch": "true", "allowWatchBookmarks": "true"})
        try:
            response = await self._send("GET", url, None, limit)
            try:
                if response.status != 200:
                    raise _refusal(response.status, await response.read())
                async for line in _lines(response.content):
                    yield json.loads(line)
            finally:
                response.close()
        except (*_NO_ANSWER, ValueError) as error:
            raise self._unavailable(error) from error

    async def _ask(
        self,
        verb: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, object] | None = None,
    ) -> dict[str, Any]:
        """Until there is an answer. Raises Refused, ClusterUnavailable."""
        url = self._url(path, query or {})
        until = asyncio.get_running_loop().time() + _PATIENCE_S
        pause_s = _PAUSE_S
        while True:
            self.requests[f"{verb} {path.lstrip('/').partition('/')[0]}"] += 1
            problem: Exception
            asked_s = 0.0
            try:
                return await self._once(verb, url, body)
            except Refused as error:
                if error.status not in _AGAIN:
                    raise
                asked_s = float(fields.whole(error.details, "retryAfterSeconds") or 0)
                problem = error
            except _NO_ANSWER as error:
                problem = error
            if asyncio.get_running_loop().time() > until:
                raise self._unavailable(problem) from problem
            await asyncio.sleep(max(asked_s, pause_s) * random.uniform(0.5, 1.5))
            pause_s = min(pause_s * 2, _PAUSE_MAX_S)

    async def _once(self, verb: str, url: str, body: Mapping[str, object] | None) -> dict[str, Any]:
        limit = aiohttp.ClientTimeout(total=_REQUEST_S, sock_connect=_REQUEST_S / 3)
        response = await self._send(verb, url, body, limit)
        async with response:
            data = await response.read()
        if response.status >= 300:
            raise _refusal(response.status, data)
        try:
            answer = json.loads(data)
        except ValueError as error:
            raise aiohttp.ClientPayloadError(f"no JSON but {data[:80]!r}") from error
        if not isinstance(answer, dict):
            raise aiohttp.ClientPayloadError(f"no object but {data[:80]!r}")
        return answer

    async def _send(
        self, verb: str, url: str, body: Mapping[str, object] | None, limit: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        headers = {"Accept": "application/json", "User-Agent": "runyard"}  # what an audit log calls us
        if verb == "PATCH":
            headers["Content-Type"] = "application/merge-patch+json"
        await self._client.update_params_for_auth(headers, [], ["BearerToken"], url, verb, body)
        try:
            wrapped = await self._client.call_api(verb, url, headers, body, _request_timeout=limit)
        except _NO_ANSWER:
            self.metrics.request(verb, "none")
            raise
        response: aiohttp.ClientResponse = wrapped.response
        self.metrics.request(verb, str(response.status))
        self._hear_clock(response.headers.get("Date", ""))
        return response

    def _hear_clock(self, date: str) -> None:
        try:
            ahead_s = (parsedate_to_datetime(date) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return
        if abs(ahead_s - self.skew_s) > 1.5:  # a date has whole seconds: smaller moves are noise
            self.skew_s = ahead_s

    def _url(self, path: str, query: Mapping[str, str]) -> str:
        whole = path if path.startswith("/") else f"{self._base}/{path}"
        return f"{self.server}{whole}" + (f"?{urlencode(query)}" if query else "")

    def _unavailable(self, error: Exception) -> ClusterUnavailable:
        return ClusterUnavailable(
            f"the API server at {self.server} does not answer: {error or type(error).__name__}"
        )


async def _configure(configuration: Configuration, kubeconfig: Path | None, context: str) -> str:
    """Fill it in; the namespace that the cluster's configuration names, if it does."""
    inside = Path("/var/run/secrets/kubernetes.io/serviceaccount")
    if kubeconfig is None and "KUBECONFIG" not in os.environ and "KUBERNETES_SERVICE_HOST" in os.environ:
        load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        return (inside / "namespace").read_text().strip()
    loader = await load_kube_config(  # type: ignore[no-untyped-call]
        config_file=str(kubeconfig) if kubeconfig else None,
        context=context or None,
        client_configuration=configuration,
        persist_config=False,
    )
    return fields.text(loader.current_context, "context", "namespace")


def _refusal(status: int, data: bytes) -> Refused:
    try:
        said = json.loads(data)
    except ValueError:
        said = {"message": data.decode("utf-8", "replace").strip()[:300]}
    return Refused(status, fields.text(said, "reason"), fields.text(said, "message"), fields.part(said, "details"))


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Whole lines of any length: aiohttp's own refuse a long one."""
    kept = b""
    async for data in content.iter_any():
        *lines, kept = (kept + data).split(b"\n")
        for line in lines:
            if line:
                yield line
