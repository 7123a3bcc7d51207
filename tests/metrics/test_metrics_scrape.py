"""A run, and a scrape of the worker that served it, through HTTP: the page of the docs and the code agree."""

import asyncio
import re
import socket
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from temporalio.client import Client
from temporalio.runtime import PrometheusConfig, Runtime, TelemetryConfig
from yard import SANDBOX, Yard

from runyard.errors import ConfigError
from runyard.executors.memory import MemoryExecutor
from runyard.store.base import ObjectStore
from workers.metrics import PrometheusMetrics
from workers.pages import choose_loopback, parse_address, serve_pages
from workers.serve import build_workers

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "metrics.md"
ROW = re.compile(r"^\| `(runyard_\w+)` \| (\w+) \| ([^|]*) \|", re.MULTILINE)
FILE = {
    "runs": [
        {
            "name": "r",
            "tasks": [
                {"name": "a", "runtime": {"containers": [{"image": "busybox"}]}, "steps": [{"run": "print hello"}]}
            ],
        }
    ]
}


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_the_page_names_what_there_is() -> None:
    described = {
        name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in ROW.findall(PAGE.read_text())
    }
    made = {}
    for collector in set(PrometheusMetrics().registry._collector_to_names):
        name = collector._name + ("_total" if collector._type == "counter" else "")
        made[name] = (collector._type, set(collector._labelnames))
    assert made == described


async def test_a_run_is_counted(client: Client, store: ObjectStore) -> None:
    core, metrics, executor = choose_loopback(), PrometheusMetrics(), MemoryExecutor()
    runtime = Runtime(telemetry=TelemetryConfig(metrics=PrometheusConfig(bind_address=core)))
    own = await Client.connect(
        client.service_client.config.target_host, data_converter=client.data_converter, runtime=runtime
    )
    ready = asyncio.Event()
    async with serve_pages("127.0.0.1:0", metrics, core=core, ready=ready.is_set) as address:
        assert (await asyncio.to_thread(get, f"http://{address}/readyz"))[0] == 503
        workers = build_workers(own, store, [executor], metrics=metrics, runner=SANDBOX)
        for worker in workers:
            await worker.__aenter__()
        ready.set()
        handle = await Yard(own, store, executor).start(FILE)
        await handle.result()
        for worker in workers:
            await worker.__aexit__(None, None, None)
        assert (await asyncio.to_thread(get, f"http://{address}/readyz"))[0] == 200
        assert (await asyncio.to_thread(get, f"http://{address}/healthz"))[0] == 200
        assert (await asyncio.to_thread(get, f"http://{address}/nothing"))[0] == 404
        _, text = await asyncio.to_thread(get, f"http://{address}/metrics")
    await executor.close()
    samples = {
        (each.name, tuple(sorted(each.labels.items()))): each.value
        for family in text_string_to_metric_families(text)
        for each in family.samples
    }

    def ended(phase: str, result: str = "") -> float:
        labels = (("executor", "memory"), ("phase", phase), ("result", result))
        return samples["runyard_task_phase_seconds_count", labels]

    assert samples["runyard_runs_total", (("result", "success"),)] == 1
    assert [ended(phase) for phase in ("queue", "start", "run", "drain", "delete")] == [1] * 5
    assert ended("archive", "success") == 1
    assert samples["runyard_pods_live", (("executor", "memory"),)] == 0
    assert samples["runyard_log_bytes_total", (("executor", "memory"),)] == len("hello\n")
    assert any(name.startswith("temporal_") for name, _ in samples), "Temporal's own are on the same page"
    assert handle.id not in text


@pytest.mark.parametrize("address", ["9464", "host:", "host:70000", "a b:1", "::1:9464"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ConfigError, match="metrics_address"):
        parse_address(address)


class Growing(PrometheusMetrics):
    """A page is longer than the one before: the first fits into the system's buffer, the last is far too long.

    In between is one of which the system leaves a little to the loop, for which by default nobody waits.
    """

    step_bytes = 24 << 10  # that is at most 64 KiB

    def __init__(self) -> None:
        super().__init__()
        self.pages = 0

    def render(self) -> bytes:
        self.pages += 1
        return b"x" * (self.step_bytes * self.pages)


async def test_who_stops_reading_a_page_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """From Python 3.12 on a server's end waits for its connections, and one with unsent bytes never closes."""
    monkeypatch.setattr("workers.pages._ANSWER_S", 0.1)
    metrics, scrapers, loop = Growing(), 16, asyncio.get_running_loop()
    with ExitStack() as stack:
        async with (
            asyncio.timeout(20),
            serve_pages("127.0.0.1:0", metrics, core=choose_loopback(), ready=lambda: True) as address,
        ):
            for _ in range(scrapers):
                scraper = stack.enter_context(socket.socket())
                with suppress(OSError):  # as of Ethernet: with those of loopback the system takes megabytes
                    scraper.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1460)
                scraper.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                scraper.setblocking(False)
                await loop.sock_connect(scraper, ("127.0.0.1", int(address.rpartition(":")[2])))
                await loop.sock_sendall(scraper, b"GET /metrics HTTP/1.1\r\n\r\n")
            while metrics.pages < scrapers:
                await asyncio.sleep(0.01)
