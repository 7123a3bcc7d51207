"""A `.git` for the copy of a checkout, made of a few files: builds ask for HEAD, `git describe`, `git status`.

It has HEAD, the last commits and the tags on them (so that `describe` works), the trees of HEAD, and the contents
of what is changed, so that `git status` and `git diff` say the same as in the checkout. It does not have the other
contents and trees, which would double each snapshot: `git log -p`, `git commit` and `git fsck` do not work there.
The index itself is not stored, only where it differs from HEAD: the agent makes one.

The configuration is a new one. Of the user's own it has what changes how files compare, and the address of
`origin` without whatever could be a password; hooks, credentials, other remotes and included files stay where they
are.
"""

import re
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

from runyard.errors import GitFailed
from runyard.snapshot.checkout import path_of
from runyard.snapshot.repository import Head, Repository, run_git, start_git

COMMITS = 200
OBJECT_BYTES = 4 << 20
"""A changed file that is larger has no earlier version in the copy."""

_SUBMODULE = b"160000"
_COMPARING = r"^(core\.(filemode|autocrlf|eol|symlinks|ignorecase|precomposeunicode)|remote\.origin\.url)$"


@dataclass
class History:
    """Files of the copy below its top: ``texts`` with what is in them, ``objects`` with the object's name in git.

    ``changed`` tracked files differ from the commit, whose own are in ``tree``, as an index would list them.
    """

    head: Head
    changed: int = 0
    tree: set[bytes] = field(default_factory=set)
    texts: dict[bytes, bytes] = field(default_factory=dict)
    objects: dict[bytes, bytes] = field(default_factory=dict)

    def add(self, texts: Mapping[bytes, bytes]) -> None:
        """Files of the copy's `.git`; empty ones are left out."""
        self.texts |= {b".git/" + name: text for name, text in texts.items() if text}

    def add_index(self, index: Sequence[bytes]) -> None:
        """Where the checkout's index differs from HEAD: git lists it while we read the rest."""
        info = _index_info([line[2:] for line in index], self.tree)
        skipped = b"".join(path_of(line) + b"\0" for line in index if line.startswith(b"S "))
        self.add({b"runyard/index-info": info, b"runyard/skip-worktree": skipped})


def read_history(repository: Repository) -> History:
    """What the copy's `.git` is made of, but for the index (see `History.add_index`). Raises GitFailed."""
    head = repository.head()
    history = History(head=head)
    blobs, history.changed = _changed(repository)
    tree = _Tree(repository) if head.commit else None
    commits = _Commits(repository) if head.commit else None
    names = {*blobs, *(tree.folders if tree else ()), *(commits.names if commits else ())}
    history.objects = {b".git/objects/" + name[:2] + b"/" + name[2:]: name for name in sorted(names)}
    head_ref = f"ref: refs/heads/{head.branch}" if head.branch else head.commit
    texts = {
        b"HEAD": f"{head_ref}\n".encode(errors="surrogateescape"),
        b"config": _config(repository),
        b"packed-refs": _refs(head, commits),
        b"shallow": b"".join(name + b"\n" for name in commits.edge) if commits else b"",
    }
    history.tree = tree.files if tree else set()
    history.add(texts)
    return history


def read_objects(repository: Repository, names: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Name and loose form of each of these objects that the repository has and that is not too large."""
    wanted = list(names)
    if not wanted:
        return
    with tempfile.TemporaryFile() as given:  # a file, so that nobody has to write while another reads
        given.write(b"\n".join(wanted) + b"\n")
        given.seek(0)
        process = start_git(repository.top, "cat-file", "--batch", "--buffer", given=given)
    with process:
        assert process.stdout is not None
        for name in wanted:
            facts = process.stdout.readline().split()
            if not facts:
                raise GitFailed("git cat-file ended before its end")
            if len(facts) != 3:  # `NAME missing`: a partial clone, say
                continue
            data = process.stdout.read(int(facts[2]) + 1)[:-1]
            if len(data) <= OBJECT_BYTES:
                yield name, zlib.compress(facts[1] + b" %d\0" % len(data) + data, 1)


def _changed(repository: Repository) -> tuple[set[bytes], int]:
    """The objects behind all that is not as in HEAD, and how many tracked files that are."""
    lines = repository.ask("status", "--porcelain=v2", "-z", "--untracked-files=no", "--no-renames").split(b"\0")
    names: set[bytes] = set()
    count = 0
    for line in lines:
        if line.startswith(b"1 "):
            _, _, _, *modes, old, new, _ = line.split(b" ", 8)
            found = [old, new]
        elif line.startswith(b"u "):
            _, _, _, *modes, one, two, three, _ = line.split(b" ", 10)
            found = [one, two, three]
        else:
            continue
        count += 1
        if _SUBMODULE not in modes:
            names.update(name for name in found if name.strip(b"0"))
    return names, count


class _Tree:
    """The files of HEAD, as an index would list them, and the names of all its folders."""

    def __init__(self, repository: Repository) -> None:
        self.files: set[bytes] = set()
        self.folders = {repository.ask("rev-parse", "HEAD^{tree}").strip()}
        for line in repository.ask("ls-tree", "-r", "-t", "-z", "HEAD").split(b"\0")[:-1]:
            mode, kind, rest = line.split(b" ", 2)
            name, _, path = rest.partition(b"\t")
            if kind == b"tree":
                self.folders.add(name)
            else:
                self.files.add(mode + b" " + name + b" 0\t" + path)


class _Commits:
    """The last commits and the tags on them. Those at the ``edge`` have parents that are not there."""

    def __init__(self, repository: Repository) -> None:
        lines = repository.ask("rev-list", f"--max-count={COMMITS}", "--parents", "HEAD").splitlines()
        parents = {commit: rest for commit, *rest in (line.split() for line in lines)}
        shallow = repository.common / "shallow"
        cut = set(shallow.read_bytes().split()) if shallow.exists() else set()
        self.edge = [c for c, rest in parents.items() if c in cut or any(each not in parents for each in rest)]
        self.tags = []
        self.names = set(parents)
        words = "%(objectname) %(*objectname) %(refname)"
        for line in repository.ask("for-each-ref", f"--format={words}", "refs/tags").splitlines():
            name, peeled, ref = line.split(b" ", 2)
            if (peeled or name) in parents:
                self.tags.append((ref, name, peeled))
                self.names.add(name)


def _refs(head: Head, commits: _Commits | None) -> bytes:
    if commits is None:
        return b""
    lines = [b"# pack-refs with: peeled fully-peeled sorted"]
    if head.branch:
        lines.append(f"{head.commit} refs/heads/{head.branch}".encode(errors="surrogateescape"))
    for ref, name, peeled in sorted(commits.tags):
        lines += [name + b" " + ref, *([b"^" + peeled] if peeled else [])]
    return b"\n".join(lines) + b"\n"


def _index_info(index: Sequence[bytes], tree: set[bytes]) -> bytes:
    """What `git update-index --index-info` makes the checkout's index of that of HEAD."""
    added = [line for line in index if line not in tree]
    whole = {path_of(line) for line in added if line.partition(b"\t")[0].endswith(b" 0")}
    removed = []
    for line in sorted(tree.difference(index)):
        _, name, rest = line.split(b" ", 2)
        if (path := path_of(rest)) not in whole:
            removed.append(b"0 " + b"0" * len(name) + b"\t" + path)
    return b"".join(line + b"\0" for line in [*removed, *added])


def _config(repository: Repository) -> bytes:
    sha256 = repository.find("rev-parse", "--show-object-format") == "sha256"
    lines = ["[core]", f"repositoryformatversion = {int(sha256)}", "bare = false"]
    origin = ""
    done = run_git(repository.top, "config", "-z", "--get-regexp", _COMPARING)
    for entry in done.stdout.decode(errors="surrogateescape").split("\0")[:-1]:
        key, _, value = entry.partition("\n")
        if key == "remote.origin.url":
            origin = without_credentials(value)
        else:
            lines.append(f"{key.partition('.')[2]} = {_quote(value or 'true')}")
    lines += ["[gc]", "auto = 0"]
    if sha256:
        lines += ["[extensions]", "objectformat = sha256"]
    if origin:
        lines += ['[remote "origin"]', f"url = {_quote(origin)}", "fetch = +refs/heads/*:refs/remotes/origin/*"]
    return "".join(f"{line}\n" for line in lines).encode(errors="surrogateescape")


def without_credentials(url: str) -> str:
    """The address without anything that could be a password; empty for one of an unknown kind."""
    if "://" not in url:
        is_helper = re.match(r"[\w+.-]+::", url)  # `ext::sh -c ...` may hold anything
        return "" if is_helper or re.match(r"[^/@]*:[^/]*@", url) else url
    try:
        parts = urlsplit(url)
        name = f"{parts.username}@" if parts.scheme == "ssh" and parts.username else ""
    except ValueError:
        return ""
    if parts.scheme not in ("http", "https", "ssh", "git", "file"):
        return ""
    return urlunsplit((parts.scheme, name + parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _quote(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
