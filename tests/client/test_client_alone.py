"""The client in a project that has a `workflows` package of its own, as many that use Temporal have."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

from temporalio.client import Client

PROGRAM = """
import asyncio, json, sys
import workflows
from runyard.client import Runyard

assert workflows.OWN == "the user's"

FILE = '''
runs:
  - name: theirs
    tasks:
      - name: greet
        runtime: {containers: [{image: busybox}]}
        steps: [{run: echo hello}]
'''

async def main():
    async with Runyard.connect() as yard:
        run = await yard.start(FILE, executor="memory")
        lines = [str(line) async for line in run.logs("greet", follow=True)]
        result = await run.result()
    unwanted = {"kubernetes", "minio", "docker", "activities", "workers", "workflows.run", "rich", "click"}
    print(json.dumps({
        "lines": lines,
        "result": result.result,
        "loaded": sorted(unwanted & set(sys.modules)),
    }))

asyncio.run(main())
"""


async def test_start_and_follow_from_a_foreign_project(client: Client, yard: object, tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / "workflows").mkdir(parents=True)
    (project / "workflows" / "__init__.py").write_text('OWN = "the user\'s"\n')
    (project / "main.py").write_text(PROGRAM)
    environment = os.environ | {
        "TEMPORAL_ADDRESS": client.service_client.config.target_host,
        "RUNYARD_STORE_FOLDER": str(tmp_path / "store"),
        "RUNYARD_STATE": str(tmp_path / "state"),
        "RUNYARD_SETTINGS": str(tmp_path / "none.toml"),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "main.py", cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert json.loads(out) == {"lines": ["hello"], "result": "success", "loaded": []}
