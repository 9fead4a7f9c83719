"""Answer simple prediction requests directly from their connections.

The requests of one iteration of the event loop are answered together, without a task, a coroutine
or an ASGI message. The missing features of all their instances are looked up in one round trip.

The fast path never rejects a request. If a request is not simple and valid, or takes long, it is
passed unchanged to the ordinary path through uvicorn and the gateway (``Gateway``). The ordinary
path reports its errors. So each error is handled in one place, and an answer of the fast path
equals the answer of the ordinary path.
"""

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from uvicorn.server import ServerState

from serving import metrics, turns
from serving.access.callers import Caller
from serving.access.log import Line
from serving.features.feast_registry import FeatureService
from serving.features.feature_values import FeatureValues
from serving.http import json_api
from serving.http.gateway import NO_SNIFFING, Gateway, trace_of
from serving.http.heads import Head
from serving.ids import new_id_lines
from serving.models.batching import INLINE_SECONDS, MOST_ROWS
from serving.models.inputs import Instance, Row
from serving.models.loaded_model import LoadedModel, Route
from serving.predicting.completion import CompletedInstances, check, check_keys, completed, judge_all, note
from serving.predicting.context import ServingContext
from serving.predicting.predict import from_completed, without_lookup
from serving.problems import ProblemError

STATUS_LINE = b"HTTP/1.1 200 OK\r\n"
BEFORE, AFTER = b"/models/", b"/predict"

log = logging.getLogger(__name__)


class ClientConnection(Protocol):
    """What the fast path needs of a connection (``serving.http.connection.Connection``)."""

    loop: asyncio.AbstractEventLoop
    server_state: ServerState
    client: tuple[str, int] | None
    # The request that is being answered here, or None.
    taken: "FastPathRequest | None"
    # The time at which the request being received began.
    started: float

    def tell(self, head: bytes, content: bytes) -> None:
        """Answer the request that was taken."""

    def pass_on(self, *, whole: bool) -> None:
        """Pass the request to the ordinary path."""


class FastPathRequest(NamedTuple):
    """A request that is answered here, unless its connection passes it on."""

    connection: ClientConnection
    name: str
    route: Route
    instances: list[Instance]
    # One row per instance, or an empty list if features must be looked up.
    rows: list[Row]
    started: float
    caller: Caller
    head: Head
    body_bytes: int
    # The feature service for the lookup, or None if it is not needed.
    service: FeatureService | None = None
    # The positions of the instances that need a lookup.
    needy: Sequence[int] = ()

    @property
    def waits(self) -> bool:
        """Return True if the request is unanswered and was not passed to the ordinary path."""
        return self.connection.taken is self


class FastPath:
    """The state that the connections of one event loop share: the requests of the current round.

    Args:
        gateway: The start of the ordinary path. It also counts the requests in flight.
    """

    def __init__(self, gateway: Gateway, context: ServingContext) -> None:
        self.gateway, self.context = gateway, context
        # Connections whose request body is still being received.
        self.unfinished: set[ClientConnection] = set()
        # Requests for one champion. Either all of them need a lookup, or none.
        self._round: list[FastPathRequest] = []
        self._rows = 0
        self._looking_up: dict[asyncio.Task[None], list[FastPathRequest]] = {}
        # Time of time.perf_counter() until which lookups are skipped, because one has just failed.
        self._look_up_after = 0.0
        self._head: tuple[list[tuple[bytes, bytes]], bytes] = ([], STATUS_LINE)

    def model_of(self, url: bytes) -> str | None:
        """Return the model if the path is that of a prediction by a model in service, else None."""
        if not (url.startswith(BEFORE) and url.endswith(AFTER)) or b"%" in url or not url.isascii():
            return None
        name = url[len(BEFORE) : -len(AFTER)].decode()
        return name if name in self.context.registry.routes else None

    def admit(self, url: bytes, headers: list[tuple[bytes, bytes]], client: tuple[str, int] | None) -> Caller | None:
        """Return the caller, or None if the ordinary path must decide and report a refusal."""
        access = self.gateway.access
        if access.file is None:
            for name, _ in headers:
                if name.startswith(b"x-forwarded-"):
                    # The ordinary path evaluates a proxy's headers to decide whether the client is
                    # local.
                    return None
        try:
            return access.admit(url.decode(), headers, client)
        except ProblemError:
            return None
        except Exception:
            self._failed()
            return None

    def take(
        self, connection: ClientConnection, name: str, caller: Caller, head: Head, body: bytes, started: float
    ) -> FastPathRequest | None:
        """Return the request if it can be answered here, else None without any effect.

        An unexpected error is logged and counted, and the ordinary path answers the request.
        """
        try:
            return self._take(connection, name, caller, head, body, started)
        except ProblemError:
            return None
        except Exception:
            self._failed()
            return None

    def _take(
        self, connection: ClientConnection, name: str, caller: Caller, head: Head, body: bytes, started: float
    ) -> FastPathRequest | None:
        gateway, route = self.gateway, self.context.registry.routes.get(name)
        if route is None or gateway.draining.begun or len(body) > gateway.limits.body_bytes:
            return None
        most = min(MOST_ROWS, int(INLINE_SECONDS / max(route.champion.bundle.graph.seconds, 1e-6)))
        # Each instance has a brace, and the document has one. A request with many instances is not
        # parsed here, because the ordinary path answers it in turns.
        if body.count(b"{") > min(most, turns.ROWS) + 1:
            return None
        instances = json_api.instances_of(body, self.context.settings.max_instances)
        quick = route.champion.bundle.inputs.quick
        rows = [row for instance in instances if (row := quick(instance)) is not None]
        lookup_fields: tuple[FeatureService, Sequence[int]] | tuple[()] = ()
        if len(rows) < len(instances):
            rows = []
            lookup = self._to_look_up(route.champion, instances)
            if lookup is None:
                return None
            lookup_fields = lookup
        request = FastPathRequest(
            connection, name, route, instances, rows, started, caller, head, len(body), *lookup_fields
        )
        if route.arms and any(map(route.arm_of, instances)):
            return None
        if self._round:
            last = self._round[-1]
            if (
                last.route.champion is not route.champion
                or last.service is not request.service
                or self._rows + len(instances) > most
            ):
                self.answer()
        # The ordinary path rejects a caller that has used up its share or its rate of rows.
        if gateway.shares.requests.used >= gateway.shares.requests.most:
            return None
        self._charge(request)
        if not self._round:
            connection.loop.call_soon(self.answer)
        self._round.append(request)
        self._rows += len(instances)
        return request

    def _charge(self, request: FastPathRequest) -> None:
        """Take the request's rows from the caller's rate, and a share if it must wait for features.

        Raises:
            ProblemError: The caller has used up its rate or its share. Nothing was taken.
        """
        caller, rows = request.caller, len(request.instances)
        if caller.rows is not None:
            caller.take_rows(rows)
        if request.service is not None:
            try:
                self.gateway.shares.requests.take(caller.name)
            except ProblemError:
                if caller.rows is not None:
                    caller.rows.take(-rows)
                raise

    def _to_look_up(self, served: LoadedModel, instances: list[Instance]) -> tuple[FeatureService, list[int]] | None:
        """Return the feature service and the positions of the instances that need a lookup.

        Return None if the fast path cannot look them up now.

        Raises:
            ProblemError: An instance is invalid.
        """
        lookup, numbers = self.context.lookup, range(len(instances))
        needy = check(served, instances, numbers, numbers)
        service = lookup.known(served.bundle.contract.feature_service)
        if not needy or service is None or time.perf_counter() < self._look_up_after:
            return None
        check_keys(served, lookup, service, instances, needy, numbers)
        return service, needy

    def answer(self) -> None:
        """Answer the requests of this round, or look up their missing features."""
        requests, self._round, self._rows = self._round, [], 0
        if not requests:
            return
        try:
            if (service := requests[0].service) is None:
                self._tell(requests, [row for request in requests for row in request.rows])
            elif (features := self.context.lookup.fetch_at_once(service, _needy_instances(requests))) is not None:
                self._complete(requests, service, features)
            else:
                task = requests[0].connection.loop.create_task(self._look_up(requests, service))
                self._looking_up[task] = requests
                task.add_done_callback(self._looked_up)
                return
        except Exception:
            self._failed()
            _pass_on(requests)
        self._give_back(requests)

    async def _look_up(self, requests: list[FastPathRequest], service: FeatureService) -> None:
        """Look up the features of all requests in one round trip."""
        try:
            self._complete(requests, service, await self.context.lookup.fetch(service, _needy_instances(requests)))
        except ProblemError:
            # The ordinary path tries the lookup again and reports the error.
            self._look_up_after = time.perf_counter() + 1
            _pass_on(requests)
        except Exception:
            self._failed()
            _pass_on(requests)

    def _give_back(self, requests: Sequence[FastPathRequest]) -> None:
        for request in requests:
            # A request that is answered within its own round does not occupy a share.
            if request.service is not None:
                self.gateway.shares.requests.give_back(request.caller.name)

    def _failed(self) -> None:
        log.exception("the fast path failed; its requests go the ordinary way")
        metrics.faults.labels("fast-path").inc()

    def _complete(
        self, requests: list[FastPathRequest], service: FeatureService, features: list[FeatureValues]
    ) -> None:
        """Answer the requests with the values of their lookup."""
        served = requests[0].route.champion
        first, ready, completions, judged = 0, [], [], []
        for request in requests:
            last = first + len(request.needy)
            its = judge_all(served, service, request.instances, request.needy, features[first:last])
            first = last
            if not request.waits:
                continue
            if all(gap.action == "default" for one in its for gap in one.gaps):
                ready.append(request)
                completions.append(completed(served, request.instances, its))
                judged += its
            else:
                # The project's policy does not accept missing features here.
                request.connection.pass_on(whole=True)
        inputs = served.bundle.inputs
        if ready and self._tell(
            ready, [(inputs.numbers(row), inputs.texts(row)) for one in completions for row in one.rows], completions
        ):
            note(served, judged)

    def _looked_up(self, task: asyncio.Task[None]) -> None:
        self._give_back(self._looking_up.pop(task))

    def _tell(
        self,
        requests: Sequence[FastPathRequest],
        rows: Sequence[tuple[Sequence[float] | bytes, Sequence[str]]],
        completions: Sequence[CompletedInstances] = (),
    ) -> bool:
        """Run the graph and answer the requests. Return True if they were answered.

        If the graph raises an error or returns a value that is not finite, all requests are passed
        to the ordinary path. It finds the request that caused the error.

        Args:
            completions: The completed instances of each request, if there was a lookup.
        """
        served = requests[0].route.champion
        try:
            numbers, texts = zip(*rows, strict=True)
            answers = served.bundle.graph.run_in_loop(numbers, texts).tolist()
            well = all(map(math.isfinite, answers))
        except Exception:  # ONNX Runtime has its own exception classes.
            well = False
        if not well:
            _pass_on(requests)
            return False
        first = 0
        for place, request in enumerate(requests):
            last = first + len(request.instances)
            its = answers[first:last]
            first = last
            if request.waits:
                predictions = (
                    from_completed(served, request.instances, completions[place], its)
                    if completions
                    else without_lookup(served, request.instances, its)
                )
                content = json_api.document(request.name, request.route, json_api.tell(predictions))
                self.context.keep(
                    request.route, request.instances, predictions, request.started, request.caller, request.body_bytes
                )
                self._answer(request, content)
        return True

    def _answer(self, request: FastPathRequest, content: bytes) -> None:
        connection, gateway = request.connection, self.gateway
        head = self.head(connection.server_state.default_headers)
        gateway.count("predict", 200, request.caller)
        if not gateway.access_log.all and request.head.request_id is None and request.head.trace_parent is None:
            connection.tell(head + new_id_lines(), content)
            return
        trace = trace_of(request.head)
        connection.tell(head + b"".join(b"%b: %b\r\n" % line for line in trace.headers()), content)
        client = connection.client[0] if connection.client else "-"
        path, seconds = f"/models/{request.name}/predict", time.perf_counter() - request.started
        gateway.access_log.note(
            Line(time.time(), *trace, request.caller.name, client, "POST", path, 200, seconds, len(content), "")
        )

    def head(self, defaults: list[tuple[bytes, bytes]]) -> bytes:
        """Return an answer's head without its ids and length.

        uvicorn creates new default headers once a second, so the head is cached until they change.
        """
        if self._head[0] is not defaults:
            ours = (*defaults, (b"content-type", b"application/json"), NO_SNIFFING)
            self._head = defaults, STATUS_LINE + b"".join(b"%b: %b\r\n" % header for header in ours)
        return self._head[1]

    def fall_back_slow(self) -> None:
        """Pass slow requests to the gateway, which enforces the limits. Called once a second."""
        latest = time.perf_counter() - 1
        for connection in tuple(self.unfinished):
            if connection.started < latest:
                connection.pass_on(whole=False)
        for requests in tuple(self._looking_up.values()):
            if requests[0].started < latest:
                _pass_on(requests)


def _needy_instances(requests: Sequence[FastPathRequest]) -> list[Instance]:
    return [request.instances[place] for request in requests for place in request.needy]


def _pass_on(requests: Sequence[FastPathRequest]) -> None:
    for request in requests:
        if request.waits:
            request.connection.pass_on(whole=True)
