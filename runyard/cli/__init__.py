"""The `runyard` command.

Each subcommand lives in a module that is imported when it is called: `runyard lint` must not pay for Temporal.
The command ends with `os._exit` where Temporal's SDK was loaded: its native threads may crash an interpreter
that is being torn down (seen on 3.11), and by then all is flushed and closed.
"""

import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import NoReturn


def main() -> NoReturn:
    """What the shell calls."""
    code = call(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (BrokenPipeError, ValueError):
            os._exit(code)
    if "temporalio" in sys.modules:
        os._exit(code)
    sys.exit(code)


def call(arguments: Sequence[str]) -> int:
    """Carry out a command line and give its exit code; every error is said on stderr."""
    import click

    from runyard.cli.exits import Exit, debugging, say, say_bug, say_usage
    from runyard.cli.root import root
    from runyard.errors import RunyardError

    as_json = wants_json(arguments)
    try:
        code = root.main(args=list(arguments), prog_name="runyard", standalone_mode=False)
        return int(code) if isinstance(code, int) else Exit.SUCCESS
    except RunyardError as error:
        if debugging():
            raise
        return say(error, as_json=as_json)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return Exit.USAGE
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f"Try `{context.command_path} --help`." if context else ""
        return say_usage(error.format_message(), hint=hint, as_json=as_json)
    except (KeyboardInterrupt, click.Abort):
        return Exit.CANCELLED
    except BrokenPipeError:
        _forget_stdout()
        return Exit.SUCCESS
    except Exception as error:
        if debugging():
            raise
        return say_bug(error, as_json=as_json)


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether errors are for a program too: known before the command line is understood."""
    words = list(arguments)
    pairs = pairwise([*words, ""])
    return any(
        word in ("-ojson", "-o=json", "--output=json") or (word in ("-o", "--output") and after == "json")
        for word, after in pairs
    )


def _forget_stdout() -> None:
    """Whoever read our output has gone; what is left in its buffer must not fail at the exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
