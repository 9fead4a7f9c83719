"""The fast path: a prediction whose request is plainly right is answered by its connection, together with those that came in the same round of the
event loop; no task, no coroutine and no message in between.

What their instances lack is looked up for all of them in one round trip.

It knows no refusal. Whatever is not plainly right, or takes long, goes the ordinary way, untouched: through uvicorn and the front, which say what is wrong
with it. So each error has one place, and an answer of the fast path is the one that the ordinary way would have given.
"""

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from serving import metrics, plain, turns
from serving.access import Caller
from serving.access_log import Line
from serving.batching import INLINE_SECONDS, MOST_ROWS
from serving.completion import Completed, check, check_keys, completed, judge_all, note
from serving.feast_registry import Service
from serving.front import NO_SNIFFING, Front, trace_of
from serving.heads import Head
from serving.ids import new_id_lines
from serving.inputs import Instance, Row
from serving.looked_up import LookedUp
from serving.parts import Parts
from serving.predict import of_completed, plainly
from serving.problems import Problem
from serving.served import Route, Served

if TYPE_CHECKING:
    from serving.connection import Connection

STATUS_LINE = b"HTTP/1.1 200 OK\r\n"
BEFORE, AFTER = b"/models/", b"/predict"

log = logging.getLogger(__name__)


class Request(NamedTuple):
    """One that will be answered here, unless its connection passes it on."""

    connection: "Connection"
    name: str
    route: Route
    instances: list[Instance]
    rows: list[Row]  # of each instance; none yet where something is to be looked up
    started: float
    caller: Caller
    head: Head
    body_bytes: int
    service: Service | None = None  # that knows what is to be looked up
    needy: Sequence[int] = ()  # the instances for which it is

    @property
    def waits(self) -> bool:
        """Nobody has answered it, and it has not gone the ordinary way."""
        return self.connection.taken is self


class FastPath:
    """What the connections of one event loop share: the requests of this round.

    Args:
        front: where the ordinary way begins; requests count among those that it has in flight.
    """

    def __init__(self, front: Front, parts: Parts) -> None:
        self.front, self.parts = front, parts
        self.unfinished: set[Connection] = set()  # whose body is on its way
        self._round: list[Request] = []  # of one champion, all to be looked up or none
        self._rows = 0
        self._looking_up: dict[asyncio.Task[None], list[Request]] = {}
        self._look_up_after = 0.0  # time.perf_counter(); the look-up failed a moment ago
        self._head: tuple[list[tuple[bytes, bytes]], bytes] = ([], STATUS_LINE)

    def model_of(self, url: bytes) -> str | None:
        """The model that a path asks for a prediction of, if there is such a one."""
        if not (url.startswith(BEFORE) and url.endswith(AFTER)) or b"%" in url or not url.isascii():
            return None
        name = url[len(BEFORE) : -len(AFTER)].decode()
        return name if name in self.parts.registry.routes else None

    def admit(self, url: bytes, headers: list[tuple[bytes, bytes]], client: tuple[str, int] | None) -> Caller | None:
        """Return the caller; None: the ordinary way decides, and says why a caller is refused."""
        access = self.front.access
        if access.file is None:
            for name, _ in headers:
                if name.startswith(b"x-forwarded-"):
                    return None  # a proxy says whether the client is this machine
        try:
            return access.admit(url.decode(), headers, client)
        except Problem:
            return None
        except Exception:
            self._failed()
            return None

    def take(self, connection: "Connection", name: str, caller: Caller, head: Head, body: bytes, started: float) -> Request | None:
        """Return the request, if it can be answered here; if not, nothing was done. A fault here is logged, counted, and left to the ordinary way."""
        try:
            return self._take(connection, name, caller, head, body, started)
        except Problem:
            return None
        except Exception:
            self._failed()
            return None

    def _take(self, connection: "Connection", name: str, caller: Caller, head: Head, body: bytes, started: float) -> Request | None:
        front, route = self.front, self.parts.registry.routes.get(name)
        if route is None or front.draining.begun or len(body) > front.limits.body_bytes:
            return None
        most = min(MOST_ROWS, int(INLINE_SECONDS / max(route.champion.bundle.graph.seconds, 1e-6)))
        # Each instance has a brace, and the document has one. Many instances are not parsed in vain: the ordinary way answers them in turns.
        if body.count(b"{") > min(most, turns.ROWS) + 1:
            return None
        instances = plain.instances_of(body, self.parts.settings.max_instances)
        quick = route.champion.bundle.inputs.quick
        rows = [row for instance in instances if (row := quick(instance)) is not None]
        asked: tuple[Service, Sequence[int]] | tuple[()] = ()
        if len(rows) < len(instances):
            rows = []
            lookup = self._to_look_up(route.champion, instances)
            if lookup is None:
                return None
            asked = lookup
        request = Request(connection, name, route, instances, rows, started, caller, head, len(body), *asked)
        if route.arms and any(map(route.arm_of, instances)):
            return None
        if self._round:
            last = self._round[-1]
            if last.route.champion is not route.champion or last.service is not request.service or self._rows + len(instances) > most:
                self.answer()
        # A caller without a share, or with too many rows, is refused by the ordinary way.
        if front.shares.requests.used >= front.shares.requests.most:
            return None
        if caller.rows is not None:
            caller.take_rows(len(instances))
        if request.service is not None:
            try:
                front.shares.requests.take(caller.name)
            except Problem:
                if caller.rows is not None:
                    caller.rows.take(-len(instances))
                raise
        if not self._round:
            connection.loop.call_soon(self.answer)
        self._round.append(request)
        self._rows += len(instances)
        return request

    def _to_look_up(self, served: Served, instances: list[Instance]) -> tuple[Service, list[int]] | None:
        """The service that has what instances lack, and which lack something; None: not now.

        Raises:
            Problem: something is wrong with one.
        """
        lookup, numbers = self.parts.lookup, range(len(instances))
        needy = check(served, instances, numbers, numbers)
        service = lookup.known(served.bundle.contract.feature_service)
        if not needy or service is None or time.perf_counter() < self._look_up_after:
            return None
        check_keys(served, lookup, service, instances, needy, numbers)
        return service, needy

    def answer(self) -> None:
        """Answer what was taken in this round, or look up what it lacks."""
        requests, self._round, self._rows = self._round, [], 0
        if not requests:
            return
        try:
            if (service := requests[0].service) is None:
                self._tell(requests, [row for request in requests for row in request.rows])
            elif (found := self.parts.lookup.fetch_at_once(service, _wanted(requests))) is not None:
                self._complete(requests, service, found)
            else:
                task = requests[0].connection.loop.create_task(self._look_up(requests, service))
                self._looking_up[task] = requests
                task.add_done_callback(self._looked_up)
                return
        except Exception:
            self._failed()
            _pass_on(requests)
        self._give_back(requests)

    async def _look_up(self, requests: list[Request], service: Service) -> None:
        """One round trip for all of them."""
        try:
            self._complete(requests, service, await self.parts.lookup.fetch(service, _wanted(requests)))
        except Problem:  # the ordinary way asks again, and says what it is told
            self._look_up_after = time.perf_counter() + 1
            _pass_on(requests)
        except Exception:
            self._failed()
            _pass_on(requests)

    def _give_back(self, requests: Sequence[Request]) -> None:
        for request in requests:
            # What is answered in the round in which it came takes no share.
            if request.service is not None:
                self.front.shares.requests.give_back(request.caller.name)

    def _failed(self) -> None:
        log.exception("the fast path failed; its requests go the ordinary way")
        metrics.faults.labels("fast-path").inc()

    def _complete(self, requests: list[Request], service: Service, found: list[LookedUp]) -> None:
        """Answer with what was found."""
        served = requests[0].route.champion
        first, ready, made, judged = 0, [], [], []
        for request in requests:
            last = first + len(request.needy)
            its = judge_all(served, service, request.instances, request.needy, found[first:last])
            first = last
            if not request.waits:
                continue
            if all(gap.action == "default" for one in its for gap in one.gaps):
                ready.append(request)
                made.append(completed(served, request.instances, its))
                judged += its
            else:  # the project's policy is not to do without
                request.connection.pass_on(whole=True)
        inputs = served.bundle.inputs
        if ready and self._tell(ready, [(inputs.numbers(row), inputs.texts(row)) for one in made for row in one.rows], made):
            note(served, judged)

    def _looked_up(self, task: asyncio.Task[None]) -> None:
        self._give_back(self._looking_up.pop(task))

    def _tell(self, requests: Sequence[Request], rows: Sequence[tuple[Sequence[float] | bytes, Sequence[str]]], made: Sequence[Completed] = ()) -> bool:
        """Run the graph, and answer. False: it gives an error, or no number, and nobody was answered: the ordinary way finds out who caused it.

        Args:
            made: what the requests' instances were completed to, if they were.
        """
        served = requests[0].route.champion
        try:
            numbers, texts = zip(*rows, strict=True)
            answers = served.bundle.graph.run(numbers, texts).tolist()
            well = all(map(math.isfinite, answers))
        except Exception:  # ONNX Runtime's own classes
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
                predictions = of_completed(served, request.instances, made[place], its) if made else plainly(served, request.instances, its)
                content = plain.document(request.name, request.route, plain.tell(predictions))
                self.parts.keep(request.route, request.instances, predictions, request.started, request.caller, request.body_bytes)
                self._answer(request, content)
        return True

    def _answer(self, request: Request, content: bytes) -> None:
        connection, front = request.connection, self.front
        head = self.head(connection.server_state.default_headers)
        front.count("predict", 200, request.caller)
        if not front.access_log.all and request.head.request_id is None and request.head.trace_parent is None:
            connection.tell(head + new_id_lines(), content)
            return
        trace = trace_of(request.head)
        connection.tell(head + b"".join(b"%b: %b\r\n" % line for line in trace.headers()), content)
        client = connection.client[0] if connection.client else "-"
        path, seconds = f"/models/{request.name}/predict", time.perf_counter() - request.started
        front.access_log.note(Line(time.time(), *trace, request.caller.name, client, "POST", path, 200, seconds, len(content), ""))

    def head(self, defaults: list[tuple[bytes, bytes]]) -> bytes:
        """Return an answer's head without its ids and length. uvicorn makes the default headers once a second."""
        if self._head[0] is not defaults:
            ours = (*defaults, (b"content-type", b"application/json"), NO_SNIFFING)
            self._head = defaults, STATUS_LINE + b"".join(b"%b: %b\r\n" % header for header in ours)
        return self._head[1]

    def pass_on_the_slow(self) -> None:
        """Called once a second: what takes longer is timed by the front."""
        latest = time.perf_counter() - 1
        for connection in tuple(self.unfinished):
            if connection.started < latest:
                connection.pass_on(whole=False)
        for requests in tuple(self._looking_up.values()):
            if requests[0].started < latest:
                _pass_on(requests)


def _wanted(requests: Sequence[Request]) -> list[Instance]:
    return [request.instances[place] for request in requests for place in request.needy]


def _pass_on(requests: Sequence[Request]) -> None:
    for request in requests:
        if request.waits:
            request.connection.pass_on(whole=True)
