"""The service over HTTP. ``python -m uvicorn serving.app:app --host 127.0.0.1 --port 8000``, settings from ``SERVING_*``."""

import asyncio
import gc
import logging
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr
from starlette.exceptions import HTTPException

from serving import feedback, metrics, plain, v2
from serving.access import Access
from serving.front import CALLER, Front, Handler, Router
from serving.parts import Parts
from serving.problems import Problem, invalid
from serving.settings import Settings

log = logging.getLogger(__name__)


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


class Tensor(BaseModel):
    name: str = Field(examples=["numeric"])
    datatype: str = Field(examples=["FP32"])
    shape: list[int] = Field(examples=[[1, 2]])
    data: list[Any] = Field(examples=[[18.0, 187.0]])


class InferRequest(BaseModel):
    """The Open Inference Protocol's request; ``/v2/models/<name>`` says which tensors and columns a model has."""

    id: str = Field("", description="Comes back in the answer.")
    inputs: list[Tensor]


class PredictionDocument(BaseModel):
    prediction_id: str = Field(description="Also in the prediction log.", examples=["5f0c9b1e6f5d4a2c8a7b3e9d1c4f6a80"])
    prediction: float = Field(description="Probability of 1 (binary) or the number (regression).", examples=[0.37])
    feature_times: dict[str, str | None] = Field(
        description="Feature view -> event time of the values used; null: none was found, or the request gave all of them.",
        examples=[{"origin_weather": "2013-06-01T10:00:00Z", "plane": None}],
    )
    missing: list[str] = Field(description="Inputs without a value.", examples=[["plane_year", "plane_seats"]])
    model_version: str = Field(description="The version that answered this one.", examples=["3"])
    arm: str = Field(description="champion, or the arm of a rollout.", examples=["champion"])


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
    state: str = Field(description="loading, ready, refused (the champion is not fit to answer) or error (it cannot be fetched).", examples=["ready"])
    hash_checked: bool = Field(description="The files that answer are those that training wrote.", examples=[True])
    arms: list[ArmDocument] = Field(description="Arms and shadows of the rollout document.", examples=[[]])
    rollout_error: str | None = Field(description="Why the rollout document is not followed.", examples=[None])
    error: str | None = Field(description="Why the champion does not answer, or why nobody knows who it is.", examples=[None])


class ProblemDocument(BaseModel):
    """RFC 9457."""

    type: str = Field(examples=["urn:airloop:missing-join-key"])
    title: str = Field(examples=["A join key is missing"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["'origin' must be given; null says that there is none"])
    field: str | None = Field(None, examples=["instances[0].origin"])


def _answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    content = {"application/problem+json": {"schema": ProblemDocument.model_json_schema()}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    """A model's JSON schema with everything in it: there is no place beside it for ``$defs``."""
    schema = model.model_json_schema()
    parts = schema.pop("$defs", {})

    def whole(node: Any) -> Any:
        if isinstance(node, dict):
            return whole(parts[node["$ref"].rpartition("/")[2]]) if "$ref" in node else {key: whole(value) for key, value in node.items()}
        return [whole(value) for value in node] if isinstance(node, list) else node

    return whole(schema)


def create_app(settings: Settings | None = None) -> Front:
    """The application; its threads start and end with its lifespan."""
    settings = settings or Settings()
    access = Access(settings.keys_file, workers=settings.workers)

    parts = Parts.of(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        parts.start()
        beat = asyncio.create_task(_beat(parts, front, pulse))
        gc.freeze()  # what was imported stays: no use in looking through it again and again
        gc.set_threshold(50_000, 20, 20)
        yield
        beat.cancel()
        parts.close()

    app = FastAPI(
        title="Airloop serving",
        description="Predictions of the models that MLflow calls champion, with features from Feast's online store.",
        lifespan=lifespan,
    )
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_fault)

    @app.get("/live", tags=["health"])
    async def live() -> dict[str, str]:
        """The process answers."""
        return {"status": "live"}

    @app.get("/ready", tags=["health"], responses=_answers(503))
    async def ready(request: Request) -> JSONResponse:
        """Whether every model that is to be served answers, look-up included; with the details of each part for callers with a key."""
        return _ready(parts, with_details=request.scope[CALLER] is not None, access=access)

    @app.get("/metrics", tags=["health"], response_class=PlainTextResponse)
    async def scrape() -> Response:
        """For Prometheus; of all workers."""
        pulse.take()
        front.flush()
        content, media_type = metrics.exposition()
        return Response(content, media_type=media_type)

    @app.get("/models", tags=["models"])
    async def models() -> list[ModelDocument]:
        return [ModelDocument(**parts.registry.document(name)) for name in sorted(parts.registry.models)]

    @app.get("/models/{name}", tags=["models"], responses=_answers(404, 503))
    async def model(name: str) -> ModelDocument:
        return ModelDocument(**parts.registry.document(name))

    @app.get("/v2", tags=["v2"])
    async def server_metadata() -> dict[str, Any]:
        return v2.SERVER

    @app.get("/v2/health/live", tags=["v2"])
    async def server_live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready", tags=["v2"], responses=_answers(503))
    async def server_ready() -> JSONResponse:
        return _ready(parts, with_details=False, access=access)

    @app.get("/v2/models/{name}", tags=["v2"], responses=_answers(404, 503))
    @app.get("/v2/models/{name}/versions/{version}", tags=["v2"], responses=_answers(404, 503))
    async def model_metadata(name: str, version: str | None = None) -> dict[str, Any]:
        """The model's tensors with the names of their columns; under ``parameters`` its state, arms, and why the champion does not answer."""
        return v2.metadata(parts, name, version)

    @app.get("/v2/models/{name}/ready", tags=["v2"], responses=_answers(404, 503))
    @app.get("/v2/models/{name}/versions/{version}/ready", tags=["v2"], responses=_answers(404, 503))
    async def model_ready(name: str, version: str | None = None) -> dict[str, Any]:
        return {"name": name, "ready": bool(v2.version_of(parts.registry.route(name), name, version))}

    # Answered by the front, which knows the same paths; declared for the OpenAPI, and for other methods.
    body = {"requestBody": {"required": True, "content": {"application/json": {"schema": _schema(PredictRequest)}}}}

    @app.post("/models/{name}/predict", tags=["models"], responses=_answers(400, 404, 408, 413, 422, 503), openapi_extra=body)
    async def predict(name: str) -> PredictResponse:
        """Predict instances with the champion of a model, or the arm that a rollout gives an entity; each answer is logged under its ``prediction_id``."""
        raise Problem(404, "http", "Not Found", f"no model '{name}'")  # a name that no route of the front has

    front = Front(app, access, _router(parts), most_bytes=settings.max_bytes, most_requests=settings.max_requests, seconds=settings.request_seconds)
    front.parts = parts
    pulse = metrics.Pulse(lambda: parts.state() | {"in_flight": front.in_flight})
    return front


def _router(parts: Parts) -> Router:
    """What the front answers itself."""
    plain_predict, infer, take = partial(plain.predict, parts), partial(v2.infer, parts), partial(feedback.take, parts)

    def route(method: str, path: tuple[str, ...]) -> tuple[str, Handler] | None:
        if method == "POST" and len(path) == 3 and path[0] == "models" and path[2] == "predict":
            return "predict", plain_predict
        if method == "POST" and path[-1] == "infer" and path[:2] == ("v2", "models") and (len(path) == 4 or (len(path) == 6 and path[3] == "versions")):
            return "infer", infer
        if method == "POST" and path == ("feedback",):
            return "feedback", take
        return None

    return route


async def _beat(parts: Parts, front: Front, pulse: metrics.Pulse) -> None:
    """Once a second, until cancelled: the metrics, and an end to what takes too long."""
    while True:
        pulse.take()
        front.flush()
        front.end_the_overdue()
        await asyncio.sleep(1)


def _ready(parts: Parts, *, with_details: bool, access: Access) -> JSONResponse:
    registry, lookup = parts.registry, parts.lookup
    models = [registry.document(name) for name in sorted(registry.models)]
    waiting = [f"model '{document['name']}' is not loaded" for document in models if document["version"] is None]
    if registry.polled_at is None and not models:
        waiting.append("the registry has not answered yet")
    needs_features = [m for m in registry.models.values() if m.served and m.served.bundle.contract.view_features]
    if needs_features and lookup.state != "ready":
        waiting.append("feature look-up is not ready")
    details: dict[str, Any] = {"models": models, "registry": registry.status(), "lookup": lookup.status(), "prediction_log": parts.prediction_log.stats()}
    if access.file is not None:
        details["keys"] = {"error": access.error}
    if not with_details:  # whoever has no key learns that much: whether to send requests here
        waiting, details = ["something is being loaded"] * bool(waiting), {}
    if not waiting:
        return JSONResponse({"status": "ready", **details})
    problem = Problem(503, "not-ready", "The service is not ready", "; ".join(waiting)).document()
    return JSONResponse(problem | details, status_code=503, media_type="application/problem+json", headers={"Retry-After": "1"})


def _on_problem(request: Request, problem: Exception) -> JSONResponse:
    assert isinstance(problem, Problem)
    return JSONResponse(problem.document(request.url.path), status_code=problem.status, media_type="application/problem+json", headers=problem.headers)


def _on_invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where, *path = first["loc"]
    if first["type"] == "json_invalid":
        return _on_problem(request, Problem(400, "not-json", "The body is not JSON", f"{first['msg']} at character {path[0] if path else 0}", field="body"))
    value = len(path) >= 3  # instances, number, name, and then what the value might have been
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path[:3]).lstrip(".") or str(where)
    detail = "must be a string, a number, true, false or null" if value else str(first["msg"])
    return _on_problem(request, invalid("wrong-type" if value else "invalid-request", "The request is not as it should be", detail, field))


def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    response = _on_problem(request, Problem(error.status_code, "http", HTTPStatus(error.status_code).phrase, str(error.detail)))
    response.headers.update(error.headers or {})
    return response


def _on_fault(request: Request, error: Exception) -> JSONResponse:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _on_problem(request, Problem(500, "fault", "The service failed", "this is a fault of the service; its log says more"))


app = create_app()
