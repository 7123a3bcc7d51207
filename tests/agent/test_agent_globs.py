"""Which files a pattern means, and what a cache key is rendered to."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runyard.agent import Failure, Globs, escape, expand_braces, find_entries, render_key
from runyard.store import paths

FILES = ["a.go", "b.py", ".hidden", "src/a.go", "src/x/b.go", "src/x/y/c.txt", "src/x/[z].md", "e mpty/"]

CASES = {
    "**": [
        *("a.go", "b.py", ".hidden", "src", "src/a.go", "src/x", "src/x/b.go", "src/x/y", "src/x/y/c.txt"),
        *("src/x/[z].md", "e mpty"),
    ],
    "*": ["a.go", "b.py", ".hidden", "src", "e mpty"],
    "*.go": ["a.go"],
    "**/*.go": ["a.go", "src/a.go", "src/x/b.go"],
    "src/**": ["src", "src/a.go", "src/x", "src/x/b.go", "src/x/y", "src/x/y/c.txt", "src/x/[z].md"],
    "src/**/c.txt": ["src/x/y/c.txt"],
    "**/x/**/*.txt": ["src/x/y/c.txt"],
    "src/*/*": ["src/x/b.go", "src/x/y", "src/x/[z].md"],
    "?.py": ["b.py"],
    "[ab].*": ["a.go", "b.py"],
    "[!a].*": ["b.py"],
    "[^a].*": ["b.py"],
    "[a-c].py": ["b.py"],
    "{a,b}.{go,py}": ["a.go", "b.py"],
    "{src/x/{b,q},a}.go": ["src/x/b.go", "a.go"],
    "src/x/\\[z\\].md": ["src/x/[z].md"],
    "./a.go": ["a.go"],
    "/a.go": ["a.go"],
    "src/": ["src"],
    "none": [],
    "{a": [],
    "[": [],
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in FILES:
        path = tmp_path / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.touch()
    return tmp_path


@pytest.mark.parametrize("pattern", CASES)
def test_pattern(tree: Path, pattern: str) -> None:
    found = [name for name, *_ in find_entries(Globs([pattern]), str(tree), ".")]
    assert sorted(found) == sorted(CASES[pattern])


def test_folders_below_which_nothing_can_match_are_not_entered(tree: Path) -> None:
    globs = Globs(["src/*.go", "docs/**"])
    state = globs.enter(globs.start(), "src")
    assert globs.goes_on(state)
    assert not globs.goes_on(globs.enter(state, "x"))
    assert not globs.goes_on(globs.enter(globs.start(), "node_modules"))


def test_links_are_found_and_not_followed(tree: Path) -> None:
    (tree / "loop").symlink_to(".")
    assert [name for name, *_ in find_entries(Globs(["loop/**", "loo?"]), str(tree), ".")] == ["loop"]


@pytest.mark.parametrize("pattern", ["../x", "a/../../b", "{..,a}/b"])
def test_pattern_that_leaves_its_folder(pattern: str) -> None:
    with pytest.raises(Failure, match="leaves"):
        Globs([pattern])


def test_dest_dir_that_leaves_the_archive() -> None:
    with pytest.raises(Failure, match="leaves"):
        find_entries(Globs(["*"]), "/", "a/../..")


def test_too_many_alternatives() -> None:
    with pytest.raises(Failure, match="more than 1000"):
        expand_braces("{a,b}" * 12)


@given(st.text("ab*?[]!-\\/{},.", max_size=12), st.text("ab/.", max_size=8))
def test_any_pattern_is_read_or_refused(pattern: str, path: str) -> None:
    try:
        globs = Globs([pattern])
    except Failure:
        return
    state = globs.start()
    for name in path.split("/"):
        state = globs.enter(state, name)
    globs.matches(state)


def test_key() -> None:
    def call(function: str, argument: str | None) -> str:
        return f"<{function}:{argument}>"

    template = 'go-{{ os }}-{{arch}}-{{- md5sum "a \\"b\\".sum" -}}-{{ env `HOME` }}'
    assert render_key(template, call) == 'go-<os:None>-<arch:None>-<md5sum:a "b".sum>-<env:HOME>'


@pytest.mark.parametrize("key", ["", "x" * 201, "{{ }}", "{{ os", "{{ md5sum a }}", "{{ 1 + 1 }}"])
def test_key_that_cannot_be(key: str) -> None:
    if key == "{{ os":
        assert render_key(key, lambda *_: "") == key
        return
    with pytest.raises(Failure):
        render_key(key, lambda *_: "")


def test_key_of_200_characters() -> None:
    for key in ("k" * 200, "é" * 33 + "ab", "/" * 66 + "ab", "..", "/"):  # escaped, that is 200 at most
        assert render_key(key, lambda *_: "") == key
    for key in ("", "k" * 201, "é" * 33 + "abc", "/" * 67):
        with pytest.raises(Failure, match="1 to 200 characters"):
            render_key(key, lambda *_: "")


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=50))
def test_agent_and_store_escape_alike(words: str) -> None:
    assert escape(words) == paths.escape(words)
    assert re.fullmatch(r"[A-Za-z0-9_.~+=@,%-]+", escape(words))
    assert escape(words) not in (os.curdir, os.pardir)
