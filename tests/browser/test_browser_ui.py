"""What people see of a run in the Temporal UI, as a browser shows it."""

import asyncio
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from temporalio.testing import WorkflowEnvironment
from yard import Yard

if not (shutil.which("chromium") and shutil.which("chromedriver")):
    pytest.skip("the programs chromium and chromedriver are not there", allow_module_level=True)
webdriver = pytest.importorskip("selenium.webdriver", reason="the package selenium is not there")

from selenium.common.exceptions import StaleElementReferenceException  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

WAIT_S = 60.0
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--window-size=1400,1400",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip


@pytest.fixture
def chrome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["webdriver.Chrome"]:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)  # both ends are on this machine
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield browser
    browser.quit()


def address(server: WorkflowEnvironment, run_id: str) -> str:
    """The test server's UI is on its port plus a thousand."""
    host, _, port = server.client.service_client.config.target_host.rpartition(":")
    return f"http://{host}:{int(port) + 1000}/namespaces/default/workflows/{run_id}"


def until(chrome: "webdriver.Chrome", found: Callable[["webdriver.Chrome"], object]) -> None:
    """The page builds and rebuilds itself, so elements may go while one looks at them."""
    WebDriverWait(chrome, WAIT_S, ignored_exceptions=[StaleElementReferenceException]).until(found)


def open_tab(chrome: "webdriver.Chrome", page: str, tab: str) -> None:
    chrome.get(page)
    link = (By.CSS_SELECTOR, f'a[href*="/{tab}"]')
    until(chrome, lambda browser: browser.find_elements(*link))
    until(chrome, lambda browser: browser.execute_script("arguments[0].click()", browser.find_element(*link)) or 1)


def rows(chrome: "webdriver.Chrome") -> list[list[str]]:
    """The cells of every table in the frames, where the UI puts what it makes of Markdown."""
    found: list[list[str]] = []
    for frame in chrome.find_elements(By.TAG_NAME, "iframe"):
        chrome.switch_to.frame(frame)
        for row in chrome.find_elements(By.TAG_NAME, "tr"):
            cells = row.find_elements(By.CSS_SELECTOR, "th, td")
            found += [[cell.text.strip() for cell in cells]]
        chrome.switch_to.default_content()
    return found


def run_file() -> dict[str, object]:
    def task(name: str, command: str, **more: object) -> dict[str, object]:
        return {
            "name": name, "runtime": {"containers": [{"image": "busybox"}]}, "steps": [{"run": command}], **more
        }  # fmt: skip

    tasks = [
        task("compile", "true"),
        task("lint | style", "exit 3"),
        task("publish", "true", depends=["compile"], approval=True),
    ]
    return {"runs": [{"name": "build", "tasks": tasks}]}


async def test_the_details_of_a_run_are_a_table_and_say_what_to_do(
    yard: Yard, server: WorkflowEnvironment, chrome: "webdriver.Chrome"
) -> None:
    handle = await yard.start(run_file())
    while {task.status for task in (await yard.view(handle)).tasks} != {"success", "failed", "approval"}:
        await asyncio.sleep(0.1)
    await asyncio.to_thread(open_tab, chrome, address(server, handle.id), "user-metadata")
    await asyncio.to_thread(
        until, chrome, lambda browser: ["task", "reason", "attempt", "what to do"] in rows(browser)
    )
    failed = next(row for row in await asyncio.to_thread(rows, chrome) if row[0] == "lint | style")
    assert failed[1].startswith("exit_code")
    assert failed[2] == "1"
    frames = chrome.find_elements(By.TAG_NAME, "iframe")
    texts = []
    for frame in frames:
        chrome.switch_to.frame(frame)
        texts.append(chrome.find_element(By.TAG_NAME, "body").text)
        chrome.switch_to.default_content()
    assert any(f"runyard run approve {handle.id} publish" in " ".join(text.split()) for text in texts)
    await handle.terminate()


async def test_a_failed_run_shows_its_cause_and_no_stack_trace(
    yard: Yard, server: WorkflowEnvironment, chrome: "webdriver.Chrome"
) -> None:
    handle = await yard.start(run_file())
    while (await yard.view(handle)).counts.get("approval") != 1:
        await asyncio.sleep(0.1)
    await handle.execute_update("approve", {"task": "publish", "by": "ann"})
    with pytest.raises(Exception, match="Workflow execution failed"):
        await handle.result()
    await asyncio.to_thread(chrome.get, address(server, handle.id))
    cause = "1 of 3 tasks failed: lint | style"
    await asyncio.to_thread(until, chrome, lambda browser: cause in browser.find_element(By.TAG_NAME, "body").text)
    text = chrome.find_element(By.TAG_NAME, "body").text
    assert "FAILED" in text.upper()
    assert "stackTrace" not in text
