"""Restarts through the client: what is kept, what runs again, and what people see of both."""

import asyncio

from restarts import Scene, file, run_step, status, tasks_of

from runyard.records.runs import read_plan
from runyard.spec.run import RunRequest
from runyard.store.base import ObjectStore

SAVE = {"save_to_workspace": {"contents": [{"paths": ["made-*"]}]}}


async def test_only_what_failed_and_its_descendants_run_again(scene: Scene, store: ObjectStore) -> None:
    make = scene.task(
        "make", run_step("echo one > made-1; echo V=7 >> $RUNYARD_OUTPUT; echo hello from make"), SAVE
    )
    tasks = [
        make,
        scene.task("lint"),
        scene.task("test", fails=True, depends=["make"]),
        scene.task(
            "publish",
            "restore_workspace",
            run_step('cat made-1; test "$V" = 7'),
            depends=["test", "make"],
            environment={"V": {"from_output": "make.V"}},
        ),
    ]
    first = await scene.runs.start(file(*tasks))
    assert (await first.result()).result == "failed"
    assert sorted(scene.ran()) == ["lint", "make", "test"]
    before = {key async for key in _keys(store, "logs/")}
    scene.forget()
    scene.mend()

    second = await scene.runs.restart(first.id)
    result = await second.result()
    assert (result.result, result.counts) == ("success", {"success": 4})
    assert scene.ran() == ["test", "publish"]

    view = await second.describe()
    assert (view.restart_of, view.kept, view.trigger) == (first.id, {first.id: 2}, "restart")
    tasks_now = tasks_of(view)
    assert {name: (task.kept_from, task.again) for name, task in tasks_now.items()} == {
        "make": (first.id, ""),
        "lint": (first.id, ""),
        "test": ("", "it failed"),
        "publish": ("", "it was skipped"),
    }
    ids = {task.name: task.id for task in (await read_plan(store, first.id)).tasks}
    assert (tasks_now["make"].id, tasks_now["lint"].id) == (ids["make"], ids["lint"])
    assert tasks_now["test"].id != ids["test"]
    assert [str(line) async for line in second.logs("make", step=1)] == ["hello from make"]
    assert [str(line) async for line in second.logs("make", step=1, follow=True)] == ["hello from make"]

    after = {key async for key in _keys(store, "logs/")}
    refers = {f"logs/{ids[name]}/runs/{second.id}" for name in ("make", "lint")}
    ours = tuple(f"logs/{tasks_now[name].id}/" for name in ("test", "publish"))
    assert {key for key in after - before if not key.startswith(ours)} == refers, "not a byte was copied"
    archives = [key async for key in _keys(store, f"archives/{ids['make']}/")]
    assert f"archives/{ids['make']}/runs/{second.id}" in archives


async def _keys(store: ObjectStore, prefix: str):  # type: ignore[no-untyped-def]
    async for info in store.list(prefix):
        yield info.key


async def test_a_restart_of_a_restart_names_the_run_that_made_it(scene: Scene) -> None:
    tasks = [
        scene.task("a"),
        scene.task("b", run_step(f"test -e {scene.folder}/b"), depends=["a"]),
        scene.task("c", run_step(f"test -e {scene.folder}/c"), depends=["b"]),
    ]
    first = await scene.runs.start(file(*tasks))
    await first.result()
    (scene.folder / "b").touch()
    second = await scene.runs.restart(first.id)
    await second.result()
    (scene.folder / "c").touch()
    scene.forget()
    third = await scene.runs.restart(second.id, run_id=f"{second.id}-third")
    found = await scene.ended(third)
    assert scene.ran() == ["c"]
    assert [found[name].kept_from for name in "abc"] == [first.id, second.id, ""]
    assert (await third.describe()).kept == {first.id: 1, second.id: 1}


async def test_two_restarts_at_once_share_what_they_keep(scene: Scene, store: ObjectStore) -> None:
    first = await scene.runs.start(file(scene.task("a"), scene.task("b", fails=True, depends=["a"])))
    await first.result()
    scene.forget()
    scene.mend()
    both = await asyncio.gather(scene.runs.restart(first.id), scene.runs.restart(first.id))
    found = [await scene.ended(run) for run in both]
    assert scene.ran() == ["b", "b"]
    assert found[0]["b"].id != found[1]["b"].id
    assert [tasks["a"].kept_from for tasks in found] == [first.id] * 2
    refer = {key async for key in _keys(store, f"logs/{found[0]['a'].id}/runs/")}
    assert refer == {f"logs/{found[0]['a'].id}/runs/{run.id}" for run in (first, *both)}


async def test_a_key_makes_one_restart_and_not_the_run_that_was_started_with_it(scene: Scene) -> None:
    first = await scene.runs.start(file(scene.task("a", fails=True)), idempotency_key="push 1")
    await first.result()
    scene.mend()
    second = await scene.runs.restart(first.id, idempotency_key="push 1")
    await second.result()
    again = await scene.runs.restart(first.id, idempotency_key="push 1")
    assert first.id != second.id == again.id
    assert scene.ran() == ["a", "a"]


async def test_a_kept_log_is_followed_while_the_restart_goes_on(scene: Scene) -> None:
    wait = run_step(f"test ! -e {scene.folder}/good || while test -e {scene.folder}/good; do sleep 0.05; done")
    first = await scene.runs.start(
        file(scene.task("a", run_step("echo words")), scene.task("b", wait, run_step("false"), depends=["a"]))
    )
    await first.result()
    scene.mend()
    second = await scene.runs.restart(first.id)
    await status(second, "b", "running")
    assert [str(line) async for line in second.logs("a", step=1, follow=True)] == ["words"]
    (scene.folder / "good").unlink()
    assert (await second.result()).result == "failed"


async def test_what_is_given_anew_reaches_what_runs_again(scene: Scene) -> None:
    check = run_step('test "$LEVEL-$FIXED" = debug-1')
    asked = {
        "file": file(scene.task("a"), scene.task("b", check, depends=["a"])),
        "environment": {"LEVEL": "info"},
        "static_environment": {"FIXED": "1"},
        "executor": "local",
        "group": "/project/web",
    }
    first = await scene.runs.submit(RunRequest.model_validate(asked))
    assert (await first.result()).result == "failed"
    second = await scene.runs.restart(first.id, environment={"LEVEL": "debug"})
    found = await scene.ended(second)
    assert {name: task.kept_from for name, task in found.items()} == {"a": first.id, "b": ""}
    assert found["b"].status == "success"
    assert (await second.describe()).group == "/project/web"
