"""Takes the pictures of the Temporal UI that the documentation shows: ``python docs/screenshots.py [FOLDER]``.

It starts a server, a worker with local processes and the runs of `screenshots.yml`, waits until each is in the
state that its picture needs, and has a headless Chromium look at them. Pictures made by hand would show an
older Runyard within a week. It needs chromium and chromedriver on the PATH, and the package selenium.
"""

import asyncio
import contextlib
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.support import expected_conditions as expected
from selenium.webdriver.support.wait import WebDriverWait

from runyard.client import Run, Runyard
from runyard.settings import Settings
from runyard.spec.plan import Source
from runyard.spec.run import RunRequest, TaskView
from workers.embedded import embedded_server
from workers.serve import serve

HERE = Path(__file__).parent
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
WIDTH, SCALE = 1440, 0.85
WAIT_S = 60.0
MAX_BYTES = 200_000


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One picture: a run's ``tab`` (or the list of runs) when ``text`` stands there, ``height`` pixels of it.

    ``frame``: the text is Markdown, which the UI shows in frames of their own.
    """

    name: str
    text: str
    height: int
    run: str = ""
    tab: str = ""
    frame: bool = False


async def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="runyard-shots-") as place, browser(Path(place)) as chrome:
        async with yard(Path(place)) as here:
            runs = await start_all(here)
            for shot in shots(runs):
                size = await asyncio.to_thread(take, chrome, here.ui_of(shot.run), shot, folder)
                print(f"{shot.name}.png: {size:,} bytes")
            await runs["release"].cancel()
            await runs["release"].result()


# the runs


@contextlib.asynccontextmanager
async def yard(place: Path) -> AsyncIterator[Runyard]:
    """A server with its UI and a worker, on any free ports."""
    settings = Settings(state=place / "state", executor="local", local_slots=8)
    settings.state.mkdir()
    async with embedded_server(settings.state, ephemeral=True) as server:
        ready = asyncio.Event()
        working = asyncio.create_task(serve(server.client, settings, ready=ready))
        await ready.wait()
        try:
            async with Runyard.over(server.client, settings, ui=server.ui_url) as here:
                yield here
        finally:
            working.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await working


async def start_all(here: Runyard) -> dict[str, Run]:
    """Each run by its name, in the state that it shall be seen in."""
    stopped = await start(here, "import-data", trigger="schedule")
    await until(stopped, lambda tasks: tasks["fetch"].status == "running")
    await stopped.cancel()
    runs = {"import-data": stopped}
    for name, trigger in (("docs", "push"), ("nightly", "schedule")):
        runs[name] = await start(here, name, trigger=trigger)
    for run in runs.values():
        await run.result()
    release = runs["release"] = await start(here, "release", trigger="tag")
    await until(release, lambda tasks: tasks["publish"].status == "approval")
    await release.approve("publish", by="ann")
    await until(release, lambda tasks: tasks["integration"].status == "retrying")
    await until(release, lambda tasks: tasks["load test"].status == "running")
    await asyncio.sleep(3)  # the first heartbeat comes after a second, and is shown with the next
    return runs


async def start(here: Runyard, name: str, *, trigger: str) -> Run:
    commit = "8f3c1d0b5a7e4b21c9d6f0a1b2c3d4e5f6a7b8c9"
    tag = "v1.4.0" if trigger == "tag" else ""
    source = Source(
        url="https://git.example.com/shop/web.git", commit=commit, branch="" if tag else "main", tag=tag
    )
    text = (HERE / "screenshots.yml").read_text()
    return await here.submit(
        RunRequest(
            file=text,
            file_name=".runyard/config.yml",
            run=name,
            project="shop/web",
            group=f"/shop/web/{f'tag/{tag}' if tag else 'branch/main'}",
            owner="team-web",
            trigger=trigger,
            source=source,
        )
    )


async def until(run: Run, told: Callable[[dict[str, TaskView]], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        async for view in run.watch(0.2):
            tasks = {task.name: task for task in view.tasks}
            if tasks and told(tasks):
                return


# the pictures


def shots(runs: dict[str, Run]) -> Iterator[Shot]:
    release, nightly = runs["release"].id, runs["nightly"].id
    yield Shot(name="runs", text="nightly", height=560)
    yield Shot(name="timeline", run=release, text="publish", height=1250)
    yield Shot(
        name="details", run=release, tab="user-metadata", text="waiting for approval", height=1060, frame=True
    )
    yield Shot(name="pending", run=release, tab="pending-activities", text='"state"', height=900)
    yield Shot(name="failed", run=nightly, text="race detector", height=1180)
    yield Shot(name="failed-details", run=nightly, tab="user-metadata", text="Result", height=860, frame=True)


@contextlib.contextmanager
def browser(place: Path) -> Iterator[Chrome]:
    """Raises RuntimeError where there is no Chromium."""
    options = ChromeOptions()
    options.binary_location = _program("chromium")
    for flag in (*FLAGS, f"--user-data-dir={place / 'profile'}"):
        options.add_argument(flag)
    chrome = Chrome(options=options, service=ChromeService(_program("chromedriver")))
    try:
        yield chrome
    finally:
        chrome.quit()


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise RuntimeError(f"the program {name} is not there")
    return found


def take(chrome: Chrome, address: str, shot: Shot, folder: Path) -> int:
    """Take one picture; its size in bytes. Raises selenium's TimeoutException, ValueError for a large one."""
    metrics = {"width": WIDTH, "height": shot.height, "deviceScaleFactor": SCALE, "mobile": False}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    open_page(chrome, address, tab=shot.tab)
    wait = WebDriverWait(chrome, WAIT_S, ignored_exceptions=[StaleElementReferenceException])
    wait.until(lambda page: any(shot.text in text for text in (frames if shot.frame else bodies)(page)))
    chrome.execute_script("document.fonts.ready.then(() => window.ready = true)")
    wait.until(lambda page: page.execute_script("return window.ready"))
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{shot.name}.png"
    chrome.save_screenshot(str(file))
    size = file.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{file} has {size:,} bytes; {MAX_BYTES:,} are the limit")
    return size


def open_page(chrome: Chrome, address: str, *, tab: str = "") -> None:
    """The list of runs, or a run's timeline, or another of its tabs."""
    chrome.get(address)
    if tab:
        link = (By.CSS_SELECTOR, f'a[href*="/{tab}"]')
        WebDriverWait(chrome, WAIT_S).until(expected.element_to_be_clickable(link)).click()


def bodies(chrome: Chrome) -> list[str]:
    """The page's own text."""
    return [chrome.find_element(By.TAG_NAME, "body").text]


def frames(chrome: Chrome) -> list[str]:
    """The text of each frame: the UI renders Markdown there."""
    texts = []
    for frame in chrome.find_elements(By.TAG_NAME, "iframe"):
        chrome.switch_to.frame(frame)
        texts += bodies(chrome)
        chrome.switch_to.default_content()
    return texts


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if sys.argv[1:] else HERE / "images"))
