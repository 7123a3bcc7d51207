"""Clones: a repository at a branch, tag, ref or commit; and a checkout of this machine as it is."""

import base64
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from agent_stage import Stage

from runyard.spec.plan import CloneStep, RunStep, Source


def git(folder: Path, *words: str) -> str:
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder.parent),
        "GIT_CONFIG_NOSYSTEM": "1",
        **{f"GIT_{who}_{what}": "a@b.c" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }
    command = ["git", "-c", "protocol.file.allow=always", "-C", str(folder), *words]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip("\n")


def commit(folder: Path, **files: str) -> str:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", f"with {sorted(files)}")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Three commits on main, a branch, a tag and a ref of another kind."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch", "main")
    for i in (1, 2, 3):
        commit(folder, file=f"{i}\n")
    git(folder, "tag", "v2", "HEAD~1")
    git(folder, "update-ref", "refs/pull/7/head", "HEAD~2")
    git(folder, "checkout", "--quiet", "-b", "side/way")
    commit(folder, file="side\n")
    git(folder, "checkout", "--quiet", "main")
    return folder


def clone(stage: Stage, url: str, *, code: int = 0, **source: object) -> str:
    """The log of a clone, which must end with this exit code."""
    step = source.pop("step", CloneStep())
    told = Source.model_validate({"url": url, **source})
    assert stage.play(step, source=told) == code, stage.log(0)
    return stage.log(0).decode(errors="surrogateescape")


def test_default_branch(stage: Stage, repository: Path) -> None:
    log = clone(stage, str(repository))
    assert log.startswith("HEAD is now at ")
    assert (stage.cwd / "file").read_text() == "3\n"
    assert git(stage.cwd, "symbolic-ref", "HEAD") == "refs/heads/main"
    assert git(stage.cwd, "status", "--porcelain") == ""
    assert git(stage.cwd, "rev-parse", "main@{upstream}") == git(repository, "rev-parse", "main")


CHOICES = [
    ({"branch": "side/way"}, "side\n", "refs/heads/side/way"),
    ({"branch": "main", "ref": "refs/heads/main"}, "3\n", "refs/heads/main"),
    ({"ref": "refs/heads/side/way"}, "side\n", "refs/heads/side/way"),
    ({"tag": "v2"}, "2\n", ""),
    ({"ref": "refs/tags/v2"}, "2\n", ""),
    ({"ref": "refs/pull/7/head"}, "1\n", ""),
]


@pytest.mark.parametrize("depth", [None, 1])
@pytest.mark.parametrize(("choice", "text", "head"), CHOICES)
def test_choice(
    stage: Stage, repository: Path, choice: dict[str, str], text: str, head: str, depth: int | None
) -> None:
    clone(stage, f"file://{repository}", step=CloneStep(depth=depth), **choice)
    assert (stage.cwd / "file").read_text() == text
    assert (stage.cwd / ".git/HEAD").read_text().startswith("ref:" if head else "")
    if head:
        assert git(stage.cwd, "symbolic-ref", "HEAD") == head
    if depth:
        assert git(stage.cwd, "rev-list", "--count", "HEAD") == "1"


@pytest.mark.parametrize("depth", [None, 1])
@pytest.mark.parametrize("branch", ["main", ""])
@pytest.mark.parametrize("length", [40, 10])
def test_commit(stage: Stage, repository: Path, branch: str, depth: int | None, length: int) -> None:
    """Also one that the branch has left behind, or that a shallow history does not reach."""
    wanted = git(repository, "rev-parse", "main~2")
    step = CloneStep(depth=depth)
    clone(stage, f"file://{repository}", step=step, branch=branch, commit=wanted[:length])
    assert git(stage.cwd, "rev-parse", "HEAD") == wanted
    assert (stage.cwd / "file").read_text() == "1\n"


def test_into_a_folder_with_something_in_it(stage: Stage, repository: Path) -> None:
    step = RunStep(command="echo mine >other; mkdir -p sub")
    assert stage.play(step, CloneStep(), source=Source(url=str(repository))) == 0
    assert sorted(os.listdir(stage.cwd)) == [".git", "file", "other", "sub"]


def test_twice(stage: Stage, repository: Path) -> None:
    assert stage.play(CloneStep(), CloneStep(), source=Source(url=str(repository))) == 1
    assert b"holds a git repository already" in stage.log(1)


REFUSALS = [
    ({"url": ""}, "names no source"),
    ({"url": "/no/such/repository"}, "exit code 128"),
    ({"branch": "none"}, "none"),
    ({"tag": "none"}, "none"),
    ({"commit": "0" * 40}, "is not in the repository"),
    ({"commit": "--upload-pack=x"}, "is not the id of a commit"),
    ({"ref": "--upload-pack=touch /tmp/x"}, "exit code"),
    ({"branch": "--orphan"}, "exit code"),
    ({"url": "ext::sh -c touch% /tmp/x"}, "not allowed"),
    ({"url": "--upload-pack=x"}, "exit code"),
]


@pytest.mark.parametrize(("source", "said"), REFUSALS)
def test_refusal(stage: Stage, repository: Path, source: dict[str, str], said: str) -> None:
    log = clone(stage, code=1, **{"url": str(repository), **source})
    assert said in log


def test_no_git(stage: Stage, repository: Path) -> None:
    (stage.folder / "bin").mkdir()
    stage.prepare(CloneStep(), source=Source(url=str(repository)))
    agent = stage.start_agent({"PATH": str(stage.folder / "bin")})
    assert stage.start_main().wait(30) == 1
    assert agent.wait(30) == 0
    assert b"git is not installed" in stage.log(0)


@pytest.mark.parametrize("recurse", [True, False])
def test_submodules(stage: Stage, repository: Path, tmp_path: Path, recurse: bool) -> None:
    outer = tmp_path / "outer"
    outer.mkdir()
    git(outer, "init", "--quiet", "--initial-branch", "main")
    git(outer, "submodule", "--quiet", "add", f"file://{repository}", "inner")
    commit(outer)
    clone(stage, f"file://{outer}", step=CloneStep(recurse_submodules=recurse))
    assert (stage.cwd / "inner/file").exists() == recurse


def test_hooks_of_the_user_do_not_run(stage: Stage, repository: Path) -> None:
    hooks = stage.home / "hooks"
    hooks.mkdir()
    (hooks / "post-checkout").write_text(f"#!/bin/sh\n: >{stage.home}/ran\n")
    (hooks / "post-checkout").chmod(0o755)
    (stage.home / ".gitconfig").write_text(f"[core]\nhooksPath = {hooks}\n")
    clone(stage, str(repository))
    assert not (stage.home / "ran").exists()


class Door(BaseHTTPRequestHandler):
    """Lets nobody in, and remembers what they showed."""

    shown: list[str]

    def do_GET(self) -> None:
        self.server.shown.append(self.headers.get("Authorization", ""))  # type: ignore[attr-defined]
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="x"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_request(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def door() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
    server.shown = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_nobody_is_asked_for_a_password(stage: Stage, door: ThreadingHTTPServer) -> None:
    log = clone(stage, f"http://127.0.0.1:{door.server_port}/x.git", code=1)
    assert "exit code 128" in log


@pytest.mark.parametrize("where", ["url", "environment"])
def test_credentials_reach_the_host_and_nothing_else(stage: Stage, door: ThreadingHTTPServer, where: str) -> None:
    """A git in between writes down what it is called with."""
    folder = stage.folder / "bin"
    folder.mkdir()
    spy = f'#!/bin/sh\necho "$@" >>{stage.folder}/arguments\nexec {shutil.which("git")} "$@"\n'
    (folder / "git").write_text(spy)
    (folder / "git").chmod(0o755)
    environ = {"PATH": f"{folder}:{os.environ['PATH']}"}
    host = f"127.0.0.1:{door.server_port}"
    url = f"http://user:pass%40word@{host}/x.git" if where == "url" else f"http://{host}/x.git"
    if where == "environment":
        environ |= {"RUNYARD_GIT_USERNAME": "user", "RUNYARD_GIT_PASSWORD": "pass@word"}
    stage.prepare(CloneStep(), source=Source(url=url))
    agent = stage.start_agent(environ)
    assert stage.start_main().wait(30) == 1
    assert agent.wait(30) == 0
    expected = "Basic " + base64.b64encode(b"user:pass@word").decode()
    assert expected in door.shown  # type: ignore[attr-defined]
    arguments = (stage.folder / "arguments").read_text()
    assert "pass@word" not in arguments
    assert "pass%40word" not in arguments
    everything = [path.read_bytes() for path in stage.cwd.rglob("*") if path.is_file()]
    assert not any(b"pass@word" in each or b"pass%40word" in each for each in [*everything, stage.log(0)])


# --- a checkout as it is ----------------------------------------------------------------------------


def untouched(folder: Path) -> dict[str, object]:
    """All of a folder that a look at it must not change."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_mtime_ns, path.lstat().st_mode, path.lstat().st_size)
        for path in folder.rglob("*")
    }


def status(folder: Path) -> str:
    return git(folder, "--no-optional-locks", "status", "--porcelain", "--branch", "--untracked-files=all")


@pytest.fixture
def checkout(repository: Path) -> Path:
    """Changes of every kind."""
    (repository / ".gitignore").write_text("*.o\nbuild/\n")
    commit(repository, changed="1", staged="1", both="1", deleted="1", removed="1", renamed="1", mode="1")
    (repository / "changed").write_text("2")
    (repository / "staged").write_text("2")
    git(repository, "add", "staged")
    (repository / "both").write_text("2")
    git(repository, "add", "both")
    (repository / "both").write_text("3")
    (repository / "deleted").unlink()
    git(repository, "rm", "--quiet", "removed")
    git(repository, "mv", "renamed", "moved")
    (repository / "mode").chmod(0o755)
    (repository / "new folder/ünï").mkdir(parents=True)
    (repository / "new folder/ünï/file\n'").write_text("new")
    with open(os.path.join(os.fsencode(repository), b"raw \xff"), "w") as file:
        file.write("raw")
    (repository / "link").symlink_to("file")
    (repository / "dangling").symlink_to("/no/such")
    (repository / "x.o").write_text("ignored")
    (repository / "build").mkdir()
    (repository / "build/out").write_text("ignored")
    (repository / "added").write_text("1")
    git(repository, "add", "added")
    return repository


def test_checkout_as_it_is(stage: Stage, checkout: Path) -> None:
    before, wanted = untouched(checkout), status(checkout)
    log = clone(stage, str(checkout), local=True)
    assert untouched(checkout) == before
    assert "uncommitted changes" in log
    assert status(stage.cwd).split("\n")[1:] == wanted.split("\n")[1:]
    assert git(stage.cwd, "rev-parse", "HEAD") == git(checkout, "rev-parse", "HEAD")
    assert git(stage.cwd, "symbolic-ref", "HEAD") == "refs/heads/main"
    assert git(stage.cwd, "diff", "--cached") == git(checkout, "--no-optional-locks", "diff", "--cached")
    assert git(stage.cwd, "log", "--format=%H") == git(checkout, "log", "--format=%H")
    assert git(stage.cwd, "rev-parse", "v2") == git(checkout, "rev-parse", "v2")
    assert not (stage.cwd / "x.o").exists()
    assert not (stage.cwd / "build").exists()
    assert not (stage.cwd / "deleted").exists()
    assert os.readlink(stage.cwd / "dangling") == "/no/such"
    assert (stage.cwd / "mode").stat().st_mode & 0o111
    assert (stage.cwd / "file").stat().st_mtime_ns == (checkout / "file").stat().st_mtime_ns


def test_copy_is_a_repository_of_its_own(stage: Stage, checkout: Path) -> None:
    def seen() -> dict[str, object]:  # git renews the times of objects that it finds there already
        return {name: facts for name, facts in untouched(checkout).items() if ".git/objects/" not in name}

    before, objects = seen(), len(list((checkout / ".git/objects").rglob("*")))
    command = """
    git config user.email a@b.c; git config user.name a
    git add --all; git commit --quiet -m 'in the copy'; git checkout --quiet -b other; git gc --quiet
    chmod -R go-w .git; echo over >file
    """
    code = stage.play(CloneStep(), RunStep(command=command), source=Source(url=str(checkout), local=True))
    assert code == 0, stage.log(1)
    assert seen() == before
    assert len(list((checkout / ".git/objects").rglob("*"))) == objects
    assert git(checkout, "fsck", "--strict") == ""


@pytest.mark.parametrize("kind", ["detached", "unborn", "shallow", "worktree", "empty", "packed", "conflict"])
def test_unusual_checkout(stage: Stage, repository: Path, tmp_path: Path, kind: str) -> None:
    source = repository
    if kind == "detached":
        git(source, "checkout", "--quiet", "HEAD~1")
    elif kind in ("unborn", "empty"):
        source = tmp_path / "young"
        source.mkdir()
        git(source, "init", "--quiet", "--initial-branch", "trunk")
        if kind == "unborn":
            (source / "staged").write_text("x")
            git(source, "add", "staged")
            (source / "new").write_text("y")
    elif kind == "shallow":
        source = tmp_path / "shallow"
        git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{repository}", str(source))
        (source / "file").write_text("staged only here")
        git(source, "add", "file")
    elif kind == "worktree":
        source = tmp_path / "tree"
        git(repository, "worktree", "add", "--quiet", str(source), "side/way")
        (source / "new").write_text("y")
    elif kind == "packed":
        git(source, "gc", "--quiet")
        git(source, "pack-refs", "--all")
    elif kind == "conflict":
        git(source, "checkout", "--quiet", "-b", "other")
        commit(source, file="other\n")
        git(source, "checkout", "--quiet", "side/way")
        subprocess.run(["git", "-C", source, "merge", "--quiet", "other"], capture_output=True)
    before, wanted = untouched(source), status(source)
    clone(stage, str(source), local=True)
    assert untouched(source) == before
    assert [line for line in status(stage.cwd).split("\n") if line[:2] != "##"] == [
        line for line in wanted.split("\n") if line[:2] != "##"
    ]
    for words in (["rev-parse", "--verify", "--quiet", "HEAD"], ["symbolic-ref", "--quiet", "HEAD"]):
        there, here = (
            subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True).stdout
            for folder in (source, stage.cwd)
        )
        assert here == there


def test_checkout_with_a_submodule_and_a_nested_repository(stage: Stage, repository: Path, tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    outer.mkdir()
    git(outer, "init", "--quiet", "--initial-branch", "main")
    git(outer, "submodule", "--quiet", "add", f"file://{repository}", "inner")
    commit(outer, readme="x")
    (outer / "inner/new").write_text("in the submodule")
    (outer / "nested").mkdir()
    git(outer / "nested", "init", "--quiet")
    commit(outer / "nested", deep="1")
    clone(stage, str(outer), local=True)
    assert (stage.cwd / "inner/new").read_text() == "in the submodule"
    assert (stage.cwd / "inner/file").read_text() == "3\n"
    assert (stage.cwd / "nested/deep").read_text() == "1"
    assert "nested/" in status(stage.cwd)


def test_folder_that_is_no_repository(stage: Stage, tmp_path: Path) -> None:
    source = tmp_path / "plain"
    (source / "a/empty").mkdir(parents=True)
    (source / "a/x.o").write_text("x")
    (source / "l").symlink_to("a")
    log = clone(stage, str(source), local=True)
    assert "is not a git repository" in log
    assert (stage.cwd / "a/empty").is_dir()
    assert (stage.cwd / "a/x.o").read_text() == "x"
    assert os.readlink(stage.cwd / "l") == "a"


def test_local_source_that_is_not_there(stage: Stage) -> None:
    assert "is not a folder" in clone(stage, "/no/such", code=1, local=True)


def test_task_that_works_inside_its_source(stage: Stage, tmp_path: Path) -> None:
    """The folder of tasks may lie in the checkout; a copy does not copy itself."""
    source = stage.home
    git(source, "init", "--quiet", "--initial-branch", "main")
    (source / "file").write_text("x")
    clone(stage, str(source), local=True)
    assert (stage.cwd / "file").read_text() == "x"
    assert not (stage.cwd / "project").exists()


def test_variables_of_a_hook_do_not_lead_astray(stage: Stage, checkout: Path, tmp_path: Path) -> None:
    """A run that is started from a git hook inherits them."""
    other = tmp_path / "elsewhere"
    stage.prepare(CloneStep(), source=Source(url=str(checkout), local=True))
    agent = stage.start_agent({"GIT_DIR": str(other), "GIT_INDEX_FILE": str(other), "GIT_WORK_TREE": str(other)})
    assert stage.start_main().wait(30) == 0
    assert agent.wait(30) == 0
    assert (stage.cwd / "both").read_text() == "3"


FAKE_SSH = """#!/bin/sh
printf '%s\\n' "$@" >>{seen}
while [ $# -gt 1 ]; do
  case $1 in
    -i) key=$2 ;;
    -o) case $2 in UserKnownHostsFile=*) hosts=${{2#*=}} ;; esac ;;
  esac
  shift
done
ls -l "$key" >>{seen}
cat "$key" "$hosts" >>{seen}
eval "$1"
"""


@pytest.mark.parametrize("hosts", ["", "example.org ssh-ed25519 AAAA\n"])
def test_clone_over_ssh_with_a_key(stage: Stage, repository: Path, hosts: str) -> None:
    """The program is a stand-in that shows what ssh would be given, and then runs the command here."""
    programs, seen = stage.folder / "programs", stage.folder / "seen"
    programs.mkdir()
    (programs / "ssh").write_text(FAKE_SSH.format(seen=seen))
    (programs / "ssh").chmod(0o755)
    key = "-----BEGIN KEY-----\nline one of it\n-----END KEY-----"
    environ = {"PATH": f"{programs}:{os.environ['PATH']}", "RUNYARD_GIT_SSH_KEY": key}
    environ |= {"RUNYARD_GIT_KNOWN_HOSTS": hosts} if hosts else {}
    source = Source(url=f"ssh://git@example.org{repository}", branch="main")
    steps = [CloneStep(), RunStep(command="cat file; cat .git/config")]
    assert stage.play(*steps, source=source, secrets=environ, mask=["RUNYARD_GIT_SSH_KEY"]) == 0, stage.log(0)
    text = seen.read_text()
    assert "git@example.org\n" in text
    assert f"{key}\n{hosts}" in text
    assert "\n-rw------- " in text
    assert f"StrictHostKeyChecking={'yes' if hosts else 'accept-new'}\n" in text
    assert (b"KNOWN_HOSTS is not set" in stage.log(0)) == (not hosts)
    assert b"line one" not in stage.log(0) + stage.log(1)
    left = [path for path in stage.folder.rglob("*") if path.is_file() and path != seen]
    assert [path for path in left if b"line one" in path.read_bytes()] == []
