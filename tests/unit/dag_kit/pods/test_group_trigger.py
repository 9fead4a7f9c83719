"""The watcher of a group gives the Job time to replace pods that were lost together."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from include.dag_kit.pods import group_trigger
from include.dag_kit.pods.ends import PodVerdict
from include.dag_kit.pods.group_trigger import StepGroupTrigger

OLD = f"{datetime.now(UTC) - timedelta(hours=1):%FT%TZ}"
JOB: dict[str, Any] = {
    "metadata": {"name": "a-job", "uid": "1", "creationTimestamp": OLD},
    "spec": {"template": {"spec": {"containers": []}}},
    "status": {},
}
COMPLETE = {**JOB, "status": {"conditions": [{"type": "Complete", "status": "True"}]}}
POD = {
    "metadata": {"name": "a-pod", "uid": "2", "creationTimestamp": OLD},
    "spec": {},
    "status": {
        "phase": "Running",
        "conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": OLD}],
    },
}
NONE: list[dict[str, Any]] = []


@pytest.fixture
def verdict(monkeypatch):
    """Return a function that shows the watcher these states in turn, and returns its verdict."""
    for name, value in {"SHORTEST": 0.05, "LONGEST": 0.05, "EARLIEST": 0.0}.items():
        monkeypatch.setattr(group_trigger, name, value)

    def of(states, *, schedule: float) -> PodVerdict:
        limits = {"schedule": schedule, "start": 1e9, "run": 1e9, "time": 1e9}
        trigger = StepGroupTrigger(
            uid="1",
            limits=limits,
            pod_name="a-job",
            pod_namespace="n",
            trigger_start_time=datetime.now(UTC),
            base_container_name="base",
        )
        left = list(states)

        async def look() -> tuple[dict[str, Any], list[dict[str, Any]]]:
            return left.pop(0) if len(left) > 1 else left[0]

        monkeypatch.setattr(trigger, "_look_at_all", look)

        async def first() -> Any:
            return await asyncio.wait_for(anext(trigger.run()), 60)

        return PodVerdict(asyncio.run(first()).payload["verdict"])

    return of


def test_a_watch_that_begins_between_two_generations_of_pods_goes_on(verdict):
    """A restarted watcher has seen no pod of an old Job."""
    assert verdict([(JOB, NONE)] * 3 + [(JOB, [POD])] * 2 + [(COMPLETE, [POD])], schedule=30) == PodVerdict.ENDED


def test_pods_that_are_lost_together_are_waited_for(verdict):
    assert verdict([(JOB, [POD])] * 2 + [(JOB, NONE)] * 3 + [(COMPLETE, NONE)], schedule=30) == PodVerdict.ENDED


@pytest.mark.parametrize("before", [[], [(JOB, [POD])] * 2])
def test_a_job_without_pods_for_longer_than_the_limit_is_unschedulable(verdict, before):
    assert verdict([*before, (JOB, NONE)], schedule=0.3) == PodVerdict.NOT_SCHEDULED
