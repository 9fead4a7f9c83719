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

from serving import plain
from serving.batching import INLINE_SECONDS, MOST_ROWS
from serving.completion import Completed, check, check_keys, completed, judge_all, note
from serving.feast_registry import Service
from serving.front import Front
from serving.inputs import Instance, Row
from serving.looked_up import LookedUp
from serving.parts import Parts
from serving.predict import of_completed, plainly
from serving.problems import Problem
from serving.served import Route, Served

if TYPE_CHECKING:
    from serving.connection import Connection

HEAD = b"HTTP/1.1 200 OK\r\n"
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
        self._head: tuple[list[tuple[bytes, bytes]], bytes] = ([], HEAD)

    def model_of(self, url: bytes) -> str | None:
        """The model that a path asks for a prediction of, if there is such a one."""
        if not (url.startswith(BEFORE) and url.endswith(AFTER)) or b"%" in url or not url.isascii():
            return None
        name = url[len(BEFORE) : -len(AFTER)].decode()
        return name if name in self.parts.registry.routes else None

    def admit(self, url: bytes, headers: list[tuple[bytes, bytes]], client: tuple[str, int] | None) -> str | None:
        """The caller's name; None: it is for the ordinary way to say whether there is one."""
        access = self.front.access
        if access.file is None:
            for name, _ in headers:
                if name.startswith(b"x-forwarded-"):
                    return None  # a proxy says whether the client is this machine
        try:
            return access.admit(url.decode(), headers, client)
        except Problem:
            return None

    def take(self, connection: "Connection", name: str, body: bytes, started: float) -> Request | None:
        """The request, if it can be answered here; if not, nothing was done."""
        front, route = self.front, self.parts.registry.routes.get(name)
        if route is None or front.in_flight >= front.most_requests or front.draining.begun or len(body) > front.most_bytes:
            return None
        try:
            instances = plain.instances_of(body, self.parts.settings.max_instances)
            quick = route.champion.bundle.inputs.quick
            rows = [row for instance in instances if (row := quick(instance)) is not None]
            if len(rows) == len(instances):
                request = Request(connection, name, route, instances, rows, started)
            else:
                asked = self._to_look_up(route.champion, instances)
                if asked is None:
                    return None
                request = Request(connection, name, route, instances, [], started, *asked)
        except Problem:
            return None
        if route.arms and any(map(route.arm_of, instances)):
            return None
        most = min(MOST_ROWS, int(INLINE_SECONDS / max(route.champion.bundle.graph.seconds, 1e-6)))
        if len(instances) > most:
            return None
        if self._round:
            last = self._round[-1]
            if last.route.champion is not route.champion or last.service is not request.service or self._rows + len(instances) > most:
                self.answer()
        if not self._round:
            connection.loop.call_soon(self.answer)
        self._round.append(request)
        self._rows += len(instances)
        front.in_flight += 1
        return request

    def _to_look_up(self, served: Served, instances: list[Instance]) -> tuple[Service, list[int]] | None:
        """The service that has what instances lack, and which lack something; None: not now.

        Raises:
            Problem: something is wrong with one.
        """
        lookup, numbers = self.parts.lookup, range(len(instances))
        needy = check(served, instances, numbers)
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
            log.exception("the fast path failed")
            _pass_on(requests)
        self.front.in_flight -= len(requests)

    async def _look_up(self, requests: list[Request], service: Service) -> None:
        """One round trip for all of them."""
        try:
            self._complete(requests, service, await self.parts.lookup.fetch(service, _wanted(requests)))
        except Problem:  # the ordinary way asks again, and says what it is told
            self._look_up_after = time.perf_counter() + 1
            _pass_on(requests)
        except Exception:
            log.exception("the fast path failed")
            _pass_on(requests)

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
        self.front.in_flight -= len(self._looking_up.pop(task))

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
        first = told = 0
        for place, request in enumerate(requests):
            last = first + len(request.instances)
            its = answers[first:last]
            first = last
            if request.waits:
                predictions = of_completed(served, request.instances, made[place], its) if made else plainly(served, request.instances, its)
                self.parts.keep(request.route, request.instances, predictions, request.started)
                request.connection.tell(plain.document(request.name, request.route, predictions))
                told += 1
        self.front.count("predict", 200, told)
        return True

    def head(self, defaults: list[tuple[bytes, bytes]]) -> bytes:
        """An answer's head up to its length. uvicorn makes the default headers once a second."""
        if self._head[0] is not defaults:
            self._head = defaults, HEAD + b"".join(b"%b: %b\r\n" % header for header in defaults) + b"content-type: application/json\r\ncontent-length: "
        return self._head[1]

    def pass_on_the_slow(self) -> None:
        """Called once a second: what takes longer is timed by the front."""
        for connection in tuple(self.unfinished):
            connection.pass_on(whole=False)
        latest = time.perf_counter() - 1
        for requests in tuple(self._looking_up.values()):
            if requests[0].started < latest:
                _pass_on(requests)


def _wanted(requests: Sequence[Request]) -> list[Instance]:
    return [request.instances[place] for request in requests for place in request.needy]


def _pass_on(requests: Sequence[Request]) -> None:
    for request in requests:
        if request.waits:
            request.connection.pass_on(whole=True)
