"""Who waits for room may wait longer than the keys to the store are good: a new pod gets new ones."""

import asyncio
import base64
import json
from pathlib import Path

import pytest
from small_cluster import SmallApi
from yards import silent

from runyard.dialogue import Assignment


@pytest.mark.parametrize("old_s", [0.0, 60.0], ids=["a long wait", "a short one"])
async def test_keys_are_made_anew_after_a_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old_s: float
) -> None:
    monkeypatch.setattr("runyard.executors.kubernetes.executor._OLD_S", old_s)
    api = SmallApi()
    async with api.serving(tmp_path) as cluster:
        executor = cluster.executor(tmp_path, pods=1)
        first = await executor.start(cluster.launch(tmp_path), silent)
        asked = cluster.launch(tmp_path)

        async def renew() -> Assignment:
            return asked.assignment.model_copy(update={"mask": ["RENEWED"]})

        waiting = asyncio.create_task(executor.start(asked.model_copy(update={"renew": renew}), silent))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        await executor.delete(first)
        second = await waiting
        secret = api.objects["secrets"][second.name]["data"]["assignment"]
        assert (json.loads(base64.b64decode(secret))["mask"] == ["RENEWED"]) == (old_s == 0)
        await executor.close()
