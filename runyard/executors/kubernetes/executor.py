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
import math
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
from runyard.executors.kubernetes.room import NoRoom, Room
from runyard.executors.kubernetes.usage import Usage
from runyard.executors.kubernetes.verdict import Patience, Verdict, cannot_begin, judge, may_have_begun
from runyard.executors.kubernetes.watch import DEPARTED, Seen, Watch, main_ended
from runyard.metrics import NO_METRICS, Metrics
from runyard.reasons import Reason
from runyard.spec.plan import FromSecret, RegistryAuth, TaskPlan
from runyard.spec.run import PodRef

_LOOK_S = 60.0  # a follower that has heard nothing for so long asks itself
_ENDING_LOOK_S = 10.0  # and more often of a pod that is to be gone
_WHY_S = 10.0  # how long a pod with a node may say nothing before the cluster's events are read
_GONE_S = 30.0  # how long a deleted pod may stay, e.g. for a finalizer
_TRIES = 5


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
            return await self._create(api, watch, manifest)

        for _ in range(_TRIES):
            known = watch.named(launch.name) or self._lost(watch, launch)
            if known is not None:
                seen, made = known, False
            else:
                seen, made = await room.take(
                    make, report, shape=pod.shape(manifest), priority=launch.priority, owner=launch.run_owner
                )
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

    async def _create(self, api: Api, watch: Watch, manifest: dict[str, Any]) -> tuple[Seen, bool]:
        """The pod, and whether it is new. Raises NoRoom, and what a refusal means."""
        name = manifest["metadata"]["name"]
        for _ in range(_TRIES):
            try:
                return watch.admit(await api.create("pods", manifest)), True
            except Refused as error:
                if error.word == "AlreadyExists":
                    if (seen := await self._look(api, watch, name)) is not None:
                        return seen, False
                    continue
                if short := quota.shortage(error):
                    raise NoRoom(str(short), short) from error
                raise quota.as_error(error) from error
        raise ExecutorError(f"there is a pod {name}, and there is not")

    async def _have_secret(self, api: Api, secret: dict[str, Any], seen: Seen) -> None:
        """The pod's Secret is there, and is this pod's: an earlier one of the name may still be on its way out."""
        if seen.gone or not seen.live:
            return
        name = secret["metadata"]["name"]
        for _ in range(_TRIES):
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
                    latest = await self._look(api, watch, seen.name)
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

    async def _look(self, api: Api, watch: Watch, name: str) -> Seen | None:
        """The pod of that name, asked for; None where there is none."""
        try:
            return watch.admit(await api.get("pods", name))
        except Refused as error:
            if error.status == 404:
                return None
            raise ExecutorError(f"the pod {name} cannot be looked at: {error.message}") from error

    # Follow

    async def follow(self, pod: PodRef, *, owner: str, report: Report) -> Ended:
        api, watch, _ = await self._open()
        with watch.listen(pod.uid) as news:
            seen = watch.find(pod.uid) or await self._look(api, watch, pod.name)
            if seen is None or seen.uid != pod.uid:
                return Ended(gone=True, message="the pod is not there")
            try:
                await self._take_over(api, watch, seen, owner)
            except _Vanished:
                watch.dismiss(pod.uid)
            return await _Follow(self, api, watch, pod, owner, report).until_ended(news)

    # End

    async def stop(self, pod: PodRef, *, grace_s: float) -> None:
        api, watch, _ = await self._open()
        seen = watch.find(pod.uid) if pod.uid else watch.named(pod.name)
        seen = seen or await self._look(api, watch, pod.name)
        if seen is None or seen.gone or not seen.live or pod.uid not in ("", seen.uid):
            return
        await self._end(api, watch, seen, Reason.CANCELLED, "it was asked to end", grace_s=grace_s)

    async def _end(
        self, api: Api, watch: Watch, seen: Seen, reason: Reason, message: str, *, grace_s: float
    ) -> None:
        """Write why, then ask it to end. A pod whose main runs always has the time that its main was promised."""
        if not seen.note(names.ENDING):
            change = {"uid": seen.uid, "annotations": {names.ENDING: f"{reason} {message}"}}
            try:
                seen = watch.admit(await api.patch("pods", seen.name, {"metadata": change}))
            except Refused as error:
                if error.status not in (404, 422):
                    raise ExecutorError(f"the pod cannot be marked as ending: {error.message}") from error
                watch.dismiss(seen.uid)
                return
        promised_s = fields.seconds(seen.body, "metadata", "annotations", names.GRACE) or 0
        # a status is a second old: only where it says why main cannot have begun is there nobody to wait for
        whole_s = 1 if cannot_begin(seen.body) else max(1, math.ceil(grace_s), math.ceil(promised_s))
        await self._delete_pod(api, watch, seen, whole_s)

    async def _delete_pod(self, api: Api, watch: Watch, seen: Seen, grace_s: int) -> None:
        try:
            answer = await api.delete("pods", seen.name, uid=seen.uid, grace_s=grace_s)
        except Refused as error:
            if error.status in (404, 409):  # 409: another uid has the name
                watch.dismiss(seen.uid)
                return
            raise ExecutorError(f"the pod {seen.name} cannot be deleted: {error.message}") from error
        # with no node, or no grace, it is gone with the answer, unless something holds it
        at_once = grace_s == 0 or not fields.text(answer, "spec", "nodeName")
        if at_once and not list(fields.part(answer, "metadata").get("finalizers", ()) or ()):  # type: ignore[call-overload]
            watch.dismiss(seen.uid, answer if fields.text(answer, "kind") == "Pod" else None)

    async def delete(self, pod: PodRef) -> None:
        api, watch, room = await self._open()
        seen = watch.find(pod.uid) if pod.uid else await self._look(api, watch, pod.name)
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
                self._remove(api, watch, seen, news),
                return_exceptions=True,
            )
        for result in removed:
            if isinstance(result, BaseException):
                raise result
        self._owners.pop(uid, None)
        room.look_again()

    async def _remove(self, api: Api, watch: Watch, seen: Seen, news: asyncio.Event) -> None:
        if seen.gone:
            return
        await self._delete_pod(api, watch, seen, 0)
        try:
            async with asyncio.timeout(_GONE_S):
                while (present := watch.find(seen.uid)) is not None and not present.gone:
                    news.clear()
                    await news.wait()
        except TimeoutError:
            raise ExecutorError(
                f"the pod {seen.name} is being deleted, and something holds it (a finalizer?)"
            ) from None

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


class _Vanished(Exception):
    """The pod is not there any more."""


class _Follow:
    """One caretaker's way along with one pod."""

    def __init__(
        self, executor: KubernetesExecutor, api: Api, watch: Watch, pod: PodRef, owner: str, report: Report
    ) -> None:
        self._executor = executor
        self._api = api
        self._watch = watch
        self._pod = pod
        self._owner = owner
        self._report = report
        self._told = ""
        self._faults: dict[str, float] = {}  # since when, by our clock
        self._ran_since: float | None = None
        self._heard = 0.0
        self._warning = ""

    async def until_ended(self, news: asyncio.Event) -> Ended:
        self._heard = _clock()
        while True:
            news.clear()
            seen = self._watch.find(self._pod.uid)
            if seen is None:
                return Ended(gone=True, message="the pod is not there")
            self._executor._check(seen, self._owner)
            verdict = judge(seen.body, gone=seen.gone, now=self._api.now(), patience=self._executor._patience)
            self._tell(verdict, seen)
            left_s = self._left(verdict)
            if left_s <= 0 and verdict.ended is not None and not await self._must_end(verdict, seen):
                return verdict.ended
            left_s = min(left_s if left_s > 0 else _LOOK_S, await self._deadline(verdict, seen))
            silent = verdict.state == "pending" and bool(fields.text(seen.body, "spec", "nodeName"))
            if not await self._wait(news, seen, min(left_s, _WHY_S) if silent else left_s) and silent:
                await self._ask_why()

    async def _must_end(self, verdict: Verdict, seen: Seen) -> bool:
        """Whether main still runs, and so has to be ended first; then it is asked to."""
        if not verdict.main_runs or verdict.ended is None:
            return False
        if not seen.note(names.ENDING):
            reason = verdict.ended.reason or Reason.INTERNAL
            await self._end(seen, reason, verdict.ended.message)
        return True

    async def _end(self, seen: Seen, reason: Reason, message: str) -> None:
        await self._executor._end(self._api, self._watch, seen, reason, message, grace_s=0)

    def _left(self, verdict: Verdict) -> float:
        """Seconds until the verdict holds."""
        if verdict.ended is None:
            self._faults.clear()
            return _LOOK_S
        since = self._faults.setdefault(verdict.fault, _clock())
        return verdict.patience_s - (_clock() - since)

    async def _deadline(self, verdict: Verdict, seen: Seen) -> float:
        """Seconds until main has run for as long as it may; at zero it is asked to end."""
        limit_s = fields.seconds(seen.body, "metadata", "annotations", names.DEADLINE)
        if limit_s is None or verdict.state != "running" or seen.note(names.ENDING):
            return _LOOK_S
        if self._ran_since is None:
            self._ran_since = _clock() - self._ran_before(seen)
        left_s = limit_s - (_clock() - self._ran_since)
        if left_s > 0:
            return left_s
        await self._end(seen, Reason.TIMEOUT_RUN, f"ran longer than {limit_s:g} s")
        return _LOOK_S

    def _ran_before(self, seen: Seen) -> float:
        """How long main has run already when this caretaker first sees it run."""
        for each in fields.parts(seen.body, "status", "containerStatuses"):
            started = fields.moment(each, "state", "running", "startedAt")
            if fields.text(each, "name") == names.MAIN and started is not None:
                # both are whole seconds; the news of a start is a second old as a rule, and not worth a cut
                return max(0.0, (self._api.now() - started).total_seconds() - 2)
        return 0.0

    def _tell(self, verdict: Verdict, seen: Seen) -> None:
        message = verdict.message
        if verdict.state == "pending" and self._warning:
            message = f"{message}; {self._warning}"
        if self._watch.trouble and verdict.state != "ended":
            message = f"{message} ({self._watch.trouble})"
        state = verdict.state
        if state == "ended" and (verdict.patience_s or verdict.main_runs):  # not yet
            state = "running" if verdict.begun else "pending"
        node = fields.text(seen.body, "spec", "nodeName")
        if self._told != f"{state} {node} {message}":
            self._told = f"{state} {node} {message}"
            self._report(Progress(state=state, message=message or state, node=node))

    async def _ask_why(self) -> None:
        """The cluster's last warning: volumes that cannot be mounted, say, are in no status."""
        with contextlib.suppress(Refused, ExecutorError):  # it is only for people; we may have no right to it
            page = await self._api.page("events", fieldSelector=f"involvedObject.uid={self._pod.uid}")
            warnings = [each for each in fields.parts(page, "items") if fields.text(each, "type") == "Warning"]
            if warnings:
                last = max(warnings, key=lambda each: fields.text(each, "lastTimestamp"))
                self._warning = f"{fields.text(last, 'reason')}: {fields.text(last, 'message')}"[:500]

    async def _wait(self, news: asyncio.Event, seen: Seen, left_s: float) -> bool:
        """For news, or until it is time to look; whether there was news."""
        ending = bool(fields.text(seen.body, "metadata", "deletionTimestamp"))
        try:
            async with asyncio.timeout(max(0.01, min(left_s, _ENDING_LOOK_S if ending else _LOOK_S))):
                await news.wait()
            self._heard = _clock()
            return True
        except TimeoutError:
            if _clock() - self._heard >= (_ENDING_LOOK_S if ending else _LOOK_S):
                self._heard = _clock()
                latest = await self._executor._look(self._api, self._watch, self._pod.name)
                if latest is None or latest.uid != self._pod.uid:
                    self._watch.dismiss(self._pod.uid)
            return False


def _clock() -> float:
    return asyncio.get_running_loop().time()


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
