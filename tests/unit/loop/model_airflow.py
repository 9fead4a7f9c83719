"""A model of Airflow around the real functions that the tasks of train, deploy and monitor call.

It has runs, retries, events, pauses and a clock. A test provokes the faults of Airflow and of
machines. A task dies before its n-th write. An event is lost, duplicated, merged or late. A DAG is
paused, which drops its events. An ended run is cleared from any task on.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from include import ledger
from include.dag_kit.requests import refuse_frozen_step, take_up
from include.dag_kit.rollouts import record_rollout_outcome
from include.ledger import iso
from include.monitoring import episodes
from include.projects.base import Project
from include.registry import versions
from include.rollout import overdue, promotion, records, steps
from tests.unit.loop.model_registry import ModelRegistry

START = datetime(2026, 1, 1, 6, tzinfo=UTC)
TRIES = 2  # per task
DAGS = ("train", "deploy", "monitor")


class Killed(BaseException):
    """Stands for SIGKILL: no handler catches it."""


class BrokenError(Exception):
    """Raised by a task that fails because of its own error."""


@dataclass
class Run:
    """One DAG run.

    ``given`` holds the results of its tasks, ``at`` is the index of its next task, and ``state`` is
    Airflow's state.
    """

    dag: str
    run_id: str
    run_after: datetime
    run_type: str
    conf: dict[str, Any]
    events: list[dict[str, Any]]
    state: str = "queued"
    at: int = 0
    tries: int = 0
    given: dict[str, Any] = field(default_factory=dict)

    @property
    def dag_id(self) -> str:
        return f"flights__{self.dag}"


@dataclass
class World:
    """The whole model.

    ``kill_in`` is the number of writes until the running task dies (None: it does not die). If
    ``breaks`` is set, the next training step or deployment fails.
    """

    project: Project
    now: datetime = START
    runs: list[Run] = field(default_factory=list)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    paused: set[str] = field(default_factory=set)
    kill_in: int | None = None
    breaks: bool = False
    passes: bool = True
    drifts: bool = True
    # Request -> verdict of its gate (a manifest).
    verdicts: dict[str, str] = field(default_factory=dict)
    # Request -> the champion that it is judged against (a manifest).
    bases: dict[str, str] = field(default_factory=dict)
    # Versions, each time that a run without a person promoted one.
    promoted: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.registry = ModelRegistry(self.dies)

    # --- ledger.Airflow ---

    def run_state(self, dag_id: str, run_id: str) -> str | None:
        return next((run.state for run in self.runs if (run.dag_id, run.run_id) == (dag_id, run_id)), None)

    def is_paused(self, dag_id: str) -> bool:
        return dag_id.partition("__")[2] in self.paused

    # --- events ---

    def dies(self) -> None:
        """Die if it is time. Called at each write to the ledger and to the registry."""
        if self.kill_in is not None:
            self.kill_in -= 1
            if self.kill_in < 0:
                self.kill_in = None
                raise Killed

    def start(
        self,
        dag: str,
        conf: dict[str, Any] | None = None,
        events: list[dict[str, Any]] | None = None,
        run_type: str = "manual",
    ) -> Run:
        run = Run(
            dag,
            f"{run_type}__{len(self.runs)}",
            self.now,
            "asset_triggered" if events else run_type,
            conf or {},
            events or [],
        )
        self.runs.append(run)
        return run

    def deliver(self, places: list[int]) -> None:
        """Create one run of each DAG for these events, as Airflow does.

        Events of paused DAGs are lost.
        """
        chosen = [self.events[place] for place in places]
        self.events = [event for place, event in enumerate(self.events) if place not in places]
        for dag in {dag for dag, _ in chosen} - self.paused:
            self.start(dag, events=[extra for to, extra in chosen if to == dag], run_type="asset_triggered")

    def active(self, dag: str) -> Run | None:
        """Return the run that Airflow works on, or None if there is none or the DAG is paused.

        ``max_active_runs`` is 1.
        """
        if dag in self.paused:
            return None
        return next(
            (run for state in ("running", "queued") for run in self.runs if run.dag == dag and run.state == state), None
        )

    def work(self, dag: str, *, kill_in: int | None = None, breaks: bool = False, puts_back: bool = True) -> bool:
        """Run one try of the active run's next task. Return False if there is none.

        Args:
            kill_in: number of the write before which it dies (0: the first).
            breaks: whether it fails because of its own error, if it can.
            puts_back: whether ``rollback`` succeeds if deploy fails now.
        """
        run = self.active(dag)
        if run is None:
            return False
        run.state, self.kill_in, self.breaks = "running", kill_in, breaks
        tasks = TASKS[dag]
        name, task = tasks[run.at]
        try:
            run.given[name] = task(self, run)
        except AirflowSkipException:
            self._end(run, "success")
        except AirflowFailException:
            self._failed(run, puts_back)
        except (Killed, Exception):
            run.tries += 1
            if run.tries >= TRIES:
                self._failed(run, puts_back)
        else:
            run.at, run.tries = run.at + 1, 0
            if run.at == len(tasks):
                run.state = "success"
        finally:
            self.kill_in, self.breaks = None, False
        return True

    def finish(self, dag: str) -> None:
        while self.work(dag):
            pass

    def _failed(self, run: Run, puts_back: bool) -> None:
        if puts_back and run.dag == "deploy" and run.at >= [name for name, _ in TASKS["deploy"]].index("roll_out"):
            rollback(self, run)
        self._end(run, "failed")

    def _end(self, run: Run, state: str) -> None:
        run.state, run.tries = state, 0

    def clear(self, run: Run, at: int) -> None:
        """Clear the run from its ``at``-th task on, as far as it got."""
        run.state, run.at, run.tries = "queued", min(at, run.at, len(TASKS[run.dag]) - 1), 0


# --- train ----------------------------------------------------------------------------------------


def claim_request(world: World, run: Run) -> Any:
    dag_run = SimpleNamespace(dag_id=run.dag_id, run_id=run.run_id, run_type=run.run_type, run_after=run.run_after)
    return take_up(world.project.name, dag_run, run.conf, woken_by_event=bool(run.events), ti=_ti(run, "claim_request"))


def fit(world: World, run: Run) -> None:
    request = run.given["claim_request"]
    refuse_frozen_step(world.project.name, request["id"], run.run_id, _ti(run, "fit"))
    if world.breaks:
        raise BrokenError("out of memory")
    world.bases.setdefault(request["id"], versions.aliases(world.project).get(versions.CHAMPION, ""))
    world.verdicts.setdefault(request["id"], "passed" if world.passes else "refused")


def register(world: World, run: Run) -> dict[str, Any]:
    """Register as ``versions.register_judged`` does, which reads manifests."""
    request = run.given["claim_request"]
    verdict = world.verdicts[request["id"]]
    version = versions.version_of_request(world.project, request["id"])
    if version is None:
        tags = {
            "request": request["id"],
            "cutoff": request["cutoff"],
            "gate": verdict,
            "judged_against": world.bases[request["id"]],
        }
        version = world.registry.create_model_version(world.project.name, "/nowhere", tags=tags)
    current = versions.aliases(world.project).get(versions.CHALLENGER)
    if verdict == "passed" and (current is None or int(current) < int(version.version)):
        versions.move_alias(world.project, versions.CHALLENGER, version.version)
    return {"version": version.version, "gate": verdict, "request": request["id"], "cutoff": request["cutoff"]}


def settle(world: World, run: Run) -> None:
    version = run.given["register"]
    ledger.conclude_training(version["request"], run.run_id, version["gate"], version=version["version"])


def announce(world: World, run: Run) -> None:
    if run.given["register"]["gate"] == "passed":
        world.events.append(("deploy", run.given["register"]))


# --- deploy ---------------------------------------------------------------------------------------


def choose_version(world: World, run: Run) -> dict[str, Any]:
    return records.chosen_version(world.project, run.events, run.conf.get("version"))


def smoke_test(world: World, run: Run) -> None:
    chosen = run.given["choose_version"]
    with _ends(world, run):
        promotion.refuse_frozen(world.project, chosen["version"], dag_run=run.run_id)
        records.hold_request(chosen, dag_run=run.run_id)
        if world.breaks:
            raise BrokenError("the registry's files are away")


def roll_out(world: World, run: Run) -> None:
    chosen = run.given["choose_version"]
    records.hold_request(chosen, dag_run=run.run_id)
    with _ends(world, run):
        by_person = chosen["by_person"]
        progress = steps.advance(
            world.project, chosen["version"], dag_run=run.run_id, cutoff=_cutoff(run), by_person=by_person
        )
    assert progress.done


def promote(world: World, run: Run) -> None:
    chosen = run.given["choose_version"]
    before = versions.aliases(world.project).get(versions.CHAMPION)
    try:
        with _ends(world, run):
            by_person = chosen["by_person"]
            promotion.promote(
                world.project, chosen["version"], dag_run=run.run_id, cutoff=_cutoff(run), by_person=by_person
            )
    finally:
        now = world.registry.aliases.get(versions.CHAMPION)
        if now == chosen["version"] != before and not chosen["by_person"]:
            world.promoted.append(chosen["version"])


def wait_for_serving(world: World, run: Run) -> None:
    with _ends(world, run):
        promotion.require_alias_unmoved(world.project, run.given["choose_version"]["version"])
        if world.breaks:
            raise BrokenError("serving did not serve it")


def announce_champion(world: World, run: Run) -> None:
    chosen = run.given["choose_version"]
    promotion.confirm(world.project, chosen["version"], run.run_id)
    records.record_end(world.project, chosen, "deployed", "serving serves it", cutoff=_cutoff(run), dag_run=run.run_id)


def rollback(world: World, run: Run) -> None:
    """Run the task ``rollback`` as often as Airflow tries it. It may die, too."""
    chosen = run.given["choose_version"]
    try:
        with _ends(world, run):
            rollout = promotion.restore_previous(
                world.project, chosen["version"], dag_run=run.run_id, reason="serving did not come to serve it"
            )
        if rollout is not None:
            records.record_end(
                world.project, chosen, "rolled_back", rollout.reason, cutoff=_cutoff(run), dag_run=run.run_id
            )
    except (Killed, AirflowSkipException, AirflowFailException):
        pass


# --- monitor --------------------------------------------------------------------------------------


def sweep_overdue(world: World, run: Run) -> Any:
    return overdue.sweep(world.project, world)


def wake(world: World, run: Run) -> None:
    payloads = run.given["sweep_overdue"]
    world.events += [(dag, payloads[dag]) for dag in ("train", "deploy") if payloads[dag]]


def decide_retraining(world: World, run: Run) -> None:
    champion = versions.champion(world.project)
    performance = None
    if champion is not None:
        metric = 0.70 if world.drifts else 0.745
        performance = {
            "version": champion.version,
            "champion_cutoff": champion.tags["cutoff"],
            "predictions": 5000,
            "labels": 5000,
            "metric": metric,
            "ci": [metric - 0.01, metric + 0.01],
            "reference": 0.74,
            "bias": 0.0,
            "bias_ci": [-0.01, 0.01],
            "figures": {},
        }
    episodes.decide_retraining(world.project, iso(run.run_after), performance, {"share": 0.4}, dag_run=run.run_id)


def request_retraining(world: World, run: Run) -> None:
    request = episodes.unclaimed_request(world.project)
    if request is not None and not run.given["sweep_overdue"]["train"]:
        world.events.append(("train", {"request": request.id, "cutoff": request.cutoff}))


Task = Callable[[World, Run], Any]
TASKS: dict[str, list[tuple[str, Task]]] = {
    dag: [(task.__name__, task) for task in tasks]
    for dag, tasks in {
        "train": [claim_request, fit, register, settle, announce],
        "deploy": [choose_version, smoke_test, roll_out, promote, wait_for_serving, announce_champion],
        "monitor": [sweep_overdue, wake, decide_retraining, request_retraining],
    }.items()
}


def _ends(world: World, run: Run) -> Any:
    return record_rollout_outcome(world.project, run.given["choose_version"], cutoff=_cutoff(run), dag_run=run.run_id)


def _cutoff(run: Run) -> str:
    cutoffs = [event["cutoff"] for event in run.events]
    return max(cutoffs) if cutoffs else iso(run.run_after)


def _ti(run: Run, task: str) -> Any:
    return SimpleNamespace(dag_id=run.dag_id, run_id=run.run_id, task_id=task)


DAY = timedelta(days=1)
