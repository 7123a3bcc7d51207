"""Writes the pages of the reference that are made from code: ``python docs/generate.py [--check]``.

With ``--check`` nothing is written; the exit code is 1 if a page is not what it should be.
"""

import sys
from pathlib import Path

from runyard.errors import RunyardError, tree
from runyard.reasons import Reason

REFERENCE = Path(__file__).parent / "reference"
NOTE = "<!-- Made by `make docs` from {source}; do not edit. -->"


def errors_page() -> str:
    """Every error: its code, what happened and what to do."""
    lines = [
        "# Errors",
        NOTE.format(source="runyard/errors.py"),
        "",
        (
            "Every error has a code that stays the same: it is what `-o json`, the HTTP answers and Temporal's"
            " failure types carry, and what programs may compare. The indentation says what is a kind of what."
        ),
        "",
        *(
            f"{'  ' * (len(lineage(error)) - 1)}- [`{error.code}`](#{error.code}) {error.summary()}"
            for error in tree()
        ),
    ]
    for error in tree():
        lines += ["", f"## {error.code}", "", error.summary(), "", f"**What to do:** {error.advice()}", ""]
        again = "It is tried again by itself." if error.retryable else "It is not tried again by itself."
        lines += [f"{again} In Python: `runyard.errors.{error.__name__}`."]
    return "\n".join(lines) + "\n"


def lineage(error: type[RunyardError]) -> list[type]:
    return [each for each in error.__mro__ if issubclass(each, RunyardError)]


def reasons_page() -> str:
    """Every reason of a task's end."""
    lines = [
        "# Reasons",
        NOTE.format(source="runyard/reasons.py"),
        "",
        (
            "Why a task ended as it did. These words may stand in `retry: {on: [...]}`, and are what `run show`,"
            " the Temporal UI and `-o json` name. Those marked *infrastructure* say nothing about the task's own"
            " program: `retry: {infra: N}` is about them."
        ),
        "",
        "| reason | what happened | what to do | |",
        "|---|---|---|---|",
    ]
    for reason in Reason:
        mark = "infrastructure" if reason.infra else ""
        lines.append(f"| `{reason}` | {cell(reason.sentence)} | {cell(reason.remedy)} | {mark} |")
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> int:
    pages = {REFERENCE / "errors.md": errors_page(), REFERENCE / "reasons.md": reasons_page()}
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text("utf-8") != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(
                f"{path.relative_to(REFERENCE.parent.parent)} is not up to date: run `make docs`", file=sys.stderr
            )
        return 1 if stale else 0
    REFERENCE.mkdir(exist_ok=True)
    for path in stale:
        path.write_text(pages[path], "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
