"""The tree of commands; each is imported when it is needed."""

import importlib
from difflib import get_close_matches

import click

from runyard.cli.garbage import uncollected

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class LazyGroup(click.Group):
    """A group whose commands are given as `module:attribute`, with their one line of help."""

    def __init__(self, *args: object, lazy: dict[str, tuple[str, str]], **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._lazy:
            return None
        module, _, attribute = self._lazy[cmd_name][0].partition(":")
        with uncollected():
            command: click.Command = getattr(importlib.import_module(f"runyard.cli.{module}"), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        near = get_close_matches(args[0], self._lazy, n=1) if args and args[0] not in self._lazy else []
        if near:
            ctx.fail(f"There is no command {args[0]!r}; did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Help without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, short) for name, (_, short) in self._lazy.items()])


@click.group(
    cls=LazyGroup,
    context_settings=_SETTINGS,
    lazy={
        "exec": ("exec:exec_", "One run on a server of its own, here and now."),
        "dev": ("dev:dev", "A server, a worker and a store for this machine."),
        "run": ("run:run", "Start, find, follow and decide runs."),
        "group": ("group:group", "Who runs, who waits, in which order."),
        "lint": ("lint:lint", "Every mistake of a run file."),
        "schema": ("lint:schema", "The JSON Schema of run files."),
        "cache": ("cache:cache", "List and remove caches."),
        "cleanup": ("cleanup:cleanup", "Remove what no run refers to any more."),
        "worker": ("worker:worker", "Serve runs, executors or both."),
        "doctor": ("doctor:doctor", "Is everything there that runs need?"),
        "completion": ("misc:completion", "What a shell needs to complete commands."),
        "version": ("misc:version", "The versions of all parts."),
    },
)
def root() -> None:
    """Durable container runs on Temporal.

    Temporal's address, namespace, TLS and keys come from its own environment variables (TEMPORAL_ADDRESS, ...)
    and profile file. Exit codes: 0 success, 1 the run failed, 2 usage, 3 invalid run file, 4 not found,
    5 a server or store cannot be reached, 6 cancelled.
    """
