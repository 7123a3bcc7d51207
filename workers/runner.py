"""How the workflows of a worker process run, and when its memory is looked through.

An execution that has ended, or makes room for others, is a large heap of objects that refer to each other: the
SDK's instance, its tasks, our workflow with its board of ten thousand tasks. Left to the garbage collector, such
heaps lie about until it looks at everything that is alive, 0.2 to 0.5 s at a time, in which no query is
answered. Taken apart at its end a heap goes at once; and as nothing else of ours leaves cycles behind
(`runyard.store.tree` tells of one that did), full collections find nothing and may be rare.

Turned down: the collector switched off (libraries may leave cycles, in errors above all).
"""

import gc
from collections.abc import Callable
from threading import Lock
from typing import Final

from temporalio.bridge.proto.workflow_activation import WorkflowActivation
from temporalio.bridge.proto.workflow_completion import Success, WorkflowActivationCompletion
from temporalio.worker import UnsandboxedWorkflowRunner, WorkflowInstance, WorkflowInstanceDetails

_THRESHOLDS: Final = (10_000, 20, 50)
"""New objects, young collections, middle collections. Python's own: 700 or 2,000, 10, 10."""


class Runner(UnsandboxedWorkflowRunner):
    """Without the SDK's sandbox, which doubles what a workflow task costs (measured for 500 no-ops: 7.5 s of CPU
    without it, 8 to 15 with it). It is on in the tests, where every shape of run and every recorded history goes
    through it.
    """

    def create_instance(self, det: WorkflowInstanceDetails) -> WorkflowInstance:
        def take_apart() -> None:
            for each in (*vars(instance).values(), instance):
                if each is instance or isinstance(each, det.defn.cls):
                    _take_apart(each)

        instance = super().create_instance(det)
        leave_once(instance, then=take_apart)
        return instance


def leave_once(instance: WorkflowInstance, *, then: Callable[[], None] = lambda: None) -> None:
    """An execution leaves the cache once, and is then done with: ``then`` follows.

    The SDK asks for it again when it has not been done after 2 s, on a loaded machine or for a large heap, in
    another thread and while the first is at it. The second would find what is half gone, fail, be asked for again
    for ever, and hold the worker's shutdown up. It waits for the first here, and has nothing left to do.
    """
    activate, leaving, gone = instance.activate, Lock(), False

    def activate_or_leave(act: WorkflowActivation) -> WorkflowActivationCompletion:
        nonlocal gone
        if not any(job.HasField("remove_from_cache") for job in act.jobs):
            return activate(act)
        with leaving:
            if gone:
                return _left(act)
            completion = activate(act)
            gone = True
            then()
            instance.activate = _left  # type: ignore[method-assign]
            return completion

    instance.activate = activate_or_leave  # type: ignore[method-assign]


def _left(act: WorkflowActivation) -> WorkflowActivationCompletion:
    return WorkflowActivationCompletion(run_id=act.run_id, successful=Success())


def _take_apart(each: object) -> None:
    """Flags and numbers stay: a task that is destroyed now asks its instance whether it is being deleted."""
    for name, value in list(vars(each).items()):
        if not isinstance(value, bool | int | float | str):
            del vars(each)[name]


def collect_rarely() -> None:
    """For a process whose modules are loaded: those are never looked at again, and all else seldom.

    What they left to the collector is not looked for: it is some 2 MB, and the look holds up the start by 0.1 s.
    """
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    gc.enable()
