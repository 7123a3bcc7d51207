"""An agent that is as small as can be: what these tests need of one, and no more.

The tests of local processes kill, stop and starve the two programs at chosen moments; with a small pair
the moment is exact. The real pair is used where the whole is meant.
"""

import json
import os
import time
from collections.abc import MutableMapping
from pathlib import Path


def main(environ: MutableMapping[str, str]) -> int:
    assignment = json.loads(Path(environ["RUNYARD_ASSIGNMENT"]).read_text())
    logs = Path(assignment["logs"]["folder"])
    logs.mkdir(parents=True, exist_ok=True)
    shared = Path(environ["RUNYARD_DIR"])
    if environ.get("AGENT_FAILS"):
        raise RuntimeError("the store is on fire")
    for name in ("req", "res"):
        try:
            os.mkfifo(shared / name)
        except FileExistsError:
            continue
    answers = os.open(shared / "res", os.O_RDWR)
    said = []
    with open(shared / "req") as requests:
        for line in requests:
            if not said and (logs / "started").exists():
                raise FileExistsError("started")
            if line == "begin\n":  # the real one does it at hello; here it says that the step can be signalled
                (logs / "started").touch()
            said.append(line.strip())
            os.write(answers, b"0\n")
    time.sleep(float(environ.get("AGENT_SEALS_S", "0")))
    seal = "complete" if "done" in said else "truncated"
    (logs / "manifest.json").write_text(json.dumps({"seal": seal, "said": said}))
    return 0
