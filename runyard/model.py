"""The common ground of all models."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Model(BaseModel):
    """Facts that go between programs: immutable. A field that a newer program added is passed over.

    During an upgrade old and new workers serve the same runs; a payload that one of them cannot read would stop
    a run until the upgrade is over.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)

    def __init_subclass__(cls, **options: Any) -> None:
        """`x: list[int] = []` is a new list each time, made as such.

        Pydantic would `deepcopy` the one that is there, which was a twelfth of all that a busy worker does.
        """
        for name in vars(cls).get("__annotations__", {}):
            default = vars(cls).get(name)
            if isinstance(default, list | dict) and not default:
                setattr(cls, name, Field(default_factory=type(default)))
        super().__init_subclass__(**options)


class Input(Model):
    """What a person wrote: a field that is not known is a mistake, and is said to be one."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
