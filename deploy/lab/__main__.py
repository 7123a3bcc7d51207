"""The lab: a real Kubernetes node and a real MinIO on this machine, on loopback only.

Run as `python3 deploy/lab COMMAND`. Needs Linux, root, and nothing that is not in Debian; see README.md.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from configs import read_keys
from images import IMAGES, build_bases, build_image, missing_bases
from node import Node
from place import Place, place_of
from problems import Problem
from programs import ALL, build


def main() -> int:
    options = _parser().parse_args()
    try:
        place = place_of()
        return _act(options, place, Node(place))
    except Problem as problem:
        print(f"lab: {problem}", file=sys.stderr)
        return 1


def _act(options: argparse.Namespace, place: Place, node: Node) -> int:
    """Whatever needs more than the command's own words; the rest is in `_simple`."""
    match options.command:
        case "up":
            node.up()
            print(_exports(place))
        case "check":
            reasons = [*node.missing(), *missing_bases(place)]
            print("\n".join(reasons) or "this machine can run a lab")
            return 1 if reasons else 0
        case "status":
            status = node.status()
            rows = (f"{name:20} {pid or '-'}" for name, pid in status.items())
            print(json.dumps(status) if options.json else "\n".join(rows))
        case "env":
            print(json.dumps(_facts(place)) if options.json else _exports(place))
        case "build":
            if options.install:
                _install(node.missing_packages())
            _build(place, options.names)
            if not options.names:
                build_bases(place)
        case "images":
            node.load_images([build_image(place, name) for name in options.names or IMAGES])
        case _:
            _simple(options, node)
    return 0


def _simple(options: argparse.Namespace, node: Node) -> None:
    match options.command:
        case "down":
            node.down()
        case "load":
            node.load(options.files)
        case "hold":
            node.hold(options.pid)
        case "release":
            node.release(options.pid)
        case "start":
            node.start(options.name)
        case "stop":
            node.stop(options.name, number=signal.SIGKILL if options.kill else signal.SIGTERM)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lab", description=__doc__.partition("\n")[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="start what is not running, and wait until it is ready")
    up.add_argument(
        "--install", action="store_true", help="first install Debian's packages and build the programs"
    )
    commands.add_parser("down", help="stop all and remove the running lab; programs and images stay")
    commands.add_parser("check", help="say why this machine cannot run a lab; 0 = it can")
    for command, what in (
        ("status", "the components and their process numbers"),
        ("env", "what clients need, as `export` lines"),
    ):
        commands.add_parser(command, help=what).add_argument("--json", action="store_true")
    names = commands.add_parser("build", help="build programs; without a name all, and the images' bases")
    names.add_argument("names", nargs="*", metavar="NAME")
    names.add_argument("--install", action="store_true", help="first the packages that are missing (Debian)")
    images = commands.add_parser("images", help="build the images of the lab and load what changed")
    images.add_argument("names", nargs="*", metavar="NAME")
    load = commands.add_parser("load", help="load image archives")
    load.add_argument("files", nargs="+", type=Path, metavar="FILE")
    for command, what in (("hold", "up, for as long as a process lives"), ("release", "down, if it is the last")):
        commands.add_parser(command, help=what).add_argument("pid", type=int)
    commands.add_parser("start", help="start one component that was stopped").add_argument("name")
    stop = commands.add_parser("stop", help="stop one component, for a test of what happens then")
    stop.add_argument("name")
    stop.add_argument("--kill", action="store_true", help="by SIGKILL")
    return parser


def _install(packages: Sequence[str]) -> None:
    if not packages:
        return
    print(f"installing {' '.join(packages)}", flush=True)
    environ = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
    try:
        for command in (["apt-get", "update", "-qq"], install):
            subprocess.run(command, check=True, env=environ, stdout=subprocess.DEVNULL)
    except FileNotFoundError:
        raise Problem(f"this is no Debian; install these by hand: {' '.join(packages)}") from None
    except subprocess.CalledProcessError as error:
        raise Problem("apt-get failed; its words are above") from error


def _build(place: Place, names: Sequence[str]) -> None:
    known = {program.name: program for program in ALL}
    if unknown := set(names) - set(known):
        raise Problem(f"no program {', '.join(sorted(unknown))}: there are {', '.join(known)}")
    for name in names or known:
        build(place, known[name])


def _facts(place: Place) -> dict[str, str]:
    keys = read_keys(place)
    return {
        "KUBECONFIG": str(place.kubeconfig),
        "S3_ENDPOINT": f"http://127.0.0.1:{place.s3_port}",
        "S3_ACCESS_KEY": keys.s3_access,
        "S3_SECRET_KEY": keys.s3_secret,
    }


def _exports(place: Place) -> str:
    return "\n".join(f"export {name}={value}" for name, value in _facts(place).items())


if __name__ == "__main__":
    sys.exit(main())
