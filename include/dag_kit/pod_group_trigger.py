"""Watches the pods of an indexed Job from the triggerer, as ``include.dag_kit.pod_trigger`` does one pod; imported by the triggerer and within tasks."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from airflow.triggers.base import TriggerEvent

from include.dag_kit.pod_ends import Verdict, started_at, terminated
from include.dag_kit.pod_group_ends import GROUP, group_is_at, judge_group, newest, stand_in
from include.dag_kit.pod_trigger import EARLIEST, LOG_EVERY, LONGEST, SHARE, SHORTEST, StepPodTrigger, bare, moment


class StepGroupTrigger(StepPodTrigger):
    """Fires once: when the Job has ended, is gone, or will not get anywhere. ``pod_name`` and ``uid`` are the Job's."""

    async def run(self) -> AsyncIterator[TriggerEvent]:
        job: dict[str, Any] = {}
        seen: dict[str, dict[str, Any]] = {}  # uid -> pod as last seen; those that are gone since have cost something too
        at, logged, shown, looked_for_lines = "", "", "", 0.0
        began = time.monotonic()
        while True:
            try:
                found, pods = await self._look_at_all()
            except Exception as error:  # noqa: BLE001
                # The API server is away, or refuses for now: the pods run on, and so does their watch. Airflow's own limit on the task is the end of it.
                if at != (at := f"not to be seen: {error!r:.300}"):
                    self.log.warning("job %s: %s", self.pod_name, at)
                await asyncio.sleep(LONGEST)
                continue
            job = found or job
            now = datetime.now(UTC)
            seen |= {pod["metadata"]["uid"]: {**pod, "seen_at": f"{now:%FT%TZ}"} for pod in pods}
            if at != (at := group_is_at(pods)):
                self.log.info("job %s: %s", self.pod_name, at)
            first = newest(pods, 0)  # which speaks for all; see Workers.first
            if first and started_at(first) and not terminated(first) and now.timestamp() - looked_for_lines > LOG_EVERY:
                if shown != (shown := first["metadata"]["name"]):
                    logged = ""
                logged, looked_for_lines = await self._show_log(shown, logged), now.timestamp()
            verdict = judge_group(found, pods, self.limits, now) if found else (Verdict.GONE, self._last_seen(seen, job))
            if verdict is not None:
                await asyncio.sleep(began + EARLIEST - time.monotonic())
                self._fired_event = True
                yield TriggerEvent(event(self.pod_name, self.pod_namespace, self.uid, verdict, gone=seen, shown=shown, logged=logged))
                return
            age = now.timestamp() - moment(job["metadata"]["creationTimestamp"]).timestamp()
            await asyncio.sleep(min(LONGEST, max(SHORTEST, SHARE * age)))

    async def on_kill(self) -> None:
        """A person ended the task (marked it, cleared it): its Job goes with all pods, and no other one."""
        if self._fired_event:
            return
        from kubernetes_asyncio import client

        self.log.info("Deleting job %s, as its task was ended by a person", self.pod_name)
        options = client.V1DeleteOptions(preconditions=client.V1Preconditions(uid=self.uid), propagation_policy="Background")
        await self._delete(lambda api: client.BatchV1Api(api).delete_namespaced_job(self.pod_name, self.pod_namespace, body=options))

    async def _look_at_all(self) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
        """The Job as the API's JSON (None if it is gone) and its pods."""
        from kubernetes_asyncio import client

        async with self.hook.get_conn() as connection:
            try:
                found = await client.BatchV1Api(connection).read_namespaced_job(self.pod_name, self.pod_namespace, _request_timeout=20)
            except client.ApiException as error:
                if error.status != 404:
                    raise
                found = None
            listed = await client.CoreV1Api(connection).list_namespaced_pod(self.pod_namespace, label_selector=f"{GROUP}={self.uid}", _request_timeout=20)
            job = None if found is None else connection.sanitize_for_serialization(found)
            pods = [bare(connection.sanitize_for_serialization(pod)) for pod in listed.items]
        return (job if job and job["metadata"]["uid"] == self.uid else None), pods

    def _last_seen(self, seen: dict[str, dict[str, Any]], job: dict[str, Any]) -> dict[str, Any]:
        """Of a Job that is gone, the first worker's pod as last seen, without an end of its own: that it ended with its Job tells nothing."""
        pod = newest(list(seen.values()), 0) or (stand_in(job) if job else {"metadata": {"name": self.pod_name}})
        return {**pod, "status": {}}


def event(
    name: str, namespace: str, uid: str, verdict: tuple[Verdict, dict[str, Any]], *, gone: dict[str, dict[str, Any]], shown: str, logged: str
) -> dict[str, Any]:
    """What a task needs to go on: the Job, the pod that tells its end and how, all pods as last seen, and what of whose log was shown."""
    telling = verdict[1]
    return {
        "job": {"name": name, "uid": uid}, "namespace": namespace, "verdict": verdict[0].value, "name": telling["metadata"]["name"], "seen": telling,
        "pods": list(gone.values()), "shown": shown, "logged": logged,
    }  # fmt: skip
