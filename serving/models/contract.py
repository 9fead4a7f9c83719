"""Define the inputs of a model: ``contract.json`` of its bundle.

Training makes the file (``include/training/bundle.py``). This package shares only its schema.
"""

from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Text = Annotated[str, Field(max_length=200)]
Names = Annotated[tuple[Text, ...], Field(max_length=2000)]
Value = float | int | str | bool | None
Action = Literal["refuse", "default", "baseline"]
Kind = Literal["unknown_entity", "stale_feature", "missing_feature"]


class LookupPolicy(BaseModel):
    """The policy for instances with missing features, chosen by the project.

    The project sets it in ``include/projects/lookup.py``. The actions are:

    * ``refuse``: the request is not answered.
    * ``default``: the model gets the values of ``defaults``, or null for a feature without a
      default.
    * ``baseline``: the baseline rule answers instead of the model.

    ``views`` overrides the action of a view, per kind of gap.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    unknown_entity: Action = "default"
    stale_feature: Action = "default"
    missing_feature: Action = "default"
    defaults: dict[str, Value] = {}
    views: dict[str, dict[Kind, Action]] = {}

    def action(self, kind: Kind, view: str) -> Action:
        action: Action = self.views.get(view, {}).get(kind) or getattr(self, kind)
        return action

    def takes(self, action: Action) -> bool:
        """Return True if the policy uses the action for any view or kind of gap."""
        actions = {self.unknown_entity, self.stale_feature, self.missing_feature}
        return action in actions.union(*(chosen.values() for chosen in self.views.values()))


class Contract(BaseModel):
    """The columns that a model takes, their order and their sources."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = Field(alias="schema")
    # The name of a folder of the prediction log.
    project: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{1,39}$")]
    kind: Text
    feature_service: Text
    join_keys: Names
    request_features: Names
    numeric: Names
    categorical: Names
    lookup: LookupPolicy = LookupPolicy()

    @model_validator(mode="after")
    def _inputs_are_unique(self) -> Self:
        if not self.inputs:
            raise ValueError("the model does not have an input")
        repeated = {name for name, times in Counter(self.inputs).items() if times > 1}
        if repeated:
            raise ValueError(f"inputs are named twice: {', '.join(sorted(repeated))}")
        for name, value in self.lookup.defaults.items():
            if name not in self.view_features:
                raise ValueError(
                    f"lookup.defaults names '{name}', which is not a feature of a view that the model reads"
                )
            if value is not None and isinstance(value, str) != (name in self.categorical):
                raise ValueError(
                    f"lookup.defaults: '{name}' must be {'a text' if name in self.categorical else 'a number'} or null"
                )
        return self

    @property
    def inputs(self) -> tuple[str, ...]:
        return (*self.numeric, *self.categorical)

    @property
    def view_features(self) -> tuple[str, ...]:
        """Return the inputs that Feast provides: those neither in the request nor join keys."""
        given = {*self.request_features, *self.join_keys}
        return tuple(name for name in self.inputs if name not in given)
