"""The two images of the lab: a user's (`task`), and ours (`runyard`, which is worker and agent).

There is no registry and no Dockerfile here: a root file system comes from Debian's packages, our dependencies
from pip, and each is a layer that is kept under the digest of what it was made from. So a change of our code
makes a layer of one megabyte, in seconds. deploy/Dockerfile builds the same for the world outside; the Debian
packages and what is where (`/opt/runyard/lib`, `/opt/runyard/agent.pyc`) are the same in both.

Ours is one image, not a small one for the agent and a large one for the worker: what the agent needs (Python, git,
zstd) is most of it, a node fetches it once, and one image cannot be at two versions.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from image import EPOCH, Image, Layer, remove_tree
from place import Place
from problems import Problem

REPOSITORY = Path(__file__).resolve().parents[2]
SUITE = "bookworm"
OURS = ("runyard", "workflows", "activities", "workers")
PACKAGES = tuple((REPOSITORY / "deploy" / "packages.txt").read_text().split())
CONSTRAINTS = REPOSITORY / "constraints.txt"
NOT_NEEDED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
TASK_USERS = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"
TASK_GROUPS = b"root:x:0:\nnogroup:x:65534:\n"

KEPT = 3

PATHS = "usr/local/lib/python{version}/dist-packages/runyard.pth"
START = """#!/usr/bin/python3
import sys
from runyard.cli import main
sys.exit(main())
"""

COMPILE_AGENT = """
import importlib.util, marshal, sys
code = compile(sys.stdin.buffer.read(), "/opt/runyard/agent.py", "exec", dont_inherit=True)
unchecked = (1).to_bytes(4, "little") + bytes(8)  # PEP 552: the source is not looked for
sys.stdout.buffer.write(importlib.util.MAGIC_NUMBER + unchecked + marshal.dumps(code))
"""


@dataclass(frozen=True, kw_only=True)
class Root:
    name: str
    variant: str  # of mmdebstrap: `extract` runs no package's scripts
    packages: Sequence[str]


TASK_ROOT = Root(
    name="task",
    variant="extract",
    packages=("base-files", "bash", "busybox", "coreutils", "dash", "findutils", "grep", "sed"),
)
RUNYARD_ROOT = Root(name="runyard", variant="minbase", packages=PACKAGES)


@dataclass(frozen=True, kw_only=True)
class Built:
    name: str
    archive: Path

    @property
    def key(self) -> str:
        """Names its content."""
        return self.archive.stem


def build_image(place: Place, name: str) -> Built:
    """The archive of an image, made where it is not there. Raises Problem with the failing program's words."""
    if name not in IMAGES:
        raise Problem(f"no image {name}: there are {', '.join(IMAGES)}")
    with _alone(place):
        built = IMAGES[name](place)
        for kind in ("image-task", "image-runyard", "ours", "lib"):
            _forget_old(place, kind)
    return built


def build_bases(place: Place) -> None:
    """What takes minutes from nothing: root file systems and dependencies."""
    with _alone(place):
        _root(place, TASK_ROOT)
        _dependencies(place, _extracted(_root(place, RUNYARD_ROOT)))


def missing_bases(place: Place) -> list[str]:
    """Why an image would take minutes, a sentence each."""
    paths = {"task": _root_path(place, TASK_ROOT), "runyard": _root_path(place, RUNYARD_ROOT)}
    names = [name for name, path in paths.items() if not path.exists()]
    if "runyard" not in names and not _library(place, paths["runyard"].with_suffix("")).exists():
        names.append("runyard")
    return [
        f"the base of the image {name} is not made yet (`make lab-build`, some minutes, once)" for name in names
    ]


def _forget_old(place: Place, kind: str) -> None:
    """Every change of our code makes an archive of half a gigabyte; several checkouts may share the folder."""
    files = sorted(place.images.glob(f"{kind}-*.tar"), key=lambda file: file.stat().st_mtime)
    for file in files[:-KEPT]:
        file.unlink()


@contextmanager
def _alone(place: Place) -> Iterator[None]:
    """Two at once would share a folder, and make the same twice."""
    place.images.mkdir(parents=True, exist_ok=True)
    with (place.images / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _task(place: Place) -> Built:
    name = "lab.local/task:1"
    root = _root(place, TASK_ROOT)
    users = Layer.of_files({"etc/passwd": TASK_USERS, "etc/group": TASK_GROUPS}, mode=0o644)
    return _archive(place, Image(name=name, layers=(Layer(root), users)))


def _runyard(place: Place) -> Built:
    root = _root(place, RUNYARD_ROOT)
    system = _extracted(root)
    layers = (
        Layer(root),
        _dependencies(place, system),
        _ours(place, system),
        Layer.of_files({PATHS.format(version=_python(system)): b"/opt/runyard/lib\n"}, mode=0o644),
        Layer.of_files({"usr/local/bin/runyard": START.encode()}),
    )
    environ = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1", "HOME": "/tmp"}
    entrypoint = ("/usr/local/bin/runyard",)
    image = Image(
        name="lab.local/runyard:dev", layers=layers, entrypoint=entrypoint, environ=environ, user="65532"
    )
    return _archive(place, image)


IMAGES: dict[str, Callable[[Place], Built]] = {"task": _task, "runyard": _runyard}


def _archive(place: Place, image: Image) -> Built:
    parts = [
        image.name,
        *image.entrypoint,
        *map(str, image.environ.items()),
        *(layer.digest() for layer in image.layers),
    ]
    short = image.name.partition("/")[2].partition(":")[0]
    archive = place.images / f"image-{short}-{_key(*parts)}.tar"
    if archive.exists():
        archive.touch()  # in use
    else:
        image.write(archive)
    return Built(name=image.name, archive=archive)


def _root(place: Place, root: Root) -> Path:
    """A root file system of Debian's packages. Their newest state is asked for again when the list changes."""
    out = _root_path(place, root)
    if out.exists():
        return out
    if not shutil.which("mmdebstrap"):
        raise Problem("not installed: mmdebstrap, which makes the images' root file systems")
    new = out.with_suffix(".new.tar")
    excluded = [f"--dpkgopt=path-exclude={path}" for path in NOT_NEEDED]
    command = ["mmdebstrap", "--quiet", f"--variant={root.variant}", f"--include={','.join(root.packages)}"]
    _run([*command, *excluded, SUITE, str(new)], environ={"SOURCE_DATE_EPOCH": str(EPOCH)})
    new.replace(out)
    return out


def _root_path(place: Place, root: Root) -> Path:
    return place.images / f"root-{root.name}-{_key(SUITE, root.variant, *root.packages)}.tar"


def _extracted(root: Path) -> Path:
    """The same as a folder, to run the image's own Python in."""
    folder = root.with_suffix("")
    if not folder.exists():
        new = root.with_suffix(".new")
        remove_tree(new)
        new.mkdir()
        _run(["tar", "--directory", str(new), "--extract", "--file", str(root)])
        new.rename(folder)
    return folder


def _dependencies(place: Place, system: Path) -> Layer:
    out = _library(place, system)
    if out.exists():
        out.touch()
        return Layer(out)
    stage = _stage(system)
    target = ["--python-version", _python(system), "--implementation", "cp", "--only-binary=:all:"]
    for glibc in ("2_34", "2_28", "2_17"):
        target += ["--platform", f"manylinux_{glibc}_{os.uname().machine}"]
    _pip(stage, [*target, "--constraint", str(CONSTRAINTS), *_requirements()])
    remove_tree(stage / "bin")
    _compile(system, stage)
    return Layer.of_folder(stage, "opt/runyard/lib", out)


def _library(place: Place, system: Path) -> Path:
    return place.images / f"lib-{_key(CONSTRAINTS.read_text(), *_requirements(), _python(system), EPOCH)}.tar"


def _python(system: Path) -> str:
    return (system / "usr/bin/python3").readlink().name.removeprefix("python")


def _requirements() -> list[str]:
    """The same as the Dockerfile's."""
    program = REPOSITORY / "deploy" / "requirements.py"
    return _run([sys.executable, str(program), str(REPOSITORY / "pyproject.toml")]).decode().splitlines()


def _ours(place: Place, system: Path) -> Layer:
    files = [REPOSITORY / "pyproject.toml"]
    for package in OURS:
        files += sorted(file for file in (REPOSITORY / package).rglob("*") if _is_source(file))
    content = [part for file in files for part in (str(file.relative_to(REPOSITORY)), file.read_bytes())]
    out = place.images / f"ours-{_key(system.name, EPOCH, *content)}.tar"
    if out.exists():
        out.touch()
        return Layer(out)
    stage = _stage(system)
    lib = stage / "lib"
    _pip(lib, ["--no-deps", str(REPOSITORY)])
    remove_tree(lib / "bin")
    _compile(system, lib)
    agent = (REPOSITORY / "runyard" / "agent.py").read_bytes()
    compiled = _run(["chroot", str(system), "python3", "-I", "-c", COMPILE_AGENT], stdin=agent)
    (stage / "agent.pyc").write_bytes(compiled)
    return Layer.of_folder(stage, "opt/runyard", out)


def _is_source(file: Path) -> bool:
    return file.is_file() and file.suffix != ".pyc"


def _stage(system: Path) -> Path:
    """An empty folder that the image's Python sees too."""
    stage = system / "tmp" / "stage"
    remove_tree(stage)
    stage.mkdir()
    return stage


def _pip(target: Path, arguments: Sequence[str]) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check"]
    _run([*command, "--target", str(target), *arguments])


def _compile(system: Path, lib: Path) -> None:
    """By hash, not by time, so that the same source gives the same layer; a read-only pod could not do it."""
    inside = f"/{lib.relative_to(system)}"
    command = ["python3", "-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash"]
    _run(["chroot", str(system), *command, "-s", inside, "-p", "/opt/runyard/lib", inside])


def _run(command: Sequence[str], *, environ: dict[str, str] | None = None, stdin: bytes = b"") -> bytes:
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, env=os.environ | (environ or {}))
    except FileNotFoundError as error:
        raise Problem(f"not installed: {command[0]}") from error
    if done.returncode:
        raise Problem(f"{command[0]} failed: {done.stderr.decode(errors='replace').strip()[-2000:]}")
    return done.stdout


def _key(*parts: str | bytes | int) -> str:
    total = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()[:20]
