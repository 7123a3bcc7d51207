"""Tasks as processes of this machine: Linux and macOS.

    executor.py      the Executor, in the worker
    folder.py        what a pod leaves on the disk, and who may change it
    room.py          how many run at once on this machine
    starter.py       how a nest is started
    surroundings.py  what a task sees of the machine: environment, limits, refusals
    exits.py         waits for the end of processes that are not our children
    request.py       what a nest is given
    nest.py          the supervisor of one pod, a process of its own that outlives the worker
    nest_files.py    what it writes
    process.py       the table of processes, for both sides

Nothing is imported here: a nest starts in milliseconds since its package costs nothing.
"""
