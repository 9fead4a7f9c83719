"""Build the service's HTTP application.

Run it with ``python -m serving --host 127.0.0.1 --port 8000``. Settings come from ``SERVING_*``.
"""

import asyncio
import gc
import logging
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from serving import metrics
from serving.access.callers import Access, Caller
from serving.access.log import AccessLog
from serving.http import feedback, json_api, v2
from serving.http.connections import Connections, share_descriptors
from serving.http.docs_page import add_docs
from serving.http.documents import (
    ErrorDocument,
    InferRequest,
    InferResponse,
    ModelDocument,
    PredictRequest,
    PredictResponse,
    ProblemDocument,
    schema_of,
)
from serving.http.draining import Draining
from serving.http.fast_path import FastPath
from serving.http.gateway import CALLER, Application, Gateway, Receive, RequestLimits, RouteHandler, Router, Scope, Send
from serving.http.shares import Shares
from serving.memory import TRIM_SECONDS, bound_what_is_kept, return_free_pages
from serving.predicting.context import ServingContext
from serving.problems import ProblemError, invalid, media_type
from serving.settings import Settings

SOMETHING_IS_LOADED = "something is being loaded"

log = logging.getLogger(__name__)


def _answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    content = {"application/problem+json": {"schema": ProblemDocument.model_json_schema()}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe the errors of the Open Inference Protocol's routes."""
    content = {"application/json": {"schema": ErrorDocument.model_json_schema()}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def create_app(settings: Settings | None = None) -> Gateway:
    """Return the application. Its lifespan starts and stops its threads."""
    settings = settings or Settings()
    access = Access(settings.keys_file, hosts=settings.host_names)

    context, draining = ServingContext.from_settings(settings), Draining(settings.drain_seconds)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        draining.watch()
        bound_what_is_kept()
        context.start()
        beat = asyncio.create_task(_beat(context, gateway, gauges))
        # Imported objects live as long as the process, so the collector does not need to scan them
        # again.
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        # A thread that computes in Python, such as the one that builds the prediction log's rows,
        # can delay the event loop for this long.
        sys.setswitchinterval(0.0005)
        yield
        beat.cancel()
        context.close()
        gateway.access_log.flush()

    app = FastAPI(
        title="Airloop serving",
        description="Predictions of the models that MLflow calls champion, with features from Feast's online store.",
        lifespan=lifespan,
        # A redirect would contain the host name that the request claimed.
        redirect_slashes=False,
        # FastAPI's own pages load scripts from another host.
        docs_url=None,
        redoc_url=None,
    )
    add_docs(app)
    app.add_exception_handler(ProblemError, _on_problem)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_fault)

    def flush() -> None:
        gauges.take()
        gateway.flush()

    _add_health_and_models(app, context, access, draining, flush)
    _add_protocol(app, context, draining)
    _declare_gateway(app)
    gateway = _build_gateway(_with_head(app), settings, access, _router(context), draining)
    gateway.context, gateway.fast_path = context, FastPath(gateway, context)
    gauges = metrics.GaugeUpdater(
        lambda: context.state() | {"in_flight": gateway.in_flight, "connections": len(gateway.connections)}
    )
    return gateway


def _add_health_and_models(
    app: FastAPI, context: ServingContext, access: Access, draining: Draining, flush: Callable[[], None]
) -> None:
    """Add the routes of the service's health, its metrics and its models.

    Args:
        flush: Brings the metrics of this worker up to date.
    """

    @app.get("/live", tags=["health"])
    async def live() -> dict[str, str]:
        """Return 200 while the process answers requests."""
        return {"status": "live"}

    @app.get("/ready", tags=["health"], responses=_answers(503))
    async def ready(request: Request) -> JSONResponse:
        """Report whether all configured models can answer, including their feature lookup.

        Keys with the role ``admin`` or ``metrics`` also get details.
        """
        caller: Caller | None = request.scope[CALLER]
        return _ready(
            context, with_details=caller is not None and caller.details, access=access, draining=draining.begun
        )

    @app.get("/metrics", tags=["health"], response_class=PlainTextResponse)
    async def scrape() -> Response:
        """Return the metrics of all workers in the Prometheus text format."""
        flush()
        content, media_type = metrics.exposition()
        return Response(content, media_type=media_type)

    @app.get("/models", tags=["models"])
    async def models(request: Request) -> list[ModelDocument]:
        """Return the models that the caller may use."""
        caller: Caller = request.scope[CALLER]
        return [
            ModelDocument(**context.registry.document(name))
            for name in sorted(context.registry.models)
            if caller.may_use(name)
        ]

    @app.get("/models/{name}", tags=["models"], responses=_answers(404, 503))
    async def model(name: str) -> ModelDocument:
        return ModelDocument(**context.registry.document(name))


def _add_protocol(app: FastAPI, context: ServingContext, draining: Draining) -> None:
    """Add the routes of the Open Inference Protocol that do not run inference."""

    @app.get("/v2", tags=["v2"])
    # The OpenAPI document of the protocol has the path with a slash.
    @app.get("/v2/", include_in_schema=False)
    async def server_metadata() -> dict[str, Any]:
        return v2.SERVER

    @app.get("/v2/health/live", tags=["v2"])
    async def server_live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready", tags=["v2"], responses=_errors(503))
    async def server_ready() -> JSONResponse:
        """Report whether all configured models can answer.

        Returns ``{"ready": true}``, or ``{"ready": false}`` with status 503.
        """
        if not _waiting(context, draining=draining.begun):
            return JSONResponse({"ready": True})
        return JSONResponse(v2.not_ready(SOMETHING_IS_LOADED), status_code=503, headers={"Retry-After": "1"})

    @app.get("/v2/models/{name}", tags=["v2"], responses=_errors(404, 503))
    @app.get("/v2/models/{name}/versions/{version}", tags=["v2"], responses=_errors(404, 503))
    async def model_metadata(name: str, version: str | None = None) -> dict[str, Any]:
        """Return the model's tensors with their column names.

        ``parameters`` contains the model's state, its arms, and the reason if the champion does not
        answer.
        """
        return v2.metadata(context, name, version)

    @app.get("/v2/models/{name}/ready", tags=["v2"], responses=_errors(404, 503))
    @app.get("/v2/models/{name}/versions/{version}/ready", tags=["v2"], responses=_errors(404, 503))
    async def model_ready(name: str, version: str | None = None) -> dict[str, Any]:
        """Report whether the model, or the named version, can answer.

        Returns 200 with ``{"ready": true}``, or an error.
        """
        return v2.model_ready(context, name, version)


def _declare_gateway(app: FastAPI) -> None:
    """Declare the paths that the gateway (``Gateway``) answers itself.

    The OpenAPI document and requests with other methods need them.
    """
    body = {"requestBody": {"required": True, "content": {"application/json": {"schema": schema_of(PredictRequest)}}}}

    @app.post(
        "/models/{name}/predict", tags=["models"], responses=_answers(400, 404, 408, 413, 422, 503), openapi_extra=body
    )
    async def predict(name: str) -> PredictResponse:
        """Predict instances with the champion, or the arm that a rollout assigns to an entity.

        Each answer is logged under its ``prediction_id``.
        """
        # Only a name that the gateway's router does not match gets here.
        raise ProblemError(404, "http", "Not Found", f"no model '{name}'")

    tensors = {"requestBody": {"required": True, "content": {"application/json": {"schema": schema_of(InferRequest)}}}}

    @app.post(
        "/v2/models/{name}/infer",
        tags=["v2"],
        responses=_errors(400, 404, 408, 413, 415, 422, 503),
        openapi_extra=tensors,
    )
    @app.post(
        "/v2/models/{name}/versions/{version}/infer",
        tags=["v2"],
        responses=_errors(400, 404, 408, 413, 415, 422, 503),
        openapi_extra=tensors,
    )
    async def infer(name: str, version: str | None = None) -> InferResponse:
        """Run inference on the graph's own tensors.

        Tensors are sent as JSON, or as raw bytes after the JSON (the binary tensor data extension).
        """
        raise ProblemError(404, "http", "Not Found", f"no model '{name}'")

    outcomes = {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema_of(feedback.Feedback)}}}
    }

    @app.post("/feedback", tags=["feedback"], responses=_answers(400, 404, 408, 413, 422, 503), openapi_extra=outcomes)
    async def labels() -> feedback.FeedbackTaken:
        """Write labels of predictions to the landing zone. The request is idempotent."""
        raise ProblemError(404, "http", "Not Found", "no such path")


def _with_head(app: Application) -> Application:
    """Answer HEAD as GET (RFC 9110, 9.1). The server omits the body."""

    async def get_for_head(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await app(scope, receive, send)

    return get_for_head


def _build_gateway(app: Application, settings: Settings, access: Access, router: Router, draining: Draining) -> Gateway:
    limits = RequestLimits(
        head_bytes=settings.max_header_bytes, headers=settings.max_headers, head_seconds=settings.head_seconds,
        body_bytes=settings.max_bytes, request_seconds=settings.request_seconds,
    )  # fmt: skip
    held = max(settings.max_body_bytes, 2 * settings.max_bytes)
    shares = Shares(
        keyed=settings.keys_file is not None, requests=settings.max_requests, rows=settings.max_rows, body_bytes=held
    )
    most = share_descriptors(settings.max_connections).connections
    connections = Connections(
        most, settings.max_connections_per_address, lambda reason: metrics.connections_closed.labels(reason).inc()
    )
    return Gateway(
        app,
        access,
        router,
        draining,
        limits=limits,
        shares=shares,
        connections=connections,
        access_log=AccessLog(settings.access_log),
    )


def _router(context: ServingContext) -> Router:
    """Return the router of the requests that the gateway answers itself."""
    plain_predict, infer, take = (
        partial(json_api.predict, context),
        partial(v2.infer, context),
        partial(feedback.take, context),
    )

    def route(method: str, path: tuple[str, ...]) -> tuple[str, RouteHandler] | None:
        if method == "POST" and len(path) == 3 and path[0] == "models" and path[2] == "predict":
            return "predict", plain_predict
        if (
            method == "POST"
            and path[-1] == "infer"
            and path[:2] == ("v2", "models")
            and (len(path) == 4 or (len(path) == 6 and path[3] == "versions"))
        ):
            return "infer", infer
        if method == "POST" and path == ("feedback",):
            return "feedback", take
        return None

    return route


async def _beat(context: ServingContext, gateway: Gateway, gauges: metrics.GaugeUpdater) -> None:
    """Update the metrics, end overdue requests and write logs, once a second until cancelled.

    Every ``TRIM_SECONDS`` it also returns free memory to the operating system.
    """
    loop = asyncio.get_running_loop()
    trimmed = loop.time()
    while True:
        gauges.take()
        gateway.flush()
        gateway.cancel_timed_out()
        gateway.fast_path.fall_back_slow()
        gateway.connections.sweep()
        gateway.access_log.flush_soon()
        if loop.time() - trimmed > TRIM_SECONDS:
            trimmed = loop.time()
            await asyncio.to_thread(return_free_pages)
        await asyncio.sleep(1)


def _waiting(context: ServingContext, *, draining: bool) -> list[str]:
    """Return the reasons why the service is not ready. The list is empty if it is ready."""
    registry, lookup = context.registry, context.lookup
    waiting = registry.waiting()
    needs_features = [m for m in registry.models.values() if m.served and m.served.bundle.contract.view_features]
    if needs_features and lookup.state != "ready":
        waiting.append("feature look-up is not ready")
    if draining:
        waiting.append("the service is about to end, and its callers should go to another one")
    return waiting


def _ready(context: ServingContext, *, with_details: bool, access: Access, draining: bool) -> JSONResponse:
    registry, lookup = context.registry, context.lookup
    waiting, details = _waiting(context, draining=draining), {}
    if with_details:
        models = [registry.document(name) for name in sorted(registry.models)]
        details = {
            "models": models,
            "registry": registry.status(),
            "lookup": lookup.status(),
            "prediction_log": context.prediction_log.stats(),
        }
        if access.file is not None:
            details["keys"] = {"error": access.error}
    elif waiting:
        # A client without a key learns only whether to send requests to this service.
        waiting = [SOMETHING_IS_LOADED]
    if not waiting:
        return JSONResponse({"status": "degraded" if details and registry.stale else "ready", **details})
    problem = ProblemError(503, "not-ready", "The service is not ready", "; ".join(waiting)).document()
    return JSONResponse(
        problem | details, status_code=503, media_type="application/problem+json", headers={"Retry-After": "1"}
    )


def _on_problem(request: Request, problem: Exception) -> JSONResponse:
    assert isinstance(problem, ProblemError)
    path = request.url.path
    return JSONResponse(
        problem.document(path), status_code=problem.status, media_type=media_type(path), headers=problem.headers
    )


def _on_invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where, *path = first["loc"]
    if first["type"] == "json_invalid":
        return _on_problem(
            request,
            ProblemError(
                400,
                "not-json",
                "The body is not JSON",
                f"{first['msg']} at character {path[0] if path else 0}",
                field="body",
            ),
        )
    # The location is "instances", the instance's number, the input's name and then the types that
    # the value did not match.
    value = len(path) >= 3
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path[:3]).lstrip(".") or str(where)
    detail = "must be a string, a number, true, false or null" if value else str(first["msg"])
    return _on_problem(
        request,
        invalid("wrong-type" if value else "invalid-request", "The request is not as it should be", detail, field),
    )


def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    response = _on_problem(
        request, ProblemError(error.status_code, "http", HTTPStatus(error.status_code).phrase, str(error.detail))
    )
    response.headers.update(error.headers or {})
    return response


def _on_fault(request: Request, error: Exception) -> JSONResponse:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _on_problem(
        request, ProblemError(500, "fault", "The service failed", "this is a fault of the service; its log says more")
    )
