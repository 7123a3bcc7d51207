"""Restarts through the client: what is kept, what runs again, and what people see of both."""

from restarts import Scene, file, run_step, tasks_of

from runyard.records.runs import read_plan
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
