"""What quotas leave, as far as it is known: so that nobody asks for what cannot be had.

A watch says how much of each quota is in use: its status moves with every pod that is admitted, ends or goes,
whoever made it. That a pod counts as one is known; what else a pod of some shape asks of a quota only the
cluster can tell (defaults of a LimitRange count too), and a refusal says it. Without the right to watch quotas
there is what the last refusal said, and the doubt that comes with every pod of ours that goes.

Turned down: trying when a pod has ended. Its room is free only when the quota's controller has counted, after its
delete or its phase, so that most tries were refused; and a cap learned from refusals, which does not fit pods
of several sizes.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from runyard.errors import ClusterUnavailable
from runyard.executors.kubernetes import fields
from runyard.executors.kubernetes.api import Api, Refused
from runyard.executors.kubernetes.fields import Json
from runyard.executors.kubernetes.quota import Shortage, exceeds, growth

_IDLE_S = 90.0
_SERVER_S = 300
_PAUSE_S, _FORBIDDEN_S = 1.0, 300.0
_SHAPES = 500
_TOLD_S = 1.0
"""After this long a quota's use counts a pod that was made, whatever was heard of it."""
_ONE_POD = {"pods": "1", "count/pods": "1"}


@dataclass(frozen=True)
class _Quota:
    """Amounts by resource."""

    used: Mapping[str, str]
    limited: Mapping[str, str]
    scoped: bool = False  # it is for some pods only

    def asked(self, said: Mapping[str, str]) -> Mapping[str, str]:
        """What a pod asks of it, of which that much is known from a refusal.

        What it can never have is left to the quota, which says so.
        """
        if self.scoped:
            return said
        own = {name: one for name, one in _ONE_POD.items() if not exceeds([one], self.limited.get(name, "0"))}
        return {**own, **said}


@dataclass(eq=False)
class _Pod:
    """One that is asked for, or was made just now. ``told``: the quotas whose use seems to count it.

    As long as it is not ``answered`` that may be another one's: a quota's controller may have forgotten a pod that
    was made a moment ago, and count it only now.
    """

    shape: str
    told: set[str] = field(default_factory=set)
    answered: bool = False


class Usage:
    """``changed`` is called when a use is another one. ``counted``: how many pods of ours count, at least."""

    def __init__(self, api: Api, *, changed: Callable[[], None], counted: Callable[[], int]) -> None:
        self._api = api
        self._changed = changed
        self._counted = counted
        self._quotas: dict[str, _Quota] = {}
        self._asked: dict[str, dict[str, Mapping[str, str]]] = {}  # shape → quota → what a pod asks of it
        self._known: set[str] = set()  # shapes of which a pod was admitted, or had to wait
        self._pods: list[_Pod] = []  # in the order in which they were asked for
        self._surprised = False
        self._live = False
        self._watching: asyncio.Task[None] | None = None

    @property
    def sure(self) -> bool:
        """Whether news of room will come by itself, and nothing speaks against what was heard last."""
        return self._live and not self._surprised

    async def begin(self) -> None:
        """Hear of the quotas that there are, and then of every change."""
        with contextlib.suppress(Refused, ClusterUnavailable):  # the watch tries again, as long as it takes
            page = await self._api.page("resourcequotas")
            for body in fields.parts(page, "items"):
                self._take("ADDED", body)
        self._watching = asyncio.create_task(self._watch())

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])

    def lacks(self, shape: str) -> str:
        """What there is no room in for a pod of that shape; "" = there is room, or it is not known.

        The first pod of a shape is asked for in any case: it may be one that no room helps, which only the cluster
        can say.
        """
        if shape not in self._known and not any(pod.shape == shape for pod in self._pods):
            return ""
        for name, quota in self._quotas.items():
            requested = self._asks(shape, name, quota)
            short = Shortage(quota=name, requested=requested, used=quota.used, limited=quota.limited)
            if short:
                return str(short)
            if not self._has_room(name, quota, requested):
                return "others are before it"
        return ""

    def _asks(self, shape: str, name: str, quota: _Quota) -> Mapping[str, str]:
        return quota.asked(self._asked.get(shape, {}).get(name, {}))

    def _has_room(self, name: str, quota: _Quota, requested: Mapping[str, str]) -> bool:
        """Besides those that it does not count yet. Its controller may forget one that was made just now."""
        asked = sum(not pod.answered for pod in self._pods)
        limits = [quota.limited[what] for what in _ONE_POD if what in quota.limited and not quota.scoped]
        if any(exceeds([str(self._counted() + asked + 1)], limit) for limit in limits):
            return False
        uncounted = [pod for pod in self._pods if not pod.answered or name not in pod.told]
        others = [self._asks(pod.shape, name, quota) for pod in uncounted]
        return not any(
            exceeds(
                [amount, quota.used.get(what, "0"), *(other.get(what, "0") for other in others)],
                quota.limited.get(what, ""),
            )
            for what, amount in requested.items()
        )

    @contextlib.contextmanager
    def making(self, shape: str) -> Iterator[None]:
        """A pod of that shape is asked for; without an exception it is there."""
        pod = _Pod(shape)
        self._pods.append(pod)
        try:
            yield
        except BaseException:
            self._pods.remove(pod)
            raise
        pod.answered = True
        self._know(shape)
        self._changed()
        asyncio.get_running_loop().call_later(_TOLD_S, self._told_by_now, pod)

    def _told_by_now(self, pod: _Pod) -> None:
        """Its quotas count it, whether or not we could tell."""
        self._pods.remove(pod)
        if any(name not in pod.told for name in self._quotas):
            self._changed()

    def refused(self, shape: str, short: Shortage) -> None:
        """A quota has no room for a pod of that shape."""
        self._surprised = self._live and not self.lacks(shape) and shape in self._asked
        self._know(shape)
        self._asked.setdefault(shape, {})[short.quota] = short.requested
        known = self._quotas.get(short.quota)
        scoped = known is None or known.scoped
        self._hear(short.quota, _Quota(used=short.used, limited=short.limited, scoped=scoped))

    def _know(self, shape: str) -> None:
        if len(self._known) >= _SHAPES:
            self._known.clear()
            self._asked.clear()
        self._known.add(shape)

    def doubt(self) -> None:
        """A pod has gone: where nothing is heard of quotas, there may be room."""
        if not self._live:
            self._quotas.clear()

    async def _watch(self) -> None:
        while True:
            pause_s = _PAUSE_S
            try:
                await self._follow()
            except Refused as error:
                pause_s = _FORBIDDEN_S if error.status == 403 else _PAUSE_S
            except ClusterUnavailable:
                pass  # whoever makes pods will say so
            self._live = False
            self.doubt()
            self._changed()
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))

    async def _follow(self) -> None:
        """Without a version a watch begins with all that there is, so no list is needed."""
        query = {"timeoutSeconds": str(round(_SERVER_S * random.uniform(0.8, 1.2)))}
        async for event in self._api.watch("resourcequotas", idle_s=_IDLE_S, query=query):
            kind, body = fields.text(event, "type"), fields.part(event, "object")
            if kind == "ERROR":
                return
            if kind != "BOOKMARK":
                self._take(kind, body)

    def _take(self, kind: str, body: Json) -> None:
        name = fields.text(body, "metadata", "name")
        used, limited = (_amounts(fields.part(body, "status", key)) for key in ("used", "hard"))
        if kind == "DELETED" or not limited:
            self._quotas.pop(name, None)
        else:
            spec = fields.part(body, "spec")
            scoped = bool(spec.get("scopes") or spec.get("scopeSelector"))
            self._hear(name, _Quota(used=used, limited=limited, scoped=scoped))
        self._live, self._surprised = True, False
        self._changed()

    def _hear(self, name: str, quota: _Quota) -> None:
        """What its use has grown by are the pods that it did not count before, as far as that goes."""
        before = self._quotas.get(name)
        grown = growth(before.used if before else {}, quota.used)
        self._quotas[name] = quota
        for pod in self._pods:
            requested = growth({}, self._asks(pod.shape, name, quota))
            if name not in pod.told and all(grown.get(what, 0) >= amount for what, amount in requested.items()):
                grown = {what: amount - requested.get(what, 0) for what, amount in grown.items()}
                pod.told.add(name)


def _amounts(given: Json) -> dict[str, str]:
    return {name: str(amount) for name, amount in given.items()}
