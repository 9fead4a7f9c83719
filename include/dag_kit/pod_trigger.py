"""Watches a training pod from the triggerer, so that neither a waiting pod nor a running one holds a worker slot.

The provider's own trigger is built upon, and differs in this: its timers start anew with every triggerer, it gives up when the API server is away
for some seconds, it forgets why a pod that was deleted went, and a pod whose node does not answer looks to it as if it ran. Imported by the triggerer
and, within tasks, by ``include.dag_kit.pods``; never by a DAG file: the Kubernetes client costs seconds.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from airflow.providers.cncf.kubernetes.triggers.pod import KubernetesPodTrigger
from airflow.triggers.base import TriggerEvent

from include.dag_kit.pod_ends import CONTAINER, Verdict, cannot_start, has_ended, is_at, scheduled_at, started_at, terminated

SHORTEST, LONGEST = 0.5, 5.0  # seconds between two looks at a pod ...
SHARE = 0.02  # ... which is this share of its age: the end of an hour's fit may be noticed five seconds late, that of a short one may not
# Airflow's scheduler hears that the task deferred up to a second later (``min_heartbeat_interval``); a task that is back by then it takes for lost.
EARLIEST = 2.0  # seconds after the watch began; only a pod that is quicker waits for it
TRIES_TO_DELETE = 12
LOG_EVERY = 5.0  # seconds between two looks at a running pod's log


class StepPodTrigger(KubernetesPodTrigger):
    """Fires once: when the pod has ended, is gone, or will not get anywhere.

    Args:
        uid: of the pod; one of the same name that was made later is another one.
        limits: seconds: ``schedule`` since it was made, ``start`` since it has a node, ``run`` since its container started.
    """

    def __init__(self, *, uid: str, limits: dict[str, float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.uid, self.limits = uid, limits

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return f"{type(self).__module__}.{type(self).__qualname__}", {**super().serialize()[1], "uid": self.uid, "limits": self.limits}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        seen: dict[str, Any] = {}
        at, logged, looked_for_lines = "", "", 0.0
        began = time.monotonic()
        while True:
            try:
                found = await self._look()
            except Exception as error:  # noqa: BLE001
                # The API server is away, or refuses for now: the pod runs on, and so does its watch. Airflow's own limit on the task is the end of it.
                if at != (at := f"not to be seen: {error!r:.300}"):
                    self.log.warning("pod %s: %s", self.pod_name, at)
                await asyncio.sleep(LONGEST)
                continue
            if found is not None:
                seen = found
                if at != (at := is_at(found)):
                    self.log.info("pod %s: %s", self.pod_name, at)
            now = datetime.now(UTC)
            if found is not None and started_at(found) and not terminated(found) and now.timestamp() - looked_for_lines > LOG_EVERY:
                logged, looked_for_lines = await self._show_log(self.pod_name, logged), now.timestamp()
            verdict = Verdict.GONE if found is None else judge(found, self.limits, now)
            if verdict is not None:
                await asyncio.sleep(began + EARLIEST - time.monotonic())
                self._fired_event = True
                yield TriggerEvent({"name": self.pod_name, "namespace": self.pod_namespace, "verdict": verdict.value, "seen": seen, "logged": logged})
                return
            age = now.timestamp() - moment(seen["metadata"]["creationTimestamp"]).timestamp()
            await asyncio.sleep(min(LONGEST, max(SHORTEST, SHARE * age)))

    async def on_kill(self) -> None:
        """A person ended the task (marked it, cleared it): its pod goes, and no other one."""
        if self._fired_event:
            return
        from kubernetes_asyncio import client

        self.log.info("Deleting pod %s, as its task was ended by a person", self.pod_name)
        options = client.V1DeleteOptions(preconditions=client.V1Preconditions(uid=self.uid))
        await self._delete(lambda api: client.CoreV1Api(api).delete_namespaced_pod(self.pod_name, self.pod_namespace, body=options))

    async def _delete(self, ask: Callable[[Any], Awaitable[Any]]) -> None:
        """Asks until the API server hears it, for a minute: nobody else will, and what is not deleted holds its GPU."""
        from kubernetes_asyncio import client

        for left in reversed(range(TRIES_TO_DELETE)):
            try:
                async with self.hook.get_conn() as connection:
                    await ask(connection)
                return
            except Exception as error:
                if isinstance(error, client.ApiException) and error.status in (404, 409):  # gone already; another one of that name
                    return
                if not left:
                    self.log.error("%s could not be deleted, and runs on until its own deadline; kubectl delete it", self.pod_name)
                    raise
                await asyncio.sleep(LONGEST)

    async def _look(self) -> dict[str, Any] | None:
        """The pod as the API's JSON; None if it is gone."""
        from kubernetes_asyncio import client

        async with self.hook.get_conn() as connection:
            try:
                pod = await client.CoreV1Api(connection).read_namespaced_pod(self.pod_name, self.pod_namespace, _request_timeout=20)
            except client.ApiException as error:
                if error.status == 404:
                    return None
                raise
            as_json = connection.sanitize_for_serialization(pod)
        return bare(as_json) if as_json["metadata"]["uid"] == self.uid else None

    async def _show_log(self, pod_name: str, logged: str) -> str:
        """Writes the lines after the given time stamp into the task's log; gives the newest one."""
        seconds = None if not logged else max(1, int((datetime.now(UTC) - moment(logged)).total_seconds()) + 2)
        try:
            lines = await self.hook.read_logs(pod_name, self.pod_namespace, CONTAINER, seconds)
        except Exception as error:  # noqa: BLE001
            self.log.warning("the log of pod %s cannot be read now: %.300r", pod_name, error)
            return logged
        for stamp, line in lines_after(lines, logged):
            self.log.info("%s", line)
            logged = stamp
        return logged


def judge(pod: dict[str, Any], limits: dict[str, float], now: datetime) -> Verdict | None:
    """What the pod has come to; None: it is on its way. Timers run from the times that the API server wrote, so no restart of ours lengthens them.

    A pod that is being deleted is on its way until its node says that nothing of it runs: only then may another one take its place.
    """
    if has_ended(pod):
        return Verdict.ENDED
    started, scheduled, made = started_at(pod), scheduled_at(pod), pod["metadata"]["creationTimestamp"]
    if started:
        return Verdict.HUNG if (now - moment(started)).total_seconds() > limits["run"] else None
    if pod["metadata"].get("deletionTimestamp"):
        return Verdict.NOT_STARTED if (now - moment(made)).total_seconds() > limits["schedule"] + limits["start"] else None
    if verdict := cannot_start(pod):
        return verdict
    if scheduled:
        return Verdict.NOT_STARTED if (now - moment(scheduled)).total_seconds() > limits["start"] else None
    return Verdict.NOT_SCHEDULED if (now - moment(made)).total_seconds() > limits["schedule"] else None


def lines_after(lines: list[str], stamp: str) -> list[tuple[str, str]]:
    """(time stamp, text) of log lines with time stamps, those after the given stamp only; lines without one go with the line before."""
    found: list[tuple[str, str]] = []
    for line in lines:
        head, _, text = line.rstrip("\n").partition(" ")
        if len(head) >= 20 and head[4:5] == "-" and head[10:11] == "T":
            if head > stamp:
                found.append((head, text))
        elif found:
            found.append((found[-1][0], line))
    return found


def moment(stamp: str) -> datetime:
    """A time as Kubernetes writes it, to the microsecond."""
    whole, _, fraction = stamp.rstrip("Z").removesuffix("+00:00").partition(".")
    return datetime.fromisoformat(f"{whole}.{(fraction or '0')[:6].ljust(6, '0')}+00:00")


def bare(pod: dict[str, Any]) -> dict[str, Any]:
    """Without what nobody reads and what an event, which lies in Airflow's database, must not hold: environment variables, managed fields."""
    metadata = {
        k: v for k, v in pod["metadata"].items() if k in ("name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "labels", "annotations")
    }
    containers = [{k: c[k] for k in ("name", "image", "resources") if k in c} for c in pod["spec"]["containers"]]
    return {"metadata": metadata, "spec": {"nodeName": pod["spec"].get("nodeName"), "containers": containers}, "status": pod.get("status", {})}
