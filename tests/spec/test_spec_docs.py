"""The reference page of the run file shows what is true."""

import re
from pathlib import Path
from typing import Any

from runyard.spec import compile_run, lint, schema
from runyard.spec.run import RunRequest

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "runfile.md").read_text()


def test_its_examples_are_valid() -> None:
    examples = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    assert examples
    for example in examples:
        assert lint(example, name="example") == []
        compile_run(RunRequest(file=example), run_id="r", execution_id="e")


def test_it_names_every_key() -> None:
    definitions: Any = schema()["$defs"]
    keys = {key for each in definitions.values() for key in each.get("properties", {})}
    assert len(keys) > 60
    assert {key for key in keys if not re.search(rf"\b{key}\b", PAGE)} == set()
