"""The executor of Kubernetes pods: creates, adopts, follows, ends and deletes them.

Four requests a task: the pod, its Secret, and their deletes; what happens in between is heard by one watch. The
pod comes first and its Secret, which it owns, at once after it: the other way round a Secret would be left behind
by whoever dies in between, or waits for room. The kubelet needs the Secret some hundred milliseconds later, and
waits for it.

Whose a pod is stands in its annotation `owner`: the process and the caretaker in it. Within a process a
takeover is a matter of memory; another process writes its name there, on condition that nothing has changed
since it looked, and who was there before hears of it by its watch.
"""

import asyncio
import base64
import contextlib
import uuid
from collections import deque
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runyard.errors import ConfigError, Conflict, ExecutorError, Fenced, Forbidden, RunyardError
from runyard.executors.base import Ended, Launch, PodSeen, Progress, Report
from runyard.executors.kubernetes import fields, names, pod, quota
from runyard.executors.kubernetes.api import Api, Refused
from runyard.executors.kubernetes.fields import Json
from runyard.executors.kubernetes.follow import Follow
from runyard.executors.kubernetes.requests import TRIES, create_pod, end_pod, look, remove_pod
from runyard.executors.kubernetes.room import Room
from runyard.executors.kubernetes.usage import Usage
from runyard.executors.kubernetes.verdict import Patience, may_have_begun
from runyard.executors.kubernetes.watch import DEPARTED, Seen, Watch, main_ended
from runyard.metrics import NO_METRICS, Metrics
from runyard.reasons import Reason
from runyard.spec.plan import FromSecret, RegistryAuth, TaskPlan
from runyard.spec.run import PodRef

_OLD_S = 60.0  # after so long a wait for room the keys to the store are made anew


class _Vanished(Exception):
    """The pod is not there any more."""


class KubernetesExecutor:
    """Pods of one namespace. ``pods`` is how many may be alive at once, None = as many as the cluster takes."""

    def __init__(
        self,
        *,
        name: str = "kubernetes",
        rules: pod.Rules,
        kubeconfig: Path | None = None,
        context: str = "",
        namespace: str = "",
        pods: int | None = None,
        patience: Patience = Patience(),  # noqa: B008
        metrics: Metrics = NO_METRICS,
    ) -> None:
        self.name = name
        self.spool_bytes = rules.spool_bytes
        self._metrics = metrics
        self._rules = rules
        self.namespace = namespace
        self._kubeconfig, self._context = kubeconfig, context
        self._patience = patience
        self._slots = pods
        self._process = uuid.uuid4().hex[:12]
        self._owners: dict[str, str] = {}  # uid → caretaker in this process
        self._secrets: dict[str, str] = {}  # uid of a pod → uid of its Secret, where we made it
        self._deleted: deque[str] = deque(maxlen=DEPARTED)  # by uid: who asks for such a name wants another pod
        self._opening = asyncio.Lock()
        self._opened: tuple[Api, Watch, Room] | None = None

    def validate(self, task: TaskPlan) -> list[str]:
        return pod.refusals(task, self._rules)

    def notes(self, task: TaskPlan) -> list[str]:
        return pod.remarks(task, self._rules)

    @property
    def requests(self) -> dict[str, int]:
        """Requests to the API server so far, by verb and kind; the watch is not counted."""
        return dict(self._opened[0].requests) if self._opened else {}

    async def close(self) -> None:
        """Pods go on."""
        async with self._opening:
            if self._opened is not None:
                api, watch, room = self._opened
                self._opened = None
                await room.close()
                await watch.close()
                await api.close()

    async def _open(self) -> tuple[Api, Watch, Room]:
        async with self._opening:
            if self._opened is None:
                api = await Api.open(
                    kubeconfig=self._kubeconfig,
                    context=self._context,
                    namespace=self.namespace,
                    metrics=self._metrics,
                )
                usage = Usage(api, changed=lambda: room.look_again(), counted=lambda: watch.counted())
                room = Room(self._slots, lambda: watch.live(), usage)
                watch = Watch(api, freed=room.look_again, gone=usage.doubt)
                watch.start()
                try:
                    await usage.begin()
                except BaseException:  # a cancel: nobody would close what nobody has
                    await asyncio.gather(room.close(), watch.close(), api.close())
                    raise
                self._opened = api, watch, room
            return self._opened

    # Start

    async def start(self, launch: Launch, report: Report) -> PodRef:
        api, watch, room = await self._open()
        auths = await self._auths(api, launch.task)
        pod.build_secret(launch, "", auths=auths)  # before anything is made: it may be too large
        manifest = pod.build_pod(launch, self._rules, process=self._process)
        if folder := pod.unreachable(launch, manifest):
            raise ConfigError(
                f"the store is a folder of the worker's machine ({folder}), which no pod sees",
                remedy="Use the store `s3`, or mount the folder at the same path by the pod template.",
            )
        if self._slots is not None:
            await _until_listed(watch, report)

        async def make() -> tuple[Seen, bool]:
            return await create_pod(api, watch, manifest)

        for _ in range(TRIES):
            known = watch.named(launch.name) or self._lost(watch, launch)
            if known is not None:
                seen, made = known, False
            else:
                asked_s = asyncio.get_running_loop().time()
                seen, made = await room.take(
                    make, report, shape=pod.shape(manifest), priority=launch.priority, owner=launch.run_owner
                )
                if launch.renew is not None and asyncio.get_running_loop().time() - asked_s > _OLD_S:
                    launch = launch.model_copy(update={"assignment": await launch.renew()})
            try:
                await self._have_secret(api, pod.build_secret(launch, seen.uid, auths=auths), seen)
                if made:
                    self._owners[seen.uid] = launch.owner
                    return PodRef(name=launch.name, uid=seen.uid)
                return await self._adopt(api, watch, seen, launch)
            except _Vanished:
                watch.dismiss(seen.uid)  # deleted meanwhile: told of if it had begun, else made anew
        raise ExecutorError(f"pods of the name {launch.name} go as fast as they are made")

    def _lost(self, watch: Watch, launch: Launch) -> Seen | None:
        """That pod, if it has begun and then went by somebody else's hand before its start was told of.

        In another one the agent would refuse to begin again, and why the first one went would be told to nobody.
        """
        seen = watch.departed(launch.name)
        if seen is None or seen.uid in self._deleted or seen.note(names.DIGEST) != launch.digest:
            return None
        return seen if may_have_begun(seen.body) else None

    async def _have_secret(self, api: Api, secret: dict[str, Any], seen: Seen) -> None:
        """The pod's Secret is there, and is this pod's: an earlier one of the name may still be on its way out."""
        if seen.gone or not seen.live:
            return
        name = secret["metadata"]["name"]
        for _ in range(TRIES):
            try:
                made = await api.create("secrets", secret)
                self._secrets[seen.uid] = fields.text(made, "metadata", "uid")
                return
            except Refused as error:
                if error.word != "AlreadyExists":
                    await self._forget(api, seen)
                    raise quota.as_error(error, what="the pod's Secret") from error
            with contextlib.suppress(Refused):
                present = await api.get("secrets", name)
                uid = fields.text(present, "metadata", "uid")
                if any(
                    fields.text(o, "uid") == seen.uid for o in fields.parts(present, "metadata", "ownerReferences")
                ):
                    self._secrets[seen.uid] = uid
                    return
                await api.delete("secrets", name, uid=uid)
        raise ExecutorError(f"the Secret {name} is in the way and cannot be replaced")

    async def _forget(self, api: Api, seen: Seen) -> None:
        self._deleted.append(seen.uid)
        with contextlib.suppress(Refused, RunyardError):  # the error that led here is the one to tell
            await api.delete("pods", seen.name, uid=seen.uid, grace_s=0)

    async def _adopt(self, api: Api, watch: Watch, seen: Seen, launch: Launch) -> PodRef:
        if seen.note(names.DIGEST) != launch.digest:
            raise Conflict(f"there is a pod {launch.name} that was asked for with other words")
        await self._take_over(api, watch, seen, launch.owner, insist=True)
        return PodRef(name=launch.name, uid=seen.uid)

    async def _auths(self, api: Api, task: TaskPlan) -> dict[str, Any]:
        """Credentials of registries as an image pull Secret has them."""
        return {
            "https://index.docker.io/v1/" if name in ("docker.io", "index.docker.io") else name: {
                "auth": await self._auth(api, auth)
            }
            for name, auth in task.registries.items()
        }

    async def _auth(self, api: Api, auth: RegistryAuth) -> str:
        if auth.type == "encodedauth":
            return await self._value(api, auth.auth)
        pair = f"{await self._value(api, auth.username)}:{await self._value(api, auth.password)}"
        return base64.b64encode(pair.encode()).decode()

    async def _value(self, api: Api, value: object) -> str:
        """A credential: the one case in which the worker itself must read a Secret."""
        if not isinstance(value, FromSecret):
            return str(value)
        name, key = pod.secret_of(value.from_secret, self._rules.secrets)
        try:
            secret = await api.get("secrets", name)
        except Refused as error:
            if error.status == 403:
                raise Forbidden(
                    f"the worker may not read the Secret {name}: {error.message}",
                    remedy="Give its service account `get` on it, or name pull secrets in the pod template.",
                ) from error
            raise ConfigError(f"the Secret {name} with credentials of a registry: {error.message}") from error
        try:
            return base64.b64decode(fields.text(secret, "data", key), validate=True).decode()
        except ValueError as error:
            raise ConfigError(f"the key {key} of the Secret {name} is no text") from error

    # Whose it is

    async def _take_over(self, api: Api, watch: Watch, seen: Seen, owner: str, *, insist: bool = False) -> None:
        """Make ``owner`` its caretaker. Raises Fenced when another one was faster, _Vanished.

        ``insist``: a start comes before every follow, so whoever was faster is asked to let go.
        """
        self._owners[seen.uid] = owner
        watch.wake(seen.uid)
        first = seen.note(names.OWNER)
        while not self._is_ours(seen, owner):
            if seen.gone:
                return
            if seen.note(names.OWNER) != first and not insist:
                raise Fenced(f"{seen.note(names.OWNER) or 'another caretaker'} has taken the task over")
            change = {
                "uid": seen.uid,
                "resourceVersion": seen.version,
                "annotations": {names.OWNER: f"{self._process} {owner}"},
            }
            try:
                seen = watch.admit(await api.patch("pods", seen.name, {"metadata": change}))
            except Refused as error:
                if error.status == 409:
                    latest = await look(api, watch, seen.name)
                elif error.status in (404, 422):  # 422: another uid
                    latest = None
                else:
                    raise ExecutorError(f"the pod cannot be taken over: {error.message}") from error
                if latest is None or latest.uid != seen.uid:
                    raise _Vanished from error
                seen = latest

    def _check(self, seen: Seen, owner: str) -> None:
        present = self._owners.get(seen.uid, owner)
        if present != owner:
            raise Fenced(f"{present} has taken the task over")
        if not seen.gone and not self._is_ours(seen, owner):
            noted = seen.note(names.OWNER).partition(" ")[2]
            raise Fenced(f"{noted or 'another caretaker'} has taken the task over")

    def _is_ours(self, seen: Seen, owner: str) -> bool:
        """Whether this process has it, or the same caretaker by way of another."""
        process, _, noted = seen.note(names.OWNER).partition(" ")
        return process == self._process or noted == owner

    # Follow

    async def follow(self, pod: PodRef, *, owner: str, report: Report) -> Ended:
        api, watch, _ = await self._open()
        with watch.listen(pod.uid) as news:
            seen = watch.find(pod.uid) or await look(api, watch, pod.name)
            if seen is None or seen.uid != pod.uid:
                return Ended(gone=True, message="the pod is not there")
            try:
                await self._take_over(api, watch, seen, owner)
            except _Vanished:
                watch.dismiss(pod.uid)
            follow = Follow(
                api,
                watch,
                pod,
                check=lambda seen: self._check(seen, owner),
                patience=self._patience,
                report=report,
            )
            return await follow.until_ended(news)

    # End

    async def stop(self, pod: PodRef, *, grace_s: float) -> None:
        api, watch, _ = await self._open()
        seen = watch.find(pod.uid) if pod.uid else watch.named(pod.name)
        seen = seen or await look(api, watch, pod.name)
        if seen is None or seen.gone or not seen.live or pod.uid not in ("", seen.uid):
            return
        await end_pod(api, watch, seen, Reason.CANCELLED, "it was asked to end", grace_s=grace_s)

    async def delete(self, pod: PodRef) -> None:
        api, watch, room = await self._open()
        seen = watch.find(pod.uid) if pod.uid else await look(api, watch, pod.name)
        uid = pod.uid or (seen.uid if seen is not None else "")
        if not uid:
            return
        if seen is None:
            seen = Seen(body={"metadata": {"name": pod.name, "uid": uid}})
        self._deleted.append(uid)
        with watch.listen(uid) as news:
            # at the same time: others wait for the pod's room, and the garbage collector, which deletes a Secret
            # whose pod has gone, too, is slower than we
            removed = await asyncio.gather(
                self._remove_secret(api, uid, pod.name),
                remove_pod(api, watch, seen, news),
                return_exceptions=True,
            )
        for result in removed:
            if isinstance(result, BaseException):
                raise result
        self._owners.pop(uid, None)
        room.look_again()

    async def _remove_secret(self, api: Api, pod_uid: str, name: str) -> None:
        """By the uid that we know. One that another process made goes with its pod, by the cluster itself."""
        uid = self._secrets.pop(pod_uid, "")
        if uid:
            try:
                await api.delete("secrets", name, uid=uid)
            except Refused as error:
                if error.status not in (404, 409):
                    raise ExecutorError(f"the Secret {name} cannot be deleted: {error.message}") from error

    async def list(self, *, fresh: bool = True) -> AsyncIterator[PodSeen]:
        api, watch, _ = await self._open()
        if not fresh:
            if watch.trouble or not watch.listed.is_set():
                raise ExecutorError(f"the pods are not watched: {watch.trouble or 'not listed yet'}")
            for seen in watch.present():
                yield _as_seen(seen.body)
            return
        token = ""
        while True:
            try:
                page = await api.page("pods", token=token, labelSelector=names.SELECTOR)
            except Refused as error:
                raise ExecutorError(f"the pods cannot be listed: {error.message or error.word}") from error
            for body in fields.parts(page, "items"):
                yield _as_seen(body)
            token = fields.text(page, "metadata", "continue")
            if not token:
                return


async def _until_listed(watch: Watch, report: Report) -> None:
    """The cap on pods is counted in what the watch sees."""
    while not watch.listed.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                await watch.listed.wait()
        if watch.trouble:
            report(Progress(state="waiting", message=f"waits for the cluster: {watch.trouble}"))


def _as_seen(body: Json) -> PodSeen:
    notes = fields.part(body, "metadata", "annotations")
    attempt = fields.text(body, "metadata", "labels", names.ATTEMPT)
    return PodSeen(
        pod=PodRef(name=fields.text(body, "metadata", "name"), uid=fields.text(body, "metadata", "uid")),
        run_id=fields.text(notes, names.RUN_ID),
        task=fields.text(notes, names.TASK_NAME),
        attempt=int(attempt) if attempt.isdecimal() else 0,
        running=not main_ended(body),
        created_at=fields.moment(body, "metadata", "creationTimestamp") or datetime.now(UTC),
    )
