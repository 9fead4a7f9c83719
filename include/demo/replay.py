"""The replay: the feed writes a month of files, Airflow processes them, and this module waits.

The DAGs contain the loop. This module contains only what is outside of it: the upstream's files,
the clock, a user who requests trainings, and an application that calls the serving API. After a
kill, it continues with the unfinished month.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeVar
from uuid import uuid4

import httpx
import pandas as pd
import pyarrow.dataset as ds

from include import ledger
from include.data import feed, layout, tables
from include.features.known import KnownTables
from include.outages import outage_of
from include.projects.base import Project
from include.rollout.served import credentials
from include.settings import get_settings
from include.stack.api import AirflowApi

T = TypeVar("T")
CHAIN = ("ingest", "build_features", "score", "monitor")
# Serving is called for flights whose prediction time is this soon after the cutoff. New features
# are computed every half hour.
NEXT_DEPARTURES = timedelta(minutes=29)
STAGE_TIMEOUT_S = 900.0


class Watcher(Protocol):
    """A display of the progress."""

    def step(self, step: "ReplayStep") -> None: ...
    def stage(self, name: str) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass(frozen=True)
class ReplayStep:
    """One step of the replay: ingest everything published until ``cutoff``, then run the loop."""

    name: str
    since: datetime
    cutoff: datetime
    first_model: bool = False
    bad_files: tuple[str, ...] = ()
    recent_days_only: int | None = None  # a user requests a training on only these newest days


@dataclass
class StepRecord:
    """The result of a step, stored in <home>/demo/steps.json."""

    name: str
    cutoff: str
    seconds: float
    stages: dict[str, float]
    monitor: dict[str, Any]
    trainings: list[dict[str, Any]]
    files: int
    bad_files: list[str]
    serving_asked: int
    serving_answers: list[dict[str, Any]] = field(default_factory=list)
    serving_agreed: int | None = None  # how many of them the next step's batch confirmed


class ReplayFailedError(RuntimeError):
    """Raised when a stage did not complete."""


def year(months: int = 12) -> list[ReplayStep]:
    """Return the steps of a year.

    January to March are one step, as history for a first model. Then there is a step for each
    month. The last step waits for the last labels.
    """
    beginning, start = datetime(2012, 12, 30, tzinfo=UTC), datetime(2013, 4, 1, 10, tzinfo=UTC)
    steps = [ReplayStep("January to March", beginning, start, first_model=True)]
    for month in range(4, months + 1):
        # At 10:00 UTC it is night in New York, and the day's first flights are an hour ahead.
        until = datetime(2014, 1, 2, 10, tzinfo=UTC) if month == 12 else datetime(2013, month + 1, 1, 10, tzinfo=UTC)
        bad = {4: ("missing_column", "negative_distance")}.get(month, ())
        steps.append(
            ReplayStep(start.strftime("%B"), start, until, bad_files=bad, recent_days_only=92 if month == 11 else None)
        )
        start = until
    return steps


class Replay:
    """A resumable run of the replay's steps."""

    def __init__(self, project: Project, api: AirflowApi, watcher: Watcher):
        self.project, self.api, self.watcher = project, api, watcher
        self.home = get_settings().home / "demo"
        self.home.mkdir(parents=True, exist_ok=True)
        self.records = self._load()
        self._looked_at = 0.0

    def run(self, steps: list[ReplayStep]) -> list[StepRecord]:
        """Run the steps that are not done yet. Return the records of all steps.

        Raises:
            ReplayFailedError: a stage failed or took too long. The message names the stage and
                where to look.
        """
        if held := ledger.freeze_of(self.project.name):
            raise ReplayFailedError(f"the replay trains and deploys, and must not: {held}")
        done = {record.name for record in self.records}
        for step in steps:
            self.watcher.step(step)
            if step.name in done:
                continue
            record = self._run_step(step)
            self.records.append(record)
            self._save()
        return self.records

    def _run_step(self, step: ReplayStep) -> StepRecord:
        began, stages, project = time.monotonic(), {}, self.project
        self.watcher.stage("feed")
        files = feed.drop(project, since=step.since, until=step.cutoff)
        for kind in step.bad_files:
            feed.drop_bad(project, kind, since=step.since, until=step.cutoff)
            self.watcher.note(f"feed: a bad file among the others ({kind})")
        ledger.set_clock(project.name, step.cutoff)
        cutoff = ledger.iso(step.cutoff)
        stages["feed"] = time.monotonic() - began

        self.api.trigger(f"{project.name}__ingest", {"cutoff": cutoff})
        summaries = {stage: self._await_stage(stage, cutoff, stages) for stage in CHAIN}
        monitor = summaries["monitor"]
        trainings = []
        if monitor.get("asked"):
            self.watcher.note(f"monitor: asks for a retraining ({'; '.join(monitor.get('reasons', []))})")
            trainings.append(self._await_training(monitor["request"], cutoff, stages))
        if step.first_model:
            trainings.append(self._train(cutoff, {"cutoff": cutoff, "reason": "first_model"}, stages))
        if step.recent_days_only:
            # Not a request of the loop: a user tries a training window of three months (flights.md:
            # worse than the champion).
            conf = {"cutoff": cutoff, "reason": "person", "last_days": step.recent_days_only}
            trainings.append(
                self._train(cutoff, conf, stages)
                | {"injected": f"a person asked for a training on the last {step.recent_days_only} days only"}
            )
        self._compare_with_batch()
        answers = self._ask_serving(step.cutoff)
        return StepRecord(
            step.name,
            cutoff,
            time.monotonic() - began,
            stages,
            monitor,
            trainings,
            files,
            list(step.bad_files),
            len(answers),
            answers,
        )

    def _train(self, cutoff: str, conf: dict[str, Any], stages: dict[str, float]) -> dict[str, Any]:
        run_id = self._patiently(self.api.trigger, f"{self.project.name}__train", conf, f"replay__{uuid4()}")
        deadline = time.monotonic() + STAGE_TIMEOUT_S
        while not (mine := [r for r in self._patiently(ledger.requests, self.project.name) if r.dag_run == run_id]):
            self._check_run("train", run_id)
            if time.monotonic() > deadline:
                raise ReplayFailedError(
                    f"{self.project.name}__train {run_id} claimed no request in {STAGE_TIMEOUT_S:.0f} s"
                )
            time.sleep(0.3)
        return self._await_training(mine[0].id, cutoff, stages)

    def _await_training(self, request_id: str, cutoff: str, stages: dict[str, float]) -> dict[str, Any]:
        """Wait until the request is settled: refused, or passed and deployed (or rolled back)."""
        for stage, pending in (("train", {"open", "claimed"}), ("deploy", {"passed", "deploying"})):
            self.watcher.stage(stage)
            began = time.monotonic()
            while (request := self._patiently(ledger.get_request, request_id)).state in pending:
                if request.dag_run:
                    self._check_run("train", request.dag_run)
                self._check_failed("deploy", began)
                if time.monotonic() - began > STAGE_TIMEOUT_S:
                    raise ReplayFailedError(
                        f"retrain request {request_id} is still '{request.state}' after {STAGE_TIMEOUT_S:.0f} s; see"
                        f" {self.project.name}__{stage} in Airflow"
                    )
                time.sleep(0.3)
            stages[stage] = stages.get(stage, 0) + time.monotonic() - began
            if request.state == "refused":
                break
        version = request.outcome.get("version")
        self.watcher.note(f"gate: version {version} {'refused' if request.state == 'refused' else request.state}")
        return {
            "request": request.id,
            "reason": request.reason,
            "cutoff": request.cutoff,
            "state": request.state,
            **request.outcome,
        }

    def _await_stage(self, stage: str, cutoff: str, stages: dict[str, float]) -> dict[str, Any]:
        self.watcher.stage(stage)
        began = time.monotonic()
        while (record := self._patiently(ledger.stage_record, self.project.name, stage, cutoff)) is None:
            self._check_failed(stage, began)
            if time.monotonic() - began > STAGE_TIMEOUT_S:
                raise ReplayFailedError(
                    f"{self.project.name}__{stage} did not end in {STAGE_TIMEOUT_S:.0f} s at cutoff {cutoff}; see it in"
                    f" Airflow: {get_settings().airflow_url}"
                )
            time.sleep(0.3)
        stages[stage] = time.monotonic() - began
        summary: dict[str, Any] = record["summary"]
        return summary

    def _check_failed(self, stage: str, began: float) -> None:
        """Raise if a run of this stage has failed since the wait began.

        A failed run of ``ingest`` is ignored: it fails if it refused a file, and the loop
        continues.
        """
        now = time.monotonic()
        # The API server shares the machine with the work.
        if stage == "ingest" or now - self._looked_at < 3:
            return
        self._looked_at = now
        waiting_since = datetime.now(UTC) - timedelta(seconds=now - began)
        for run in self._patiently(self.api.runs, f"{self.project.name}__{stage}", limit=3):
            if run["state"] == "failed" and datetime.fromisoformat(run["end_date"]) > waiting_since:
                self._check_run(stage, run["dag_run_id"])

    def _check_run(self, stage: str, run_id: str) -> None:
        dag_id = f"{self.project.name}__{stage}"
        if self._patiently(self.api.run, dag_id, run_id)["state"] == "failed":
            failed = [
                t["task_id"] for t in self._patiently(self.api.task_instances, dag_id, run_id) if t["state"] == "failed"
            ]
            raise ReplayFailedError(
                f"{dag_id} failed in {', '.join(failed)}: {get_settings().airflow_url}/dags/{dag_id}/runs/{run_id}"
                f" (docs/runbooks/{stage}.md)"
            )

    def _patiently(self, ask: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Return the answer, retrying while the ledger's database or Airflow is unavailable.

        The loop survives such an outage, so this watcher must too.
        """
        deadline = time.monotonic() + STAGE_TIMEOUT_S
        while True:
            try:
                return ask(*arguments, **options)
            except Exception as error:
                if not (outage := outage_of(error)) or time.monotonic() > deadline:
                    raise
                self.watcher.note(f"waiting: {outage}")
                time.sleep(2)

    # --- an application that calls serving --------------------------------------------------------

    def _ask_serving(self, cutoff: datetime) -> list[dict[str, Any]]:
        """Call the serving API for a sample of the next flights.

        The answers are stored until the batch has predicted these flights too.
        """
        project = self.project
        known = KnownTables(project, cutoff)
        due = project.module("features").examples(known, since=cutoff, until=cutoff + NEXT_DEPARTURES, cutoff=cutoff)
        due = due.iloc[:: max(1, len(due) // project.serving_sample)].head(project.serving_sample)
        if due.empty:
            return []
        self.watcher.stage("ask serving")
        instances = json.loads(due[[*project.entities, *project.request_features]].to_json(orient="records"))
        address = f"{get_settings().serving_url}/models/{project.name}/predict"
        answer = httpx.post(address, json={"instances": instances}, headers=credentials(), timeout=30, trust_env=False)
        if answer.is_error:
            raise ReplayFailedError(f"serving answered {answer.status_code}: {answer.text[:300]}")
        body = answer.json()
        keys = json.loads(due[list(project.example_key)].to_json(orient="records", date_format="iso"))
        return [
            {
                "key": key,
                "model_version": str(body["model_version"]),
                "prediction": p["prediction"],
                "id": p["prediction_id"],
            }
            for key, p in zip(keys, body["predictions"], strict=True)
        ]

    def _compare_with_batch(self) -> None:
        """Compare serving's answers of the last step with the batch predictions."""
        if not self.records or not self.records[-1].serving_answers or self.records[-1].serving_agreed is not None:
            return
        record, key = self.records[-1], list(self.project.example_key)
        since = ledger.moment(record.cutoff)
        window = (ds.field("predicted_at") > since) & (ds.field("predicted_at") <= since + NEXT_DEPARTURES)
        table = tables.open_table(layout.predictions(self.project))
        if table is None:
            raise ReplayFailedError(f"{self.project.name}__score made no predictions although there is a champion")
        batch = (
            table.to_pyarrow_dataset()
            .to_table(columns=[*key, "prediction", "model_version"], filter=window)
            .to_pandas()
        )
        online = pd.DataFrame(
            [
                {**a["key"], "online": a["prediction"], "online_version": a["model_version"]}
                for a in record.serving_answers
            ]
        )
        for column in key:
            if isinstance(batch[column].dtype, pd.DatetimeTZDtype):
                online[column] = pd.to_datetime(online[column], utc=True).astype(batch[column].dtype)
        both = online.merge(batch, on=key, how="left")
        same = (both["online"] - both["prediction"]).abs().le(1e-6) & (both["online_version"] == both["model_version"])
        record.serving_agreed = int(same.sum())
        self.watcher.note(f"serving: {record.serving_agreed} of {record.serving_asked} answers equal the batch's")
        if record.serving_agreed != record.serving_asked:
            raise ReplayFailedError(f"serving and batch differ: {both[~same].head(5).to_dict('records')}")
        self._save()

    # --- state that is kept between two starts ----------------------------------------------------

    def _load(self) -> list[StepRecord]:
        path = self.home / "steps.json"
        return [StepRecord(**record) for record in json.loads(path.read_text())] if path.exists() else []

    def _save(self) -> None:
        path = self.home / "steps.json"
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps([asdict(record) for record in self.records], indent=1))
        partial.replace(path)
