"""The requests about one pod, and what their answers mean. What they bring is shown to the watch at once."""

import asyncio
import math
from typing import Any

from runyard.errors import ExecutorError
from runyard.executors.kubernetes import fields, names, quota
from runyard.executors.kubernetes.api import Api, Refused
from runyard.executors.kubernetes.room import NoRoom
from runyard.executors.kubernetes.verdict import cannot_begin
from runyard.executors.kubernetes.watch import Seen, Watch
from runyard.reasons import Reason

TRIES = 5  # of what others may be changing at the same time
_GONE_S = 30.0  # how long a deleted pod may stay, e.g. for a finalizer


async def look(api: Api, watch: Watch, name: str) -> Seen | None:
    """The pod of that name, asked for; None where there is none."""
    try:
        return watch.admit(await api.get("pods", name))
    except Refused as error:
        if error.status == 404:
            return None
        raise ExecutorError(f"the pod {name} cannot be looked at: {error.message}") from error


async def create_pod(api: Api, watch: Watch, manifest: dict[str, Any]) -> tuple[Seen, bool]:
    """The pod, and whether it is new. Raises NoRoom, and what a refusal means."""
    name = manifest["metadata"]["name"]
    for _ in range(TRIES):
        try:
            return watch.admit(await api.create("pods", manifest)), True
        except Refused as error:
            if error.word == "AlreadyExists":
                if (seen := await look(api, watch, name)) is not None:
                    return seen, False
                continue
            if short := quota.shortage(error):
                raise NoRoom(str(short), short) from error
            raise quota.as_error(error) from error
    raise ExecutorError(f"there is a pod {name}, and there is not")


async def end_pod(api: Api, watch: Watch, seen: Seen, reason: Reason, message: str, *, grace_s: float) -> None:
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
    await delete_pod(api, watch, seen, whole_s)


async def delete_pod(api: Api, watch: Watch, seen: Seen, grace_s: int) -> None:
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


async def remove_pod(api: Api, watch: Watch, seen: Seen, news: asyncio.Event) -> None:
    """Delete it and wait until it is gone. ``news``: of this pod, by the watch."""
    if seen.gone:
        return
    await delete_pod(api, watch, seen, 0)
    try:
        async with asyncio.timeout(_GONE_S):
            while (present := watch.find(seen.uid)) is not None and not present.gone:
                news.clear()
                await news.wait()
    except TimeoutError:
        raise ExecutorError(
            f"the pod {seen.name} is being deleted, and something holds it (a finalizer?)"
        ) from None
