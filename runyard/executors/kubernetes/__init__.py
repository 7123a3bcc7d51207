"""Tasks as pods of a Kubernetes cluster.

    names.py     labels, annotations, containers: what our objects are called
    fields.py    reading JSON of which nothing is certain
    template.py  the administrator's part of a pod, and how parts are laid over each other
    folders.py   which folders main and agent must share
    pod.py       from a launch to manifests: plain dictionaries, as the API takes them
    api.py       requests: time limits, retries, errors
    quota.py     what a refused create means: wait, or give up
    room.py      who waits for room, and what wakes them
    watch.py     one list+watch for all pods of a namespace
    verdict.py   from a pod's status to how it stands or ended: pure, total
    requests.py  the requests about one pod, and what their answers mean
    follow.py    one caretaker's way along with one pod
    executor.py  the Executor

JSON stays JSON: the typed models of the client cost four times the memory and the time, and know less than
the server they talk to.
"""
