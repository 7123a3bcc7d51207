"""The run file that a command means, and the request that is made of it."""

import contextlib
from pathlib import Path

from runyard.cli import options
from runyard.cli.checkout import Checkout
from runyard.errors import NotFound
from runyard.spec.run import RunRequest

_NAMES = (".runyard/config.yml", ".runyard/config.json", ".runyard/config.jsonnet", ".agola/config.yml")


def find_file(folder: Path | None = None) -> Path:
    """The usual run file, here (or in ``folder``) or above, as git looks for its own. Raises NotFound."""
    here = Path.cwd() if folder is None else folder.absolute()
    for folder in (here, *here.parents):
        for name in _NAMES:
            if (folder / name).is_file():
                return folder / name
        if (folder / ".git").exists():
            break
    raise NotFound(
        f"there is no {_NAMES[0]} " + ("here" if folder is None else f"in {folder}"),
        remedy="Name the run file, or write that one.",
    )


def make_request(
    path: Path,
    *,
    run: str,
    tasks: tuple[str, ...],
    environment: dict[str, str],
    checkout: Checkout,
    executor: str,
    **more: object,
) -> RunRequest:
    """A direct run's request. Raises NotFound, InvalidRunFile (not text), InvalidRequest."""
    from runyard.client.files import read_file

    text, name = read_file(path)
    with contextlib.suppress(ValueError):
        name = str(Path(name).absolute().relative_to(checkout.folder))
    return RunRequest.model_validate(
        {
            "file": text,
            "file_name": name,
            "run": run,
            "tasks": list(tasks),
            "environment": environment,
            "executor": executor,
            "source": checkout.source,
            "owner": options.user(),
            "traceparent": options.traceparent(),
            **more,
        }
    )
