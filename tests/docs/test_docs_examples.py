"""What the pages show is true: run files and requests are valid, links lead somewhere, named tests exist."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from runyard.executors.kubernetes.template import load_template
from runyard.spec import compile_run, lint
from runyard.spec.run import RunRequest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"])


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """(page and number, text) of each block of a language."""
    for page in PAGES:
        found = re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        for number, text in enumerate(found):
            yield f"{page.relative_to(ROOT)} {number}", text


def run_names(text: str) -> list[str]:
    """What a file's runs are called: a page may show a file with several."""
    return re.findall(r"^  - name: (.+)$", text, flags=re.MULTILINE)


FILES = [(name, text) for name, text in blocks("yaml") if re.search(r"^runs:", text, flags=re.MULTILINE)]
FILES.append(("docs/screenshots.yml", (ROOT / "docs" / "screenshots.yml").read_text()))


@pytest.mark.parametrize(("name", "text"), FILES, ids=[name for name, _ in FILES])
def test_run_files_are_valid(name: str, text: str) -> None:
    assert lint(text, name=name) == []
    for run in run_names(text):
        plan = compile_run(RunRequest(file=text, run=run), run_id="r", execution_id="e")
        assert plan.tasks


TEMPLATES = [(name, text) for name, text in blocks("yaml") if re.search(r"^spec:", text, flags=re.MULTILINE)]


@pytest.mark.parametrize(("name", "text"), TEMPLATES, ids=[name for name, _ in TEMPLATES])
def test_pod_templates_are_valid(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "pod.yml"
    path.write_text(text)
    assert load_template(path)["spec"], name


def test_every_yaml_block_was_looked_at() -> None:
    assert len(FILES) >= 10
    looked_at = {name for name, _ in (*FILES, *TEMPLATES)}
    assert [name for name, _ in blocks("yaml") if name not in looked_at] == []


REQUESTS = [(name, text) for name, text in blocks("json") if '"file"' in text]


def test_there_are_requests() -> None:
    assert REQUESTS


@pytest.mark.parametrize(("name", "text"), REQUESTS, ids=[name for name, _ in REQUESTS])
def test_requests_are_valid(name: str, text: str) -> None:
    assert compile_run(RunRequest.model_validate(json.loads(text)), run_id="r", execution_id="e").tasks, name


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


def marked(file: Path) -> dict[str, set[int]]:
    """The promises that each test of a file tries to break."""
    found: dict[str, set[int]] = {}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            marks = [ast.unparse(mark) for mark in node.decorator_list]
            found[node.name] = {int(n) for mark in marks for n in re.findall(r"mark\.promise\((\d)\)", mark)}
    return found


def test_each_promise_names_tests_that_are_marked_with_it() -> None:
    page = ROOT / "docs" / "guarantees.md"
    rows = re.findall(r"^\| (\d) \|.*?\| ([^|]*) \|$", page.read_text(), flags=re.MULTILINE)
    assert [number for number, _ in rows] == [str(n) for n in range(1, 10)]
    for number, cell in rows:
        named = re.findall(r"\[([^\]]+)\]\(([^)]+)\)", cell)
        assert named
        for words, target in named:
            test = "test_" + words.replace(" ", "_")
            assert int(number) in marked(page.parent / target)[test], f"promise {number}: {test}"
