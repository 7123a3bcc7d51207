"""How many restores of caches hit: in the details, in `describe`, and in what is kept of the run."""

from pathlib import Path

from yard import Yard

from activities.verdict import judge
from runyard.dialogue import CacheRecord, Manifest
from runyard.executors.base import Ended
from runyard.records.runs import read_result
from runyard.spec.plan import RestoreCacheStep, RunStep, SaveCacheStep
from runyard.spec.run import CacheUse, RunView
from workflows.details import current_details

SAVE = {"save_cache": {"key": "deps", "contents": [{"paths": ["deps"]}]}}


def restore(key: str) -> dict[str, object]:
    return {"restore_cache": {"keys": [key]}}


async def test_over_all_tasks_and_attempts_of_a_run(local_yard: Yard, tmp_path: Path) -> None:
    runtime = {"containers": [{"image": "none"}]}
    fails_once = {"run": f"mkdir {tmp_path}/once || exit 0; exit 3"}
    tasks = [
        {"name": "make", "runtime": runtime, "steps": [restore("deps"), {"run": "echo x > deps"}, SAVE]},
        {
            "name": "use",
            "runtime": runtime,
            "steps": [restore("deps"), fails_once],
            "depends": ["make"],
            "retry": {"limit": 1, "backoff": "10ms"},
        },
        {"name": "other", "runtime": runtime, "steps": [{"run": "true"}]},
    ]
    handle = await local_yard.start({"runs": [{"name": "r", "tasks": tasks}]}, project="cache-use")
    assert (await handle.result()).result == "success"
    view = await read_result(local_yard.store, handle.id)
    assert view.caches == CacheUse(restores=3, hits=2)
    assert "Caches: 2 of 3 restores hit" in current_details(view)


def test_only_restores_count() -> None:
    steps = [
        RestoreCacheStep(keys=["a"]),
        SaveCacheStep(key="a"),
        RestoreCacheStep(keys=["b"]),
        RunStep(command="x"),
    ]
    outcomes = (("hit", 0), ("failed", 1), ("failed", 2))
    records = [CacheRecord(step=n, key="k", outcome=outcome) for outcome, n in outcomes]  # type: ignore[arg-type]
    manifest = Manifest(seal="complete", caches=records)
    ended = Ended(exit_code=0, receipt="0 0;sealed;")
    assert judge(ended, manifest, steps=list(steps), began=True, stopped=False).caches == CacheUse(
        restores=2, hits=1
    )
    without = judge(ended, Manifest(seal="complete"), steps=list(steps), began=True, stopped=False)
    assert "caches" not in without.model_dump(exclude_unset=True), "nothing is sent where there is nothing"


def test_without_caches_there_is_no_line() -> None:
    assert "Caches" not in current_details(RunView(id="r", phase="running", counts={"running": 1}))
