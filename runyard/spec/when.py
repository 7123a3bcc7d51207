"""`when`: whether a run, a task or a step takes part, by the branch, tag or ref of the commit.

The rules are agola's. Without `when` everything takes part. With it nothing does, until a rule includes it:
rules of `branch` count only on a branch, those of `tag` only on a tag, those of `ref` always; of each an
`exclude` outranks an `include`, and a later kind (branch, tag, ref) outranks an earlier one. So an `exclude`
alone lets nothing through.

A pattern in `/…/` or `#…#` is a regular expression that may match anywhere. Python's can take for ever, so
only a shape that cannot is run here; all others of a run are asked in one child process with a bound. Classes
such as `[[:digit:]]`, which Go knows and Python reads as something else, are written out.
Turned down: an own matcher in linear time (a second dialect of regular expressions), and forbidding groups
with a repetition (`/^v(\\d+\\.)+\\d+$/` is what people write).
"""

import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, JsonValue, PlainValidator, WithJsonSchema

from runyard.model import Input
from runyard.spec import values
from runyard.spec.bounded import run_bounded
from runyard.spec.plan import StepWhen
from runyard.spec.run import RunRequest

_CPU_S = 2
_WALL_S = 60.0
_MEMORY_BYTES = 1 << 30
_PATTERN_LENGTH = 500
_SHORT = 256

_PROGRAM = """
import re, warnings
warnings.simplefilter("ignore")
for pattern, subject in work:
    print(json.dumps(re.search(pattern, subject) is not None), flush=True)
"""


_SET = re.compile(r"\[\^?\]?(?:\[:\^?\w+:\]|\\.|[^\]\\])*\]", re.DOTALL)
_CLASS = re.compile(r"\[:(\^?\w+):\]")
_CLASSES = {
    "alnum": "0-9A-Za-z", "alpha": "A-Za-z", "ascii": r"\x00-\x7f", "blank": r"\t ", "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9", "graph": "!-~", "lower": "a-z", "print": " -~", "punct": r"!-/:-@\[-`{-~",
    "space": r"\t-\r ", "upper": "A-Z", "word": "0-9A-Za-z_", "xdigit": "0-9A-Fa-f",
}  # fmt: skip
"""Go's, of ASCII (regexp/syntax)."""


def expression(pattern: str) -> str | None:
    """The regular expression within `/…/` or `#…#`, in Python's words; None for a plain word. Raises re.error."""
    wrapped = len(pattern) >= 2 and pattern[0] == pattern[-1] and pattern[0] in "/#"
    return _SET.sub(lambda found: _CLASS.sub(_written_out, found[0]), pattern[1:-1]) if wrapped else None


def _written_out(found: re.Match[str]) -> str:
    if found[1] not in _CLASSES:
        raise re.error(f"there is no class {found[0]} here: there are {', '.join(_CLASSES)}")
    return _CLASSES[found[1]]


def _compile(regex: str) -> re.Pattern[str]:
    with warnings.catch_warnings():  # `[[` means the same as ever, whatever a later Python may make of it
        warnings.simplefilter("ignore")
        return re.compile(regex)


def _pattern(value: object) -> str:
    words = values.filled(value)
    if len(words) > _PATTERN_LENGTH:
        raise values.wrong(f"a pattern has at most {_PATTERN_LENGTH} characters")
    try:
        if (regex := expression(words)) is not None:
            _compile(regex)
    except (re.error, RecursionError, OverflowError) as error:
        raise values.wrong(f"this regular expression does not compile: {error}") from error
    return words


def _rules(value: object) -> object:
    return value if isinstance(value, dict) else {"include": _patterns(value)}


def _patterns(value: object) -> list[object]:
    return values.words(value, most=100)


_PATTERNS = "Equal to, or /regular expression/ or #regular expression# that matches anywhere"
_PATTERNS_SCHEMA: dict[str, Any] = {
    "anyOf": [values.STRING, values.STRINGS],
    "description": _PATTERNS,
}
Pattern = Annotated[str, PlainValidator(_pattern), values.schema_of(["string"], _PATTERNS)]
Patterns = Annotated[list[Pattern], BeforeValidator(_patterns), WithJsonSchema(_PATTERNS_SCHEMA)]


class Rules(Input):
    include: Patterns = []
    exclude: Patterns = []


RulesOf = Annotated[Rules, BeforeValidator(_rules), values.Or((values.STRING, values.STRINGS))]


class When(Input):
    branch: RulesOf | None = None
    tag: RulesOf | None = None
    ref: RulesOf | None = None

    def expressions(self) -> set[str]:
        """All its regular expressions, without their marks."""
        rules = [each for each in (self.branch, self.tag, self.ref) if each]
        patterns = (pattern for each in rules for pattern in [*each.include, *each.exclude])
        return {regex for pattern in patterns if (regex := expression(pattern)) is not None}


class StepCondition(When):
    """A step's `when`: a status word, or a mapping with it under `status` and with rules."""

    status: Literal["on_success", "on_failure", "always"] = "on_success"

    @property
    def has_rules(self) -> bool:
        return any((self.branch, self.tag, self.ref))


STEP_WORDS: tuple[StepWhen, ...] = ("on_success", "on_failure", "always")


def step_condition(value: object) -> object:
    return {"status": str(value)} if isinstance(value, str) else value


class Commit(NamedTuple):
    """What `when` looks at, and what a Jsonnet program is told."""

    ref_type: str = ""
    ref: str = ""
    branch: str = ""
    tag: str = ""
    pull_request_id: str = ""
    commit_sha: str = ""

    @classmethod
    def of(cls, request: RunRequest) -> "Commit":
        source, notes = request.source, request.annotations
        branch = source.branch or _after("refs/heads/", source.ref)
        tag = source.tag or _after("refs/tags/", source.ref)
        pull_request = notes.get("pull_request_id", "")
        guess = "pull_request" if pull_request else "tag" if tag else "branch" if branch else ""
        return cls(
            ref_type=notes.get("ref_type", "") or guess,
            ref=source.ref or (f"refs/tags/{tag}" if tag else f"refs/heads/{branch}" if branch else ""),
            branch=branch,
            tag=tag,
            pull_request_id=pull_request,
            commit_sha=source.commit,
        )

    def ctx(self) -> dict[str, JsonValue]:
        return dict(self._asdict())


def _after(prefix: str, ref: str) -> str:
    return ref.removeprefix(prefix) if ref.startswith(prefix) else ""


class TooSlow(Exception):
    """A regular expression did not come to an end. Stays within runyard.spec, which knows where it is written."""

    def __init__(self, regex: str) -> None:
        self.regex = regex
        super().__init__(regex)


@dataclass
class Matcher:
    """Judges many `when`s against one commit. ``learn`` first what it will be asked: that is one child at most."""

    commit: Commit
    _known: dict[tuple[str, str], bool] = field(default_factory=dict)

    def learn(self, whens: Sequence[When]) -> None:
        """Raises TooSlow."""
        distinct = {id(when): when for when in whens}.values()
        asked = {
            (regex, subject)
            for when in distinct
            for rules, subject in self._applying(when)
            for pattern in [*rules.include, *rules.exclude]
            if (regex := expression(pattern)) is not None
        }
        self._known |= _search(sorted(asked - self._known.keys()))

    def matches(self, when: When | None) -> bool:
        if when is None:
            return True
        taking_part = False
        for rules, subject in self._applying(when):
            if any(self._match(pattern, subject) for pattern in rules.include):
                taking_part = True
            if any(self._match(pattern, subject) for pattern in rules.exclude):
                taking_part = False
        return taking_part

    def _applying(self, when: When) -> list[tuple[Rules, str]]:
        commit = self.commit
        kinds = [
            (when.branch, commit.branch, commit.ref_type == "branch" and commit.branch != ""),
            (when.tag, commit.tag, commit.ref_type == "tag" and commit.tag != ""),
            (when.ref, commit.ref, True),
        ]
        return [(rules, subject) for rules, subject, applies in kinds if rules is not None and applies]

    def _match(self, pattern: str, subject: str) -> bool:
        regex = expression(pattern)
        return pattern == subject if regex is None else self._known[regex, subject]


def _search(asked: Sequence[tuple[str, str]]) -> dict[tuple[str, str], bool]:
    harmless = [(regex, subject) for regex, subject in asked if _is_harmless(regex, subject)]
    known = {(regex, subject): _compile(regex).search(subject) is not None for regex, subject in harmless}
    doubtful = [pair for pair in asked if pair not in known]
    if doubtful:
        work: JsonValue = [list(pair) for pair in doubtful]
        done = run_bounded(_PROGRAM, work, cpu_s=_CPU_S, memory_bytes=_MEMORY_BYTES, wall_s=_WALL_S)
        answers = [bool(json.loads(line)) for line in done.output.splitlines()]
        if len(answers) < len(doubtful):
            raise TooSlow(doubtful[len(answers)][0])
        known |= dict(zip(doubtful, answers, strict=True))
    return known


def _is_harmless(regex: str, subject: str) -> bool:
    """One repetition at most, of no group, in a short subject: some ten thousand steps at worst."""
    repetitions = len(re.findall(r"[*+{?]", regex))
    return len(subject) <= _SHORT and repetitions <= 1 and not re.search(r"\)[*+{?]|\\[1-9]|\(\?", regex)
