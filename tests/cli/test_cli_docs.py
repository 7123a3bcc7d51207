"""What the pages for beginners show is run, not only written."""

import re
from pathlib import Path

import pytest
from shell_process import PATIENCE_S, Shell, free_port, interrupt, wait_for_line

from runyard.cli.root import LazyGroup, root

DOCS = Path(__file__).parents[2] / "docs"


def block(page: str, mark: str) -> str:
    found = re.search(rf"<!-- {re.escape(mark)} -->\n```\w*\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert found, f"{page} has no block {mark}"
    return found[1]


def test_quickstart(shell: Shell) -> None:
    shell.write(".runyard/config.yml", block("quickstart.md", "file: .runyard/config.yml"))
    commands = [line.removeprefix("$ runyard ").split() for line in block("quickstart.md", "runs").splitlines()]
    assert commands == [["lint"], ["exec"]]
    said = [shell.run(*words).stdout for words in commands]
    found = re.search(r"run (hello-\S+)", said[1])
    assert found
    assert shell.run("run", "logs", found[1], "answer").stdout == "hello world\n"


def test_a_program(shell: Shell) -> None:
    shell.write(".runyard/config.yml", block("quickstart.md", "file: .runyard/config.yml"))
    program = shell.write("program.py", block("how-to/from-a-program.md", "program"))
    port = free_port()
    shell.environment["TEMPORAL_ADDRESS"] = f"127.0.0.1:{port}"
    dev = shell.start("dev", "--port", str(port), "--no-ui")
    wait_for_line(dev, "Ready:")
    done = shell.python(str(program))
    assert done.stdout == "hello world\nsuccess {'success': 2}\n", done.stderr
    interrupt(dev)
    assert dev.wait(PATIENCE_S) == 0


def test_approvals_page(shell: Shell) -> None:
    shell.write("release.yml", block("how-to/approvals.md", "file: release.yml"))
    shell.run("lint", "release.yml")


@pytest.mark.parametrize("command", root.list_commands(None))  # type: ignore[arg-type]
def test_the_reference_names_every_command(command: str) -> None:
    assert isinstance(root, LazyGroup)
    assert f"`runyard {command}" in (DOCS / "reference/cli.md").read_text()


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=str)
def test_commands_that_pages_show_exist(page: Path) -> None:
    import click

    for line in re.findall(r"^\$ runyard (.+)$", page.read_text(), re.MULTILINE):
        words = line.split("  ")[0].split()
        command = root.get_command(click.Context(root), words[0])
        assert command is not None, line
        if isinstance(command, click.Group) and not all(word.startswith("-") for word in words[1:]):
            command = command.get_command(click.Context(command), words[1])
            assert command is not None, line
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line
