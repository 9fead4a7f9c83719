"""One training step as a group of pods: an indexed Job of as many as the candidate has workers, each running the step's command line.

The pods are those of ``include.dag_kit.pods``. The Job puts another one in the place of one that was evicted or lost, and never has two in one place;
a headless Service of its name gives them names, by which they meet (``include.training.launch``). Imported like ``pods``, within tasks only.
"""

import time
from datetime import UTC, datetime
from typing import Any

from airflow.sdk.exceptions import AirflowException
from kubernetes.client import ApiException
from kubernetes.client import models as k8s

from include.dag_kit import pod_ends
from include.dag_kit.pod_ends import CONTAINER, Kind, Verdict
from include.dag_kit.pod_group_ends import ENDED, GAVE_UP, GROUP, INDEX, OTHERS_LOST, condition, is_over, judge_group, newest, sort_out_groups
from include.dag_kit.pod_group_trigger import StepGroupTrigger, event
from include.dag_kit.pod_names import labels_of, next_number, pod_name
from include.dag_kit.pod_trigger import bare, lines_after, moment
from include.dag_kit.pods import BACKSTOP, GRACE, LAST_LINES, QuotaExceeded, StepPod
from include.outages import WILL_FAIL_AGAIN

LONGEST_NAME = 58  # with "-<index>" it is a pod's host name, which has 63 characters; with "-<index>-<5 letters>" the pod's name, which has more
PORT = 29400  # torchrun's own default
OUT_OF_MEMORY = 137


class StepPodGroup(StepPod):
    """As ``StepPod``, of a Job's pods."""

    def __init__(self, *, workers: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.workers = workers
        self.job: k8s.V1Job | None = None
        self._kind = Kind.SUCCEEDED

    # --- before: the step's Job, found or made ---------------------------------------------------------------------------------------------------

    def start(self, context: Any, method_name: str, since: str | None = None) -> dict[str, Any]:
        try:
            self.job = self.find_or_create_job(context)
        except QuotaExceeded as error:  # of Jobs or services: that of pods is the Job's to wait for
            self.wait_for_quota(error, since)
        name, uid = self.job.metadata.name, self.job.metadata.uid
        pods = self._pods_as_json(uid)
        if verdict := judge_group(self._as_json(self.job), pods, self.limits, datetime.now(UTC)):
            return event(name, self.namespace, uid, verdict, gone={pod["metadata"]["uid"]: pod for pod in pods}, shown="", logged="")
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
        """The step's one Job: one of this very try or of one that was broken off, or a new one.

        Raises:
            AirflowException: pods of an older Job of the step do not end; new ones would run beside them.
        """
        mine = self._marks(context)
        for _ in range(10):
            jobs = sorted(self.jobs_of_step(), key=lambda job: job.metadata.creation_timestamp)
            good, stale = sort_out_groups([self._as_json(job) for job in jobs], mine)
            for job in jobs:
                if job.metadata.name in stale:
                    self.log.info("Stopping job %s: left by an earlier run or try of this step", job.metadata.name)
                    self._stop(job)
            if stale:
                continue
            found = next((job for job in jobs if job.metadata.name == good), None)
            pods = self.pods_of_step()
            others = [pod for pod in pods if (pod.metadata.labels or {}).get(GROUP) != (found and found.metadata.uid)]
            if running := [pod for pod in others if not pod_ends.has_ended(self._as_json(pod))]:
                self._remove_pods(running)
                continue
            if found:
                self.log.info("Found job %s of this step: going on with it", good)
            else:
                try:
                    found = self.hook.batch_v1_client.create_namespaced_job(self.namespace, self.build_job(context, jobs, pods, mine | self._whose(context)))
                except ApiException as error:
                    self._unless_taken(error)
                    time.sleep(1)
                    continue
            self._ensure_service(found)  # also of a found one: a kill may have come in between
            return found
        raise AirflowException(f"the job of {self.step.name} can neither be found nor made: others of its name come and go")

    def build_job(self, context: Any, jobs: list[k8s.V1Job], pods: list[k8s.V1Pod], annotations: dict[str, str]) -> k8s.V1Job:
        """The Job to make, after those jobs and pods that were there before: they tell its number and its memory.

        Raises:
            AirflowFailException: the class has no more memory to give.
        """
        number = next_number([*jobs, *pods])
        name, labels = pod_name(self.step, number, LONGEST_NAME), {**labels_of(self.step), "airloop/number": str(number)}
        pod = self.build_for(context, pods, annotations)
        pod.spec.subdomain, pod.spec.restart_policy = name, "Never"
        pod.spec.active_deadline_seconds = None  # the Job has one
        container = next(container for container in pod.spec.containers if container.name == CONTAINER)
        index = k8s.V1EnvVarSource(field_ref=k8s.V1ObjectFieldSelector(field_path=f"metadata.annotations['{INDEX}']"))
        names = f"{name}.{self.namespace}.svc"
        container.env = [
            *(container.env or []),
            k8s.V1EnvVar("AIRLOOP_RENDEZVOUS", f"{name}-0.{names}:{PORT}"),
            k8s.V1EnvVar("AIRLOOP_WORKER_INDEX", value_from=index),
            # A name and no number: ranks are given by the order of addresses, so the first pod is the first worker, who speaks for all.
            k8s.V1EnvVar("AIRLOOP_WORKER_ADDRESS", f"{name}-$(AIRLOOP_WORKER_INDEX).{names}"),
            # As long as a node for the others may take to come, and to pull the image; beyond that the trigger says what is the matter.
            k8s.V1EnvVar("AIRLOOP_RENDEZVOUS_TIMEOUT", str(int(self.limits["schedule"] + self.limits["start"]))),
        ]
        template = k8s.V1PodTemplateSpec(
            metadata=k8s.V1ObjectMeta(labels={**(pod.metadata.labels or {}), "airloop/number": str(number)}, annotations=pod.metadata.annotations),
            spec=pod.spec,
        )
        on_codes = k8s.V1PodFailurePolicyOnExitCodesRequirement
        rules = [
            # What the cluster does to a pod must not use up the fit's tries. A pod that ended as the others were gone did nothing wrong either.
            k8s.V1PodFailurePolicyRule(
                action="Ignore", on_pod_conditions=[k8s.V1PodFailurePolicyOnPodConditionsPattern(type="DisruptionTarget", status="True")]
            ),
            k8s.V1PodFailurePolicyRule(action="Ignore", on_exit_codes=on_codes(container_name=CONTAINER, operator="In", values=[OTHERS_LOST])),
            k8s.V1PodFailurePolicyRule(
                action="FailJob", on_exit_codes=on_codes(container_name=CONTAINER, operator="In", values=sorted([GAVE_UP, OUT_OF_MEMORY, WILL_FAIL_AGAIN]))
            ),
        ]
        spec = k8s.V1JobSpec(
            completion_mode="Indexed", completions=self.workers, parallelism=self.workers, template=template, backoff_limit=2 * self.workers,
            pod_failure_policy=k8s.V1PodFailurePolicy(rules=rules),
            pod_replacement_policy="Failed",  # another pod only when the one before has ended, never beside one that is still terminating
            active_deadline_seconds=int(self._deadline.total_seconds()),
        )  # fmt: skip
        return k8s.V1Job(metadata=k8s.V1ObjectMeta(name=name, labels=labels, annotations=annotations), spec=spec)

    def jobs_of_step(self) -> list[k8s.V1Job]:
        """All Jobs of this step that are there, whatever their try or run."""
        selector = f"airloop/manifest={labels_of(self.step)['airloop/manifest']}"
        return self.hook.batch_v1_client.list_namespaced_job(self.namespace, label_selector=selector).items

    # --- after: what its end means ---------------------------------------------------------------------------------------------------------------

    def overtaken(self, event: dict[str, Any]) -> bool:
        """As of one pod: whether the group has got somewhere since, or the event is of a time when the step had one worker."""
        if "job" not in event:
            return True
        if Verdict(event["verdict"]) in (Verdict.ENDED, Verdict.GONE):
            return False
        told = event["job"]
        there = self._read_job(k8s.V1Job(metadata=k8s.V1ObjectMeta(name=told["name"], namespace=self.namespace, uid=told["uid"])))
        return there is not None and judge_group(self._as_json(there), self._pods_as_json(told["uid"]), self.limits, datetime.now(UTC)) is None

    def settle(self, event: dict[str, Any]) -> dict[str, Any]:
        """Shows the rest of the log, sees to it that no pod of the Job runs on, and gives the pod that tells its end.

        Raises:
            AirflowFailException: it failed in a way that another try would not mend.
            AirflowException: it failed; a retry is worth it.
        """
        seen, verdict, told = event["seen"], Verdict(event["verdict"]), event["job"]
        self.job = k8s.V1Job(metadata=k8s.V1ObjectMeta(name=told["name"], namespace=self.namespace, uid=told["uid"]))
        self.pod = k8s.V1Pod(metadata=k8s.V1ObjectMeta(name=event["name"], namespace=self.namespace, uid=seen.get("metadata", {}).get("uid")))
        self._kind = pod_ends.end_of(seen, verdict).kind
        pods = {pod["metadata"]["uid"]: pod for pod in [*event["pods"], *self._pods_as_json(told["uid"])]}
        first = (newest(list(pods.values()), 0) or seen)["metadata"]["name"]
        last = self._rest_of_log(event["logged"] if first == event["shown"] else "", first)
        if first != event["name"]:
            last = [line for _, line in lines_after(self._log_of(event["name"]), "")][-LAST_LINES:]
        there = self._read_job(self.job)
        if there is not None and not is_over(self._as_json(there)):
            self._stop(there)
        pods |= {pod["metadata"]["uid"]: pod for pod in self._pods_as_json(told["uid"])}
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
        """The Job failed, or ended well and made nothing: it is kept, and no later try takes it for its own."""
        assert self.job is not None
        self._patch_job(self.job, {"metadata": {"uid": self.job.metadata.uid, "annotations": {ENDED: self._kind.value}}})

    def own_faults(self, context: Any) -> int:
        """How many Jobs of this step failed in this run by their own fault."""
        mine = self._marks(context).items()
        return sum(
            mine <= given.items() and given.get(ENDED) in pod_ends.OWN_FAULTS for job in self.jobs_of_step() if (given := job.metadata.annotations or {})
        )

    def accept(self) -> None:
        """The Job did its work; its log is in the task's, its result in the manifest."""
        self.on_kill()

    def on_kill(self) -> None:
        if self.job is not None:
            self._delete_job(self.job.metadata.name, self.job.metadata.uid)

    def _marks(self, context: Any) -> dict[str, str]:
        return {**super()._marks(context), "airloop/workers": str(self.workers)}

    @property
    def _deadline(self) -> Any:
        """Of the Job, for when Airflow is away; the trigger looks at each pod's own times. Behind those, as pods may come again."""
        return self.compute_class.schedule_timeout + self.compute_class.start_timeout + self.compute_class.timeout + BACKSTOP

    def _stop(self, job: k8s.V1Job) -> None:
        """Ends what runs of a Job and keeps what has ended, for a look; waits until nothing runs.

        Raises:
            AirflowException: a pod does not end; does its node answer?
        """
        self._patch_job(job, {"metadata": {"uid": job.metadata.uid}, "spec": {"suspend": True}})
        deadline = time.monotonic() + GRACE + 60
        while (there := self._read_job(job)) is not None and not (is_over(said := self._as_json(there)) or condition(said, "Suspended")):
            if time.monotonic() > deadline:
                raise AirflowException(f"job {job.metadata.name} of this step was told to stop, and does not: is the cluster's controller manager there?")
            time.sleep(0.3)
        self._await_gone(self._pods_of(job.metadata.uid))

    def _remove_pods(self, pods: list[k8s.V1Pod]) -> None:
        """Those of a Job that is stopped or gone, or of a time when the step had one worker only."""
        for pod in pods:
            self.log.info("Deleting pod %s: left by an earlier run or try of this step", pod.metadata.name)
            self._delete(pod)
        self._await_gone(pods)

    def _ensure_service(self, job: k8s.V1Job) -> None:
        """The headless Service that gives the Job's pods names, before they are ready. It goes with the Job."""
        name, uid = job.metadata.name, job.metadata.uid
        owner = k8s.V1OwnerReference(api_version="batch/v1", kind="Job", name=name, uid=uid)
        metadata = k8s.V1ObjectMeta(name=name, labels=job.metadata.labels, owner_references=[owner])
        spec = k8s.V1ServiceSpec(cluster_ip="None", publish_not_ready_addresses=True, selector={GROUP: uid})
        for _ in range(20):
            try:
                self.client.create_namespaced_service(self.namespace, k8s.V1Service(metadata=metadata, spec=spec))
                return
            except ApiException as error:
                self._unless_taken(error)
            try:
                there = self.client.read_namespaced_service(name, self.namespace)
                if uid in [reference.uid for reference in there.metadata.owner_references or []]:
                    return
                self.client.delete_namespaced_service(name, self.namespace)  # of an earlier Job of that name, and on its way out
            except ApiException as error:
                if error.status != 404:
                    raise
            time.sleep(0.5)
        raise AirflowException(f"the service {name}, by which the workers of {self.step.name} find each other, cannot be made: another one of that name stays")

    def _pods_of(self, uid: str) -> list[k8s.V1Pod]:
        return self.client.list_namespaced_pod(self.namespace, label_selector=f"{GROUP}={uid}").items

    def _pods_as_json(self, uid: str) -> list[dict[str, Any]]:
        return [bare(self._as_json(pod)) for pod in self._pods_of(uid)]

    def _read_job(self, job: k8s.V1Job) -> k8s.V1Job | None:
        """The Job as it is now; None if it is gone."""
        try:
            found = self.hook.batch_v1_client.read_namespaced_job(job.metadata.name, self.namespace)
        except ApiException as error:
            if error.status == 404:
                return None
            raise
        return found if found.metadata.uid == job.metadata.uid else None

    def _patch_job(self, job: k8s.V1Job, patch: dict[str, Any]) -> None:
        """Changes the Job, and no other one of its name that was made since: that has another uid, which cannot be changed."""
        try:
            self.hook.batch_v1_client.patch_namespaced_job(job.metadata.name, self.namespace, patch)
        except ApiException as error:
            if error.status not in (404, 409, 422) or (error.status == 422 and self._read_job(job) is not None):
                raise

    def _keep_all_times(self, pods: list[dict[str, Any]], telling: dict[str, Any], verdict: Verdict) -> None:
        """What all pods cost; see ``StepPod._keep_times``."""
        from include.training import usage

        try:
            for pod in pods:
                mine = pod["metadata"]["uid"] == telling.get("metadata", {}).get("uid")
                end = pod_ends.end_of(pod, verdict if mine else Verdict.ENDED if pod_ends.has_ended(pod) else Verdict.GONE)
                last_seen = moment(pod["seen_at"]) if "seen_at" in pod else None  # of one that is gone: it cost nothing after that
                usage.keep(self.step.manifest, usage.cost_of(pod, end.kind.value, gpus=self.compute_class.gpus, now=last_seen))
            usage.log(self.step.project, self.step.request, self.step.manifest)
        except Exception:
            self.log.warning("What the pods of %s cost is not in MLflow", self.step.name, exc_info=True)
