"""A task's steps, compiled to one POSIX sh script: the program `main` of a task (see runyard.dialogue).

The script is all that the task's image gets: no binary of ours, no exec into the container. It needs a
POSIX sh, `mkdir`, and `mkfifo` where nobody made the two FIFOs before; `sleep` for a step with a timeout.
dash, busybox ash and bash run it, as PID 1 of a container or below a supervisor.

Why it is written as it is:

* A step runs in the background and is waited for: a shell runs its traps only after a foreground child has
  ended, and a cancel must not wait for that. A background child of most shells ignores SIGINT, which breaks
  programs that are tested with it; `trap -` (bash) or `env --default-signal` (coreutils) takes that back.
* Main opens a step's FIFO for reading and writing first, then for writing only: neither blocks, also when
  the agent has just died. After that the agent is the only reader, so its death is an EPIPE, not a hang.
* A step's text is written with `printf` and single quotes. A here-document reads better, but bash keeps it in
  a file below /tmp, which a read-only root refuses, and it adds a newline.
* The receipt is appended, word by word: a crash in the middle leaves all the words before.
* A step's process tree is found by parents, in /proc or with `ps`, since not every system has `setsid`. Where it
  is, a step has a session of its own: scripts that end with `kill 0` mean themselves, not the task.
* Its own variables begin with `ry_`: what an image or a task exports stays exported, so that a variable of the
  script that had the name of one of theirs would reach the steps in its place.
"""

import math
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field

from runyard.errors import InvalidRequest
from runyard.spec.plan import Environment, FromSecret, RunStep, SaveCacheStep, Step, TaskPlan
from runyard.spec.plan import RestoreCacheStep as _RestoreCacheStep

_PROLOGUE = """\
#!/bin/sh
# shellcheck disable=SC1003,SC1004,SC1017,SC1112,SC2016 # in the user's own words
# shellcheck disable=SC2030,SC2031,SC2034,SC2317 # a step keeps what it exports; traps and timers call the rest
# The steps of one task, compiled by Runyard. Its other half is the agent; they talk through $ry_dir/req and /res.
ry_dir=$RUNYARD_DIR ry_receipt=${RUNYARD_RECEIPT:-/dev/termination-log} ry_grace=${RUNYARD_GRACE_S:-8}
ry_pod=${RUNYARD_POD:-}
ry_home=${HOME:-/} ry_spare=${RUNYARD_HOME:-}
unset RUNYARD_DIR RUNYARD_RECEIPT RUNYARD_GRACE_S RUNYARD_POD RUNYARD_HOME CDPATH
export RUNYARD_OUTPUT="$ry_dir/output"
ry_step='' ry_child='' ry_timer='' ry_timers=0 ry_busy='' ry_failed='' ry_stage=TERM ry_woken='' ry_agent=''

note() { printf '%s;' "$*" >>"$ry_receipt"; }

lost() { note 'agent lost'; exit 125; }

tell() { { printf '%s\\n' "$*" >&8; } 2>/dev/null; }

ask() { # the agent's number, or the end of everything
  { tell "$@" && read -r ry_answer ry_rest <&9; } || lost
  return "$ry_answer"
}

seal() { # answers to earlier requests may come first
  tell 'done' || lost
  ry_word=''
  while [ "$ry_word" != sealed ]; do read -r ry_answer ry_word ry_rest <&9 || lost; done
  return "$ry_answer"
}

finish() {
  trap '' TERM INT
  seal || { note "store refused $ry_rest"; exit 125; }
  note sealed
  exit "$1"
}

kill_tree() { # SIGNAL: the step's process and all below it
  ry_tree=" $ry_child " ry_grown=1
  while [ -n "$ry_grown" ]; do
    ry_grown=''
    # shellcheck disable=SC2046 # pairs of numbers
    set -- "$1" $(processes)
    ry_signal=$1
    shift
    while [ $# -gt 1 ]; do
      case $ry_tree in
        *" $1 "*) ;;
        *" $2 "*) ry_tree="$ry_tree$1 " ry_grown=1 ;;
      esac
      shift 2
    done
    set -- "$ry_signal"
  done
  for ry_process in $ry_tree; do kill -s "$1" "$ry_process" 2>/dev/null; done
  kill -s "$1" -- "-$ry_child" 2>/dev/null # orphans of its group, where it has one of its own
}

processes() { # PID PARENT ...
  if [ ! -r /proc/self/stat ]; then
    ps -A -o pid= -o ppid=
    return
  fi
  for ry_file in /proc/[0-9]*/stat; do
    ry_line=''
    { read -r ry_line <"$ry_file"; } 2>/dev/null
    ry_parent=${ry_line##*) ? }
    [ -z "$ry_line" ] || printf '%s %s ' "${ry_line%% *}" "${ry_parent%% *}"
  done
}

every() { # SECONDS COMMAND...: again and again in the background, until the timer is ended
  ry_timers=$((ry_timers + 1))
  (
    ry_pause=$1
    shift
    while :; do
      ry_nap='' ry_over=''
      trap 'ry_over=1; [ -z "$ry_nap" ] || kill -s KILL "$ry_nap" 2>/dev/null' TERM
      [ ! -e "$ry_dir/timer.$ry_timers" ] || exit 0
      sleep "$ry_pause" & # killed, not asked: before it is `sleep` it is a shell that may lose a signal
      ry_nap=$!
      [ -n "$ry_over" ] || wait "$ry_nap"
      if [ -n "$ry_over" ]; then kill -s KILL "$ry_nap" 2>/dev/null; exit 0; fi
      trap '' TERM # what it does, it does whole: its first victim's end is main's cue to end it
      "$@"
      ry_pause=$ry_grace
    done
  ) </dev/null 6>&- 8>&- 9<&- &
  ry_timer=$!
}

end_timer() { # the file is for a timer that is too young to hear the signal
  [ -z "$ry_timer" ] || { : >"$ry_dir/timer.$ry_timers"; kill "$ry_timer" 2>/dev/null; }
  ry_timer=''
}

alarm() { : >"$ry_dir/timeout.$1"; kill -s USR1 $$; }

on_alarm() { # the file tells an alarm from a stray signal
  ry_woken=1
  [ -e "$ry_dir/timeout.$ry_step" ] || return 0
  [ -z "$ry_busy" ] || tell stop
  [ -z "$ry_child" ] || kill_tree "$ry_stage"
  ry_stage=KILL
}

on_term() {
  trap '' TERM INT USR1
  note term
  end_timer
  [ -z "$ry_busy" ] || tell stop
  if [ -n "$ry_child" ]; then
    if [ -n "$ry_pod" ] && [ $$ = 1 ]; then kill -TERM -1; else kill_tree TERM; fi
    every "$ry_grace" kill_tree KILL
    wait "$ry_child"
    ended $?
    end_timer
    tell end "$ry_step" "$ry_rc"
  fi
  [ -z "$ry_agent" ] || { seal && note sealed; }
  exit 143
}

ended() {
  ry_rc=$1
  [ ! -e "$ry_dir/timeout.$ry_step" ] || { ry_rc=124; note "timeout $ry_step"; }
  note "$ry_step $ry_rc"
  ry_child=''
}

verdict() { # the first failure decides
  end_timer
  [ "$ry_rc" = 0 ] || ry_failed=${ry_failed:-$ry_rc}
}

limit() { [ "$1" = 0 ] || every "$1" alarm "$ry_step"; }

begin() { # STEP: from here on the agent reads the step's log, which is descriptor 6
  ry_step=$1 ry_stage=TERM
  ask begin "$ry_step" || lost
  exec 7<>"$ry_dir/log.$ry_step"
  exec 6>"$ry_dir/log.$ry_step"
  exec 7>&-
}

follow() { # SECONDS, 0 = no limit: the step that was just started
  ry_child=$!
  exec 6>&-
  limit "$1"
  while
    ry_woken=''
    wait "$ry_child"
    ry_rc=$?
    [ -n "$ry_woken" ]
  do :; done
  ended "$ry_rc"
  verdict
  ask end "$ry_step" "$ry_rc"
}

leave() { # STEP SECONDS: one for the agent
  ry_step=$1 ry_stage=TERM ry_busy=1
  limit "$2"
  tell 'do' "$ry_step" || lost
  while
    ry_woken='' ry_answer=''
    read -r ry_answer ry_rest <&9 || [ -n "$ry_woken" ] || lost
    [ -z "$ry_answer" ]
  do :; done
  ry_busy=''
  ended "$ry_answer"
  verdict
}

become() { # COMMAND...: a step; in a session of its own where there is setsid, so that its `kill 0` is not for us
  if [ -n "$ry_hear" ] && command -v env >/dev/null; then set -- env --default-signal=INT,QUIT "$@"; fi
  if command -v setsid >/dev/null; then set -- setsid "$@"; fi
  exec "$@"
}

no_room() {
  echo "runyard: no room in $ry_dir for the text of this step"
  exit 126
}

enter() {
  [ -d "$1" ] || mkdir -p -- "$1" || exit 126
  cd -- "$1" || exit 126
}

trap : PIPE
trap on_term TERM INT
trap on_alarm USR1
[ -d "$ry_dir" ] || mkdir -m 777 -- "$ry_dir" 2>/dev/null
: >"$ry_dir/output"
for ry_fifo in req res; do [ -p "$ry_dir/$ry_fifo" ] || mkfifo -m 666 "$ry_dir/$ry_fifo" 2>/dev/null; done
(: <"$ry_dir/res") & # waits for the agent where a signal can reach us
wait "$!"
exec 8>"$ry_dir/req" 9<"$ry_dir/res"
ry_agent=1
if [ -n "$ry_spare" ]; then # nobody has made a home for us
  mkdir -p -- "$ry_home" 2>/dev/null
  [ -w "$ry_home" ] || { ry_home=$ry_spare HOME=$ry_spare && mkdir -p -- "$ry_home"; }
fi
"""

_HELLO = """
if [ -n "$ry_pod" ]; then # what `id` says, without a program
  while read -r ry_word _ ry_id _; do
    case $ry_word in Uid: | Gid:) set -- "$@" "$ry_id" ;; esac
  done 2>/dev/null </proc/self/status
  [ $# = 2 ] || set -- "$(id -u)" "$(id -g)"
fi
ask hello "$@"
case $? in
  0) ;;
  3) note 'started before'; exit 125 ;;
  6) note "service failed $ry_rest"; exit 125 ;;
  *) note "store refused $ry_rest"; exit 125 ;;
esac
"""

# A shell that makes background children deaf to SIGINT is not bash; only coreutils can undo that from outside.
_HEARING = """
ry_hear=''
if [ -z "${BASH_VERSION:-}" ] && env --default-signal=INT,QUIT true 2>/dev/null; then ry_hear=1; fi
"""

_EPILOGUE = """
finish "${ry_failed:-0}"
"""

_CONDITION = {
    "on_success": 'if [ -z "$ry_failed" ]; then',
    "on_failure": 'if [ -n "$ry_failed" ]; then',
    "always": "if :; then",
}

_RUN = """
# step {n}: {title}
{condition}
  begin {n}
  (
    trap - INT QUIT
    printf '%s' {text} >"$ry_dir/step.{n}" || no_room
{setup}
    become {command}
  ) </dev/null >&6 2>&1 6>&- 8>&- 9<&- &
  follow {limit}
fi
"""

_DO = """
# step {n}: {title}
{condition}
{values}  leave {n} {limit}
fi
"""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ENV_IN_KEY = re.compile(r"\{\{-?\s*env\s+[\"`]([A-Za-z_][A-Za-z0-9_]*)[\"`]\s*-?\}\}")


def compile_script(task: TaskPlan) -> str:
    """The script of ``task``. Its outputs must be resolved; its secrets come as `step_secrets` says.

    Raises InvalidRequest for what no script can express: a variable's name that no shell knows, NUL bytes,
    a line break in a folder's name.
    """
    secrets = {secret: variable for variable, secret in step_secrets(task).items()}
    parts = [_PROLOGUE, *(_take_secret(variable) for variable in secrets.values())]
    steps = [(n, step) for n, step in enumerate(task.steps) if not step.skip]
    parts += [_work_in(task.working_dir), _HELLO]
    if any(not isinstance(step, RunStep) for _, step in steps):
        parts.append('ask home "$ry_home"\nask cwd "$ry_cwd"\n')
    if any(isinstance(step, RunStep) for _, step in steps):
        parts.append(_HEARING)
    for n, step in steps:
        parts.append(_run(task, n, step, secrets) if isinstance(step, RunStep) else _do(task, n, step))
    script = "".join([*parts, _EPILOGUE])
    if "\0" in script:
        raise InvalidRequest(f"task {task.name!r} has a NUL byte in a step, a variable or a folder's name")
    return script


def step_secrets(task: TaskPlan) -> dict[str, str]:
    """Which variables main must get for the secrets of its steps: variable → name of the secret.

    The script makes them its own at its start, so that a step sees only those that it names itself.
    """
    names = {
        value.from_secret: None
        for step in task.steps
        if isinstance(step, RunStep) and not step.skip
        for value in step.environment.values()
        if isinstance(value, FromSecret)
    }
    return {f"RUNYARD_SECRET_{i}": name for i, name in enumerate(names)}


def _take_secret(variable: str) -> str:
    return f"{variable.lower()}=${{{variable}:-}}\nunset {variable}\n"


def _work_in(folder: str) -> str:
    return (
        f"ry_cwd={_folder(folder or '~/project')}\n"
        '[ -d "$ry_cwd" ] || mkdir -p -- "$ry_cwd" 2>/dev/null\n'
        '{ cd -- "$ry_cwd" && ry_cwd=$PWD; } 2>/dev/null # each step tries again, and its log says what is wrong\n'
    )


def _folder(path: str) -> str:
    """A folder as a word of the script, `~` expanded at run time."""
    if "\n" in path:
        raise InvalidRequest(f"a working directory has no line breaks: {path!r}")
    if path == "~" or path.startswith("~/"):
        rest = path[1:]
        return '"$ry_home"' + (_quote(rest) if rest else "")
    return _quote(path if path.startswith("/") else f"./{path}")


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _run(task: TaskPlan, n: int, step: RunStep, secrets: dict[str, str]) -> str:
    words = (step.shell or task.shell).split()
    if not words:
        raise InvalidRequest(f"step {n} of task {task.name!r} has an empty shell")
    setup = ['enter "$ry_cwd"']
    if step.working_dir:
        setup.append(f"enter {_folder(step.working_dir)}")
    setup += _exports(step.environment, secrets)
    return _RUN.format(
        n=n,
        title=_title(step),
        condition=_CONDITION[step.when],
        text=_quote(step.command),
        setup="\n".join(f"    {line}" for line in setup),
        command=" ".join(map(shlex.quote, words)) + f' "$ry_dir/step.{n}"',
        limit=_seconds(step.timeout_s if step.timeout_s is not None else task.timeouts.step_s),
    )


def _do(task: TaskPlan, n: int, step: Step) -> str:
    values = [
        f'  printf \'%s\' "${{{name}-}}" >"$ry_dir/env.{name}"\n'
        for name in dict.fromkeys(_ENV_IN_KEY.findall(" ".join(_keys(step))))
    ]
    return _DO.format(
        n=n,
        title=_title(step),
        condition=_CONDITION[step.when],
        values="".join(values),
        limit=_seconds(task.timeouts.step_s),
    )


def _keys(step: Step) -> list[str]:
    if isinstance(step, SaveCacheStep):
        return [step.key]
    return step.keys if isinstance(step, _RestoreCacheStep) else []


def _title(step: Step) -> str:
    title = f"{step.type} {step.name}".strip()
    return "".join(c if c.isprintable() else " " for c in title)[:100]


def _exports(environment: Environment, secrets: dict[str, str]) -> Iterator[str]:
    for name, value in environment.items():
        if not _NAME.fullmatch(name):
            raise InvalidRequest(f"a variable's name has letters, digits and `_`, not {name!r}")
        if isinstance(value, FromSecret):
            yield f'export {name}="${secrets[value.from_secret].lower()}"'
        elif isinstance(value, str):
            yield f"export {name}={_quote(value)}"
        else:
            raise InvalidRequest(f"the output {value.from_output!r} for {name} is not resolved yet")


def _seconds(limit: float | None) -> int:
    """Whole seconds, since that is what POSIX `sleep` takes; 0 = no limit."""
    return max(1, math.ceil(limit)) if limit else 0


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What main wrote of itself. ``steps`` = number of a step → exit code, of those that ended.

    ``sealed`` = the agent has confirmed that everything is in the store. ``started_before`` = this attempt
    has been started once already, so nothing was run. ``store_refused`` = the agent could not keep the log;
    ``service_failed`` = a service did not get ready, so nothing was run; ``message`` = the agent's words on both.
    """

    steps: dict[int, int] = field(default_factory=dict)
    timed_out: int | None = None
    term: bool = False
    agent_lost: bool = False
    started_before: bool = False
    store_refused: bool = False
    service_failed: bool = False
    message: str = ""
    sealed: bool = False


_STEP = re.compile(r"([0-9]{1,6}) ([0-9]{1,3})")
_TIMEOUT = re.compile(r"timeout ([0-9]{1,6})")


def parse_receipt(text: str) -> Receipt:
    """The receipt in any text; words that are not whole or not known are passed over."""
    words = text.split(";")[:-1]
    refused = _said(words, "store refused")
    failed = _said(words, "service failed")
    steps = [match for word in words if (match := _STEP.fullmatch(word))]
    timeouts = [match for word in words if (match := _TIMEOUT.fullmatch(word))]
    return Receipt(
        steps={int(match[1]): int(match[2]) for match in steps},
        timed_out=int(timeouts[0][1]) if timeouts else None,
        term="term" in words,
        agent_lost="agent lost" in words,
        started_before="started before" in words,
        store_refused=refused is not None,
        service_failed=failed is not None,
        message=refused or failed or "",
        sealed=words[-1:] == ["sealed"],
    )


def _said(words: list[str], what: str) -> str | None:
    """What follows ``what`` in its word; None where there is no such word."""
    return next((word[len(what) :].strip() for word in words if f"{word} ".startswith(f"{what} ")), None)
