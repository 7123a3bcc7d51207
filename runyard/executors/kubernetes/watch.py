"""One list and one watch for all our pods of a namespace, whoever follows them.

What is kept of a pod is what verdicts are made of, a tenth of what the server sends. What the server forgets to
send is the reason for the rest of this module: a watch that is silent for too long is opened anew (bookmarks
come once a minute also when nothing happens, so silence is a dead connection); one that is too old (410)
begins with a list; a follower that has heard nothing for a while asks for its pod itself (see follow.py).

A pod that went is remembered for a while with its last status: who asks a moment later is told how it ended, and
who is to make it learns that it has been there.
"""

import asyncio
import contextlib
import contextvars
import logging
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from runyard.errors import ClusterUnavailable
from runyard.executors.kubernetes import fields, names
from runyard.executors.kubernetes.api import Api, Refused
from runyard.executors.kubernetes.fields import Json

log = logging.getLogger(__name__)

_IDLE_S = 90.0
_SERVER_S = 300
_PAGE = 100
DEPARTED = 500
_PAUSE_S, _PAUSE_MAX_S = 0.2, 5.0
_EXPIRED = frozenset({"Expired", "Gone"})

_METADATA = ("name", "uid", "resourceVersion", "deletionTimestamp", "creationTimestamp")
_STATUS = ("phase", "reason", "message", "conditions", "containerStatuses", "startTime")
_CONTAINER = ("name", "image", "state")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A pod as it was seen last. ``gone`` = it is not there any more."""

    body: Json
    gone: bool = False

    @property
    def name(self) -> str:
        return fields.text(self.body, "metadata", "name")

    @property
    def uid(self) -> str:
        return fields.text(self.body, "metadata", "uid")

    @property
    def version(self) -> str:
        return fields.text(self.body, "metadata", "resourceVersion")

    def note(self, name: str) -> str:
        """An annotation of ours."""
        return fields.text(self.body, "metadata", "annotations", name)

    @property
    def counts(self) -> bool:
        """Whether a quota of pods counts it for certain: until its phase is an end.

        One that was asked to go may be on a node that is lost, and then it counts no longer.
        """
        leaving = fields.text(self.body, "metadata", "deletionTimestamp")
        return not (self.gone or leaving or phase_ended(self.body))

    @property
    def live(self) -> bool:
        """Whether it takes room: until main has ended."""
        return not self.gone and not main_ended(self.body)


def main_ended(body: Json) -> bool:
    if phase_ended(body):
        return True
    return any(
        fields.text(each, "name") == names.MAIN and "terminated" in fields.part(each, "state")
        for each in fields.parts(body, "status", "containerStatuses")
    )


def phase_ended(body: Json) -> bool:
    return fields.text(body, "status", "phase") in ("Succeeded", "Failed")


class Watch:
    """``freed`` is called when a pod has ended or gone, and before it ``gone`` when it has gone."""

    def __init__(self, api: Api, *, freed: Callable[[], None], gone: Callable[[], None]) -> None:
        self._api = api
        self._freed, self._gone = freed, gone
        self._pods: dict[str, Seen] = {}  # by uid
        self._departed: OrderedDict[str, Seen] = OrderedDict()
        self._last: dict[str, str] = {}  # name → uid, of the departed
        self._listeners: dict[str, set[asyncio.Event]] = {}
        self._version = ""
        self._pause_s = _PAUSE_S
        self._task: asyncio.Task[None] | None = None
        self.listed = asyncio.Event()
        self.trouble = ""  # why nothing is heard at the moment

    def start(self) -> None:
        if self._task is None:
            # of no task in particular: not what the caller's log lines are about
            own = contextvars.Context()
            self._task = asyncio.get_running_loop().create_task(self._run(), context=own)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    # What is known

    def find(self, uid: str) -> Seen | None:
        return self._pods.get(uid) or self._departed.get(uid)

    def named(self, name: str) -> Seen | None:
        return next((seen for seen in self._pods.values() if seen.name == name), None)

    def departed(self, name: str) -> Seen | None:
        """The last pod of that name that went."""
        return self._departed.get(self._last.get(name, ""))

    def present(self) -> list[Seen]:
        return list(self._pods.values())

    def live(self) -> int:
        return sum(seen.live for seen in self._pods.values())

    def counted(self) -> int:
        """By a quota of pods, at least."""
        return sum(seen.counts for seen in self._pods.values())

    @contextlib.contextmanager
    def listen(self, uid: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever there is news of that pod; who waits clears it."""
        news = asyncio.Event()
        self._listeners.setdefault(uid, set()).add(news)
        try:
            yield news
        finally:
            listeners = self._listeners[uid]
            listeners.discard(news)
            if not listeners:
                del self._listeners[uid]

    def wake(self, uid: str) -> None:
        for news in self._listeners.get(uid, ()):
            news.set()

    # What is learned

    def admit(self, body: Json) -> Seen:
        """A pod as the server has just answered. Older than what is known, it changes nothing."""
        seen = Seen(body=trim(body))
        if seen.uid in self._departed:
            return self._departed[seen.uid]
        known = self._pods.get(seen.uid)
        if known is not None and _older(seen.version, known.version):
            return known
        self._pods[seen.uid] = seen
        was_live, did_count = (known.live, known.counts) if known else (True, True)
        if (was_live and not seen.live) or (did_count and not seen.counts):
            self._freed()
        self.wake(seen.uid)
        return seen

    def dismiss(self, uid: str, body: Json | None = None) -> None:
        """That pod is not there any more; ``body`` is its last state, where it is known."""
        known = self._pods.pop(uid, None)
        if known is None and body is None:
            return
        last = trim(body) if body is not None else known.body if known is not None else {}
        self._departed[uid] = seen = Seen(body=last, gone=True)
        self._last[seen.name] = uid
        while len(self._departed) > DEPARTED:
            forgotten, seen = self._departed.popitem(last=False)
            if self._last.get(seen.name) == forgotten:
                del self._last[seen.name]
        self._gone()
        self._freed()
        self.wake(uid)

    # The watch itself

    async def _run(self) -> None:
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._follow()
            except Refused as error:
                if error.status == 410 or error.word in _EXPIRED:
                    self._version = ""
                what = "refuses to let pods be watched" if error.status < 500 else f"answers {error.status}"
                self._trouble(f"the cluster {what}: {error.message}")
            except ClusterUnavailable as error:
                self._trouble(error.message)
            except Exception:  # a fault of ours here must not leave every task of this worker waiting for ever
                log.exception("watching pods failed; it is begun anew")
                self._version, self.trouble = "", "watching pods failed"
            await asyncio.sleep(self._pause_s * random.uniform(0.5, 1.5))
            self._pause_s = min(self._pause_s * 2, _PAUSE_MAX_S)

    def _trouble(self, why: str) -> None:
        if not self.trouble and self._version:  # 410 is the server's habit, and the list that follows mends it
            log.warning("pods are not watched: %s", why)
        self.trouble = why

    async def _list(self) -> None:
        before = set(self._pods)
        present: set[str] = set()
        token = version = ""
        while True:
            page = await self._api.page("pods", token=token, limit=_PAGE, labelSelector=names.SELECTOR)
            for body in fields.parts(page, "items"):
                present.add(self.admit(body).uid)
            version = fields.text(page, "metadata", "resourceVersion")
            token = fields.text(page, "metadata", "continue")
            if not token:
                break
        for uid in before - present:
            self.dismiss(uid)
        self._version = version
        self.listed.set()

    async def _follow(self) -> None:
        query = {
            "labelSelector": names.SELECTOR,
            "resourceVersion": self._version,
            "timeoutSeconds": str(round(_SERVER_S * random.uniform(0.8, 1.2))),
        }
        async for event in self._api.watch("pods", idle_s=_IDLE_S, query=query):
            if self.trouble:
                log.info("pods are watched again")
            self._pause_s, self.trouble = _PAUSE_S, ""
            self._api.metrics.heard("kubernetes")
            self._take(fields.text(event, "type"), fields.part(event, "object"))

    def _take(self, kind: str, body: Json) -> None:
        if kind == "ERROR":
            code = fields.whole(body, "code") or 0
            raise Refused(code, fields.text(body, "reason"), fields.text(body, "message"), {})
        if kind in ("ADDED", "MODIFIED"):
            self.admit(body)
        elif kind == "DELETED":
            self.dismiss(fields.text(body, "metadata", "uid"), body)
        self._version = fields.text(body, "metadata", "resourceVersion") or self._version


def trim(body: Json) -> dict[str, Any]:
    """The parts of a pod that are looked at later."""
    metadata = fields.part(body, "metadata")
    status = fields.part(body, "status")
    annotations = fields.part(metadata, "annotations")
    return {
        "metadata": {
            **{key: metadata[key] for key in _METADATA if key in metadata},
            "annotations": {key: annotations[key] for key in names.OURS if key in annotations},
            "labels": dict(fields.part(metadata, "labels")),
        },
        "spec": {"nodeName": fields.text(body, "spec", "nodeName")},
        "status": {
            **{key: status[key] for key in _STATUS if key in status},
            "containerStatuses": [
                {key: each[key] for key in _CONTAINER if key in each}
                for each in fields.parts(status, "containerStatuses")
            ],
        },
    }


def _older(version: str, than: str) -> bool:
    """Of one object only; where versions are no numbers nothing is known of their order."""
    return version.isdecimal() and than.isdecimal() and int(version) < int(than)
