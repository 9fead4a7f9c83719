"""What a model takes: ``contract.json`` of its bundle. Made by training (``include/training/bundle.py``); read here by the schema alone."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Value = float | int | str | bool | None


class Contract(BaseModel):
    """Which columns a model takes, in which order, and where they come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = Field(alias="schema")
    project: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{1,39}$")]  # names a folder of the prediction log
    kind: str
    feature_service: str
    join_keys: tuple[str, ...]
    request_features: tuple[str, ...]
    numeric: tuple[str, ...]
    categorical: tuple[str, ...]

    @model_validator(mode="after")
    def _inputs_are_unique(self):
        if not self.inputs:
            raise ValueError("the model takes no input")
        repeated = {name for name in self.inputs if self.inputs.count(name) > 1}
        if repeated:
            raise ValueError(f"inputs are named twice: {', '.join(sorted(repeated))}")
        return self

    @property
    def inputs(self) -> tuple[str, ...]:
        return (*self.numeric, *self.categorical)

    @property
    def view_features(self) -> tuple[str, ...]:
        """The inputs that neither come with the request nor are join keys: Feast has them."""
        given = {*self.request_features, *self.join_keys}
        return tuple(name for name in self.inputs if name not in given)
