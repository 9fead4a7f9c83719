"""Watch the pods of an indexed Job from the triggerer.

This corresponds to ``include.dag_kit.pods.trigger`` for one pod. It is imported by the triggerer
and within tasks.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from airflow.triggers.base import TriggerEvent

from include.dag_kit.pods.ends import PodVerdict, started_at, terminated
from include.dag_kit.pods.group_ends import GROUP, group_is_at, judge_group, newest, stand_in
from include.dag_kit.pods.trigger import EARLIEST, LOG_EVERY, LONGEST, SHARE, SHORTEST, StepPodTrigger, bare, moment


class StepGroupTrigger(StepPodTrigger):
    """Fire once: when the Job has ended, is gone, or cannot succeed.

    ``pod_name`` and ``uid`` are those of the Job.
    """

    async def run(self) -> AsyncIterator[TriggerEvent]:
        job: dict[str, Any] = {}
        # Maps each uid to the pod as last seen. Pods that are gone since then are kept, because
        # they caused cost too.
        seen: dict[str, dict[str, Any]] = {}
        at, logged, shown, looked_for_lines = "", "", "", 0.0
        began, without_pods_since = time.monotonic(), datetime.now(UTC)
        while True:
            try:
                current, pods = await self._look_at_all()
            except Exception as error:
                # The API server is unavailable or refuses temporarily. The pods continue, and this
                # loop continues to watch them. Airflow's own limit on the task ends it.
                if at != (at := f"not to be seen: {error!r:.300}"):
                    self.log.warning("job %s: %s", self.pod_name, at)
                await asyncio.sleep(LONGEST)
                continue
            job = current or job
            now = datetime.now(UTC)
            seen |= {pod["metadata"]["uid"]: {**pod, "seen_at": f"{now:%FT%TZ}"} for pod in pods}
            if at != (at := group_is_at(pods)):
                self.log.info("job %s: %s", self.pod_name, at)
            # The first worker reports for all workers. See Workers.first.
            first = newest(pods, 0)
            if first and started_at(first) and not terminated(first) and now.timestamp() - looked_for_lines > LOG_EVERY:
                if shown != (shown := first["metadata"]["name"]):
                    logged = ""
                logged, looked_for_lines = await self._show_log(shown, logged), now.timestamp()
            if pods:
                without_pods_since = now
            verdict = (
                judge_group(current, pods, self.limits, now, without_pods_since)
                if current
                else (PodVerdict.GONE, self._last_seen(seen, job))
            )
            if verdict is not None:
                await asyncio.sleep(began + EARLIEST - time.monotonic())
                self._fired_event = True
                yield TriggerEvent(
                    event(self.pod_name, self.pod_namespace, self.uid, verdict, gone=seen, shown=shown, logged=logged)
                )
                return
            age = now.timestamp() - moment(job["metadata"]["creationTimestamp"]).timestamp()
            await asyncio.sleep(min(LONGEST, max(SHORTEST, SHARE * age)))

    async def on_kill(self) -> None:
        """Delete the Job with all its pods, and no other Job, after a person ended the task.

        A person ends a task by marking or clearing it.
        """
        if self._fired_event:
            return
        from kubernetes_asyncio import client

        self.log.info("Deleting job %s, as its task was ended by a person", self.pod_name)
        options = client.V1DeleteOptions(
            preconditions=client.V1Preconditions(uid=self.uid), propagation_policy="Background"
        )
        await self._delete(
            lambda api: client.BatchV1Api(api).delete_namespaced_job(self.pod_name, self.pod_namespace, body=options)
        )

    async def _look_at_all(self) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
        """Return the Job as the API's JSON (None if it is gone) and its pods."""
        from kubernetes_asyncio import client

        async with self.hook.get_conn() as connection:
            try:
                response = await client.BatchV1Api(connection).read_namespaced_job(
                    self.pod_name, self.pod_namespace, _request_timeout=20
                )
            except client.ApiException as error:
                if error.status != 404:
                    raise
                response = None
            listed = await client.CoreV1Api(connection).list_namespaced_pod(
                self.pod_namespace, label_selector=f"{GROUP}={self.uid}", _request_timeout=20
            )
            job = None if response is None else connection.sanitize_for_serialization(response)
            pods = [bare(connection.sanitize_for_serialization(pod)) for pod in listed.items]
        return (job if job and job["metadata"]["uid"] == self.uid else None), pods

    def _last_seen(self, seen: dict[str, dict[str, Any]], job: dict[str, Any]) -> dict[str, Any]:
        """Return the first worker's pod as last seen, for a Job that is gone.

        Its status is removed: its end was caused by the end of the Job and does not explain it.
        """
        pod = newest(list(seen.values()), 0) or (stand_in(job) if job else {"metadata": {"name": self.pod_name}})
        return {**pod, "status": {}}


def event(
    name: str,
    namespace: str,
    uid: str,
    verdict: tuple[PodVerdict, dict[str, Any]],
    *,
    gone: dict[str, dict[str, Any]],
    shown: str,
    logged: str,
) -> dict[str, Any]:
    """Return the event with which the task resumes.

    It contains the Job, the pod that decided its end, the verdict, all pods as last seen, and how
    far which pod's log was shown.
    """
    telling = verdict[1]
    return {
        "job": {"name": name, "uid": uid},
        "namespace": namespace,
        "verdict": verdict[0].value,
        "name": telling["metadata"]["name"],
        "seen": telling,
        "pods": list(gone.values()),
        "shown": shown,
        "logged": logged,
    }
