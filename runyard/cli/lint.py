"""`lint` and `schema`: what a run file should be, without any server."""

import json
import sys
from pathlib import Path

import click

from runyard.cli import options
from runyard.cli.console import print_json
from runyard.cli.exits import Exit
from runyard.errors import InvalidRunFile, Problem


@click.command()
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True), required=False)
@options.output
def lint(file: Path | None, *, output: str) -> int:
    """Every mistake of FILE (.runyard/config.yml; `-` reads stdin) at once: `file:line:column: message`."""
    name, problems = _lint(file)
    if output == "json":
        print_json({"file": name, "valid": not problems, "problems": [vars(problem) for problem in problems]})
    else:
        for problem in problems:
            click.echo(f"{name}:{problem}")
        if not problems:
            click.echo(f"{name}: valid")
    return Exit.INVALID if problems else Exit.SUCCESS


def _lint(file: Path | None) -> tuple[str, list[Problem]]:
    from runyard.client.files import read_file
    from runyard.spec import lint as problems_of
    from runyard.spec.source import decode

    name = str(file) if file else ""
    try:
        if name == "-":
            name, text = "stdin", decode(sys.stdin.buffer.read(), name="stdin")
            return name, problems_of(text, name=name)
        if file is None:
            from runyard.cli.files import find_file

            file = find_file()
        read, name = read_file(file)
        return name, problems_of(read, name=name)
    except InvalidRunFile as error:
        return error.name, list(error.problems)


@click.command()
def schema() -> None:
    """Print the JSON Schema of run files, for editors and checks."""
    from runyard.spec import schema as make_schema

    click.echo(json.dumps(make_schema(), indent=2, ensure_ascii=False))
