"""The service over HTTP. ``python -m uvicorn serving.app:app --host 127.0.0.1 --port 8000``, settings from ``SERVING_*``."""

import logging
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr
from starlette.exceptions import HTTPException

from serving import predict as data_plane
from serving.access import Access
from serving.front import CALLER, Front
from serving.lookup import FeatureLookup
from serving.prediction_log import PredictionLog
from serving.problems import Problem, invalid
from serving.registry import ModelRegistry
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


class PredictionDocument(BaseModel):
    prediction_id: str = Field(description="Also in the prediction log.", examples=["5f0c9b1e6f5d4a2c8a7b3e9d1c4f6a80"])
    prediction: float = Field(description="Probability of 1 (binary) or the number (regression).", examples=[0.37])
    feature_times: dict[str, str | None] = Field(
        description="Feature view -> event time of the values used; null: none was found, or the request gave all of them.",
        examples=[{"origin_weather": "2013-06-01T10:00:00Z", "plane": None}],
    )
    missing: list[str] = Field(description="Inputs without a value.", examples=[["plane_year", "plane_seats"]])


class PredictResponse(BaseModel):
    model: str = Field(examples=["flights"])
    model_version: str = Field(examples=["3"])
    predictions: list[PredictionDocument] = Field(description="One per instance, in their order.")


class ModelDocument(BaseModel):
    name: str = Field(examples=["flights"])
    version: str | None = Field(description="The version that answers.", examples=["3"])
    loaded_at: str | None = Field(examples=["2026-01-01T12:00:00+00:00"])
    state: str = Field(description="loading, ready, refused (the champion is not fit to answer) or error (it cannot be fetched).", examples=["ready"])
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


def create_app(settings: Settings | None = None) -> Front:
    """The application; its threads start and end with its lifespan."""
    settings = settings or Settings()
    access = Access(settings.keys_file, workers=settings.workers)

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        registry = ModelRegistry(settings.mlflow_uri, settings.cache, names=settings.model_names, poll_seconds=settings.poll_seconds, threads=settings.threads)
        lookup = FeatureLookup(settings.feature_repo, refresh_seconds=settings.feature_registry_seconds)
        prediction_log = PredictionLog(
            settings.log_root,
            flush_seconds=settings.log_flush_seconds,
            capacity=settings.log_capacity,
            endpoint=settings.s3_endpoint,
            region=settings.s3_region,
        )
        app.state.registry, app.state.lookup, app.state.prediction_log = registry, lookup, prediction_log
        prediction_log.start()
        registry.start()
        lookup.start(after=registry.imported)
        yield
        lookup.close()
        registry.close()
        prediction_log.close()

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
    def ready(request: Request) -> JSONResponse:
        """Whether every model that is to be served answers, look-up included; with the details of each part."""
        return _ready(request.app, with_details=request.scope[CALLER] is not None, access=access)

    @app.get("/models", tags=["models"])
    def models(request: Request) -> list[ModelDocument]:
        registry = request.app.state.registry
        return [ModelDocument(**registry.document(name)) for name in sorted(registry.models)]

    @app.get("/models/{name}", tags=["models"], responses=_answers(404, 503))
    def model(request: Request, name: str) -> ModelDocument:
        return ModelDocument(**request.app.state.registry.document(name))

    @app.post("/models/{name}/predict", tags=["models"], responses=_answers(400, 404, 422, 500, 503))
    def predict(request: Request, name: str, body: PredictRequest) -> PredictResponse:
        """Predict instances with the champion of a model; each answer is logged under its ``prediction_id``."""
        started, predicted_at = time.perf_counter(), datetime.now(UTC)
        if len(body.instances) > settings.max_instances:
            detail = f"{len(body.instances)} instances; at most {settings.max_instances} go into one request"
            raise invalid("too-many-instances", "Too many instances", detail, "instances")
        state = request.app.state
        served = state.registry.serving(name)  # this one answers the whole request, whatever the registry says meanwhile
        predictions = data_plane.predict(served, state.lookup, body.instances)
        latency_ms = (time.perf_counter() - started) * 1000
        state.prediction_log.append(data_plane.log_rows(served, predictions, predicted_at=predicted_at, latency_ms=latency_ms))
        documents = [
            PredictionDocument(prediction_id=p.prediction_id, prediction=p.prediction, feature_times=data_plane.feature_times(p), missing=p.missing)
            for p in predictions
        ]
        return PredictResponse(model=name, model_version=served.version, predictions=documents)

    return Front(app, access)


def _ready(app: FastAPI, *, with_details: bool, access: Access) -> JSONResponse:
    registry, lookup = app.state.registry, app.state.lookup
    models = [registry.document(name) for name in sorted(registry.models)]
    waiting = [f"model '{document['name']}' is not loaded" for document in models if document["version"] is None]
    if registry.polled_at is None and not models:
        waiting.append("the registry has not answered yet")
    needs_features = [m for m in registry.models.values() if m.served and m.served.bundle.contract.view_features]
    if needs_features and lookup.state != "ready":
        waiting.append("feature look-up is not ready")
    details: dict[str, Any] = {"models": models, "registry": registry.status(), "lookup": lookup.status(), "prediction_log": app.state.prediction_log.stats()}
    if access.file is not None:
        details["keys"] = {"error": access.error}
    if not with_details:  # whoever has no key learns that much: whether to send requests here
        waiting, details = ["something is being loaded"] * bool(waiting), {}
    if not waiting:
        return JSONResponse({"status": "ready", **details})
    problem = Problem(503, "not-ready", "The service is not ready", "; ".join(waiting)).document()
    return JSONResponse(problem | details, status_code=503, media_type="application/problem+json", headers={"Retry-After": "1"})


def _on_problem(_request: Request, problem: Exception) -> JSONResponse:
    assert isinstance(problem, Problem)
    return JSONResponse(problem.document(), status_code=problem.status, media_type="application/problem+json", headers=problem.headers)


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
