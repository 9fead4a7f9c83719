"""What serving does for an entity of which the online store lacks something: the project's choice, which travels in the model's contract."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Action = Literal["refuse", "default", "baseline"]
Kind = Literal["unknown_entity", "stale_feature", "missing_feature"]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{1,39}$")]


class LookupPolicy(BaseModel):
    """What becomes of a request whose look-up lacks something. By default the model is given nulls, as in training, where such rows have nulls too.

    ``refuse``: the request gets a problem document that names entity, view and features. ``default``: the model is given ``defaults``, null where
    there is none. ``baseline``: the baseline rule, which comes with every model version, answers in the model's place, and the answer says so.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    unknown_entity: Action = Field("default", description="A feature view has no row of the entity.")
    stale_feature: Action = Field("default", description="Its row is older than the view's TTL, by the project's clock.")
    missing_feature: Action = Field("default", description="Its row is there and has no value of a feature.")
    defaults: dict[str, float | int | str | bool | None] = Field({}, description="Feature -> what the model is given in its place; null for all others.")
    views: dict[Name, dict[Kind, Action]] = Field({}, description="Feature view -> kind -> what else is done there.")
