"""What a refusal means: sentences as API servers write them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from runyard.errors import BeyondQuota, ConfigError, ExecutorError, Forbidden, NotAdmitted, StartError
from runyard.executors.kubernetes.api import Api, Refused
from runyard.executors.kubernetes.quota import Shortage, as_error, shortage
from runyard.executors.kubernetes.usage import Usage


def refused(message: str, status: int = 403, word: str = "Forbidden") -> Refused:
    return Refused(status, word, message, {})


FULL = 'pods "x" is forbidden: exceeded quota: '


@pytest.mark.parametrize(
    ("said", "waits"),
    [
        (
            "two, requested: pods=1, used: pods=2, limited: pods=2",
            "quota two: 2 of 2 pods in use",
        ),
        (
            "team, requested: pods=1,cpu=500m, used: pods=3,cpu=1750m, limited: pods=9,cpu=2",
            "quota team: 1750m of 2 cpu in use",
        ),
        (
            "m, requested: limits.memory=1Gi, used: limits.memory=1536Mi, limited: limits.memory=2Gi",
            "quota m: 1536Mi of 2Gi limits.memory in use",
        ),
    ],
)
def test_room_that_may_come(said: str, waits: str) -> None:
    found = shortage(refused(FULL + said))
    assert found
    assert str(found) == waits


@pytest.mark.parametrize(
    "said",
    [
        "m, requested: limits.memory=3Gi, used: limits.memory=0, limited: limits.memory=2Gi",
        "m, requested: pods=1,requests.cpu=2500m, used: pods=1,requests.cpu=0, limited: pods=1,requests.cpu=2",
        "none, requested: pods=1, used: pods=0, limited: pods=0",
    ],
)
def test_room_that_never_comes(said: str) -> None:
    assert shortage(refused(FULL + said)) is None
    error = as_error(refused(FULL + said))
    assert isinstance(error, BeyondQuota)
    assert not error.retryable
    assert error.code == "quota"


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (
            refused('pods "x" is forbidden: failed quota: cpu: must specify requests.cpu for: main'),
            ConfigError,
            "must specify",
        ),
        (
            refused('pods is forbidden: User "w" cannot create resource "pods" in API group ""'),
            Forbidden,
            "may not create the pod",
        ),
        (
            refused('pods "x" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true'),
            NotAdmitted,
            "PodSecurity",
        ),
        (refused('pods "x" is forbidden: maximum memory usage per Container is 64Mi'), NotAdmitted, "64Mi"),
        (refused('admission webhook "v" denied the request: no'), NotAdmitted, "denied the request"),
        (refused('admission webhook "v" denied the request: no', 400, ""), NotAdmitted, "denied the request"),
        (
            refused("pods \"x\" is invalid: ValidatingAdmissionPolicy 'p' denied request: no", 422, "Invalid"),
            NotAdmitted,
            "denied request",
        ),
        (
            refused(
                'pods "x" is forbidden: unable to create new content in namespace n because it is being terminated'
            ),
            ConfigError,
            "being terminated",
        ),
        (refused('Pod "x" is invalid: spec.dnsPolicy', 422, "Invalid"), StartError, "dnsPolicy"),
        (refused('namespaces "n" not found', 404, "NotFound"), ConfigError, "not found"),
        (refused("Unauthorized", 401, "Unauthorized"), ExecutorError, "Unauthorized"),
        (refused("", 400, "BadRequest"), StartError, "400 BadRequest"),
    ],
)
def test_other_refusals_are_told_apart(error: Refused, kind: type[Exception], words: str) -> None:
    assert shortage(error) is None
    found = as_error(error)
    assert type(found) is kind
    assert words in found.message


# What is known of their use


class Quotas:
    """An API server that has these quotas and tells of ``news``; without any it forbids to ask."""

    def __init__(self, *quotas: dict[str, Any]) -> None:
        self.quotas = quotas
        self.news: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def page(self, _: str) -> dict[str, Any]:
        if not self.quotas:
            raise Refused(403, "Forbidden", "no", {})
        return {"items": list(self.quotas)}

    async def watch(self, _: str, **__: object) -> AsyncIterator[dict[str, Any]]:
        if not self.quotas:
            raise Refused(403, "Forbidden", "no", {})
        while True:
            yield {"type": "MODIFIED", "object": await self.news.get()}


def team(used: int, hard: int, **spec: object) -> dict[str, Any]:
    status = {"used": {"pods": str(used)}, "hard": {"pods": str(hard)}}
    return {"metadata": {"name": "team"}, "spec": spec, "status": status}


async def known(*quotas: dict[str, Any]) -> Usage:
    usage = Usage(cast(Api, Quotas(*quotas)), changed=lambda: None, counted=lambda: 0)
    await usage.begin()
    return usage


async def test_a_pod_counts_as_one_before_any_was_refused() -> None:
    usage = await known(team(1, 2))
    assert usage.lacks("any") == ""
    with usage.making("any"):
        assert usage.lacks("any") == "others are before it"
    assert usage.lacks("any") == "others are before it"  # until the quota says that it counts it
    await usage.close()


async def test_the_first_pod_of_a_shape_is_asked_for_in_any_case() -> None:
    """It may be one that will never be admitted, and that is to be said at once."""
    usage = await known(team(2, 2))
    assert usage.lacks("any") == ""
    with usage.making("any"):
        assert usage.lacks("any") == "quota team: 2 of 2 pods in use"
    assert usage.lacks("any") == "quota team: 2 of 2 pods in use"
    assert usage.lacks("another") == ""
    await usage.close()


async def test_a_pod_that_the_quotas_controller_has_forgotten_counts_all_the_same() -> None:
    """It counts what it has heard of, which a pod of a moment ago may not be: then its use falls too far."""
    quotas, heard, living = Quotas(team(2, 2)), asyncio.Event(), [2]
    usage = Usage(cast(Api, quotas), changed=heard.set, counted=lambda: living[0])
    await usage.begin()
    with usage.making("any"):
        pass
    heard.clear()
    quotas.news.put_nowait(team(0, 2))
    await heard.wait()
    assert usage.lacks("any") == "others are before it"
    living[0] = 1
    heard.clear()
    quotas.news.put_nowait(team(1, 2))
    await heard.wait()
    assert usage.lacks("any") == ""
    await usage.close()


async def test_news_of_one_pod_do_not_hide_another_that_is_under_way() -> None:
    quotas, heard = Quotas(team(0, 2)), asyncio.Event()
    usage = Usage(cast(Api, quotas), changed=heard.set, counted=lambda: 0)
    await usage.begin()
    with usage.making("any"):
        with usage.making("any"):
            heard.clear()
            quotas.news.put_nowait(team(1, 2))
            await heard.wait()
            assert usage.lacks("any") == "others are before it"
        assert usage.lacks("any") == "others are before it"
    heard.clear()
    quotas.news.put_nowait(team(1, 2))  # one has ended, and one of the two was not counted yet
    await heard.wait()
    assert usage.lacks("any") == "others are before it"
    heard.clear()
    await asyncio.wait_for(heard.wait(), 30)  # by now both are
    assert usage.lacks("any") == ""
    await usage.close()


@pytest.mark.parametrize(
    "quota", [team(2, 2, scopes=["BestEffort"]), team(2, 2, scopeSelector={"matchExpressions": []}), team(0, 0)]
)
async def test_a_quota_that_may_be_for_others_or_never_fits_is_asked(quota: dict[str, Any]) -> None:
    usage = await known(quota)
    assert usage.lacks("any") == ""
    await usage.close()


async def test_without_the_right_to_watch_the_last_refusal_counts_until_a_pod_goes() -> None:
    usage = await known()
    assert not usage.sure
    usage.refused("small", Shortage(quota="q", requested={"cpu": "1"}, used={"cpu": "2"}, limited={"cpu": "2"}))
    assert usage.lacks("small") == "quota q: 2 of 2 cpu in use"
    assert usage.lacks("other") == ""
    usage.doubt()
    assert usage.lacks("small") == ""
    await usage.close()
