"""The client's side of a direct run: a git checkout, read exactly as it is.

    repository   git is asked, by commands for programs only; what a checkout is on
    checkout     the files of a checkout, in its submodules too
    reading      the bytes of a file, or that it changes while it is read
    memory       what the last snapshot knew, so that the next reads only what has changed
    history      a `.git` for the copy: HEAD, some history, no credentials
    take         all of it: from a folder to a snapshot in the store

Nothing of the checkout is written but `runyard.repouuid` in its configuration and a file below `.git/runyard`: not
its index, not its stash, no object. Filters are not applied: a snapshot has the bytes of the work tree.
"""
