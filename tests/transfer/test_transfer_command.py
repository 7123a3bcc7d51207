"""`runyard run export` and `import` as people type them, on two yards of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

FILE = """
runs:
  - name: build
    tasks:
      - name: t
        runtime: {containers: [{image: none}]}
        steps: [{run: echo hello}]
"""


def run(*words: str, state: Path, code: int = 0, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RUNYARD_", "TEMPORAL_"))}
    environment = clean | {
        "RUNYARD_STATE": str(state),
        "RUNYARD_SETTINGS": str(state / "none.toml"),
        "TEMPORAL_ADDRESS": "127.0.0.1:1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "runyard", *words],
        env=environment,
        cwd=state,
        input=stdin,
        capture_output=True,
        timeout=90,
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    assert done.returncode == code, (done.returncode, done.stdout[:2000], done.stderr[:2000])
    return done


def test_export_without_a_server_and_refusals(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "ci.yml").write_text(FILE)
    run("exec", "ci.yml", state=state)
    listed = json.loads(run("run", "list", "-o", "json", state=state).stdout)["runs"]
    run_id = listed[0]["id"]
    said = run("run", "export", run_id, state=state)
    assert said.stdout == b""
    assert f"exported {run_id}".encode() in said.stderr
    data = (state / f"{run_id}.tar").read_bytes()
    piped = run("run", "export", run_id, "-o", "-", state=state).stdout
    assert len(piped) == len(data)
    events = run("run", "events", run_id, "-o", "json", state=state).stdout.decode().splitlines()
    kinds = [json.loads(line)["kind"] for line in events]
    assert kinds == ["run_started", "task_started", "attempt_ended", "task_succeeded", "run_ended"]
    assert b"task succeeded t" in run("run", "events", state=state).stdout
    run("run", "export", "nowhere", "-o", "x.tar", state=state, code=5)
    assert not (state / "x.tar").exists()
    refused = run("run", "import", "-", "-o", "json", state=state, code=5, stdin=data)
    assert json.loads(refused.stderr)["code"] == "server_unavailable"
    refused = run("run", "import", "none.tar", state=state, code=5)
    assert b"no Temporal server" in refused.stderr
    assert run("run", "events", "--since", "nonsense", state=state, code=2).stderr
