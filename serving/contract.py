"""What a model takes: ``contract.json`` of its bundle. Made by training (``include/training/bundle.py``); read here by the schema alone."""

from collections import Counter
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Text = Annotated[str, Field(max_length=200)]
Names = Annotated[tuple[Text, ...], Field(max_length=2000)]
Value = float | int | str | bool | None
Action = Literal["refuse", "default", "baseline"]
Kind = Literal["unknown_entity", "stale_feature", "missing_feature"]


class LookupPolicy(BaseModel):
    """What becomes of an instance of which the look-up lacks something; the project's choice (``include/projects/lookup.py``).

    ``refuse``: the request is not answered; ``default``: the model is given ``defaults``, null where there is none; ``baseline``: the baseline rule
    answers in the model's place. ``views`` says it of a view, kind by kind, where it differs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    unknown_entity: Action = "default"
    stale_feature: Action = "default"
    missing_feature: Action = "default"
    defaults: dict[str, Value] = {}
    views: dict[str, dict[Kind, Action]] = {}

    def action(self, kind: Kind, view: str) -> Action:
        found: Action = self.views.get(view, {}).get(kind) or getattr(self, kind)
        return found

    def takes(self, action: Action) -> bool:
        """Whether anything is ever done so."""
        said = {self.unknown_entity, self.stale_feature, self.missing_feature}
        return action in said.union(*(chosen.values() for chosen in self.views.values()))


class Contract(BaseModel):
    """Which columns a model takes, in which order, and where they come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = Field(alias="schema")
    project: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{1,39}$")]  # names a folder of the prediction log
    kind: Text
    feature_service: Text
    join_keys: Names
    request_features: Names
    numeric: Names
    categorical: Names
    lookup: LookupPolicy = LookupPolicy()

    @model_validator(mode="after")
    def _inputs_are_unique(self):
        if not self.inputs:
            raise ValueError("the model takes no input")
        repeated = {name for name, times in Counter(self.inputs).items() if times > 1}
        if repeated:
            raise ValueError(f"inputs are named twice: {', '.join(sorted(repeated))}")
        for name, value in self.lookup.defaults.items():
            if name not in self.view_features:
                raise ValueError(f"lookup.defaults names '{name}', which is no feature of a view that the model takes")
            if value is not None and isinstance(value, str) != (name in self.categorical):
                raise ValueError(f"lookup.defaults: '{name}' must be {'a text' if name in self.categorical else 'a number'} or null")
        return self

    @property
    def inputs(self) -> tuple[str, ...]:
        return (*self.numeric, *self.categorical)

    @property
    def view_features(self) -> tuple[str, ...]:
        """The inputs that neither come with the request nor are join keys: Feast has them."""
        given = {*self.request_features, *self.join_keys}
        return tuple(name for name in self.inputs if name not in given)
