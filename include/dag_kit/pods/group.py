"""Run one training step as a group of pods: an indexed Job with one pod per worker.

Each pod runs the step's command line. The pods are those of ``include.dag_kit.pods.operator``. The
Job replaces a pod that was evicted or lost, and never has two pods with the same index. A headless
Service with the Job's name gives the pods host names, which they use to connect
(``include.training.launch``). Like ``pods``, this module is imported within tasks only.
"""

import time
from datetime import UTC, datetime
from typing import Any

from airflow.sdk.exceptions import AirflowException
from kubernetes.client import ApiException
from kubernetes.client import models as k8s

from include.dag_kit.pods import ends as pod_ends
from include.dag_kit.pods.ends import CONTAINER, Kind, PodVerdict
from include.dag_kit.pods.group_ends import (
    END_ANNOTATION,
    GAVE_UP,
    GROUP,
    INDEX,
    OTHERS_LOST,
    condition,
    is_over,
    judge_group,
    newest,
    sort_out_groups,
)
from include.dag_kit.pods.group_trigger import StepGroupTrigger, event
from include.dag_kit.pods.names import labels_of, next_number, pod_name
from include.dag_kit.pods.operator import BACKSTOP, GRACE, LAST_LINES, QuotaExceededError, StepPod
from include.dag_kit.pods.trigger import bare, lines_after, moment
from include.outages import EX_DATAERR

# With "-<index>" it is a pod's host name, which is limited to 63 characters. With "-<index>-<5
# letters>" it is the pod's name, which may be longer.
LONGEST_NAME = 58
# torchrun's own default.
PORT = 29400
OUT_OF_MEMORY = 137


class StepPodGroup(StepPod):
    """Run a training step as the pods of a Job. See ``StepPod``."""

    def __init__(self, *, workers: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.workers = workers
        self.job: k8s.V1Job | None = None
        self._kind = Kind.SUCCEEDED

    # --- Find or create the step's Job ---

    def start(self, context: Any, method_name: str, since: str | None = None) -> dict[str, Any]:
        try:
            self.job = self.find_or_create_job(context)
        # This is the quota of Jobs or Services. The Job itself waits for the quota of pods.
        except QuotaExceededError as error:
            self.wait_for_quota(error, since)
        name, uid = self.job.metadata.name, self.job.metadata.uid
        pods = self._pods_as_json(uid)
        now = datetime.now(UTC)
        # An existing Job may just have lost all its pods. The trigger waits for new ones.
        if verdict := judge_group(self._as_json(self.job), pods, self.limits, now, without_pods_since=now):
            return event(
                name,
                self.namespace,
                uid,
                verdict,
                gone={pod["metadata"]["uid"]: pod for pod in pods},
                shown="",
                logged="",
            )
        trigger = StepGroupTrigger(
            uid=uid,
            limits=self.limits,
            pod_name=name,
            pod_namespace=self.namespace,
            trigger_start_time=self.job.metadata.creation_timestamp,
            base_container_name=CONTAINER,
            kubernetes_conn_id=self.kubernetes_conn_id,
            connection_extras=self.hook.conn_extras or None,
            in_cluster=self.hook.is_in_cluster or None,
            termination_grace_period=GRACE,
        )
        self.defer(trigger=trigger, method_name=method_name, timeout=self._deadline + BACKSTOP)
        raise AssertionError("defer raises")

    def find_or_create_job(self, context: Any) -> k8s.V1Job:
        """Return the step's Job: reuse one of this or an interrupted try, otherwise create one.

        Raises:
            AirflowException: Pods of an older Job of the step do not end. New pods would run
                concurrently with them.
        """
        identity = self._identity_annotations(context)
        for _ in range(10):
            jobs = sorted(self.jobs_of_step(), key=lambda job: job.metadata.creation_timestamp)
            good, stale = sort_out_groups([self._as_json(job) for job in jobs], identity)
            for job in jobs:
                if job.metadata.name in stale:
                    self.log.info("Stopping job %s: left by an earlier run or try of this step", job.metadata.name)
                    self._stop(job)
            if stale:
                continue
            current = next((job for job in jobs if job.metadata.name == good), None)
            pods = self.pods_of_step()
            others = [
                pod for pod in pods if (pod.metadata.labels or {}).get(GROUP) != (current and current.metadata.uid)
            ]
            if running := [pod for pod in others if not pod_ends.has_ended(self._as_json(pod))]:
                self._remove_pods(running)
                continue
            if current:
                self.log.info("Found job %s of this step: going on with it", good)
            else:
                try:
                    current = self.hook.batch_v1_client.create_namespaced_job(
                        self.namespace, self.build_job(context, jobs, pods, identity | self._owner_annotations(context))
                    )
                except ApiException as error:
                    self._raise_for_api_error(error)
                    time.sleep(1)
                    continue
            # Also for an existing Job, because an earlier try may have been killed before it
            # created the Service.
            self._ensure_service(current)
            return current
        raise AirflowException(
            f"the job of {self.step.name} cannot be created: other objects of its name appear and disappear"
        )

    def build_job(
        self, context: Any, jobs: list[k8s.V1Job], pods: list[k8s.V1Pod], annotations: dict[str, str]
    ) -> k8s.V1Job:
        """Return the Job to create. Earlier Jobs and pods determine its number and its memory.

        Raises:
            AirflowFailException: The class cannot provide more memory.
        """
        number = next_number([*jobs, *pods])
        name, labels = (
            pod_name(self.step, number, LONGEST_NAME),
            {**labels_of(self.step), "airloop/number": str(number)},
        )
        pod = self.build_for(context, pods, annotations)
        pod.spec.subdomain, pod.spec.restart_policy = name, "Never"
        # The Job has a deadline instead.
        pod.spec.active_deadline_seconds = None
        container = next(container for container in pod.spec.containers if container.name == CONTAINER)
        index = k8s.V1EnvVarSource(field_ref=k8s.V1ObjectFieldSelector(field_path=f"metadata.annotations['{INDEX}']"))
        names = f"{name}.{self.namespace}.svc"
        container.env = [
            *(container.env or []),
            k8s.V1EnvVar("AIRLOOP_RENDEZVOUS", f"{name}-0.{names}:{PORT}"),
            k8s.V1EnvVar("AIRLOOP_WORKER_INDEX", value_from=index),
            # Use a name instead of an IP address. Ranks are assigned in the order of addresses, so
            # the first pod becomes the first worker, which reports for all workers.
            k8s.V1EnvVar("AIRLOOP_WORKER_ADDRESS", f"{name}-$(AIRLOOP_WORKER_INDEX).{names}"),
            # The time that a node for the other workers may take to become available and to pull
            # the image. After that, the trigger reports the cause.
            k8s.V1EnvVar("AIRLOOP_RENDEZVOUS_TIMEOUT", str(int(self.limits["schedule"] + self.limits["start"]))),
        ]
        template = k8s.V1PodTemplateSpec(
            metadata=k8s.V1ObjectMeta(
                labels={**(pod.metadata.labels or {}), "airloop/number": str(number)},
                annotations=pod.metadata.annotations,
            ),
            spec=pod.spec,
        )
        on_codes = k8s.V1PodFailurePolicyOnExitCodesRequirement
        rules = [
            # Disruptions by the cluster must not use up the fit's tries. A pod that ended because
            # the other pods were lost is not at fault either.
            k8s.V1PodFailurePolicyRule(
                action="Ignore",
                on_pod_conditions=[
                    k8s.V1PodFailurePolicyOnPodConditionsPattern(type="DisruptionTarget", status="True")
                ],
            ),
            k8s.V1PodFailurePolicyRule(
                action="Ignore", on_exit_codes=on_codes(container_name=CONTAINER, operator="In", values=[OTHERS_LOST])
            ),
            k8s.V1PodFailurePolicyRule(
                action="FailJob",
                on_exit_codes=on_codes(
                    container_name=CONTAINER, operator="In", values=sorted([GAVE_UP, OUT_OF_MEMORY, EX_DATAERR])
                ),
            ),
        ]
        spec = k8s.V1JobSpec(
            completion_mode="Indexed",
            completions=self.workers,
            parallelism=self.workers,
            template=template,
            backoff_limit=2 * self.workers,
            pod_failure_policy=k8s.V1PodFailurePolicy(rules=rules),
            # Replace a pod only after it has ended, never while it is still terminating.
            pod_replacement_policy="Failed",
            active_deadline_seconds=int(self._deadline.total_seconds()),
        )
        return k8s.V1Job(metadata=k8s.V1ObjectMeta(name=name, labels=labels, annotations=annotations), spec=spec)

    def jobs_of_step(self) -> list[k8s.V1Job]:
        """Return all existing Jobs of this step, from any try or run."""
        selector = f"airloop/manifest={labels_of(self.step)['airloop/manifest']}"
        jobs: list[k8s.V1Job] = self.hook.batch_v1_client.list_namespaced_job(
            self.namespace, label_selector=selector
        ).items
        return jobs

    # --- Process its end ---

    def overtaken(self, event: dict[str, Any]) -> bool:
        """Return whether the event is stale.

        It is stale if the group has progressed since, or if the event is from a time when the step
        had one worker.
        """
        if "job" not in event:
            return True
        if PodVerdict(event["verdict"]) in (PodVerdict.ENDED, PodVerdict.GONE):
            return False
        job = event["job"]
        there = self._read_job(
            k8s.V1Job(metadata=k8s.V1ObjectMeta(name=job["name"], namespace=self.namespace, uid=job["uid"]))
        )
        return (
            there is not None
            and judge_group(self._as_json(there), self._pods_as_json(job["uid"]), self.limits, datetime.now(UTC))
            is None
        )

    def settle(self, event: dict[str, Any]) -> dict[str, Any]:
        """Log the remaining output and end all pods. Return the pod that decided the Job's end.

        Raises:
            AirflowFailException: The Job failed, and another try would not help.
            AirflowException: The Job failed, and a retry may help.
        """
        seen: dict[str, Any] = event["seen"]
        verdict, job = PodVerdict(event["verdict"]), event["job"]
        self.job = k8s.V1Job(metadata=k8s.V1ObjectMeta(name=job["name"], namespace=self.namespace, uid=job["uid"]))
        self.pod = k8s.V1Pod(
            metadata=k8s.V1ObjectMeta(
                name=event["name"], namespace=self.namespace, uid=seen.get("metadata", {}).get("uid")
            )
        )
        self._kind = pod_ends.end_of(seen, verdict).kind
        pods: dict[str, dict[str, Any]] = {
            pod["metadata"]["uid"]: pod for pod in [*event["pods"], *self._pods_as_json(job["uid"])]
        }
        first = (newest(list(pods.values()), 0) or seen)["metadata"]["name"]
        last = self._rest_of_log(event["logged"] if first == event["shown"] else "", first)
        if first != event["name"]:
            last = [line for _, line in lines_after(self._log_of(event["name"]), "")][-LAST_LINES:]
        there = self._read_job(self.job)
        if there is not None and not is_over(self._as_json(there)):
            self._stop(there)
        pods |= {pod["metadata"]["uid"]: pod for pod in self._pods_as_json(job["uid"])}
        now = pods.get(self.pod.metadata.uid, seen)
        ended = now if pod_ends.has_ended(now) else seen
        end = pod_ends.end_of(ended, verdict)
        self._keep_all_times(list(pods.values()), ended, verdict)
        self._kind = end.kind
        if end.kind == Kind.SUCCEEDED:
            return ended
        self.reject()
        raise self.failure(end, ended, last)

    def reject(self) -> None:
        """Mark the Job as failed, so that no later try reuses it. Keep it for inspection.

        It either failed, or it succeeded without a result.
        """
        assert self.job is not None
        self._patch_job(
            self.job, {"metadata": {"uid": self.job.metadata.uid, "annotations": {END_ANNOTATION: self._kind.value}}}
        )

    def own_faults(self, context: Any) -> int:
        """Return how many Jobs of this step failed in this run by their own fault."""
        identity = self._identity_annotations(context).items()
        return sum(
            identity <= annotations.items() and annotations.get(END_ANNOTATION) in pod_ends.OWN_FAULTS
            for job in self.jobs_of_step()
            if (annotations := job.metadata.annotations or {})
        )

    def accept(self) -> None:
        """Delete the Job after success.

        Its log is in the task's log, its result in the manifest.
        """
        self.on_kill()

    def on_kill(self) -> None:
        if self.job is not None:
            self._delete_job(self.job.metadata.name, self.job.metadata.uid)

    def _identity_annotations(self, context: Any) -> dict[str, str]:
        return {**super()._identity_annotations(context), "airloop/workers": str(self.workers)}

    @property
    def _deadline(self) -> Any:
        """Return the Job's deadline, which applies while Airflow is unavailable.

        The trigger checks the time limits of each pod. The deadline is longer than those limits,
        because pods may be replaced.
        """
        return (
            self.compute_class.schedule_timeout
            + self.compute_class.start_timeout
            + self.compute_class.timeout
            + BACKSTOP
        )

    def _stop(self, job: k8s.V1Job) -> None:
        """Stop the running pods of a Job, keep the ended ones, and wait until none runs.

        Raises:
            AirflowException: A pod does not end. Its node may not respond.
        """
        self._patch_job(job, {"metadata": {"uid": job.metadata.uid}, "spec": {"suspend": True}})
        deadline = time.monotonic() + GRACE + 60
        while (there := self._read_job(job)) is not None and not (
            is_over(state := self._as_json(there)) or condition(state, "Suspended")
        ):
            if time.monotonic() > deadline:
                raise AirflowException(
                    f"job {job.metadata.name} of this step was told to stop, and does not: is the cluster's controller"
                    " manager there?"
                )
            time.sleep(0.3)
        self._await_gone(self._pods_of(job.metadata.uid))

    def _remove_pods(self, pods: list[k8s.V1Pod]) -> None:
        """Delete pods of a stopped or deleted Job, or of a time when the step had one worker."""
        for pod in pods:
            self.log.info("Deleting pod %s: left by an earlier run or try of this step", pod.metadata.name)
            self._delete(pod)
        self._await_gone(pods)

    def _ensure_service(self, job: k8s.V1Job) -> None:
        """Create the headless Service that gives the Job's pods names before they are ready.

        It is deleted together with the Job.
        """
        name, uid = job.metadata.name, job.metadata.uid
        owner = k8s.V1OwnerReference(api_version="batch/v1", kind="Job", name=name, uid=uid)
        metadata = k8s.V1ObjectMeta(name=name, labels=job.metadata.labels, owner_references=[owner])
        spec = k8s.V1ServiceSpec(cluster_ip="None", publish_not_ready_addresses=True, selector={GROUP: uid})
        for _ in range(20):
            try:
                self.client.create_namespaced_service(self.namespace, k8s.V1Service(metadata=metadata, spec=spec))
                return
            except ApiException as error:
                self._raise_for_api_error(error)
            try:
                there = self.client.read_namespaced_service(name, self.namespace)
                if uid in [reference.uid for reference in there.metadata.owner_references or []]:
                    return
                # It belongs to an earlier Job of that name and is being deleted.
                self.client.delete_namespaced_service(name, self.namespace)
            except ApiException as error:
                if error.status != 404:
                    raise
            time.sleep(0.5)
        raise AirflowException(
            f"the service {name}, by which the workers of {self.step.name} find each other, cannot be made: another one"
            " of that name stays"
        )

    def _pods_of(self, uid: str) -> list[k8s.V1Pod]:
        pods: list[k8s.V1Pod] = self.client.list_namespaced_pod(self.namespace, label_selector=f"{GROUP}={uid}").items
        return pods

    def _pods_as_json(self, uid: str) -> list[dict[str, Any]]:
        return [bare(self._as_json(pod)) for pod in self._pods_of(uid)]

    def _read_job(self, job: k8s.V1Job) -> k8s.V1Job | None:
        """Return the current Job, or None if it is gone."""
        try:
            current = self.hook.batch_v1_client.read_namespaced_job(job.metadata.name, self.namespace)
        except ApiException as error:
            if error.status == 404:
                return None
            raise
        return current if current.metadata.uid == job.metadata.uid else None

    def _patch_job(self, job: k8s.V1Job, patch: dict[str, Any]) -> None:
        """Change the Job, but not a later Job of the same name.

        A later Job has another uid, and a uid cannot be changed.
        """
        try:
            self.hook.batch_v1_client.patch_namespaced_job(job.metadata.name, self.namespace, patch)
        except ApiException as error:
            if error.status not in (404, 409, 422) or (error.status == 422 and self._read_job(job) is not None):
                raise

    def _keep_all_times(self, pods: list[dict[str, Any]], telling: dict[str, Any], verdict: PodVerdict) -> None:
        """Record the cost of all pods. See ``StepPod._keep_times``."""
        from include.training import usage

        try:
            for pod in pods:
                is_decisive = pod["metadata"]["uid"] == telling.get("metadata", {}).get("uid")
                end = pod_ends.end_of(
                    pod, verdict if is_decisive else PodVerdict.ENDED if pod_ends.has_ended(pod) else PodVerdict.GONE
                )
                # For a pod that is gone. It caused no cost after that time.
                last_seen = moment(pod["seen_at"]) if "seen_at" in pod else None
                usage.keep(
                    self.step.manifest, usage.cost_of(pod, end.kind.value, gpus=self.compute_class.gpus, now=last_seen)
                )
            usage.log(self.step.project, self.step.request, self.step.manifest)
        except Exception:
            self.log.warning("What the pods of %s cost is not in MLflow", self.step.name, exc_info=True)
