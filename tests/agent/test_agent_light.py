"""What a short task's agent does without: modules of the standard library that take longer than all it does."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from runyard import agent
from runyard.agent import SHORT_BYTES, LogDigest, md5, parse_json, to_json

HEAVY = {"re", "enum", "json", "signal", "socket", "hashlib", "http.client", "ssl", "subprocess", "typing"}


def test_its_start_imports_none_of_the_heavy_modules() -> None:
    where = str(Path(agent.__file__).parent)
    look = f"import sys; sys.path.insert(0, {where!r}); import agent; print(*({HEAVY!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-I", "-S", "-c", look], capture_output=True, check=True, text=True)
    assert found.stdout.split() == []


@pytest.mark.parametrize(
    "value",
    [{}, [], "", "é\n\u2028\x00", 1 << 70, -0.5, 1e300, None, True, {"a": [{"b": [1, "x" * 9]}, {}], "ü": ""}],
)
def test_json_is_what_the_library_makes_and_reads(value: object) -> None:
    text = json.dumps(value)
    assert to_json(value) == text
    assert parse_json(f" \n{text}\t") == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value


@pytest.mark.parametrize("text", ["", " ", "{", "{} x", "[1,]", "nope", '{"a" 1}', "'a'", '"\n"', b"\xff"])
def test_what_is_no_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


def test_what_json_has_not_is_not_written() -> None:
    with pytest.raises(TypeError, match="set"):
        to_json({"a": {1, 2}})


@pytest.mark.parametrize("size", [0, 1, SHORT_BYTES, SHORT_BYTES + 1, 3 * SHORT_BYTES])
def test_a_log_has_its_digest_however_long_it_is(size: int) -> None:
    digest, data = LogDigest(), bytes(range(256)) * (size // 256 + 1)
    for at in range(0, size, 50_000):
        digest.update(data[at : min(at + 50_000, size)])
        assert digest.hexdigest() == hashlib.sha256(data[: min(at + 50_000, size)]).hexdigest()
    assert digest.hexdigest() == hashlib.sha256(data[:size]).hexdigest()
    assert md5(data).hexdigest() == hashlib.md5(data, usedforsecurity=False).hexdigest()
