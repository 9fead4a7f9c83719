"""Policy for entities with missing features in the online store.

The project chooses it. It is part of the model's contract.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Action = Literal["refuse", "default", "baseline"]
Kind = Literal["unknown_entity", "stale_feature", "missing_feature"]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{1,39}$")]


class LookupPolicy(BaseModel):
    """The action for a request whose look-up is incomplete.

    By default the model gets nulls, as in training, where such rows have nulls too.

    - ``refuse``: the response is a problem document that names entity, view and features.
    - ``default``: the model gets ``defaults``, or null for features without a default.
    - ``baseline``: the baseline rule, which is part of every model version, answers instead of the
      model. The answer says so.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    unknown_entity: Action = Field("default", description="Action if a feature view does not have a row of the entity.")
    stale_feature: Action = Field(
        "default", description="Action if the row is older than the view's TTL, by the project's clock."
    )
    missing_feature: Action = Field("default", description="Action if the row exists but lacks a value of a feature.")
    defaults: dict[str, float | int | str | bool | None] = Field(
        {}, description="Feature -> value that the model gets instead. All other features are null."
    )
    views: dict[Name, dict[Kind, Action]] = Field(
        {}, description="Feature view -> kind -> action that replaces the general one."
    )
