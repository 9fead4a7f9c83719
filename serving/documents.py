"""What goes in and comes out, for the OpenAPI and with examples."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr


class PredictRequest(BaseModel):
    """What is to be predicted: per instance the entity keys and what comes with the request."""

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

    instances: Annotated[list[dict[str, StrictBool | StrictInt | StrictFloat | StrictStr | None]], Field(min_length=1)] = Field(
        description="Flat objects: join keys (null: none), request features (null: not known), and any feature of a view, to use instead of the looked-up one."
    )


Parameters = Annotated[dict[str, Any] | None, Field(examples=[None])]


class Tensor(BaseModel):
    """An input tensor; each of the model's must be there once."""

    name: str = Field(examples=["numeric"])
    datatype: str = Field(description="BOOL, INT8 to INT64, UINT8 to UINT64, FP16, BF16, FP32 or FP64 for numeric; BYTES for categorical.", examples=["FP32"])
    shape: list[int] = Field(description="Rows and columns.", examples=[[1, 2]])
    parameters: Parameters = Field(None, description="binary_data_size: bytes of the raw tensor that follows the JSON, in place of data.")
    data: list[Any] | None = Field(None, description="Row by row, flat or nested; null where a value is missing.", examples=[[18.0, 187.0]])


class RequestedOutput(BaseModel):
    name: str = Field(examples=["prediction"])
    parameters: Parameters = Field(None, description="binary_data: true for a raw tensor.")


class InferRequest(BaseModel):
    """The Open Inference Protocol's request; ``/v2/models/<name>`` says which tensors and columns a model has."""

    id: str | None = Field(None, description="Comes back in the answer.", max_length=1024, examples=["42"])
    parameters: Parameters = Field(None, description="binary_data_output: true for raw tensors, unless an output says otherwise.")
    inputs: list[Tensor]
    outputs: list[RequestedOutput] | None = Field(None, description="None or an empty list: all.")


class ResponseOutput(BaseModel):
    name: str = Field(examples=["prediction"])
    datatype: str = Field(examples=["FP64"])
    shape: list[int] = Field(examples=[[1]])
    parameters: dict[str, Any] | None = Field(None, description="binary_data_size: bytes of the raw tensor that follows the JSON, in place of data.")
    data: list[Any] | None = Field(None, examples=[[0.37]])


class InferResponse(BaseModel):
    """The Open Inference Protocol's response."""

    model_name: str = Field(examples=["flights"])
    model_version: str = Field(examples=["3"])
    id: str | None = Field(None, description="That of the request.")
    parameters: dict[str, Any] | None = Field(None, description="arms: of each row, with a rollout.")
    outputs: list[ResponseOutput]


class GapDocument(BaseModel):
    """What the look-up lacked of an instance, and what was done about it."""

    kind: str = Field(
        description="unknown_entity: the view has no row of it; stale_feature: its row is older than the view's TTL; missing_feature: no value in the row.",
        examples=["unknown_entity"],
    )
    entity: dict[str, Any] = Field(examples=[{"tailnum": "N503JB"}])
    view: str = Field(examples=["plane"])
    features: list[str] = Field(description="The inputs that lack a value.", examples=[["plane_year", "plane_seats"]])
    feature_time: str | None = Field(None, description="Event time of the row that is there.", examples=[None])
    action: str = Field(
        description="The project's choice. default: the model was given its defaults, or null; baseline: the baseline rule answered.", examples=["default"]
    )


class PredictionDocument(BaseModel):
    prediction_id: str = Field(description="Also in the prediction log.", examples=["5f0c9b1e6f5d4a2c8a7b3e9d1c4f6a80"])
    prediction: float = Field(description="Probability of 1 (binary) or the number (regression).", examples=[0.37])
    feature_times: dict[str, str | None] = Field(
        description="Feature view -> event time of the values used; null: none was found, or the request gave all of them.",
        examples=[{"origin_weather": "2013-06-01T10:00:00Z", "plane": None}],
    )
    missing: list[str] = Field(description="Inputs without a value.", examples=[["plane_year", "plane_seats"]])
    model_version: str = Field(description="The version that answered this one.", examples=["3"])
    arm: str = Field(description="champion, the arm of a rollout, or baseline: the version's baseline rule answered.", examples=["champion"])
    gaps: list[GapDocument] = Field(
        description="What the look-up lacked; none for what the request gives itself.",
        examples=[
            [{"kind": "unknown_entity", "entity": {"tailnum": "N503JB"}, "view": "plane", "features": ["plane_year", "plane_seats"], "action": "default"}]
        ],
    )


class PredictResponse(BaseModel):
    model: str = Field(examples=["flights"])
    model_version: str = Field(description="The champion.", examples=["3"])
    predictions: list[PredictionDocument] = Field(description="One per instance, in their order.")


class ArmDocument(BaseModel):
    name: str = Field(examples=["canary"])
    version: str = Field(examples=["4"])
    state: str = Field(description="As a model's; stopped: it failed too often and answers nobody.", examples=["ready"])
    error: str | None = Field(examples=[None])
    weight: float | None = Field(None, description="Share of the entities that an arm answers.", examples=[0.05])
    share: float | None = Field(None, description="Share of the requests that a shadow is asked too.", examples=[None])


class ModelDocument(BaseModel):
    name: str = Field(examples=["flights"])
    version: str | None = Field(description="The version that answers.", examples=["3"])
    loaded_at: str | None = Field(examples=["2026-01-01T12:00:00+00:00"])
    state: str = Field(
        description="loading, ready, refused (the champion is not fit to answer), error (it cannot be fetched) or lost (no version is champion any more; "
        "the last one keeps answering).",
        examples=["ready"],
    )
    hash_checked: bool = Field(description="The files that answer are those that training wrote.", examples=[True])
    arms: list[ArmDocument] = Field(description="Arms and shadows of the rollout document.", examples=[[]])
    rollout_error: str | None = Field(description="Why the rollout document is not followed.", examples=[None])
    installation: str | None = Field(None, description="The installation of Airloop that trains the model.", examples=[None])
    error: str | None = Field(description="Why the champion does not answer, or why nobody knows who it is.", examples=[None])


class ProblemDocument(BaseModel):
    """RFC 9457."""

    type: str = Field(examples=["urn:airloop:missing-join-key"])
    title: str = Field(examples=["A join key is missing"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["'origin' must be given; null says that there is none"])
    field: str | None = Field(None, examples=["instances[0].origin"])
    entity: dict[str, Any] | None = Field(None, description="With unknown-entity, stale-feature and missing-feature: whom the look-up lacks.", examples=[None])
    view: str | None = Field(None, description="... in which feature view.", examples=[None])
    features: list[str] | None = Field(None, description="... which features.", examples=[None])
    feature_time: str | None = Field(None, description="... and of when the row is that is there.", examples=[None])


class ErrorDocument(ProblemDocument):
    """RFC 9457, with the member that clients of the Open Inference Protocol read."""

    error: str = Field(description="As detail.", examples=["it must be [n, 5]"])


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """A model's JSON schema with everything in it: there is no place beside it for ``$defs``."""
    schema = model.model_json_schema()
    parts = schema.pop("$defs", {})

    def whole(node: Any) -> Any:
        if isinstance(node, dict):
            return whole(parts[node["$ref"].rpartition("/")[2]]) if "$ref" in node else {key: whole(value) for key, value in node.items()}
        return [whole(value) for value in node] if isinstance(node, list) else node

    return whole(schema)
