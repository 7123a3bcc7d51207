"""What a new run is called, and what the Temporal UI shows of it before its first task starts. Pure."""

import base64
import hashlib
import re
import secrets
from datetime import UTC, datetime

from temporalio.common import Priority, SearchAttributePair, TypedSearchAttributes

from runyard.spec.plan import Source
from runyard.spec.run import RunRequest
from runyard.temporal import GROUP, OWNER, PROJECT, STAGE, TASKS, TRIGGER

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+!|$~])")
_KEYWORD_BYTES = 255


def slug(name: str) -> str:
    """Lower case letters, digits and dashes, at most 40; `run` when nothing is left."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-") or "run"


def new_run_id(name: str, *, now: datetime | None = None) -> str:
    """E.g. `build-and-test-20261124-031200-x7k2`."""
    moment = (now or datetime.now(UTC)).strftime("%Y%m%d-%H%M%S")
    return f"{slug(name)}-{moment}-{_base32(secrets.token_bytes(5))[:4]}"


def keyed_run_id(name: str, key: str) -> str:
    """The same id for the same key and name, so that a second start finds the first one's run, and no other's."""
    words = f"{name}\0{key}"  # a slug is not the whole name
    return f"{slug(name)}-{_base32(hashlib.sha256(words.encode()).digest())[:16]}"


def summary(name: str, source: Source, *, tasks: int) -> str:
    """One line, Markdown, at most 200 characters."""
    where = source.branch or source.tag or source.commit[:10]
    what = f"**{quote(name[:100])}**" + (f" on {_code(where[:60])}" if where else "")
    return f"{what}: {tasks} {'task' if tasks == 1 else 'tasks'}"


def details(run_id: str, request: RunRequest, *, name: str) -> str:
    """Markdown: where the run comes from and how to read it."""
    source = request.source
    facts = {
        "run": f"`{name}` of `{request.file_name}`",
        "restart of": _code(request.restart.run if request.restart else ""),
        "source": _checkout(source) or _code(source.url),
        "commit": _code(source.commit[:40]),
        "branch": _code(source.branch),
        "tag": _code(source.tag),
        "project": _code(request.project),
        "group": _code(request.group),
        "owner": _code(request.owner),
        "trigger": _code(request.trigger),
        "executor": _code(request.executor),
    }
    gap = "\u00a0\u00a0"  # the UI's tables have no space between columns
    rows = "\n".join(f"| {name}{gap} | {value} |" for name, value in facts.items() if value)
    return f"| | |\n|---|---|\n{rows}\n\nLogs: `runyard run logs {run_id} TASK`"


def search_attributes(request: RunRequest, *, tasks: int) -> TypedSearchAttributes:
    words = {PROJECT: request.project, GROUP: request.group, OWNER: request.owner, TRIGGER: request.trigger}
    pairs: list[SearchAttributePair[str] | SearchAttributePair[int]] = [
        SearchAttributePair(key, cut(word)) for key, word in words.items() if word
    ]
    return TypedSearchAttributes([*pairs, SearchAttributePair(STAGE, "queued"), SearchAttributePair(TASKS, tasks)])


def memo(request: RunRequest, *, name: str, token: str) -> dict[str, str]:
    """``token`` tells a start that was sent twice by a retry from another start with the same id."""
    source = request.source
    facts = {
        "run": name,
        "file": request.file_name,
        "executor": request.executor,
        "branch": source.branch or source.tag,
        "commit": source.commit,
        "restart_of": request.restart.run if request.restart else "",
        "token": token,
    }
    return {key: value[:200] for key, value in facts.items() if value}


def priority(request: RunRequest) -> Priority:
    """Runs of one owner share a queue fairly with those of others."""
    owner = request.owner or request.project
    return Priority(priority_key=request.priority, fairness_key=cut(owner, 64) if owner else None)


def quote(text: str) -> str:
    """Text that stays itself in Markdown, on one line."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def _checkout(source: Source) -> str:
    if source.snapshot is None:
        return ""
    changed = source.snapshot.changed
    files = "1 changed file" if changed == 1 else f"{changed} changed files"
    return f"a checkout, with {files}" if changed else "a checkout"


def _code(text: str) -> str:
    return f"`{' '.join(text.split()).replace('`', '').replace('|', '/')}`" if text.strip() else ""


def cut(word: str, size: int = _KEYWORD_BYTES) -> str:
    """What a search attribute keeps of a word."""
    return word.encode()[:size].decode(errors="ignore")


def _base32(data: bytes) -> str:
    return base64.b32encode(data).decode().lower().rstrip("=")
