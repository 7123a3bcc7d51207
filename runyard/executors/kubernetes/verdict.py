"""From a pod's status to how its task stands or has ended: a pure, total function.

The container status `terminated` of main is the verdict. The pod's phase follows about a second later and is not
waited for; what the phase and the conditions say (evicted, preempted, deadline) explains an end and never makes
one into a success: exit code 0 of main does, and nothing else.

A pod that will not get anywhere by itself (no image, no Secret, a dead agent) has an end too, with a *patience*:
the caller gives it as many seconds from the moment when it first saw that, since some of it mends itself.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal

from runyard.executors.base import Ended
from runyard.executors.kubernetes import fields, names
from runyard.executors.kubernetes.fields import Json
from runyard.reasons import Reason

SEAL_S = 30.0  # how long the agent of an ended main may take
_SIGNALS = range(129, 193)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Seconds that a fault is given to mend itself."""

    pull_s: float = 60.0
    config_s: float = 10.0
    start_s: float = 20.0
    agent_s: float = 2.0
    node_s: float = 60.0  # after the time by which a pod should have gone


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """``ended`` None = it goes on. Else it is over, once that has been so for ``patience_s`` seconds.

    ``fault`` tells the faults of a pod apart, for who counts those seconds. ``main_runs``: it must be
    ended before its end may be told. ``begun``: main and agent both are there, or were.
    """

    state: Literal["pending", "running", "ended"]
    message: str = ""
    ended: Ended | None = None
    patience_s: float = 0
    fault: str = ""
    main_runs: bool = False
    begun: bool = False


def judge(body: Json, *, gone: bool, now: datetime, patience: Patience = Patience()) -> Verdict:
    """``body`` as last seen, ``now`` by the clock of the API server."""
    main = _container(body, names.MAIN)
    if "terminated" in main.state:
        return _terminated(body, main, gone)
    if gone:
        return _over(_vanished(body))
    if _phase(body) in ("Failed", "Succeeded") and not _running(body):
        return _over(_never_ran(body))
    return (
        _overdue(body, main, now, patience)
        or _waiting_fault(body, main, main, patience, whose="")
        or _agent_fault(body, main, patience)
        or _service_fault(body, main, patience)
        or _going_on(body, main)
    )


def cannot_begin(body: Json) -> bool:
    """Whether main waits for something that it lacks, and so has not begun."""
    return _container(body, names.MAIN).waits in (*_NO_IMAGE, *_NEVER_STARTS, "CreateContainerConfigError")


def may_have_begun(body: Json) -> bool:
    """Whether a step may have run, as far as the status has told."""
    main = _container(body, names.MAIN)
    return main.exit_code is not None or _begun(body, main)


@dataclass(frozen=True)
class _Container:
    name: str
    image: str
    state: Json

    @property
    def waits(self) -> str:
        return fields.text(self.state, "waiting", "reason")

    @property
    def says(self) -> str:
        return fields.text(self.state, "waiting", "message")

    @property
    def runs(self) -> bool:
        return "running" in self.state

    @property
    def exit_code(self) -> int | None:
        return fields.whole(self.state, "terminated", "exitCode")


def _containers(body: Json) -> list[_Container]:
    return [
        _Container(fields.text(each, "name"), fields.text(each, "image"), fields.part(each, "state"))
        for each in fields.parts(body, "status", "containerStatuses")
    ]


def _container(body: Json, name: str) -> _Container:
    return next((each for each in _containers(body) if each.name == name), _Container(name, "", {}))


def _running(body: Json) -> bool:
    return any(each.runs for each in _containers(body))


def _phase(body: Json) -> str:
    return fields.text(body, "status", "phase")


def _node(body: Json) -> str:
    return fields.text(body, "spec", "nodeName")


def _over(ended: Ended, **more: Any) -> Verdict:
    return Verdict(**{"state": "ended", "message": ended.message, "ended": ended, **more})


def _faulty(body: Json, main: _Container, ended: Ended, *, patience_s: float, fault: str) -> Verdict:
    begun = _begun(body, main)
    return _over(ended, patience_s=patience_s, fault=fault, main_runs=main.runs, begun=begun)


def _begun(body: Json, main: _Container) -> bool:
    """Main waits for its agent, so it has not begun before that one runs."""
    return main.runs and not _container(body, names.AGENT).waits


# Main has ended


def _terminated(body: Json, main: _Container, gone: bool) -> Verdict:
    end = fields.part(main.state, "terminated")
    receipt = fields.text(end, "message")
    sealed = receipt.endswith("sealed;")
    code = main.exit_code
    ended = Ended(
        exit_code=code,
        signal=code - 128 if code in _SIGNALS and not sealed and code is not None else None,
        receipt=receipt,
        created_at=fields.moment(body, "metadata", "creationTimestamp"),
        placed_at=_placed(body),
        started_at=_when(end, "startedAt"),
        ended_at=_when(end, "finishedAt"),
        node=_node(body),
    )
    agent = _container(body, names.AGENT)
    if code != 0:
        ended = _explain(body, end, ended, agent)
    if sealed or gone or not agent.runs or fields.text(end, "reason") in _NOT_STARTED:
        return _over(ended)
    message = "main has ended, and its agent stores what it left"
    return _over(ended, patience_s=SEAL_S, fault="sealing", message=message, begun=True)


def _placed(body: Json) -> datetime | None:
    conditions = fields.parts(body, "status", "conditions")
    placed = (each for each in conditions if fields.text(each, "type") == "PodScheduled")
    return next((_when(each, "lastTransitionTime") for each in placed), None)


def _when(end: Json, key: str) -> datetime | None:
    found = fields.moment(end, key)
    return found if found is not None and found.year > 1970 else None  # a container that never ran: the epoch


def _explain(body: Json, end: Json, ended: Ended, agent: _Container) -> Ended:
    """The reason of an end that was no success, where something knows better than the exit code."""
    words = fields.text(end, "reason")
    cut_short = "term;" in ended.receipt or not ended.receipt.endswith("sealed;")
    found = _ending(body) or _disruption(body) or _refused_by_node(body) if cut_short else None
    if found is None and words == "OOMKilled":
        found = Reason.OOM_KILLED, "main or a process of its steps used more memory than its limit"
    if found is None and words in _NOT_STARTED:
        return replace(
            ended,
            reason=_start_reason(ended.receipt),
            message=f"the container did not start: {ended.receipt.strip()}"[:1000],
            receipt="",
            signal=None,
        )
    if found is None and words == "ContainerStatusUnknown":
        ended = replace(ended, exit_code=None, signal=None)
        found = Reason.LOST, "its node does not know how the container ended"
    if found is None:
        found = _agent_words(ended.receipt, agent)
    if found is None and cut_short and _deleted(body):
        found = Reason.LOST, "somebody deleted the pod"
    return ended if found is None else replace(ended, reason=found[0], message=found[1])


_NOT_STARTED = ("StartError", "ContainerCannotRun")
_INTERRUPTED = (
    *("context canceled", "context deadline exceeded", "code = Unavailable", "transport is closing"),
    *("connection refused", "ttrpc: closed", "is reserved for"),
)
"""What the kubelet and its runtime say where one of them went while they made a container. A command, a folder or
a user that is not there has other words, the kernel's."""


def _start_reason(said: str) -> Reason:
    """Whether the node is to blame for a container that did not start, or what was asked of it."""
    return Reason.NODE_LOST if any(words in said for words in _INTERRUPTED) else Reason.START_ERROR


_Found = tuple[Reason, str] | None


def _ending(body: Json) -> _Found:
    """What we wrote before we ended the pod ourselves."""
    word, _, message = fields.text(body, "metadata", "annotations", names.ENDING).partition(" ")
    try:
        return Reason(word), message
    except ValueError:
        return None


_DISRUPTIONS = {
    "PreemptionByScheduler": Reason.PREEMPTED,
    "DeletionByTaintManager": Reason.NODE_LOST,
    "DeletionByPodGC": Reason.NODE_LOST,
    "EvictionByEvictionAPI": Reason.EVICTED,
    "TerminationByKubelet": Reason.EVICTED,
}


def _disruption(body: Json) -> _Found:
    if fields.text(body, "status", "reason") == "Preempting":
        return Reason.PREEMPTED, fields.text(body, "status", "message") or Reason.PREEMPTED.sentence
    condition = _condition(body, "DisruptionTarget")
    if fields.text(condition, "status") != "True":
        return None
    reason = _DISRUPTIONS.get(fields.text(condition, "reason"), Reason.EVICTED)
    return reason, fields.text(condition, "message") or reason.sentence


_BY_NODE = {
    "Evicted": Reason.EVICTED,
    "DeadlineExceeded": Reason.TIMEOUT_RUN,
    "NodeLost": Reason.NODE_LOST,
    "NodeShutdown": Reason.NODE_LOST,
    "Shutdown": Reason.NODE_LOST,
    "Terminated": Reason.NODE_LOST,
    "UnexpectedAdmissionError": Reason.UNSCHEDULABLE,
    "NodeAffinity": Reason.UNSCHEDULABLE,
    "NodePorts": Reason.UNSCHEDULABLE,
    "TopologyAffinityError": Reason.UNSCHEDULABLE,
}


def _refused_by_node(body: Json) -> _Found:
    word = fields.text(body, "status", "reason")
    reason = _BY_NODE.get(word, Reason.UNSCHEDULABLE if word.startswith("OutOf") else None)
    if reason is None:
        return None
    return reason, fields.text(body, "status", "message") or f"{word}: {reason.sentence}"


def _condition(body: Json, kind: str) -> Json:
    return next(
        (each for each in fields.parts(body, "status", "conditions") if fields.text(each, "type") == kind), {}
    )


def _deleted(body: Json) -> bool:
    return bool(fields.text(body, "metadata", "deletionTimestamp"))


# Main has not ended, and the pod has


def _vanished(body: Json) -> Ended:
    found = _ending(body) or _disruption(body) or _refused_by_node(body)
    if found is not None:
        return Ended(reason=found[0], message=found[1], node=_node(body))
    return Ended(gone=True, message="somebody deleted the pod; how main ended is not known", node=_node(body))


def _never_ran(body: Json) -> Ended:
    """A pod that is over, and none of its containers runs or has said how it ended."""
    found = _ending(body) or _disruption(body) or _refused_by_node(body)
    if found is not None:
        return Ended(reason=found[0], message=found[1], node=_node(body))
    said = " ".join(filter(None, (fields.text(body, "status", "reason"), fields.text(body, "status", "message"))))
    return Ended(gone=True, message=f"the pod is over, and nothing says how main ended: {said}".rstrip(": "))


def _overdue(body: Json, main: _Container, now: datetime, patience: Patience) -> Verdict | None:
    """It was to be gone by now: its node does not answer, or a finalizer holds it."""
    due = fields.moment(body, "metadata", "deletionTimestamp")
    if due is None:
        return None
    found = _ending(body) or _disruption(body) or (Reason.NODE_LOST, "somebody deleted the pod")
    if not _node(body) or (now - due).total_seconds() < patience.node_s or due > now + timedelta(days=1):
        return Verdict(state="running" if main.runs else "pending", message=f"is being ended: {found[1]}")
    ended = Ended(
        reason=found[0],
        message=f"{found[1]}; the node {_node(body)} has not confirmed its end since {due:%H:%M:%S} UTC",
        node=_node(body),
    )
    return _over(ended)


# Faults of a pod that goes on


_NO_IMAGE = frozenset(
    {
        *("ErrImagePull", "ImagePullBackOff", "ImageInspectError", "RegistryUnavailable"),
        *("SignatureValidationFailed", "ErrImageNeverPull", "InvalidImageName"),
    }
)
_NEVER_STARTS = frozenset({"CreateContainerError", "RunContainerError", "PostStartHookError", "PreStartHookError"})


def _waiting_fault(
    body: Json, each: _Container, main: _Container, patience: Patience, *, whose: str
) -> Verdict | None:
    """A container that waits for what may never come. ``whose`` = "" for main, else e.g. "the agent's "."""
    word = each.waits
    if word in _NO_IMAGE:
        reason = Reason.INVALID_IMAGE_NAME if word == "InvalidImageName" else Reason.IMAGE_PULL
        patience_s = 0 if word in ("ErrImageNeverPull", "InvalidImageName") else patience.pull_s
        message = f"{whose}image {each.image}: {each.says or word}"
    elif word == "CreateContainerConfigError":
        reason, patience_s = Reason.CONFIG_ERROR, patience.config_s
        if each.says == f'secret "{fields.text(body, "metadata", "name")}" not found':
            # the pod's own, which comes right after it: the kubelet looks again, once its runtime lets it
            reason, patience_s = Reason.AGENT_LOST, patience.pull_s
        message = f"{whose}container cannot be made: {each.says or word}"
    elif word in _NEVER_STARTS:
        reason, patience_s = _start_reason(each.says), patience.start_s
        message = f"{whose}container does not start: {each.says or word}"
    else:
        return None
    ended = Ended(reason=reason, message=message[:1000], node=_node(body))
    return _faulty(body, main, ended, patience_s=patience_s, fault=f"{each.name} {reason}")


def _agent_fault(body: Json, main: _Container, patience: Patience) -> Verdict | None:
    agent = _container(body, names.AGENT)
    if "terminated" not in agent.state:
        return _waiting_fault(body, agent, main, patience, whose="the agent's ")
    # with exit code 0 it has heard main's last word, and main's own end is on its way
    patience_s = patience.agent_s if agent.exit_code else 5 * patience.agent_s
    reason, message = _agent_found(agent)
    ended = Ended(reason=reason, message=message, node=_node(body))
    return _faulty(body, main, ended, patience_s=patience_s, fault="agent ended")


def _agent_words(receipt: str, agent: _Container) -> _Found:
    """What main heard of the agent, with the agent's own words where it left any."""
    heard = [word.strip() for word in receipt.split(";")]
    for word in heard:
        for said, reason in (("store refused", Reason.STORE_REFUSED), ("service failed", Reason.SERVICE_FAILED)):
            if word.startswith(said):
                return reason, word.removeprefix(said).strip() or _last_words(agent) or reason.sentence
    return _agent_found(agent) if "agent lost" in heard else None


_AGENT_ENDS = {"store": Reason.STORE_REFUSED, "service": Reason.SERVICE_FAILED}


def _agent_found(agent: _Container) -> tuple[Reason, str]:
    """Why the agent ended: its termination message begins with a word (see runyard.dialogue)."""
    what, colon, why = fields.text(agent.state, "terminated", "message").strip().partition(": ")
    if colon and what in _AGENT_ENDS:
        return _AGENT_ENDS[what], why[:500]
    return Reason.AGENT_LOST, _agent_end(agent)


def _agent_end(agent: _Container) -> str:
    end = fields.part(agent.state, "terminated")
    if not end:
        return "the agent does not answer"
    word = fields.text(end, "reason")
    how = "used more memory than its limit" if word == "OOMKilled" else f"ended with exit code {agent.exit_code}"
    words = _last_words(agent)
    return f"the agent {how}" + (f": {words}" if words else "")


def _last_words(container: _Container) -> str:
    lines = fields.text(container.state, "terminated", "message").strip().splitlines()
    return lines[-1][:300] if lines else ""


def _service_fault(body: Json, main: _Container, patience: Patience) -> Verdict | None:
    for each in _containers(body):
        if not each.name.startswith(names.SERVICE):
            continue
        name = each.name.removeprefix(names.SERVICE)
        if each.exit_code:  # one that ends with 0 was a setup, and the agent waits for what it waits for
            ended = Ended(reason=_service_reason(each), message=_service_end(name, each), node=_node(body))
            return _faulty(body, main, ended, patience_s=0, fault=f"{each.name} ended")
        found = _waiting_fault(body, each, main, patience, whose=f"the service {name}'s ")
        if found is not None:
            return found
    return None


def _service_reason(service: _Container) -> Reason:
    end = fields.part(service.state, "terminated")
    not_started = fields.text(end, "reason") in _NOT_STARTED
    node = not_started and _start_reason(fields.text(end, "message")) is Reason.NODE_LOST
    return Reason.NODE_LOST if node else Reason.SERVICE_FAILED


def _service_end(name: str, service: _Container) -> str:
    word = fields.text(service.state, "terminated", "reason")
    how = "used more memory than its limit" if word == "OOMKilled" else f"ended with exit code {service.exit_code}"
    words = _last_words(service)
    return f"the service {name} {how}" + (f": {words}" if words else "")


# It goes on


def _unanswered(body: Json) -> bool:
    """Its containers are ready and it is not: so the cluster writes where a node is silent."""
    ready, containers = _condition(body, "Ready"), _condition(body, "ContainersReady")
    return fields.text(ready, "status") == "False" and fields.text(containers, "status") == "True"


def _going_on(body: Json, main: _Container) -> Verdict:
    if main.runs:
        if _begun(body, main):
            message = "its node does not answer" if _unanswered(body) else "runs"
            return Verdict(state="running", message=message, begun=True)
        agent = _container(body, names.AGENT)
        return Verdict(state="pending", message=f"waits for its agent: {agent.says or agent.waits}")
    scheduled = _condition(body, "PodScheduled")
    if fields.text(scheduled, "status") == "False":
        said = fields.text(scheduled, "message") or fields.text(scheduled, "reason")
        return Verdict(state="pending", message=f"waits for a node: {said}")
    if not _node(body):
        return Verdict(state="pending", message="waits for a node")
    return Verdict(state="pending", message=main.says or main.waits or "its containers are being made")
