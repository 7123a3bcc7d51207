"""Which pods a quota counts for certain, and that who waits for room hears when one counts no more."""

from typing import Any, cast

from runyard.executors.kubernetes.api import Api
from runyard.executors.kubernetes.watch import Watch

ENDED = {"name": "main", "state": {"terminated": {"exitCode": 0}}}


def body(version: int, phase: str = "Running", *containers: dict[str, Any], **metadata: str) -> dict[str, Any]:
    named = {"name": "p", "uid": "u", "resourceVersion": str(version), **metadata}
    return {"metadata": named, "status": {"phase": phase, "containerStatuses": list(containers)}}


def test_a_pod_counts_until_its_phase_is_an_end() -> None:
    freed: list[str] = []
    watch = Watch(cast(Api, None), freed=lambda: freed.append("x"), gone=lambda: None)
    watch.admit(body(1))
    assert (watch.live(), watch.counted(), len(freed)) == (1, 1, 0)
    watch.admit(body(2, "Running", ENDED))  # room in our own slots, and not yet in a quota
    assert (watch.live(), watch.counted(), len(freed)) == (0, 1, 1)
    watch.admit(body(3, "Succeeded", ENDED))
    assert (watch.live(), watch.counted(), len(freed)) == (0, 0, 2)
    watch.admit(body(4, "Succeeded", ENDED))
    assert len(freed) == 2


def test_one_that_was_asked_to_go_is_not_counted_on() -> None:
    """On a lost node it stays for ever, and a quota leaves it out when its grace period is over."""
    freed: list[str] = []
    watch = Watch(cast(Api, None), freed=lambda: freed.append("x"), gone=lambda: None)
    watch.admit(body(1))
    watch.admit(body(2, deletionTimestamp="2026-01-01T00:00:00Z"))
    assert (watch.live(), watch.counted(), len(freed)) == (1, 0, 1)
    watch.dismiss("u")
    assert (watch.live(), watch.counted(), len(freed)) == (0, 0, 2)
