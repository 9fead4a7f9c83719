"""Define the request and response documents of the API, with examples for the OpenAPI."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr


class PredictRequest(BaseModel):
    """The instances to predict: per instance the entity keys and the request features."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "instances": [
                        {
                            "origin": "JFK", "carrier": "B6", "dest": "BOS", "route": "JFK-BOS", "tailnum": "N503JB",
                            "hour": 18, "minute": 30, "weekday": 4, "distance": 187, "scheduled_minutes": 78,
                        }
                    ]
                }
            ]
        },
    )  # fmt: skip

    instances: Annotated[
        list[dict[str, StrictBool | StrictInt | StrictFloat | StrictStr | None]], Field(min_length=1)
    ] = Field(
        description=(
            "Flat objects with join keys (null if there is none), request features (null if unknown), and features of a"
            " view that replace the looked-up ones."
        )
    )


Parameters = Annotated[dict[str, Any] | None, Field(examples=[None])]


class Tensor(BaseModel):
    """An input tensor. The request contains each tensor of the model once."""

    name: str = Field(examples=["numeric"])
    datatype: str = Field(
        description=(
            "BOOL, INT8 to INT64, UINT8 to UINT64, FP16, BF16, FP32 or FP64 for numeric, and BYTES for categorical."
        ),
        examples=["FP32"],
    )
    shape: list[int] = Field(description="Number of rows and number of columns.", examples=[[1, 2]])
    parameters: Parameters = Field(
        None,
        description=(
            "binary_data_size is the number of bytes of the raw tensor that follows the JSON and replaces data."
        ),
    )
    data: list[Any] | None = Field(
        None, description="Values row by row, flat or nested. Missing values are null.", examples=[[18.0, 187.0]]
    )


class RequestedOutput(BaseModel):
    name: str = Field(examples=["prediction"])
    parameters: Parameters = Field(None, description="binary_data is true to request a raw tensor.")


class InferRequest(BaseModel):
    """The request of the Open Inference Protocol.

    ``/v2/models/<name>`` describes a model's tensors and columns.
    """

    id: str | None = Field(None, description="Identifier that the response repeats.", max_length=1024, examples=["42"])
    parameters: Parameters = Field(
        None,
        description="binary_data_output is true to request raw tensors. The parameters of an output take precedence.",
    )
    inputs: list[Tensor]
    outputs: list[RequestedOutput] | None = Field(
        None, description="Outputs to return. Without outputs or with an empty list, all are returned."
    )


class ResponseOutput(BaseModel):
    name: str = Field(examples=["prediction"])
    datatype: str = Field(examples=["FP64"])
    shape: list[int] = Field(examples=[[1]])
    parameters: dict[str, Any] | None = Field(
        None,
        description=(
            "binary_data_size is the number of bytes of the raw tensor that follows the JSON and replaces data."
        ),
    )
    data: list[Any] | None = Field(None, examples=[[0.37]])


class InferResponse(BaseModel):
    """The Open Inference Protocol's response."""

    model_name: str = Field(examples=["flights"])
    model_version: str = Field(examples=["3"])
    id: str | None = Field(None, description="Identifier of the request.")
    parameters: dict[str, Any] | None = Field(None, description="During a rollout, arms names the arm of each row.")
    outputs: list[ResponseOutput]


class GapDocument(BaseModel):
    """A gap of the lookup for one instance, and the action taken."""

    kind: str = Field(
        description=(
            "unknown_entity (the view does not have a row of the entity), stale_feature (the row is older than the"
            " view's TTL) or missing_feature (the row lacks a value)."
        ),
        examples=["unknown_entity"],
    )
    entity: dict[str, Any] = Field(examples=[{"tailnum": "N503JB"}])
    view: str = Field(examples=["plane"])
    features: list[str] = Field(description="Inputs without a value.", examples=[["plane_year", "plane_seats"]])
    feature_time: str | None = Field(None, description="Event time of the existing row.", examples=[None])
    action: str = Field(
        description=(
            "Action of the project's policy: default (the model got the defaults or null) or baseline (the baseline"
            " rule answered)."
        ),
        examples=["default"],
    )


class PredictionDocument(BaseModel):
    prediction_id: str = Field(
        description="Identifier of the prediction, also in the prediction log.",
        examples=["5f0c9b1e6f5d4a2c8a7b3e9d1c4f6a80"],
    )
    prediction: float = Field(
        description="Probability of class 1 (binary) or predicted number (regression).", examples=[0.37]
    )
    feature_times: dict[str, str | None] = Field(
        description=(
            "Feature view -> event time of the values used. It is null if none was found or if the request contains all"
            " of them."
        ),
        examples=[{"origin_weather": "2013-06-01T10:00:00Z", "plane": None}],
    )
    missing: list[str] = Field(description="Inputs without a value.", examples=[["plane_year", "plane_seats"]])
    model_version: str = Field(description="Version that made this prediction.", examples=["3"])
    arm: str = Field(
        description="champion, the arm of a rollout, or baseline if the version's baseline rule answered.",
        examples=["champion"],
    )
    gaps: list[GapDocument] = Field(
        description="Gaps of the look-up. Values that the request contains are not gaps.",
        examples=[
            [
                {
                    "kind": "unknown_entity",
                    "entity": {"tailnum": "N503JB"},
                    "view": "plane",
                    "features": ["plane_year", "plane_seats"],
                    "action": "default",
                }
            ]
        ],
    )


class PredictResponse(BaseModel):
    model: str = Field(examples=["flights"])
    model_version: str = Field(description="Version of the champion.", examples=["3"])
    predictions: list[PredictionDocument] = Field(description="One prediction per instance, in the same order.")


class ArmDocument(BaseModel):
    name: str = Field(examples=["canary"])
    version: str = Field(examples=["4"])
    state: str = Field(
        description="State as of a model, or stopped if the arm failed too often and no longer answers.",
        examples=["ready"],
    )
    error: str | None = Field(examples=[None])
    weight: float | None = Field(None, description="Share of the entities that the arm answers.", examples=[0.05])
    share: float | None = Field(None, description="Share of the requests that the shadow also gets.", examples=[None])


class ModelDocument(BaseModel):
    name: str = Field(examples=["flights"])
    version: str | None = Field(description="Version that answers.", examples=["3"])
    loaded_at: str | None = Field(examples=["2026-01-01T12:00:00+00:00"])
    state: str = Field(
        description=(
            "loading, ready, refused (the champion did not pass its checks), error (it cannot be fetched) or lost (no"
            " version is champion any more, and the last one keeps answering)."
        ),
        examples=["ready"],
    )
    hash_checked: bool = Field(description="True if the loaded files are those that training wrote.", examples=[True])
    arms: list[ArmDocument] = Field(description="Arms and shadows of the rollout document.", examples=[[]])
    rollout_error: str | None = Field(description="Reason why the rollout document is not applied.", examples=[None])
    installation: str | None = Field(None, description="Airloop installation that trains the model.", examples=[None])
    error: str | None = Field(
        description="Reason why the champion does not answer, or why it is unknown.", examples=[None]
    )


class ProblemDocument(BaseModel):
    """A problem document (RFC 9457)."""

    type: str = Field(examples=["urn:airloop:missing-join-key"])
    title: str = Field(examples=["A join key is missing"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["'origin' must be given; null says that there is none"])
    field: str | None = Field(None, examples=["instances[0].origin"])
    entity: dict[str, Any] | None = Field(
        None, description="Entity of the gap, for unknown-entity, stale-feature and missing-feature.", examples=[None]
    )
    view: str | None = Field(None, description="Feature view of the gap.", examples=[None])
    features: list[str] | None = Field(None, description="Features of the gap.", examples=[None])
    feature_time: str | None = Field(None, description="Event time of the existing row.", examples=[None])


class ErrorDocument(ProblemDocument):
    """A problem document (RFC 9457) with the member that Open Inference Protocol clients read."""

    error: str = Field(description="Same text as detail.", examples=["it must be [n, 5]"])


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """Return a model's JSON schema with its references inlined.

    An OpenAPI operation does not have a place for ``$defs``.
    """
    schema = model.model_json_schema()
    parts = schema.pop("$defs", {})

    def whole(node: Any) -> Any:
        if isinstance(node, dict):
            return (
                whole(parts[node["$ref"].rpartition("/")[2]])
                if "$ref" in node
                else {key: whole(value) for key, value in node.items()}
            )
        return [whole(value) for value in node] if isinstance(node, list) else node

    inlined: dict[str, Any] = whole(schema)
    return inlined
