"""Options that several commands share, and what is made of them."""

import contextlib
import io
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from runyard.errors import InvalidRequest

if TYPE_CHECKING:
    from runyard.client import Runyard
    from runyard.settings import Settings

P = ParamSpec("P")
R = TypeVar("R")
Decorator = Callable[[Callable[P, R]], Callable[P, R]]

output = click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", help="For people or for programs."
)
ascii_only = click.option("--ascii", "ascii_only", is_flag=True, help="Marks that every terminal can show.")
state = click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder of all state (RUNYARD_STATE).",
)
log_format = click.option(
    "--log-format", type=click.Choice(["text", "json"]), help="Of this process's own log (RUNYARD_LOG_FORMAT)."
)
executor = click.option("--executor", help="Where tasks run: local, docker, kubernetes (RUNYARD_EXECUTOR).")


def connection(function: Callable[P, R]) -> Callable[P, R]:
    """Which server, which namespace, which store."""
    for option in (
        state,
        click.option("--namespace", help="Temporal's namespace (TEMPORAL_NAMESPACE)."),
        click.option("--address", help="Temporal's address, host:port (TEMPORAL_ADDRESS)."),
    ):
        function = option(function)
    return function


def load_settings(*, state: Path | None = None, executor: str | None = None) -> "Settings":
    """Settings with what the command line says on top. Raises InvalidRequest with the setting at fault."""
    from pydantic import ValidationError

    from runyard.settings import Settings

    given: dict[str, Any] = {"state": state.absolute() if state else None, "executor": executor}
    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})
        return settings.model_copy(update={"state": settings.state.expanduser().absolute()})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest(
            f"the setting `{name}` is not valid: {first['msg']}",
            remedy=f"Correct RUNYARD_{name.upper()} or the settings file.",
        ) from error
    except ValueError as error:  # the file is not TOML
        raise InvalidRequest(f"the settings file cannot be read: {error}") from error


@contextlib.asynccontextmanager
async def open_yard(
    *, address: str | None, namespace: str | None, state: Path | None, offline: bool = False
) -> AsyncIterator["Runyard"]:
    """The client of a command. With ``offline``, what the store keeps can be read without a server."""
    from runyard.cli.garbage import uncollected

    with uncollected():
        from runyard.cli.noise import quiet
        from runyard.client import Runyard

        quiet()
    settings = load_settings(state=state)
    async with Runyard.connect(settings, address=address, namespace=namespace, offline=offline) as yard:
        yield yard


def user() -> str:
    """Who decides, where nobody says it: the account's name."""
    from runyard.client.account import account

    return account()


def traceparent() -> str:
    """The span in which this command runs, where its caller has one: a run that it starts belongs to that."""
    from runyard.traces import VARIABLE, parse

    given = os.environ.get(VARIABLE, "")
    return given if parse(given) else ""


def parse_environment(pairs: tuple[str, ...], file: Path | None) -> dict[str, str]:
    """`--env` over `--env-file`. Raises InvalidRequest."""
    found: dict[str, str] = {}
    if file is not None:
        from dotenv import dotenv_values

        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise InvalidRequest(f"the file {file} cannot be read: {error}") from error
        values = dotenv_values(stream=io.StringIO(text), interpolate=False)
        found = {name: value for name, value in values.items() if value is not None}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise InvalidRequest(f"--env takes NAME=VALUE, not {pair[:80]!r}")
        found[name] = value
    return found
