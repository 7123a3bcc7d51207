"""Jsonnet: evaluated without imports, in a child process with bounds.

The library is optional (`pip install 'runyard[jsonnet]'`). The program may be a function of one parameter
``ctx``, or use ``std.extVar("ctx")``: both are the facts of the commit. What comes out is an object without
lines; its problems are named by path.
"""

import importlib.util
import json
import re

from pydantic import JsonValue

from runyard.spec.bounded import run_bounded
from runyard.spec.tree import MAX_TEXT_BYTES, Grower

_CPU_S = 5
_WALL_S = 60.0
_MEMORY_BYTES = 1 << 30

_PROGRAM = """
import _jsonnet
def refuse(folder, name):
    raise RuntimeError("imports are refused")
ctx = {"ctx": work["ctx"]}
def evaluate(**more):
    return _jsonnet.evaluate_snippet(work["name"], work["text"], ext_codes=ctx, import_callback=refuse, **more)
try:
    try:
        out = evaluate(tla_codes=ctx)
    except RuntimeError as error:
        if "has no parameter ctx" not in str(error):
            raise
        out = evaluate()
except RuntimeError as error:
    sys.exit(str(error))
if len(out.encode()) > work["limit"]:
    sys.exit("RUNTIME ERROR: it evaluates to more than 1 MiB")
sys.stdout.write(out)
"""


def evaluate(text: str, *, ctx: dict[str, JsonValue], grower: Grower) -> object:
    """The object that the program evaluates to. Raises InvalidRunFile."""
    if importlib.util.find_spec("_jsonnet") is None:
        raise grower.give_up(
            "Jsonnet needs a library that is not installed", hint="run `pip install 'runyard[jsonnet]'`"
        )
    work: JsonValue = {"text": text, "name": grower.name, "ctx": json.dumps(ctx), "limit": MAX_TEXT_BYTES}
    done = run_bounded(_PROGRAM, work, cpu_s=_CPU_S, memory_bytes=_MEMORY_BYTES, wall_s=_WALL_S)
    if done.exhausted:
        raise grower.give_up(f"the Jsonnet program needs more than {_CPU_S} s or {_MEMORY_BYTES >> 20} MiB")
    if not done.ok:
        raise grower.give_up(f"Jsonnet: {_first_words(done.error, grower.name)}", *_place(done.error, grower.name))
    result: object = json.loads(done.output)
    return result


def _first_words(error: str, name: str) -> str:
    line = (error.strip().splitlines() or ["it failed without a word"])[0]
    return re.sub(rf"^(RUNTIME|STATIC) ERROR: ({re.escape(name)}:[-0-9:()]+ )?", "", line)


def _place(error: str, name: str) -> tuple[int, int]:
    """Line and column of the first `name:LINE:COLUMN` in the library's message."""
    found = re.search(rf"{re.escape(name)}:\(?([0-9]+):([0-9]+)", error)
    return (int(found[1]), int(found[2])) if found else (0, 0)
