"""The programs of the lab, built from `src/` with Go where they are not there yet.

Each folder of `src/` is a Go module of ours that pins unmodified upstream code; nothing is downloaded ready-made,
since not every network that builds this reaches where such binaries are. From nothing, on two cores, kubelab
takes about 7 minutes, minio 2, helm 3; a change of `src/` builds again. A program that somebody put into the
folder by hand (a CI cache, a faster machine) is taken as it is.
"""

import hashlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from place import Place
from problems import Problem

SOURCES = Path(__file__).parent / "src"

VERSION = "k8s.io/component-base/version"
KUBERNETES = "1.34.4"  # go.mod of kubelab has the same; the components report what the linker was told


@dataclass(frozen=True, kw_only=True)
class Program:
    name: str
    package: str = "."
    variables: tuple[str, ...] = ()  # for the linker: `path.name=value`

    @property
    def source(self) -> Path:
        return SOURCES / self.name


KUBELAB = Program(
    name="kubelab",
    variables=(
        f"{VERSION}.gitVersion=v{KUBERNETES}",
        f"{VERSION}.gitMajor={KUBERNETES.split('.')[0]}",
        f"{VERSION}.gitMinor={KUBERNETES.split('.')[1]}",
    ),
)
MINIO = Program(name="minio")
PAUSE = Program(name="pause")
HELM = Program(name="helm", package="helm.sh/helm/v3/cmd/helm")

NODE = (KUBELAB, MINIO, PAUSE)
ALL = (*NODE, HELM)


def program_path(place: Place, program: Program) -> Path | None:
    """The built program, or None where it has to be built (again)."""
    path, stamp = place.bin / program.name, _stamp(place, program)
    if not os.access(path, os.X_OK):
        return None
    if stamp.exists() and stamp.read_text() != _digest(program):
        return None
    return path


def build(place: Place, program: Program) -> Path:
    """The program, built if it is not there. Raises Problem without a fitting Go, or when the build fails."""
    if found := program_path(place, program):
        return found
    go = find_go(program)
    place.bin.mkdir(parents=True, exist_ok=True)
    path = place.bin / program.name
    new = path.with_suffix(".new")
    print(f"building {program.name}; this takes some minutes, once", flush=True)
    flags = " ".join(["-s", "-w", *(f"-X {variable}" for variable in program.variables)])
    command = [go, "build", "-trimpath", "-buildvcs=false", "-ldflags", flags, "-o", str(new), program.package]
    built = subprocess.run(command, cwd=program.source, env=os.environ | {"CGO_ENABLED": "0"})
    if built.returncode:
        raise Problem(f"{program.name} could not be built; its compiler's words are above")
    new.replace(path)
    _stamp(place, program).write_text(_digest(program))
    return path


def find_go(program: Program) -> str:
    """A Go that is new enough, or one that fetches a newer one by itself (which Go decides, not we)."""
    needed = _number(re.search(r"^go (\S+)$", (program.source / "go.mod").read_text(), re.MULTILINE))
    go = shutil.which("go")
    if go is None:
        raise Problem(f"{program.name} is not built, and there is no `go` to build it: {_advice(needed)}")
    said = subprocess.run([go, "env", "GOVERSION", "GOTOOLCHAIN"], capture_output=True, text=True, cwd="/").stdout
    version, _, toolchain = said.strip().partition("\n")
    has = _number(re.match(r"go(\S+)", version))
    fetches = has >= (1, 21) and (toolchain == "auto" or toolchain.endswith("+auto"))
    if has < needed and not fetches:
        raise Problem(f"{program.name} is not built, and this `go` is {version or 'broken'}: {_advice(needed)}")
    return go


def _advice(needed: tuple[int, ...]) -> str:
    version = ".".join(map(str, needed[:2]))
    return (
        f"install Go {version} or later (Debian: `golang-{version}` of backports, or its testing release; "
        "elsewhere the archive from go.dev)"
    )


def _number(found: re.Match[str] | None) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", found[1])[:3]) if found else ()


def _digest(program: Program) -> str:
    total = hashlib.sha256(repr(program).encode())
    for file in sorted(program.source.iterdir()):
        total.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return total.hexdigest()


def _stamp(place: Place, program: Program) -> Path:
    return place.bin / f"{program.name}.built-from"
