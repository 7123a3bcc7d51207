"""What users read when a file is wrong, word by word: golden/*.yml and beside each the output of `lint`.

Lines are compared as they are. After a change that is meant, write the new output with
``python tests/spec/test_spec_golden.py`` and read the diff.
"""

from pathlib import Path

import pytest

from runyard.spec import lint

GOLDEN = sorted(Path(__file__).with_name("golden").glob("*.yml"))


def output(file: Path) -> str:
    return "".join(f"{file.name}:{problem}\n" for problem in lint(file.read_text(), name=file.name))


@pytest.mark.parametrize("file", GOLDEN, ids=[file.stem for file in GOLDEN])
def test_output(file: Path) -> None:
    assert output(file) == file.with_suffix(".txt").read_text()


def test_there_are_golden_files() -> None:
    assert len(GOLDEN) >= 3


def main() -> None:
    for file in GOLDEN:
        file.with_suffix(".txt").write_text(output(file))


if __name__ == "__main__":
    main()
