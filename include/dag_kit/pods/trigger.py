"""Watch a training pod from the triggerer.

This way, neither a waiting nor a running pod holds a worker slot. The trigger extends the
provider's own trigger, which has these limitations:

- Its timers restart with every triggerer.
- It fails when the API server is unavailable for some seconds.
- It does not keep the reason why a pod was deleted.
- It treats a pod on an unresponsive node as running.

This module is imported by the triggerer and, within tasks, by ``include.dag_kit.pods.operator``. A
DAG file never imports it, because importing the Kubernetes client takes seconds.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from airflow.providers.cncf.kubernetes.triggers.pod import KubernetesPodTrigger
from airflow.triggers.base import TriggerEvent

from include.dag_kit.pods.ends import (
    CONTAINER,
    PodVerdict,
    cannot_start,
    has_ended,
    is_at,
    scheduled_at,
    started_at,
    terminated,
)

# Bounds, in seconds, of the interval between two checks of a pod.
SHORTEST, LONGEST = 0.5, 5.0
# The interval is this share of the pod's age. The end of a one-hour fit may be noticed five seconds
# late, that of a short fit may not.
SHARE = 0.02
# Minimum time in seconds from the start of the watch to the event. Airflow's scheduler learns up to
# a second later that the task deferred (``min_heartbeat_interval``). It treats a task that resumes
# before that as lost. Only a pod that ends earlier is delayed by this.
EARLIEST = 2.0
TRIES_TO_DELETE = 12
# Seconds between two reads of a running pod's log.
LOG_EVERY = 5.0


class StepPodTrigger(KubernetesPodTrigger):
    """Fire once: when the pod has ended, is gone, or cannot succeed.

    Args:
        uid: The pod's uid. A later pod of the same name has another uid.
        limits: In seconds: ``schedule`` since creation, ``start`` since the pod was assigned to a
            node, ``run`` since its container started.
    """

    def __init__(self, *, uid: str, limits: dict[str, float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.uid, self.limits = uid, limits

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return f"{type(self).__module__}.{type(self).__qualname__}", {
            **super().serialize()[1],
            "uid": self.uid,
            "limits": self.limits,
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        seen: dict[str, Any] = {}
        at, logged, looked_for_lines = "", "", 0.0
        began = time.monotonic()
        while True:
            try:
                pod = await self._look()
            except Exception as error:
                # The API server is unavailable or refuses temporarily. The pod continues, and this
                # loop continues to watch it. Airflow's own limit on the task ends it.
                if at != (at := f"not to be seen: {error!r:.300}"):
                    self.log.warning("pod %s: %s", self.pod_name, at)
                await asyncio.sleep(LONGEST)
                continue
            if pod is not None:
                seen = pod
                if at != (at := is_at(pod)):
                    self.log.info("pod %s: %s", self.pod_name, at)
            now = datetime.now(UTC)
            if (
                pod is not None
                and started_at(pod)
                and not terminated(pod)
                and now.timestamp() - looked_for_lines > LOG_EVERY
            ):
                logged, looked_for_lines = await self._show_log(self.pod_name, logged), now.timestamp()
            verdict = PodVerdict.GONE if pod is None else judge(pod, self.limits, now)
            if verdict is not None:
                await asyncio.sleep(began + EARLIEST - time.monotonic())
                self._fired_event = True
                yield TriggerEvent(
                    {
                        "name": self.pod_name,
                        "namespace": self.pod_namespace,
                        "verdict": verdict.value,
                        "seen": seen,
                        "logged": logged,
                    }
                )
                return
            age = now.timestamp() - moment(seen["metadata"]["creationTimestamp"]).timestamp()
            await asyncio.sleep(min(LONGEST, max(SHORTEST, SHARE * age)))

    async def on_kill(self) -> None:
        """Delete the pod, and no other pod, after a person ended the task.

        A person ends a task by marking or clearing it.
        """
        if self._fired_event:
            return
        from kubernetes_asyncio import client

        self.log.info("Deleting pod %s, as its task was ended by a person", self.pod_name)
        options = client.V1DeleteOptions(preconditions=client.V1Preconditions(uid=self.uid))
        await self._delete(
            lambda api: client.CoreV1Api(api).delete_namespaced_pod(self.pod_name, self.pod_namespace, body=options)
        )

    async def _delete(self, ask: Callable[[Any], Awaitable[Any]]) -> None:
        """Request the deletion until the API server accepts it, for one minute.

        No other process deletes the object, and it holds its GPU until then.
        """
        from kubernetes_asyncio import client

        for left in reversed(range(TRIES_TO_DELETE)):
            try:
                async with self.hook.get_conn() as connection:
                    await ask(connection)
                return
            except Exception as error:
                # The object was deleted already, or another one has its name.
                if isinstance(error, client.ApiException) and error.status in (404, 409):
                    return
                if not left:
                    self.log.error(
                        "%s could not be deleted, and runs on until its own deadline; kubectl delete it", self.pod_name
                    )
                    raise
                await asyncio.sleep(LONGEST)

    async def _look(self) -> dict[str, Any] | None:
        """Return the pod as the API's JSON, or None if it is gone."""
        from kubernetes_asyncio import client

        async with self.hook.get_conn() as connection:
            try:
                pod = await client.CoreV1Api(connection).read_namespaced_pod(
                    self.pod_name, self.pod_namespace, _request_timeout=20
                )
            except client.ApiException as error:
                if error.status == 404:
                    return None
                raise
            as_json = connection.sanitize_for_serialization(pod)
        return bare(as_json) if as_json["metadata"]["uid"] == self.uid else None

    async def _show_log(self, pod_name: str, logged: str) -> str:
        """Write the lines after the given time stamp into the task's log.

        Return the newest stamp.
        """
        seconds = None if not logged else max(1, int((datetime.now(UTC) - moment(logged)).total_seconds()) + 2)
        try:
            lines = await self.hook.read_logs(pod_name, self.pod_namespace, CONTAINER, seconds)
        except Exception as error:
            self.log.warning("the log of pod %s cannot be read now: %.300r", pod_name, error)
            return logged
        for stamp, line in lines_after(lines, logged):
            self.log.info("%s", line)
            logged = stamp
        return logged


def judge(pod: dict[str, Any], limits: dict[str, float], now: datetime) -> PodVerdict | None:
    """Return the pod's outcome, or None if it is still in progress.

    Timers start at times that the API server recorded, so a restart of the triggerer does not
    extend them. A pod that is being deleted is in progress until its node reports that nothing of
    it runs. Only then may another pod replace it.
    """
    if has_ended(pod):
        return PodVerdict.ENDED
    started, scheduled, made = started_at(pod), scheduled_at(pod), pod["metadata"]["creationTimestamp"]
    if started:
        return PodVerdict.HUNG if (now - moment(started)).total_seconds() > limits["run"] else None
    if pod["metadata"].get("deletionTimestamp"):
        return (
            PodVerdict.NOT_STARTED
            if (now - moment(made)).total_seconds() > limits["schedule"] + limits["start"]
            else None
        )
    if verdict := cannot_start(pod):
        return verdict
    if scheduled:
        return PodVerdict.NOT_STARTED if (now - moment(scheduled)).total_seconds() > limits["start"] else None
    return PodVerdict.NOT_SCHEDULED if (now - moment(made)).total_seconds() > limits["schedule"] else None


def lines_after(lines: list[str], stamp: str) -> list[tuple[str, str]]:
    """Return (time stamp, text) of the log lines after the given stamp.

    A line without a time stamp belongs to the line before it.
    """
    stamped: list[tuple[str, str]] = []
    for line in lines:
        head, _, text = line.rstrip("\n").partition(" ")
        if len(head) >= 20 and head[4:5] == "-" and head[10:11] == "T":
            if head > stamp:
                stamped.append((head, text))
        elif stamped:
            stamped.append((stamped[-1][0], line))
    return stamped


def moment(stamp: str) -> datetime:
    """Parse a time in Kubernetes' format, with microsecond precision."""
    whole, _, fraction = stamp.rstrip("Z").removesuffix("+00:00").partition(".")
    return datetime.fromisoformat(f"{whole}.{(fraction or '0')[:6].ljust(6, '0')}+00:00")


def bare(pod: dict[str, Any]) -> dict[str, Any]:
    """Return only those fields of a pod that are used.

    An event is stored in Airflow's database, so it must not contain environment variables. Managed
    fields are removed too.
    """
    metadata = {
        k: v
        for k, v in pod["metadata"].items()
        if k in ("name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "labels", "annotations")
    }
    containers = [{k: c[k] for k in ("name", "image", "resources") if k in c} for c in pod["spec"]["containers"]]
    return {
        "metadata": metadata,
        "spec": {"nodeName": pod["spec"].get("nodeName"), "containers": containers},
        "status": pod.get("status", {}),
    }
