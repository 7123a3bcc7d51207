"""Tasks as processes of this machine: Linux and macOS.

    executor.py     the Executor, in the worker
    folder.py       what a pod leaves on the disk, and who may change it
    room.py         how many run at once on this machine
    exits.py        waits for the end of processes that are not our children
    surroundings.py what a task sees of the machine: environment, limits, refusals
    request.py      what the executor hands to the nest
    nest.py         the supervisor of one pod, a process of its own that outlives the worker
    process.py      the table of processes, for both

Nothing is imported here: nest.py starts in milliseconds since its package costs nothing.
"""
