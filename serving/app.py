"""The service over HTTP. ``python -m serving --host 127.0.0.1 --port 8000``, settings from ``SERVING_*``."""

import asyncio
import gc
import logging
import sys
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from serving import feedback, metrics, plain, v2
from serving.access import Access, Caller
from serving.access_log import AccessLog
from serving.connections import Connections, share_descriptors
from serving.docs_page import add_docs
from serving.documents import ErrorDocument, InferRequest, InferResponse, ModelDocument, PredictRequest, PredictResponse, ProblemDocument, schema_of
from serving.draining import Draining
from serving.fast_path import FastPath
from serving.front import CALLER, Application, Front, Handler, Limits, Receive, Router, Scope, Send
from serving.memory import TRIM_SECONDS, bound_what_is_kept, return_free_pages
from serving.parts import Parts
from serving.problems import Problem, invalid, media_type
from serving.settings import Settings
from serving.shares import Shares

SOMETHING_IS_LOADED = "something is being loaded"

log = logging.getLogger(__name__)


def _answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    content = {"application/problem+json": {"schema": ProblemDocument.model_json_schema()}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe the errors of the Open Inference Protocol's routes."""
    content = {"application/json": {"schema": ErrorDocument.model_json_schema()}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def create_app(settings: Settings | None = None) -> Front:
    """The application; its threads start and end with its lifespan."""
    settings = settings or Settings()
    access = Access(settings.keys_file, hosts=settings.host_names)

    parts, draining = Parts.of(settings), Draining(settings.drain_seconds)

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        draining.watch()
        bound_what_is_kept()
        parts.start()
        beat = asyncio.create_task(_beat(parts, front, pulse))
        gc.freeze()  # what was imported stays: no use in looking through it again and again
        gc.set_threshold(50_000, 20, 20)
        # The event loop waits so long for a thread that computes in Python: one that makes the prediction log's rows, say.
        sys.setswitchinterval(0.0005)
        yield
        beat.cancel()
        parts.close()
        front.access_log.flush()

    app = FastAPI(
        title="Airloop serving",
        description="Predictions of the models that MLflow calls champion, with features from Feast's online store.",
        lifespan=lifespan,
        # A redirect would name the host that the request named.
        redirect_slashes=False,
        # FastAPI's own pages load from another host.
        docs_url=None,
        redoc_url=None,
    )
    add_docs(app)
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
        """Whether every model that is to be served answers, look-up included; with details for keys with the role admin or metrics."""
        caller: Caller | None = request.scope[CALLER]
        return _ready(parts, with_details=caller is not None and caller.details, access=access, draining=draining.begun)

    @app.get("/metrics", tags=["health"], response_class=PlainTextResponse)
    async def scrape() -> Response:
        """For Prometheus; of all workers."""
        pulse.take()
        front.flush()
        content, media_type = metrics.exposition()
        return Response(content, media_type=media_type)

    @app.get("/models", tags=["models"])
    async def models(request: Request) -> list[ModelDocument]:
        """The models that the caller may use."""
        caller: Caller = request.scope[CALLER]
        return [ModelDocument(**parts.registry.document(name)) for name in sorted(parts.registry.models) if caller.may_use(name)]

    @app.get("/models/{name}", tags=["models"], responses=_answers(404, 503))
    async def model(name: str) -> ModelDocument:
        return ModelDocument(**parts.registry.document(name))

    @app.get("/v2", tags=["v2"])
    @app.get("/v2/", include_in_schema=False)  # the path in the OpenAPI of the protocol
    async def server_metadata() -> dict[str, Any]:
        return v2.SERVER

    @app.get("/v2/health/live", tags=["v2"])
    async def server_live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready", tags=["v2"], responses=_errors(503))
    async def server_ready() -> JSONResponse:
        """Whether every model that is to be served answers: ``{"ready": true}``, or false with status 503."""
        if not _waiting(parts, draining=draining.begun):
            return JSONResponse({"ready": True})
        return JSONResponse(v2.not_ready(SOMETHING_IS_LOADED), status_code=503, headers={"Retry-After": "1"})

    @app.get("/v2/models/{name}", tags=["v2"], responses=_errors(404, 503))
    @app.get("/v2/models/{name}/versions/{version}", tags=["v2"], responses=_errors(404, 503))
    async def model_metadata(name: str, version: str | None = None) -> dict[str, Any]:
        """The model's tensors with the names of their columns; under ``parameters`` its state, arms, and why the champion does not answer."""
        return v2.metadata(parts, name, version)

    @app.get("/v2/models/{name}/ready", tags=["v2"], responses=_errors(404, 503))
    @app.get("/v2/models/{name}/versions/{version}/ready", tags=["v2"], responses=_errors(404, 503))
    async def model_ready(name: str, version: str | None = None) -> dict[str, Any]:
        """Whether a model, or one of its versions, answers: 200 with ``{"ready": true}``, or an error."""
        return v2.model_ready(parts, name, version)

    # Answered by the front, which knows the same paths; declared for the OpenAPI, and for other methods.
    body = {"requestBody": {"required": True, "content": {"application/json": {"schema": schema_of(PredictRequest)}}}}

    @app.post("/models/{name}/predict", tags=["models"], responses=_answers(400, 404, 408, 413, 422, 503), openapi_extra=body)
    async def predict(name: str) -> PredictResponse:
        """Predict instances with the champion of a model, or the arm that a rollout gives an entity; each answer is logged under its ``prediction_id``."""
        raise Problem(404, "http", "Not Found", f"no model '{name}'")  # a name that no route of the front has

    tensors = {"requestBody": {"required": True, "content": {"application/json": {"schema": schema_of(InferRequest)}}}}

    @app.post("/v2/models/{name}/infer", tags=["v2"], responses=_errors(400, 404, 408, 413, 415, 422, 503), openapi_extra=tensors)
    @app.post("/v2/models/{name}/versions/{version}/infer", tags=["v2"], responses=_errors(400, 404, 408, 413, 415, 422, 503), openapi_extra=tensors)
    async def infer(name: str, version: str | None = None) -> InferResponse:
        """Inference on the graph's own tensors, in JSON or raw behind it (the binary tensor data extension)."""
        raise Problem(404, "http", "Not Found", f"no model '{name}'")

    outcomes = {"requestBody": {"required": True, "content": {"application/json": {"schema": schema_of(feedback.Feedback)}}}}

    @app.post("/feedback", tags=["feedback"], responses=_answers(400, 404, 408, 413, 422, 503), openapi_extra=outcomes)
    async def labels() -> feedback.FeedbackTaken:
        """Labels of predictions, for the landing zone. Sending the same ones again does no harm."""
        raise Problem(404, "http", "Not Found", "no such path")

    front = _front(_with_head(app), settings, access, _router(parts), draining)
    front.parts, front.fast_path = parts, FastPath(front, parts)
    pulse = metrics.Pulse(lambda: parts.state() | {"in_flight": front.in_flight, "connections": len(front.connections)})
    return front


def _with_head(app: Application) -> Application:
    """Answer HEAD as GET (RFC 9110, 9.1); the server sends no body."""

    async def asked(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await app(scope, receive, send)

    return asked


def _front(app: Application, settings: Settings, access: Access, router: Router, draining: Draining) -> Front:
    limits = Limits(
        head_bytes=settings.max_header_bytes, headers=settings.max_headers, head_seconds=settings.head_seconds,
        body_bytes=settings.max_bytes, request_seconds=settings.request_seconds,
    )  # fmt: skip
    held = max(settings.max_body_bytes, 2 * settings.max_bytes)
    shares = Shares(keyed=settings.keys_file is not None, requests=settings.max_requests, rows=settings.max_rows, body_bytes=held)
    most = share_descriptors(settings.max_connections).connections
    connections = Connections(most, settings.max_connections_per_address, lambda reason: metrics.connections_closed.labels(reason).inc())
    return Front(app, access, router, draining, limits=limits, shares=shares, connections=connections, access_log=AccessLog(settings.access_log))


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
    """Once a second, until cancelled: the metrics, and an end to what takes too long. Now and then free memory goes back to the system."""
    loop = asyncio.get_running_loop()
    trimmed = loop.time()
    while True:
        pulse.take()
        front.flush()
        front.end_the_overdue()
        front.fast_path.pass_on_the_slow()
        front.connections.sweep()
        front.access_log.flush_soon()
        if loop.time() - trimmed > TRIM_SECONDS:
            trimmed = loop.time()
            await asyncio.to_thread(return_free_pages)
        await asyncio.sleep(1)


def _waiting(parts: Parts, *, draining: bool) -> list[str]:
    """Return what the service waits for before it is ready."""
    registry, lookup = parts.registry, parts.lookup
    waiting = registry.waiting()
    needs_features = [m for m in registry.models.values() if m.served and m.served.bundle.contract.view_features]
    if needs_features and lookup.state != "ready":
        waiting.append("feature look-up is not ready")
    if draining:
        waiting.append("the service is about to end, and its callers should go to another one")
    return waiting


def _ready(parts: Parts, *, with_details: bool, access: Access, draining: bool) -> JSONResponse:
    registry, lookup = parts.registry, parts.lookup
    waiting, details = _waiting(parts, draining=draining), {}
    if with_details:
        models = [registry.document(name) for name in sorted(registry.models)]
        details = {"models": models, "registry": registry.status(), "lookup": lookup.status(), "prediction_log": parts.prediction_log.stats()}
        if access.file is not None:
            details["keys"] = {"error": access.error}
    elif waiting:
        # A client without a key learns only whether to send requests here.
        waiting = [SOMETHING_IS_LOADED]
    if not waiting:
        return JSONResponse({"status": "degraded" if details and registry.stale else "ready", **details})
    problem = Problem(503, "not-ready", "The service is not ready", "; ".join(waiting)).document()
    return JSONResponse(problem | details, status_code=503, media_type="application/problem+json", headers={"Retry-After": "1"})


def _on_problem(request: Request, problem: Exception) -> JSONResponse:
    assert isinstance(problem, Problem)
    path = request.url.path
    return JSONResponse(problem.document(path), status_code=problem.status, media_type=media_type(path), headers=problem.headers)


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
