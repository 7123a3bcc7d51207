"""From text to values: places, scalars, and everything that is not a run file."""

import time
from typing import Any

import pytest

from runyard.errors import InvalidRunFile
from runyard.spec import decode, lint, run_names
from runyard.spec.source import read
from runyard.spec.tree import MAX_TEXT_BYTES, Written


def problems(text: str, name: str = "f.yml") -> list[str]:
    try:
        return [str(problem) for problem in read(text, name=name).problems]
    except InvalidRunFile as error:
        return [str(problem) for problem in error.problems]


def bomb(levels: int = 12) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


BAD: list[tuple[str, str, str]] = [
    ("", "f.yml", " the file is empty"),
    ("  \n\n# only a comment\n", "f.yml", " the file is empty"),
    ("---\n", "f.yml", " the file is empty"),
    ("null", "f.json", " the file is empty"),
    ("[1, 2]", "f.yml", "1:1: a run file is a mapping with the key `runs`"),
    ("just words", "f.yml", "1:1: a run file is a mapping"),
    ("runs: []\nname: a\0b", "f.yml", "2:8: the file is not text: it contains the character U+0000"),
    ("\x7fELF\x02\x01", "f.yml", "1:1: the file is not text"),
    ("a: \ud800", "f.yml", "1:4: the file is not text: it contains the character U+D800"),
    ('a: "x\\0y"', "f.yml", "1:4: there is a NUL character in this text"),
    ('{"a": "x\\u0000"}', "f.json", "1:7: there is a NUL character in this text"),
    ('{"a": "\\ud800"}', "f.json", "1:7: there is half a character"),
    ("a: " + "x" * MAX_TEXT_BYTES, "f.yml", " the file is larger than 1 MiB"),
    ("a: " + "é" * (MAX_TEXT_BYTES // 2), "f.yml", " the file is larger than 1 MiB"),
    ("runs:\n\t- name: a", "f.yml", "2:1: a tab is used for indentation; indent with spaces"),
    ("a: |\n\tx", "f.yml", "2:1: a tab is used for indentation"),
    ("a: 1\nb: 2\na: 3", "f.yml", "3:1: the key `a` is written twice (at `a`); it is already at 1:1"),
    ('{"a": 1,\n "a": 2}', "f.json", "2:2: the key `a` is written twice (at `a`); it is already at 1:2"),
    ("a: *nowhere", "f.yml", "1:4: there is no such anchor before this alias (at `*nowhere`)"),
    ("a: &x [*x]", "f.yml", "1:8: an alias contains itself (at `*x`)"),
    ("a: &x {b: *x}", "f.yml", "1:11: an alias contains itself"),
    ("[" * 500_000, "f.yml", "the values are nested too deeply"),
    ("- " * 400_000, "f.yml", "the values are nested too deeply"),
    ("{a: " * 200_000, "f.yml", "the values are nested too deeply"),
    ("[" * 500_000, "f.json", "1:66: the values are nested too deeply"),
    ("a: {{ matrix.x }}", "f.yml", "1:5: a key must be a text; put quotes around a value that begins with `{{`"),
    ("? [a]\n: b", "f.yml", "1:3: a key must be a text"),
    ("a: 1\n--- \nb: 2", "f.yml", "2:1: there is a second document"),
    ("a: !!python/object:os.system x", "f.yml", "1:4: tags have no meaning here"),
    ("a: b: c", "f.yml", "1:5: there is a `:` where no key can be"),
    ("a: 'x", "f.yml", "a quote is opened and never closed"),
    ("a: [b", "f.yml", "a `[` is opened and not closed"),
    ("a: @x", "f.yml", "1:4: a value cannot begin with `@`; put quotes around it"),
    ("a: `x`", "f.yml", "1:4: a value cannot begin with"),
    ('a: "\\q"', "f.yml", "1:5: there is no such escape"),
    ("<<: 3\na: 1", "f.yml", "1:1: `<<` takes a mapping"),
    ('{"a": 1,}', "f.json", "1:9: there is a `,` before the end; remove it"),
    ('{"a": [1 2]}', "f.json", "1:10: a `,` or `]` is expected here"),
    ("{'a': 1}", "f.json", "1:2: a key in double quotes is expected here"),
    ('{"a" 1}', "f.json", "1:6: a `:` is expected here"),
    ('{"a": 01}', "f.json", "1:7: a JSON value is expected here"),
    ('{"a": NaN}', "f.json", "1:7: a JSON value is expected here"),
    ('{"a": "x\ny"}', "f.json", "this text in double quotes is not valid JSON"),
    ('{"a": 1} x', "f.json", "1:10: there is more after the end"),
    ("def main(ctx): return {}", "config.star", " Starlark is not supported; write YAML, JSON or Jsonnet"),
]


@pytest.mark.parametrize(("text", "name", "expected"), BAD, ids=[f"{n}-{t[:12]!r}" for t, n, _ in BAD])
def test_bad_input_has_one_clear_error(text: str, name: str, expected: str) -> None:
    found = problems(text, name)
    assert len(found) == 1
    assert expected in found[0]
    assert "\n" not in found[0]
    assert "python" not in found[0].lower() or "python" in text


def test_a_bomb_is_refused_at_once() -> None:
    began = time.monotonic()
    (found,) = problems(bomb())
    assert "expands to more than 500,000 values" in found
    assert time.monotonic() - began < 5


def test_a_bomb_of_long_texts_is_refused_at_once() -> None:
    text = f"a: &a {'x' * 900_000}\nb: [{', '.join(['*a'] * 100)}]"
    (found,) = problems(text)
    assert "32 MiB of text" in found


def test_an_object_of_a_program_is_bounded_too() -> None:
    deep: Any = "x"
    for _ in range(1_000):
        deep = [deep]
    with pytest.raises(InvalidRunFile, match="nested too deeply"):
        read({"a": deep}, name="f")
    with pytest.raises(InvalidRunFile, match="expands to more"):
        read({"a": ["x" * 1_000] * 40_000}, name="f")
    with pytest.raises(InvalidRunFile, match="type object is not JSON"):
        read({"a": object()}, name="f")  # type: ignore[dict-item]


def test_exactly_one_mebibyte_is_read() -> None:
    text = "a: b\n#"
    assert problems(text + "x" * (MAX_TEXT_BYTES - len(text))) == []


def test_bytes_that_are_no_text() -> None:
    with pytest.raises(InvalidRunFile, match=r"^f:2:3: the file is not text in UTF-8"):
        decode(b"a: b\nc:\xff", name="f")
    assert decode("\ufeffa: é".encode(), name="f") == "a: é"


def test_scalars_are_those_of_yaml_1_2_and_stay_as_written() -> None:
    text = "[3.10, yes, on, off, 0o17, 0x1F, 1_000, 12:30, 2024-01-01, true, .5, 1e3, ~, null, '3', +1, 010, .inf]"
    data = read(f"a: {text}", name="f.yml").root.data
    assert isinstance(data, dict)
    items = data["a"]
    assert [None if item is None else str(item) for item in items] == [
        None if word in ("~", "null") else word.strip("'") for word in text.strip("[]").split(", ")
    ]
    meant = {str(item): item.value for item in items if isinstance(item, Written)}
    assert meant == {
        "3.10": 3.1,
        "0o17": 15,
        "0x1F": 31,
        "true": True,
        ".5": 0.5,
        "1e3": 1000.0,
        "+1": 1,
        "010": 10,
    }


def test_json_reads_what_yaml_cannot() -> None:
    data = read('{\n\t"a": "\\ud83d\\ude00\\/", "b": [1.50, true, null, {}]\n}', name="f.json").root.data
    assert data == {"a": "😀/", "b": ["1.50", "true", None, {}]}


def test_merge_keys_give_what_is_not_written() -> None:
    text = "a: &a {x: 1, y: 2}\nb: &b {z: 3}\nc: {<<: [*a, *b], y: own}"
    data = read(text, name="f.yml").root.data
    assert isinstance(data, dict)
    assert data["c"] == {"y": "own", "x": "1", "z": "3"}


def test_aliases_share_what_they_repeat() -> None:
    data = read("a: &a [x]\nb: *a", name="f.yml").root.data
    assert isinstance(data, dict)
    assert data["a"] is data["b"]


def test_places_of_every_kind() -> None:
    document = read('a:\n  - b: "é😀"\n    "c d": [1, {e: f}]\n', name="f.yml")
    at = {
        path: (problem.line, problem.column, problem.text)
        for path in [("a", 0, "b"), ("a", 0, "c d", 1, "e"), ("a", 0), ("a", 7, "x"), ("a", 0, "c d", 0)]
        for problem in [document.problem(path, "x")]
    }
    assert at == {
        ("a", 0, "b"): (2, 8, "é😀"),
        ("a", 0, "c d", 1, "e"): (3, 20, "f"),
        ("a", 0): (2, 5, ""),
        ("a", 7, "x"): (2, 3, ""),
        ("a", 0, "c d", 0): (3, 13, "1"),
    }
    assert document.problem(("a", 0, "c d"), "x", key=True).column == 5
    assert document.problem(("a", 0, "c d", 0), "x").path == "$.a[0]['c d'][0]"


def test_the_names_of_a_file_that_is_not_valid() -> None:
    assert run_names("runs: [{name: a}, {name: b, tsks: 3}, 7, {nme: c}]", name="f") == ["a", "b"]
    assert run_names("a: b", name="f") == []
    with pytest.raises(InvalidRunFile):
        run_names("a: [", name="f")


def test_a_text_is_shown_on_one_line_and_without_escapes() -> None:
    (problem,) = lint(
        'runs: [{name: r, tasks: [{name: "a\\e[31m\\nb", runtime: {containers: [{image: x}]}}]}]', name="f"
    )
    assert problem.text == "a�[31m b"
    assert problem.message == "a name cannot contain the character U+001B"
