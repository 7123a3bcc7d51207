"""What every executor must bear. A new one joins by a parameter of the fixture `yard`."""

import asyncio
import contextlib
from pathlib import Path

import pytest
from yards import Yard, silent, until

from runyard.errors import Conflict, Fenced
from runyard.executors.base import Ended, Progress
from runyard.reasons import Reason
from runyard.spec.run import PodRef


async def run(yard: Yard, command: str, **more: object) -> Ended:
    asked = yard.launch(command, **more)
    pod = await yard.executor.start(asked, silent)
    ended = await yard.executor.follow(pod, owner="one", report=silent)
    await yard.executor.delete(pod)
    return ended


async def names(yard: Yard) -> dict[str, bool]:
    return {seen.pod.name: seen.running async for seen in yard.executor.list()}


def manifest(yard: Yard, name: str) -> Path:
    return yard.folder / name / "manifest.json"


async def begun(yard: Yard, name: str) -> None:
    await until((yard.folder / name / "started").exists)
    if yard.kind != "memory":  # a shell's child that has not come to its first word yet may miss a signal
        await until((yard.folder / "in-the-step").exists)


def marked(yard: Yard, command: str) -> str:
    """A step that shows `begun` when it has. To the memory executor the first line says nothing."""
    return f"touch {yard.folder}/in-the-step\n{command}"


def deaf(yard: Yard) -> str:
    """A step that does not heed a request to end."""
    return "hang" if yard.kind == "memory" else f"trap '' TERM\n{marked(yard, 'while :; do sleep 1; done')}"


@pytest.mark.promise(1)
async def test_success_has_code_receipt_and_manifest(yard: Yard) -> None:
    asked = yard.launch("true")
    pod = await yard.executor.start(asked, silent)
    ended = await yard.executor.follow(pod, owner="one", report=silent)
    assert (ended.exit_code, ended.reason, ended.gone, ended.signal) == (0, None, False, None)
    assert ended.receipt == "0 0;sealed;"
    assert ended.started_at is not None
    assert ended.ended_at is not None
    assert ended.started_at <= ended.ended_at
    assert '"complete"' in manifest(yard, pod.name).read_text()


async def test_exit_code_comes_through(yard: Yard) -> None:
    ended = await run(yard, "exit 3")
    assert (ended.exit_code, ended.receipt, ended.reason) == (3, "0 3;sealed;", None)


async def test_same_digest_is_adopted_while_it_runs_and_after(yard: Yard) -> None:
    asked = yard.launch("sleep 0.3")
    pod = await yard.executor.start(asked, silent)
    assert await yard.again().start(asked, silent) == pod
    assert (await yard.executor.follow(pod, owner="one", report=silent)).exit_code == 0
    assert await yard.again().start(asked, silent) == pod
    assert len(await names(yard)) == 1


@pytest.mark.promise(2)
async def test_many_starts_of_one_pod_make_one(yard: Yard) -> None:
    asked = yard.launch("sleep 0.1")
    pods = await asyncio.gather(*(yard.again().start(asked, silent) for _ in range(8)))
    assert len(set(pods)) == 1
    assert (await yard.executor.follow(pods[0], owner="one", report=silent)).exit_code == 0


async def test_other_digest_is_a_conflict_and_harms_nothing(yard: Yard) -> None:
    asked = yard.launch("sleep 0.2")
    pod = await yard.executor.start(asked, silent)
    with pytest.raises(Conflict):
        await yard.executor.start(yard.launch("sleep 0.2", name=pod.name, digest="other"), silent)
    assert (await yard.executor.follow(pod, owner="one", report=silent)).exit_code == 0


async def test_follow_after_the_end_and_again(yard: Yard) -> None:
    pod = await yard.executor.start(yard.launch("exit 5"), silent)
    first = await yard.executor.follow(pod, owner="one", report=silent)
    assert await yard.again().follow(pod, owner="two", report=silent) == first


async def test_a_later_follower_fences_the_earlier(yard: Yard) -> None:
    pod = await yard.executor.start(yard.launch("sleep 30"), silent)
    seen: list[Progress] = []
    first = asyncio.create_task(yard.executor.follow(pod, owner="one", report=seen.append))
    await until(lambda: bool(seen))
    second = asyncio.create_task(yard.again().follow(pod, owner="two", report=silent))
    with pytest.raises(Fenced):
        await first
    await yard.executor.stop(pod, grace_s=5)
    assert (await second).reason is Reason.CANCELLED


async def test_followers_of_one_owner_share_it(yard: Yard) -> None:
    pod = await yard.executor.start(yard.launch("sleep 0.3"), silent)
    both = [yard.executor.follow(pod, owner="one", report=silent) for _ in range(2)]
    assert [ended.exit_code for ended in await asyncio.gather(*both)] == [0, 0]


async def test_a_start_that_adopts_fences_too(yard: Yard) -> None:
    asked = yard.launch("sleep 30")
    pod = await yard.executor.start(asked, silent)
    seen: list[Progress] = []
    follower = asyncio.create_task(yard.executor.follow(pod, owner="one", report=seen.append))
    await until(lambda: bool(seen))
    await yard.executor.start(asked.model_copy(update={"owner": "two"}), silent)
    with pytest.raises(Fenced):
        await follower


@pytest.mark.promise(7)
async def test_stop_ends_a_follow_in_order(yard: Yard) -> None:
    pod = await yard.executor.start(yard.launch(marked(yard, "sleep 60")), silent)
    follower = asyncio.create_task(yard.executor.follow(pod, owner="one", report=silent))
    await begun(yard, pod.name)
    await yard.executor.stop(pod, grace_s=20)
    ended = await follower
    assert (ended.exit_code, ended.reason) == (143, Reason.CANCELLED)
    assert "term;" in ended.receipt
    assert ended.receipt.endswith("sealed;")
    assert manifest(yard, pod.name).exists()


@pytest.mark.promise(7)
async def test_what_does_not_heed_a_stop_is_killed_after_its_grace(yard: Yard) -> None:
    pod = await yard.executor.start(yard.launch(deaf(yard)), silent)
    await begun(yard, pod.name)
    await yard.executor.stop(pod, grace_s=0.2)
    ended = await yard.executor.follow(pod, owner="one", report=silent)
    assert ended.exit_code != 0
    assert ended.reason is Reason.CANCELLED
    # in a container main itself ends what is deaf, within the grace that it was promised, and so seals
    sealed = '"complete"' if yard.kind == "kubernetes" else '"truncated"'
    assert sealed in manifest(yard, pod.name).read_text()


async def test_stop_of_what_is_not_there_or_has_ended(yard: Yard) -> None:
    await yard.executor.stop(PodRef(name="never", uid=""), grace_s=1)
    pod = await yard.executor.start(yard.launch("true"), silent)
    ended = await yard.executor.follow(pod, owner="one", report=silent)
    await yard.executor.stop(pod, grace_s=1)
    assert await yard.executor.follow(pod, owner="one", report=silent) == ended


async def test_stop_right_after_start(yard: Yard) -> None:
    pod = await yard.executor.start(yard.launch("sleep 60"), silent)
    await yard.executor.stop(pod, grace_s=0.5)
    ended = await yard.executor.follow(pod, owner="one", report=silent)
    assert ended.exit_code != 0
    assert ended.reason is Reason.CANCELLED


async def test_stop_of_another_uid_is_not_heard(yard: Yard) -> None:
    pod = await yard.executor.start(yard.launch("sleep 0.3"), silent)
    await yard.executor.stop(PodRef(name=pod.name, uid="other"), grace_s=0)
    assert (await yard.executor.follow(pod, owner="one", report=silent)).exit_code == 0


@pytest.mark.promise(5)
async def test_delete_of_a_running_pod_ends_it(yard: Yard) -> None:
    pod = await yard.executor.start(yard.launch(deaf(yard)), silent)
    follower = asyncio.create_task(yard.executor.follow(pod, owner="one", report=silent))
    await begun(yard, pod.name)
    await yard.executor.delete(pod)
    assert (await follower).exit_code != 0
    assert await names(yard) == {}
    assert (await yard.executor.follow(pod, owner="one", report=silent)).gone


async def test_delete_twice_and_at_once(yard: Yard) -> None:
    pod = await yard.executor.start(yard.launch("sleep 30"), silent)
    await asyncio.gather(*(executor.delete(pod) for executor in (yard.executor, yard.again(), yard.executor)))
    await yard.executor.delete(pod)
    assert await names(yard) == {}


async def test_delete_of_another_uid_leaves_it(yard: Yard) -> None:
    pod = await yard.executor.start(yard.launch("sleep 0.3"), silent)
    await yard.executor.delete(PodRef(name=pod.name, uid="other"))
    assert (await yard.executor.follow(pod, owner="one", report=silent)).exit_code == 0


async def test_a_later_pod_of_the_name_has_another_uid(yard: Yard) -> None:
    asked = yard.launch("true")
    first = await yard.executor.start(asked, silent)
    await yard.executor.follow(first, owner="one", report=silent)
    await yard.executor.delete(first)
    (yard.folder / asked.name / "started").unlink()
    second = await yard.executor.start(asked, silent)
    assert second.uid != first.uid
    await yard.executor.delete(first)
    assert (await yard.executor.follow(second, owner="one", report=silent)).exit_code == 0


async def test_delete_by_name_takes_what_is_there(yard: Yard) -> None:
    pod = await yard.executor.start(yard.launch("sleep 30"), silent)
    await yard.executor.delete(PodRef(name=pod.name, uid=""))
    await yard.executor.delete(PodRef(name="never", uid=""))
    assert await names(yard) == {}


async def test_follow_of_what_never_was_is_gone(yard: Yard) -> None:
    ended = await yard.executor.follow(PodRef(name="never", uid="x"), owner="one", report=silent)
    assert ended.gone
    assert ended.exit_code is None


async def test_list_tells_what_runs(yard: Yard) -> None:
    ended = await yard.executor.start(yard.launch("true"), silent)
    await yard.executor.follow(ended, owner="one", report=silent)
    running = await yard.executor.start(yard.launch("sleep 30"), silent)
    assert await names(yard) == {ended.name: False, running.name: True}
    (seen,) = [seen async for seen in yard.executor.list() if seen.running]
    assert (seen.pod, seen.run_id, seen.task, seen.attempt) == (running, "run", "task", 1)


async def test_twenty_pods_share_four_slots(yard: Yard) -> None:
    waits: list[Progress] = []
    most = 0

    async def one() -> Ended:
        nonlocal most
        pod = await yard.executor.start(yard.launch("sleep 0.5"), waits.append)
        most = max(most, sum((await names(yard)).values()))
        ended = await yard.executor.follow(pod, owner="one", report=silent)
        await yard.executor.delete(pod)
        return ended

    ends = await asyncio.gather(*(one() for _ in range(20)))
    assert [ended.exit_code for ended in ends] == [0] * 20
    assert 1 <= most <= 4
    assert any("4 slots" in progress.message for progress in waits)
    assert await names(yard) == {}


async def test_a_cancelled_follow_harms_nothing(yard: Yard) -> None:
    pod = await yard.executor.start(yard.launch(marked(yard, "sleep 0.3")), silent)
    follower = asyncio.create_task(yard.executor.follow(pod, owner="one", report=silent))
    await begun(yard, pod.name)
    follower.cancel()
    with pytest.raises(asyncio.CancelledError):
        await follower
    assert (await yard.executor.follow(pod, owner="one", report=silent)).exit_code == 0


@pytest.mark.promise(2)
async def test_a_start_cancelled_at_any_turn_runs_at_most_once(yard: Yard) -> None:
    marks = yard.folder / "marks"
    marks.touch()
    turns = 12
    for turn in range(turns):
        asked = yard.launch(f"echo x >>{marks}")
        starter = asyncio.create_task(yard.executor.start(asked, silent))
        for _ in range(turn):
            await asyncio.sleep(0)
        starter.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starter
        pod = await yard.executor.start(asked, silent)
        assert (await yard.executor.follow(pod, owner="one", report=silent)).exit_code == 0
        await yard.executor.delete(pod)
    if yard.kind != "memory":
        assert marks.read_text() == "x\n" * turns


async def test_a_start_cancelled_in_the_line_leaves_nothing(yard: Yard) -> None:
    running = [await yard.executor.start(yard.launch("sleep 30"), silent) for _ in range(4)]
    waits: list[Progress] = []
    starter = asyncio.create_task(yard.executor.start(yard.launch("true"), waits.append))
    await until(lambda: bool(waits))
    starter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starter
    assert len(await names(yard)) == 4
    for pod in running:
        await yard.executor.delete(pod)
    assert (await run(yard, "true")).exit_code == 0


async def test_a_deadline_holds(yard: Yard) -> None:
    ended = await run(yard, "sleep 60", deadline_s=0.3)
    assert ended.reason is Reason.TIMEOUT_RUN
    assert ended.exit_code != 0
    assert "0.3 s" in ended.message


@pytest.mark.promise(2)
async def test_an_attempt_that_was_started_before_is_refused_by_its_agent(yard: Yard) -> None:
    asked = yard.launch("true")
    (yard.folder / asked.name).mkdir()
    (yard.folder / asked.name / "started").touch()
    pod = await yard.executor.start(asked, silent)
    ended = await yard.executor.follow(pod, owner="one", report=silent)
    assert ended.exit_code not in (0, None)
    assert "sealed" not in ended.receipt
