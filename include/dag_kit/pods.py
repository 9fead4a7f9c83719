"""The house pod operator: one training step as one pod.

``include.dag_kit.compute`` imports this inside a task and drives it; a DAG file never does, since the Kubernetes client costs each import two seconds.
A step is known by the URI of its manifest: two pods with the same label ``airloop/manifest`` do the same work, and never run side by side.
"""

import hashlib
import json
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, NoReturn

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from kubernetes.client import ApiException
from kubernetes.client import models as k8s

from include.dag_kit import pod_ends
from include.dag_kit.pod_ends import CONTAINER, End, Kind, Verdict
from include.dag_kit.pod_messages import explain, out_of_memory, was_the_most
from include.dag_kit.pod_names import Step, labels_of, next_number, pod_environment, pod_name, tolerations_of
from include.dag_kit.pod_sweep import RESULT, TASK, task_of
from include.dag_kit.pod_trigger import StepPodTrigger, judge, lines_after
from include.dag_kit.storage import pod_storage
from include.projects.compute import ComputeClass
from include.settings import Settings, unpinned
from include.stack.pod_settings import pods_cannot
from include.training.tracking import tracking_uri

LAST_LINES = 20  # of the pod's log, in the error of a failed step
USER = 10001  # a number, since kubelet cannot tell whether a name is root; nobody on the nodes has it
GRACE = 5  # seconds between SIGTERM and SIGKILL: whatever is killed is safe to run again, and checkpoints are written while all is well
BACKSTOP = timedelta(minutes=10)  # for what Airflow itself needs around a pod, before its own limit on the task strikes
QUOTA_AGAIN = timedelta(seconds=15)  # between two tries where the namespace's quota has no room
HINTS = {
    403: "docs/runbooks/train.md has the Role that Airflow's account needs.",
    404: "Is AIRLOOP_KUBERNETES_NAMESPACE right, and made?",
    422: "Look at the compute class in the project, and at AIRLOOP_POD_TEMPLATE.",
}


class QuotaExceeded(Exception):
    """The namespace has no room for another pod for now; the message is the API server's."""


class StepPod(KubernetesPodOperator):
    """A pod with the house's defaults, found again by its labels, watched from the triggerer, whose end is told by kind."""

    def __init__(self, *, step: Step, resources: ComputeClass, command: list[str], settings: Settings, **kwargs: Any) -> None:
        image = resources.image or settings.training_image
        if not image:
            raise AirflowFailException("AIRLOOP_COMPUTE=kubernetes needs AIRLOOP_TRAINING_IMAGE: the image that training pods run")
        if settings.profile == "kubernetes" and (fault := unpinned(image)):
            raise AirflowFailException(f"the image of compute class {step.compute} is {fault}")
        if wrong := pods_cannot(settings, tracking_uri()):
            raise AirflowFailException(wrong)
        super().__init__(
            kubernetes_conn_id=settings.kubernetes_connection,
            namespace=settings.kubernetes_namespace,
            image=image,
            image_pull_policy="IfNotPresent",  # a digest, or a fixed tag. Asking the registry each time makes it a part that can fail
            cmds=command,
            env_vars=pod_environment(settings, step, resources),
            random_name_suffix=False,  # the name is what makes sure that two processes cannot both make the step's next pod
            labels=labels_of(step),
            container_resources=None,  # by the try's memory; see build_for
            node_selector=resources.node_selector,
            tolerations=tolerations_of(resources),
            # A pod that trains foreign data with much third-party code needs no power over the node, nor over the cluster.
            security_context=k8s.V1PodSecurityContext(
                run_as_non_root=True, run_as_user=USER, run_as_group=USER, fs_group=USER, seccomp_profile=k8s.V1SeccompProfile(type="RuntimeDefault")
            ),
            container_security_context=k8s.V1SecurityContext(
                allow_privilege_escalation=False, privileged=False, read_only_root_filesystem=True, capabilities=k8s.V1Capabilities(drop=["ALL"])
            ),
            automount_service_account_token=False,  # it asks the cluster for nothing
            volumes=[k8s.V1Volume(name="tmp", empty_dir=k8s.V1EmptyDirVolumeSource(size_limit=resources.ephemeral_storage))],
            volume_mounts=[k8s.V1VolumeMount(name="tmp", mount_path="/tmp")],
            pod_template_file=str(settings.pod_template) if settings.pod_template else None,
            # Airflow's limits are kept by the trigger. This one holds when Airflow is away: then Kubernetes ends the pod, and keeps it.
            active_deadline_seconds=int((resources.start_timeout + resources.timeout + BACKSTOP).total_seconds()),
            termination_grace_period=GRACE,
            deferrable=True,  # neither a pod that waits for a GPU nor one that runs holds a worker slot
            on_finish_action="delete_succeeded_pod",  # a failed one stays to be looked at, and tells the next try how much memory was too little
            log_pod_spec_on_failure=False,  # it would show the environment
            do_xcom_push=False,  # the result is the manifest; a sidecar would be a second way to fail
            **kwargs,
        )
        self.storage, self.priority_class = pod_storage(settings), settings.priority_class(step.compute)
        if settings.mlflow_secret:
            self.storage["env_from"] = [*self.storage["env_from"], {"secretRef": {"name": settings.mlflow_secret}}]
        self.step, self.compute_class = step, resources  # `resources` is a property of Airflow's own

    # --- before: the step's pod, found or made ---------------------------------------------------------------------------------------------------

    def start(self, context: Any, method_name: str, since: str | None = None) -> dict[str, Any]:
        """Makes the step's pod, or finds the one that is there, and leaves its watch to the triggerer, which comes back at ``method_name``.

        Args:
            since: when it was first tried, where the namespace's quota had no room for it then.

        Returns:
            the event to go on with, only if the pod has ended already.

        Raises:
            AirflowFailException: the cluster does not take such a pod, or had no room in its quota for as long as a pod may wait for a node.
        """
        try:
            self.pod = self.find_or_create(context)
        except QuotaExceeded as error:
            self.wait_for_quota(error, since)
        found = self._as_json(self.pod)
        if pod_ends.has_ended(found):
            return {"name": self.pod.metadata.name, "namespace": self.pod.metadata.namespace, "verdict": Verdict.ENDED.value, "seen": found, "logged": ""}
        trigger = StepPodTrigger(
            uid=self.pod.metadata.uid,
            limits=self.limits,
            pod_name=self.pod.metadata.name,
            pod_namespace=self.pod.metadata.namespace,
            trigger_start_time=self.pod.metadata.creation_timestamp,
            base_container_name=CONTAINER,
            kubernetes_conn_id=self.kubernetes_conn_id,
            connection_extras=self.hook.conn_extras or None,
            in_cluster=self.hook.is_in_cluster or None,
            termination_grace_period=GRACE,
        )
        # Airflow's own limit, for a triggerer that loses its pod: behind all of the trigger's.
        self.defer(trigger=trigger, method_name=method_name, timeout=timedelta(seconds=sum(self.limits.values())) + BACKSTOP)
        raise AssertionError("defer raises")

    def wait_for_quota(self, error: "QuotaExceeded", since: str | None) -> NoReturn:
        """Leaves the worker, and comes back at ``pod_wanted``: others' pods will end. A Job waits so by itself."""
        began = since or datetime.now(UTC).isoformat()
        if datetime.now(UTC) - datetime.fromisoformat(began) > self.compute_class.schedule_timeout:
            waited = f"{self.step.name}: for {self.compute_class.schedule_timeout} the quota of namespace {self.namespace} had no room for its pod: {error}"
            raise AirflowFailException(f"{Kind.UNSCHEDULABLE.value}: {waited}")
        self.log.info("Waiting for room in the quota of namespace %s: %s", self.namespace, error)
        self.defer(trigger=TimeDeltaTrigger(QUOTA_AGAIN), method_name="pod_wanted", kwargs={"since": began})
        raise AssertionError("defer raises")

    @property
    def limits(self) -> dict[str, float]:
        """Seconds that a pod may take; see ``StepPodTrigger``."""
        limits = {"schedule": self.compute_class.schedule_timeout, "start": self.compute_class.start_timeout, "run": self.compute_class.timeout}
        return {name: limit.total_seconds() for name, limit in limits.items()}

    def find_or_create(self, context: Any) -> k8s.V1Pod:
        """The step's one pod: a running one of this very try or of one that was broken off, one that ended unseen, or a new one.

        Raises:
            AirflowException: an older pod of the step does not go away; a new one would run beside it.
        """
        mine = self._marks(context)
        for _ in range(10):
            pods = sorted(self.pods_of_step(), key=lambda pod: pod.metadata.creation_timestamp)
            good, stale = pod_ends.sort_out([self._as_json(pod) for pod in pods], mine)
            if stale:
                self._remove([pod for pod in pods if pod.metadata.name in stale])
                continue
            if good:
                found = next(pod for pod in pods if pod.metadata.name == good)
                self.log.info("Found pod %s of this step (%s): going on with it", good, found.status.phase)
                return found
            try:
                return self.client.create_namespaced_pod(self.namespace, self.build_for(context, pods, mine | self._whose(context)))
            except ApiException as error:
                self._unless_taken(error)
                time.sleep(1)
        raise AirflowException(f"the pod of {self.step.name} can neither be found nor made: others of its name come and go")

    def _unless_taken(self, refused: ApiException) -> None:
        """What the cluster says to a pod or Job that was to be made, in words; without any if the name is taken.

        Somebody else made it this very moment, or an old one of that name is on its way out: then it is looked for again.
        """
        said = refused.reason
        with suppress(ValueError, TypeError, KeyError):
            said = json.loads(refused.body)["message"]
        if refused.status == 409:
            return
        if refused.status == 403 and "exceeded quota" in said:
            raise QuotaExceeded(said)
        if refused.status in (400, 403, 404, 422):  # another try would be refused, too
            raise AirflowFailException(f"the cluster takes no pod of {self.step.name} in namespace {self.namespace}: {said}. {HINTS.get(refused.status, '')}")
        raise refused

    def build_for(self, context: Any, before: list[k8s.V1Pod], annotations: dict[str, str]) -> k8s.V1Pod:
        """The pod to make, after those that were there before: they tell its number and its memory.

        Raises:
            AirflowFailException: the class has no more memory to give.
        """
        too_little = pod_ends.too_little([self._as_json(pod) for pod in before], annotations)
        memory = self.compute_class.memory_after(too_little)
        if memory is None:
            raise AirflowFailException(out_of_memory(self.step, self.compute_class, too_little[-1]))
        if too_little:
            self.log.info("%s was too little memory: trying %s", too_little[-1], memory)
        number = next_number(before)
        self.name = pod_name(self.step, number)
        self.labels = {**labels_of(self.step), "airloop/number": str(number)}
        self.annotations = annotations
        counted: dict[str, str] = {self.compute_class.gpu_resource: str(self.compute_class.gpus)} if self.compute_class.gpus else {}
        limits = {"memory": memory, "ephemeral-storage": self.compute_class.ephemeral_storage, **counted}
        self.container_resources = k8s.V1ResourceRequirements(requests={**limits, "cpu": f"{round(self.compute_class.cpu * 1000)}m"}, limits=limits)
        pod = self.build_pod_request_obj(context)
        pod.spec.enable_service_links = False  # a service named airloop would put AIRLOOP_PORT into the environment
        container = next(container for container in pod.spec.containers if container.name == CONTAINER)
        for part in ("env_from", "env", "volume_mounts"):
            setattr(container, part, [*(getattr(container, part) or []), *self.storage[part]])
        pod.spec.volumes = [*(pod.spec.volumes or []), *self.storage["volumes"]]
        pod.spec.service_account_name = self.storage["service_account_name"] or pod.spec.service_account_name
        pod.spec.priority_class_name = self.priority_class or pod.spec.priority_class_name
        return pod

    def pods_of_step(self) -> list[k8s.V1Pod]:
        """All pods of this step that are there, whatever their try or run."""
        return self.client.list_namespaced_pod(self.namespace, label_selector=f"airloop/manifest={labels_of(self.step)['airloop/manifest']}").items

    def _marks(self, context: Any) -> dict[str, str]:
        """What a pod must carry to be this try's: the same work for the same run, since that was last cleared."""
        run = context["dag_run"]
        work = hashlib.sha256("\0".join([str(self.image), *self.cmds]).encode()).hexdigest()[:16]
        return {"airloop/run": run.run_id, "airloop/cleared": str(getattr(run, "clear_number", None) or 0), "airloop/work": work}

    def _whose(self, context: Any) -> dict[str, str]:
        """What a pod says of itself, for those who tidy up."""
        return {TASK: task_of(context["ti"]), RESULT: self.step.manifest}

    def _remove(self, pods: list[k8s.V1Pod]) -> None:
        """Deletes pods and waits until nothing of them runs."""
        for pod in pods:
            self.log.info("Deleting pod %s (%s): left by an earlier run or try of this step", pod.metadata.name, pod.status.phase)
            if job := (pod.metadata.labels or {}).get("batch.kubernetes.io/job-name"):  # the step had several workers then; the Job would put another there
                self._delete_job(job)
            self._delete(pod)
        self._await_gone(pods)

    def _await_gone(self, pods: list[k8s.V1Pod], patience: float = GRACE + 60) -> None:
        deadline = time.monotonic() + patience
        for pod in pods:
            while (there := self._read(pod)) is not None and not pod_ends.has_ended(self._as_json(there)):
                if time.monotonic() > deadline:
                    raise AirflowException(
                        f"pod {pod.metadata.name} of this step is still {pod_ends.is_at(self._as_json(there))}, {patience:.0f} s after its deletion. "
                        "Does that node answer? A new pod must not run beside it. If the node is gone for good: kubectl delete node, then clear this task."
                    )
                time.sleep(0.5)

    # --- after: what its end means ---------------------------------------------------------------------------------------------------------------

    def overtaken(self, event: dict[str, Any]) -> bool:
        """Whether the pod that got nowhere, as the triggerer saw it, has started since, or is of a time when the step had several workers."""
        if "job" in event:
            return True
        if Verdict(event["verdict"]) in (Verdict.ENDED, Verdict.GONE):
            return False
        pod = k8s.V1Pod(metadata=k8s.V1ObjectMeta(name=event["name"], namespace=event["namespace"], uid=event["seen"]["metadata"]["uid"]))
        there = self._read(pod)
        return there is not None and judge(self._as_json(there), self.limits, datetime.now(UTC)) is None

    def settle(self, event: dict[str, Any]) -> dict[str, Any]:
        """Shows the rest of the log, sees to it that nothing of the pod runs on, and gives the pod as it ended.

        Raises:
            AirflowFailException: it failed in a way that another try would not mend.
            AirflowException: it failed; a retry is worth it.
        """
        seen, verdict = event["seen"], Verdict(event["verdict"])
        self.pod = k8s.V1Pod(metadata=k8s.V1ObjectMeta(name=event["name"], namespace=event["namespace"], uid=seen.get("metadata", {}).get("uid")))
        there = self._read(self.pod)
        last = self._rest_of_log(event["logged"]) if there is not None else []
        if there is not None and not pod_ends.has_ended(self._as_json(there)):
            there = self._kill(there, verdict)
        ended = self._as_json(there) if there is not None and pod_ends.has_ended(self._as_json(there)) else seen
        end = pod_ends.end_of(ended, verdict)
        self._keep_times(ended, end)
        if end.kind == Kind.SUCCEEDED:
            return ended
        raise self.failure(end, ended, last)

    def failure(self, end: End, pod: dict[str, Any], last: list[str]) -> AirflowException:
        """The error of a step whose pod ended so: one that Airflow tries again, unless that would not mend it."""
        hopeless = end.hopeless or (end.kind == Kind.OUT_OF_MEMORY and was_the_most(self.compute_class, pod))
        message = explain(self.pod.metadata.name, end, pod, last, self.step, self.compute_class, nodes=self.client.list_node)
        return (AirflowFailException if hopeless else AirflowException)(message)

    def reject(self) -> None:
        """The pod failed, or ended well and made nothing: it is kept, and no later try takes it for its own."""
        if self._read(self.pod) is not None:
            self.patch_already_checked(self.pod, reraise=False)

    def own_faults(self, context: Any) -> int:
        """How many pods of this step failed in this run by their own fault: not by the node's, the cluster's or for want of memory."""
        mine = self._marks(context)
        before = [pod for pod in self.pods_of_step() if mine.items() <= (pod.metadata.annotations or {}).items()]
        ends = [pod_ends.end_of(pod) for pod in map(self._as_json, before) if pod_ends.has_ended(pod)]
        return sum(end.kind in pod_ends.OWN_FAULTS for end in ends)

    def accept(self) -> None:
        """The pod did its work; its log is in the task's, its result in the manifest."""
        self._delete(self.pod)

    def _kill(self, pod: k8s.V1Pod, verdict: Verdict) -> k8s.V1Pod | None:
        """Ends a pod that gets nowhere. One that ran is kept for a look, one that never started has nothing to show and would start later."""
        if verdict == Verdict.HUNG and not pod.metadata.deletion_timestamp:
            self.client.patch_namespaced_pod(pod.metadata.name, pod.metadata.namespace, {"spec": {"activeDeadlineSeconds": 1}})
            deadline = time.monotonic() + GRACE + 30  # kubelet looks at deadlines every ten seconds
            while time.monotonic() < deadline:
                if (pod := self._read(pod)) is None or pod_ends.has_ended(self._as_json(pod)):
                    return pod
                time.sleep(0.5)
        self._delete(pod)
        return self._read(pod)

    def _rest_of_log(self, logged: str, name: str | None = None) -> list[str]:
        """Writes the lines that the triggerer has not written; gives the last ones of all."""
        lines = self._log_of(name or self.pod.metadata.name)
        for _, line in lines_after(lines, logged):
            self.log.info("%s", line)
        return [line for _, line in lines_after(lines, "")][-LAST_LINES:]

    def _log_of(self, name: str) -> list[str]:
        try:
            answer = self.client.read_namespaced_pod_log(name, self.namespace, container=CONTAINER, timestamps=True, _preload_content=False)
        except ApiException:  # it never ran, is gone, or its node does not answer
            return []
        return answer.data.decode(errors="replace").splitlines()

    def _keep_times(self, pod: dict[str, Any], end: End) -> None:
        """What the pod cost, for the step's MLflow run. It is bookkeeping: what goes wrong here must not fail a step that worked."""
        from include.training import usage

        try:
            usage.keep(self.step.manifest, usage.cost_of(pod, end.kind.value, gpus=self.compute_class.gpus))
            usage.log(self.step.project, self.step.request, self.step.manifest)
        except Exception:
            self.log.warning("What pod %s cost is not in MLflow", self.pod.metadata.name, exc_info=True)

    def _read(self, pod: k8s.V1Pod) -> k8s.V1Pod | None:
        """The pod as it is now; None if it is gone."""
        try:
            found = self.client.read_namespaced_pod(pod.metadata.name, pod.metadata.namespace)
        except ApiException as error:
            if error.status == 404:
                return None
            raise
        return found if pod.metadata.uid in (None, found.metadata.uid) else None

    def _delete(self, pod: k8s.V1Pod) -> None:
        """Asks for the pod's deletion, and for no other's that was made since under its name."""
        try:
            self.client.delete_namespaced_pod(
                pod.metadata.name, pod.metadata.namespace, body=k8s.V1DeleteOptions(preconditions=k8s.V1Preconditions(uid=pod.metadata.uid))
            )
        except ApiException as error:
            if error.status not in (404, 409):
                raise

    def _delete_job(self, name: str, uid: str | None = None) -> None:
        """Asks for the deletion of a Job, with its pods and all that it owns."""
        try:
            self.hook.batch_v1_client.delete_namespaced_job(
                name, self.namespace, body=k8s.V1DeleteOptions(propagation_policy="Background", preconditions=k8s.V1Preconditions(uid=uid) if uid else None)
            )
        except ApiException as error:
            if error.status not in (404, 409):
                raise

    def _as_json(self, pod: Any) -> dict[str, Any]:
        return self._api.sanitize_for_serialization(pod)

    @cached_property
    def _api(self) -> Any:
        return self.client.api_client
