"""`lint` and `schema`: what a run file should be, without any server."""

import json
import sys
from pathlib import Path
from typing import TypeAlias

import click
from pydantic import JsonValue

from runyard.cli import options
from runyard.cli.console import print_json
from runyard.cli.exits import Exit
from runyard.errors import InvalidRunFile, Problem

Text: TypeAlias = str | dict[str, JsonValue]


@click.command()
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True), required=False)
@options.executor
@options.output
def lint(file: Path | None, *, executor: str | None, output: str) -> int:
    """Every mistake of FILE (.runyard/config.yml; `-` reads stdin) at once: `file:line:column: message`.

    With --executor also what that executor, with its present settings, refuses in a task.
    """
    name, text, problems = _lint(file)
    if text is not None and executor is not None:
        problems = _refused(text, name, executor)
    if output == "json":
        print_json({"file": name, "valid": not problems, "problems": [vars(problem) for problem in problems]})
    else:
        for problem in problems:
            click.echo(f"{name}:{problem}")
        if not problems:
            click.echo(f"{name}: valid")
    return Exit.INVALID if problems else Exit.SUCCESS


def _lint(file: Path | None) -> tuple[str, Text | None, list[Problem]]:
    """Its name, its text if it is valid, and what is wrong with it."""
    from runyard.client.files import read_file
    from runyard.spec import lint as problems_of
    from runyard.spec.source import decode

    name = str(file) if file else ""
    try:
        if name == "-":
            name, text = "stdin", decode(sys.stdin.buffer.read(), name="stdin")
            return _judged(name, text, problems_of(text, name=name))
        if file is None:
            from runyard.cli.files import find_file

            file = find_file()
        read, name = read_file(file)
        return _judged(name, read, problems_of(read, name=name))
    except InvalidRunFile as error:
        return error.name, None, list(error.problems)


def _judged(name: str, text: Text, problems: list[Problem]) -> tuple[str, Text | None, list[Problem]]:
    return name, None if problems else text, problems


def _refused(text: Text, name: str, executor: str) -> list[Problem]:
    """What the executor refuses in any task of any run: only known of the plan, which has no lines."""
    from runyard.executors.open import open_executor
    from runyard.spec import compile_run, run_names
    from runyard.spec.run import RunRequest

    opened = open_executor(executor, options.load_settings(executor=executor))
    problems = []
    for run in run_names(text, name=name):
        request = RunRequest(file=text, file_name=name, run=run, executor=executor)
        for task in compile_run(request, run_id="lint", execution_id="lint").tasks:
            problems += [Problem(path=f"{run}.{task.name}", message=said) for said in opened.validate(task)]
    return problems


@click.command()
def schema() -> None:
    """Print the JSON Schema of run files, for editors and checks."""
    from runyard.spec import schema as make_schema

    click.echo(json.dumps(make_schema(), indent=2, ensure_ascii=False))
