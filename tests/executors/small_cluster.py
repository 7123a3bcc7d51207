"""As much of an API server as the executor talks to, over HTTP, and no node behind it.

For what a real cluster does too rarely to be waited for: a test says what becomes of a pod, and when.
"""

import asyncio
import contextlib
import copy
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web
from cluster import Cluster

Body = dict[str, Any]


class SmallApi:
    """The objects of one namespace, by kind and name. ``made``: every pod that there ever was, in order."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Body]] = {"pods": {}, "secrets": {}, "resourcequotas": {}}
        self.made: list[Body] = []
        self._versions = itertools.count(1)
        self._events: list[Body] = []
        self._news = asyncio.Event()  # a new one each time

    @contextlib.asynccontextmanager
    async def serving(self, folder: Path) -> AsyncIterator[Cluster]:
        app = web.Application()
        base = "/api/v1/namespaces/{namespace}/{kind}"
        app.add_routes([web.get(base, self._list), web.post(base, self._create)])
        one = f"{base}/{{name}}"
        app.add_routes([web.get(one, self._get), web.patch(one, self._patch), web.delete(one, self._delete)])
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        kubeconfig = folder / "kubeconfig"
        kubeconfig.write_text(yaml.safe_dump(_kubeconfig(f"http://127.0.0.1:{runner.addresses[0][1]}")))
        try:
            yield Cluster(kubeconfig=kubeconfig, image="task")
        finally:
            await runner.cleanup()

    # what a node and others would do

    def set_status(self, name: str, status: Body) -> None:
        body = self.objects["pods"][name]
        body["status"] = status
        self._tell("MODIFIED", "pods", body)

    def remove(self, kind: str, name: str) -> Body:
        body = self.objects[kind].pop(name)
        self._tell("DELETED", kind, body)
        return body

    # requests

    async def _list(self, request: web.Request) -> web.StreamResponse:
        if "watch" in request.query:
            return await self._watch(request)
        items = list(self.objects[request.match_info["kind"]].values())
        return web.json_response({"metadata": {"resourceVersion": str(next(self._versions))}, "items": items})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        """Of pods: all that happened since that version, and from then on."""
        since, told = int(request.query.get("resourceVersion", "0")), 0
        happens = request.match_info["kind"] == "pods"
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            news = self._news
            for event in self._events[told:]:
                told += 1
                if happens and int(event["object"]["metadata"]["resourceVersion"]) > since:
                    await response.write(json.dumps(event).encode() + b"\n")
            await news.wait()

    async def _create(self, request: web.Request) -> web.Response:
        kind, body = request.match_info["kind"], await request.json()
        name = body["metadata"]["name"]
        if name in self.objects[kind]:
            return _refusal(409, "AlreadyExists")
        body["metadata"]["uid"] = f"uid-{next(self._versions)}"
        body["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
        self.objects[kind][name] = body
        self._tell("ADDED", kind, body)
        if kind == "pods":
            self.made.append(body)
        return web.json_response(body, status=201)

    async def _get(self, request: web.Request) -> web.Response:
        body = self._find(request)
        return _refusal(404, "NotFound") if body is None else web.json_response(body)

    async def _patch(self, request: web.Request) -> web.Response:
        body, change = self._find(request), (await request.json())["metadata"]
        if body is None:
            return _refusal(404, "NotFound")
        body["metadata"].setdefault("annotations", {}).update(change["annotations"])
        self._tell("MODIFIED", request.match_info["kind"], body)
        return web.json_response(body)

    async def _delete(self, request: web.Request) -> web.Response:
        """With no node there is nobody to wait for."""
        body, asked = self._find(request), await request.json()
        if body is None:
            return _refusal(404, "NotFound")
        if asked["preconditions"]["uid"] != body["metadata"]["uid"]:
            return _refusal(409, "Conflict")
        return web.json_response(self.remove(request.match_info["kind"], request.match_info["name"]))

    def _find(self, request: web.Request) -> Body | None:
        return self.objects[request.match_info["kind"]].get(request.match_info["name"])

    def _tell(self, kind: str, what: str, body: Body) -> None:
        body["metadata"]["resourceVersion"] = str(next(self._versions))
        if what == "pods":
            self._events.append(copy.deepcopy({"type": kind, "object": body}))
            self._news.set()
            self._news = asyncio.Event()


def _refusal(status: int, word: str) -> web.Response:
    return web.json_response({"kind": "Status", "reason": word, "message": word}, status=status)


def _kubeconfig(server: str) -> Body:
    return {
        "clusters": [{"name": "small", "cluster": {"server": server}}],
        "users": [{"name": "small", "user": {}}],
        "contexts": [{"name": "small", "context": {"cluster": "small", "user": "small"}}],
        "current-context": "small",
    }
