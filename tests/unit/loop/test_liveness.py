"""The loop always makes progress, despite all actions of Airflow, machines and people.

This is a stateful property over the real ledger and the real functions of the tasks. ``make
test-liveness EXAMPLES=10000`` sets the number of examples. By default there are few.
"""

import os
from collections import Counter
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import event

from include import ledger, times
from include.ledger import database, lifecycle
from include.ledger.schema import METADATA
from include.projects import get_project
from include.projects.base import RetrainPolicy
from include.registry import versions
from include.rollout.document import IN_PROGRESS, rollout_document
from include.rollout.manual_rollback import RollbackError, roll_back
from include.settings import get_settings
from tests.unit.loop.model_airflow import DAGS, DAY, TASKS, TRIES, World

pytestmark = pytest.mark.slow

EXAMPLES = int(os.environ.get("AIRLOOP_TEST_LIVENESS_EXAMPLES", "60"))
# Many examples are several tests, so that all cores work and pytest shows the progress.
PARTS = max(1, EXAMPLES // 500)
COOLDOWN = timedelta(days=20)
POLICY = RetrainPolicy(min_labels=1000, max_metric_loss=0.02, max_bias=0.04, cooldown=COOLDOWN)
PROJECT = get_project("flights").model_copy(update={"retrain": POLICY})
SOON = st.sampled_from([0, 1, 2, 3, 4, 6, 8, 12])  # writes until a task dies


class Loop(RuleBasedStateMachine):
    world: World  # set by ``fresh``

    def __init__(self) -> None:
        super().__init__()
        self.world = fresh()

    # --- work of the loop ---

    @rule(dag=st.sampled_from(DAGS), breaks=st.booleans(), back=st.booleans())
    def a_task_works(self, dag, breaks, back):
        self.world.work(dag, breaks=breaks, puts_back=back)

    @rule(dag=st.sampled_from(DAGS))
    def a_run_comes_to_its_end(self, dag):
        self.world.finish(dag)

    @rule(hours=st.sampled_from([1, 7, 26, 80]), run=st.booleans())
    def time_passes_and_monitor_runs(self, hours, run):
        self.world.now += timedelta(hours=hours)
        if run and "monitor" not in self.world.paused:
            self.world.start("monitor", run_type="scheduled")
            self.world.finish("monitor")

    @rule(passes=st.booleans(), drifts=st.booleans())
    def the_world_changes(self, passes, drifts):
        self.world.passes, self.world.drifts = passes, drifts

    @rule(
        tasks=st.sampled_from([0, 1, 2, 3, 4, 5, 5, 5]),
        how=st.sampled_from(["killed", "breaks", "goes on"]),
        kill_in=SOON,
        back=st.booleans(),
        passes=st.booleans(),
        sent=st.sampled_from([0, 1, 1, 2]),
    )
    def a_training_gets_so_far(self, tasks, how, kill_in, back, passes, sent):
        """Run a training up to some task. Its event is lost, late or duplicated."""
        self.world.passes = passes or self.world.passes
        self.world.start("train", {"reason": f"person {len(self.world.runs)}"})
        before = len(self.world.events)
        self._gets_so_far("train", tasks, how, kill_in, back)
        self.world.events[before:] *= sent

    @rule(
        tasks=st.sampled_from([0, 1, 2, 3, 4, 4, 5, 6]),
        how=st.sampled_from(["killed", "breaks", "goes on"]),
        kill_in=SOON,
        back=st.booleans(),
        by_person=st.booleans(),
    )
    def a_deployment_gets_so_far(self, tasks, how, kill_in, back, by_person):
        """Run a deployment up to some task.

        It is that of the oldest event, or of the newest version by a person. A duplicated event
        starts another run later.
        """
        self.world.finish("deploy")
        if by_person and self.world.registry.versions:
            self.world.start("deploy", {"version": str(len(self.world.registry.versions))})
        else:
            self.world.deliver([place for place, (dag, _) in enumerate(self.world.events) if dag == "deploy"][:1])
        self._gets_so_far("deploy", tasks, how, kill_in, back)

    @rule(back=st.booleans())
    def a_version_fails_in_serving_and_its_event_comes_twice(self, back):
        self.a_training_gets_so_far(5, "goes on", 0, back, True, 2)
        for how in ("breaks", "goes on"):
            self.a_deployment_gets_so_far(4, how, 0, back, False)
            self.world.finish("deploy")

    @precondition(lambda self: len(self.world.registry.versions) > 1)
    @rule(data=st.data(), tasks=st.integers(2, 4))
    def a_person_s_deployment_is_lost(self, data, tasks):
        """Lose a deployment by a person.

        The version's request may have ended, so no request tracks the deployment.
        """
        self.world.finish("deploy")
        self.world.start("deploy", {"version": data.draw(st.sampled_from(sorted(self.world.registry.versions)))})
        self._gets_so_far("deploy", tasks, "breaks", 0, False)

    def _gets_so_far(self, dag, tasks, how, kill_in, back):
        for _ in range(tasks):
            self.world.work(dag)
        for _ in range(0 if how == "goes on" else TRIES):  # until the last try
            self.world.work(dag, breaks=how == "breaks", kill_in=kill_in if how == "killed" else None, puts_back=back)

    # --- actions of people ---

    @rule(reason=st.sampled_from(["person", "new_data"]))
    def a_person_asks(self, reason):
        self.world.start(
            "train", {"reason": reason, **({"cutoff": "2025-12-01T00:00:00Z"} if reason == "new_data" else {})}
        )

    @precondition(lambda self: self.world.registry.versions)
    @rule(data=st.data())
    def a_person_deploys(self, data):
        self.world.start("deploy", {"version": data.draw(st.sampled_from(sorted(self.world.registry.versions)))})

    @rule()
    def a_person_rolls_back(self):
        with suppress(RollbackError):
            roll_back(PROJECT, to=None, reason="a bad day", by="jo")

    @rule(dag=st.sampled_from(DAGS))
    def a_dag_is_paused(self, dag):
        self.world.paused ^= {dag}

    @rule()
    def a_person_freezes_or_thaws(self):
        if ledger.thaw("flights", by="jo") is None:
            ledger.freeze("flights", by="jo", why="audit")

    @precondition(lambda self: self.world.runs)
    @rule(data=st.data())
    def a_run_is_cleared(self, data):
        run = data.draw(st.sampled_from(self.world.runs))
        self.world.clear(run, data.draw(st.integers(0, len(TASKS[run.dag]) - 1)))

    @precondition(lambda self: any(run.state == "running" for run in self.world.runs))
    @rule(data=st.data(), deleted=st.booleans())
    def a_run_is_given_up(self, data, deleted):
        """Mark a run as failed or delete it, as a person does. Airflow then no longer knows it."""
        run = data.draw(st.sampled_from([run for run in self.world.runs if run.state == "running"]))
        run.state = "failed"
        if deleted:
            run.run_id, run.dag = "deleted", "deleted"
            self.world.runs.remove(run)

    # --- actions of machines and Airflow ---

    @rule(dag=st.sampled_from(DAGS), kill_in=SOON)
    def a_task_is_killed(self, dag, kill_in):
        self.world.work(dag, kill_in=kill_in)

    @precondition(lambda self: self.world.events)
    @rule(data=st.data(), what=st.sampled_from(["deliver", "lose", "double"]))
    def an_event(self, data, what):
        """Deliver, lose or duplicate an event.

        Events that are not delivered now are late, in any order.
        """
        places = data.draw(st.lists(st.integers(0, len(self.world.events) - 1), min_size=1, max_size=3, unique=True))
        if what == "double":
            self.world.events.append(self.world.events[places[0]])
        elif what == "lose":
            del self.world.events[places[0]]
        else:
            self.world.deliver(places)

    # --- invariants ---

    @invariant()
    def nothing_waits_without_a_deadline(self):
        for request in ledger.requests("flights"):
            state = lifecycle.state("request", request.state)
            assert (request.deadline is None) == state.final, request
            assert state.final or ledger.moment(request.deadline) <= self.world.now + timedelta(days=2), request
        rollout = rollout_document(PROJECT)
        assert rollout is None or (rollout.state in IN_PROGRESS) == bool(rollout.deadline), rollout

    @invariant()
    def no_version_is_deployed_twice(self):
        twice = {version: count for version, count in Counter(self.world.promoted).items() if count > 1}
        assert not twice

    def teardown(self):
        """After all faults end, the loop must make progress."""
        world = self.world
        world.paused, world.passes = set(), True
        ledger.thaw("flights", by="jo")
        before = waiting()
        for one in {request.state for request in ledger.requests("flights") if request.live}:
            SEEN[one] += 1
        untried = [one.id for one in ledger.requests("flights") if one.live and one.attempts == 0]
        for _ in range(3):
            a_good_day(world)
        rollout = rollout_document(PROJECT)
        left = waiting()
        assert not before or len(before - left) > 0, f"no progress: {before}"
        assert rollout is None or rollout.state not in IN_PROGRESS, rollout
        world.drifts = False  # no new request
        for _ in range(2 * len(left)):
            a_good_day(world)
        assert not waiting(), waiting()
        ended = [ledger.get_request(one) for one in untried]
        assert [one for one in ended if one.state == "failed"] == [], "given up without need"
        assert [n["text"] for n in ledger.notices("flights") if not n["told_at"]] == []
        if versions.aliases(PROJECT).get("champion"):
            world.drifts = True
            asked = len(ledger.requests("flights"))
            world.now += lifecycle.LONGEST_COOLDOWN * COOLDOWN
            a_good_day(world)
            assert len(ledger.requests("flights")) > asked, "a drift asks for nothing any more"
        self.nothing_waits_without_a_deadline()
        self.no_version_is_deployed_twice()


def waiting() -> set[str]:
    return {request.id for request in ledger.requests("flights") if request.live}


def a_good_day(world: World) -> None:
    """Simulate one day: monitor runs, events arrive, and all work is completed."""
    world.now += DAY
    world.start("monitor", run_type="scheduled")
    while any(world.active(dag) for dag in DAGS) or world.events:
        for dag in DAGS:
            world.finish(dag)
        world.deliver(list(range(len(world.events))))


WORLD: list[World] = []
# States of requests when the faults ended.
SEEN: Counter = Counter()


def fresh() -> World:
    """Create an empty ledger and registry, and a model of Airflow around them."""
    WORLD[:] = []
    with database.transaction() as connection:
        for table in METADATA.sorted_tables:
            connection.execute(table.delete())
    WORLD[:] = [World(PROJECT)]
    return WORLD[0]


@pytest.fixture
def ledger_in_memory(tmp_path_factory, monkeypatch):
    """Create a real ledger in a file, in memory if the machine has a folder for this.

    Ten thousand examples write some million times.
    """
    shm = "/dev/shm"
    folder = tmp_path_factory.mktemp("liveness")
    place = f"{shm}/airloop-liveness-{os.getpid()}" if os.access(shm, os.W_OK) else str(folder / "ledger")
    monkeypatch.setenv("AIRLOOP_HOME", str(folder))
    monkeypatch.setenv("AIRLOOP_LEDGER_URL", f"sqlite:///{place}.db")
    get_settings.cache_clear()
    ledger.migrate()
    engine = database._engine(get_settings().ledger)
    event.listen(engine, "begin", lambda _: [world.dies() for world in WORLD])
    monkeypatch.setattr(times, "utc_now", lambda: WORLD[0].now)
    monkeypatch.setattr(versions, "registry_client", lambda: WORLD[0].registry)
    yield
    engine.dispose()
    database._engines.clear()
    for suffix in (".db", ".db-journal", ".flights.lock"):
        Path(place + suffix).unlink(missing_ok=True)
    get_settings.cache_clear()


@pytest.mark.timeout(0)
@pytest.mark.parametrize("part", range(PARTS))
def test_the_loop_goes_on_whatever_happens(ledger_in_memory, part):
    several = {"derandomize": False} if PARTS > 1 else {}
    seldom = settings(
        **several,
        max_examples=EXAMPLES // PARTS,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    SEEN.clear()
    run_state_machine_as_test(Loop, settings=seldom)
    assert EXAMPLES < 500 or set(SEEN) == set(lifecycle.live("request")), (
        f"so many examples do not leave a request in each state: {SEEN}"
    )
