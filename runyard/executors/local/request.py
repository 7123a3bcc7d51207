"""What the executor hands to a nest. A module of its own, since the nest cannot afford to import typing."""

from typing import TypedDict


class Request(TypedDict):
    """All that the nest must know; paths are relative to the pod's folder, or absolute."""

    uid: str
    script: str
    agent: str  # path of a Python file with `main(environ) -> int`
    working_dir: str
    runyard_dir: str
    receipt: str
    main_environment: dict[str, str]
    agent_environment: dict[str, str]
    deadline_s: float | None
    grace_s: float
    memory_bytes: int | None
    cores: list[int]
    tied: bool  # end the pod when descriptor 3 says that whoever started it is gone
