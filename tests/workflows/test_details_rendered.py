"""The current details as the Temporal UI's own renderer shows them."""

import asyncio
import html
import re
import urllib.parse
import urllib.request
from datetime import UTC, datetime, timedelta

import pytest
from temporalio.testing import WorkflowEnvironment

from runyard.reasons import Reason
from runyard.spec.run import RunView, TaskView
from workflows.details import current_details

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
NAMES = [
    "test (3.12)",
    "18/42",
    "$a and $b",
    "a|b || c",
    "`x`",
    "```x",
    "<i>",
    "*b* _c_ ~~d~~",
    "a\\|b",
    "a -- b 😀",
]


async def render(server: WorkflowEnvironment, text: str) -> str:
    """What the UI puts into its frame. Its port is the server's plus a thousand."""
    host, _, port = server.client.service_client.config.target_host.rpartition(":")
    address = f"http://{host}:{int(port) + 1000}/render?{urllib.parse.urlencode({'content': text})}"
    page = await asyncio.to_thread(lambda: urllib.request.urlopen(address, timeout=20).read().decode())
    return page.partition("<main>")[2].partition("</main>")[0]


def text_of(fragment: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", fragment)).strip()


def rows_of(page: str, title: str) -> list[list[str]]:
    after = page.partition(f"<strong>{title}")[2]
    body = after.partition("<tbody>")[2].partition("</tbody>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    return [[text_of(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)] for row in rows]


def items_of(page: str, title: str) -> list[str]:
    after = page.partition(f"<strong>{title}")[2]
    return [text_of(item) for item in re.findall(r"<li>(.*?)</li>", after.partition("</ul>")[0], re.DOTALL)]


@pytest.mark.parametrize("status", ["failed", "running"])
async def test_names_are_shown_as_they_are_in_tables(server: WorkflowEnvironment, status: str) -> None:
    tasks = [
        TaskView.model_validate({"name": name, "status": status, "attempt": 2, "started_at": NOON})
        for name in NAMES
    ]
    page = await render(server, current_details(RunView(id="r", phase="running", created_at=NOON, tasks=tasks)))
    rows = rows_of(page, status.capitalize())
    assert [row[0] for row in rows] == NAMES
    assert {row[1 if status == "running" else 2] for row in rows} == {"2"}
    assert "<sup>" not in page
    assert "math" not in page


async def test_names_are_shown_as_they_are_in_lists(server: WorkflowEnvironment) -> None:
    tasks = [TaskView(name=name, status="approval", approvals_needed=1) for name in NAMES]
    tasks += [
        TaskView(name=name, status="success", ended_at=NOON + timedelta(seconds=i)) for i, name in enumerate(NAMES)
    ]
    page = await render(server, current_details(RunView(id="r", phase="running", created_at=NOON, tasks=tasks)))
    assert (
        items_of(page, "Waits for")[0] == "approval of test (3.12) (0 of 1): runyard run approve r 'test (3.12)'"
    )
    assert [item.split(" (0 of 1)")[0] for item in items_of(page, "Waits for")] == [
        f"approval of {n}" for n in NAMES
    ]
    assert items_of(page, "Finished last") == [f"✔ {name} success" for name in reversed(NAMES)]


async def test_a_whole_page_has_its_parts(server: WorkflowEnvironment) -> None:
    tasks = [
        TaskView(name=f"{reason}", status="failed", reason=reason, attempt=1, message="costs $5 | 1/2 $6")
        for reason in (Reason.EXIT_CODE, Reason.OUTPUT_MISSING)
    ]
    page = await render(
        server,
        current_details(
            RunView(id="r", phase="finished", result="failed", cause="2 of 2 tasks failed: a", tasks=tasks)
        ),
    )
    assert "<strong>2 of 2 done, 2 failed</strong>" in page
    assert "Result: <strong>failed</strong>: <code>2 of 2 tasks failed: a</code>" in page
    assert [row[1] for row in rows_of(page, "Failed")] == [
        "exit_code: costs $5 | 1/2 $6",
        "output_missing: costs $5 | 1/2 $6",
    ]
    assert "math" not in page
    assert "Counts: 2 failed. Times are in UTC." in page
