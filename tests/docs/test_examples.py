"""Every file of examples/ does what it says, by the command that a user types."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
TASKS = {
    "cache": ["first ✔", "second ✔"],
    "conditions": ["flaky ⚠", "report the failure ✔", "only if all is well ○", "tidy up ✔"],
    "hello": ["hello ✔"],
    "matrix": ["test (3.12, debian) ✔", "test (3.13, debian) ✔", "test (3.13, alpine) ✔", "report ✔"],
    "outputs": ["version ✔", "tag ✔"],
    "workspace": ["build ✔", "test ✔"],
}
ON_A_CLUSTER = {"quota"}  # `make lab-run` runs it


def test_none_is_left_out() -> None:
    assert {path.stem for path in EXAMPLES.iterdir()} == TASKS.keys() | ON_A_CLUSTER


@pytest.mark.parametrize("name", TASKS)
def test_an_example_runs_as_it_says(tmp_path: Path, name: str) -> None:
    words = ["exec", "--no-ui", "--state", str(tmp_path / "state"), str(EXAMPLES / f"{name}.yml")]
    done = subprocess.run([sys.executable, "-m", "runyard", *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    for told in TASKS[name]:
        assert told in done.stdout, done.stdout
    assert f"✔ {name} · {len(TASKS[name])} task" in done.stdout
