"""The common ground of all models."""

from pydantic import BaseModel, ConfigDict


class Model(BaseModel):
    """Facts: immutable, with no field that is not declared."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
