"""The common ground of all models."""

from pydantic import BaseModel, ConfigDict


class Model(BaseModel):
    """Facts that go between programs: immutable. A field that a newer program added is passed over.

    During an upgrade old and new workers serve the same runs; a payload that one of them cannot read would stop
    a run until the upgrade is over.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)


class Input(Model):
    """What a person wrote: a field that is not known is a mistake, and is said to be one."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
