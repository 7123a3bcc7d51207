"""Container images without a container engine: an archive such as `docker save` writes, layer by layer.

Both `ctr images import` and `docker load` read it. A registry or a build daemon would do the same and more, and
would have to be there first.
"""

import hashlib
import io
import json
import os
import platform
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

EPOCH = int(os.environ.get("SOURCE_DATE_EPOCH") or 1767225600)
"""The time of all that is made, so that the same content gives the same image."""

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


@dataclass(frozen=True)
class Layer:
    """An uncompressed tar file."""

    path: Path | None
    content: bytes = b""

    @classmethod
    def of_files(cls, files: Mapping[str, bytes], *, mode: int = 0o755) -> "Layer":
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name, content in sorted(files.items()):
                _add(tar, name, content, mode=mode)
        return cls(None, buffer.getvalue())

    @classmethod
    def of_folder(cls, folder: Path, destination: str, out: Path) -> "Layer":
        """Everything below the folder, owned by root, as `destination` in the image; written to ``out``."""

        def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            entry.mtime = EPOCH
            entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
            return entry

        new = out.with_suffix(".new")
        with tarfile.open(new, "w") as tar:
            for path in sorted(folder.rglob("*")):
                tar.add(path, f"{destination}/{path.relative_to(folder)}", recursive=False, filter=plain)
        new.replace(out)
        return cls(out)

    def open(self) -> io.BufferedIOBase:
        return self.path.open("rb") if self.path else io.BytesIO(self.content)

    def size(self) -> int:
        return self.path.stat().st_size if self.path else len(self.content)

    def digest(self) -> str:
        with self.open() as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, kw_only=True)
class Image:
    name: str
    layers: Sequence[Layer]
    entrypoint: Sequence[str] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    user: str = ""

    def write(self, out: Path) -> None:
        """Whole or not at all."""
        digests = [layer.digest() for layer in self.layers]
        config = json.dumps(self._config(digests), sort_keys=True).encode()
        config_name = f"{hashlib.sha256(config).hexdigest()}.json"
        names = [f"{digest}.tar" for digest in digests]
        manifest = [{"Config": config_name, "RepoTags": [self.name], "Layers": names}]
        new = out.with_name(f"{out.name}.new")
        with tarfile.open(new, "w") as tar:
            _add(tar, config_name, config, mode=0o644)
            _add(tar, "manifest.json", json.dumps(manifest).encode(), mode=0o644)
            for name, layer in zip(names, self.layers, strict=True):
                with layer.open() as file:
                    tar.addfile(_entry(name, layer.size(), mode=0o644), file)
        new.replace(out)

    def _config(self, digests: Sequence[str]) -> dict[str, object]:
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        environ = {"PATH": path, **self.environ}
        return {
            "architecture": ARCHITECTURE,
            "os": "linux",
            "config": {
                "Entrypoint": list(self.entrypoint),
                "Env": [f"{name}={value}" for name, value in environ.items()],
                "User": self.user,
            },
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in digests]},
        }


def _entry(name: str, size: int, *, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = size, mode, EPOCH
    return entry


def _add(tar: tarfile.TarFile, name: str, content: bytes, *, mode: int) -> None:
    tar.addfile(_entry(name, len(content), mode=mode), io.BytesIO(content))


def remove_tree(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
