"""Airloop's pod operator: run one training step as one pod.

``include.dag_kit.compute`` imports this inside a task and drives it. A DAG file never does, because
importing the Kubernetes client takes two seconds. A step is identified by the URI of its manifest:
two pods with the same label ``airloop/manifest`` do the same work and never run concurrently.
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

from include.dag_kit.pods import ends as pod_ends
from include.dag_kit.pods.ends import CONTAINER, End, Kind, PodVerdict
from include.dag_kit.pods.messages import explain, had_max_memory, out_of_memory
from include.dag_kit.pods.names import PodStep, labels_of, next_number, pod_environment, pod_name, tolerations_of
from include.dag_kit.pods.sweep import RESULT, TASK, task_of
from include.dag_kit.pods.trigger import StepPodTrigger, judge, lines_after
from include.dag_kit.storage import pod_storage
from include.projects.compute import ComputeClass
from include.settings import Settings, unpinned
from include.stack.pod_settings import validate_pod_settings
from include.training.tracking import tracking_uri

# Number of lines of the pod's log in the error of a failed step.
LAST_LINES = 20
# A number, because the kubelet cannot check whether a user name is root. No account on the nodes
# has this number.
USER = 10001
# Seconds between SIGTERM and SIGKILL. A killed step is safe to run again, and checkpoints are
# written during normal operation.
GRACE = 5
# For Airflow's own work around a pod, before its limit on the task applies.
BACKSTOP = timedelta(minutes=10)
# Time between two tries while the namespace's quota is exhausted.
QUOTA_AGAIN = timedelta(seconds=15)
HINTS = {
    403: "docs/runbooks/train.md has the Role that Airflow's account needs.",
    404: "Is AIRLOOP_KUBERNETES_NAMESPACE right, and made?",
    422: "Look at the compute class in the project, and at AIRLOOP_POD_TEMPLATE.",
}


class QuotaExceededError(Exception):
    """Raised when the namespace's quota has no room for another pod at the moment.

    The message is the API server's.
    """


class StepPod(KubernetesPodOperator):
    """Run a training step in a pod with Airloop's defaults.

    The pod is found again by its labels and watched from the triggerer. Its end is classified by
    kind.
    """

    def __init__(
        self, *, step: PodStep, resources: ComputeClass, command: list[str], settings: Settings, **kwargs: Any
    ) -> None:
        image = resources.image or settings.training_image
        if not image:
            raise AirflowFailException(
                "AIRLOOP_COMPUTE=kubernetes needs AIRLOOP_TRAINING_IMAGE: the image that training pods run"
            )
        if settings.profile == "kubernetes" and (fault := unpinned(image)):
            raise AirflowFailException(f"the image of compute class {step.compute} is {fault}")
        if wrong := validate_pod_settings(settings, tracking_uri()):
            raise AirflowFailException(wrong)
        super().__init__(
            kubernetes_conn_id=settings.kubernetes_connection,
            namespace=settings.kubernetes_namespace,
            image=image,
            # The image has a digest or a fixed tag. Asking the registry each time would add a
            # possible failure.
            image_pull_policy="IfNotPresent",
            cmds=command,
            env_vars=pod_environment(settings, step, resources),
            # A fixed name ensures that two processes cannot both create the step's next pod.
            random_name_suffix=False,
            labels=labels_of(step),
            # Depends on the memory of the try. See build_for.
            container_resources=None,
            node_selector=resources.node_selector,
            tolerations=tolerations_of(resources),
            # The pod processes external data with much third-party code, so it gets no privileges
            # on the node or in the cluster.
            security_context=k8s.V1PodSecurityContext(
                run_as_non_root=True,
                run_as_user=USER,
                run_as_group=USER,
                fs_group=USER,
                seccomp_profile=k8s.V1SeccompProfile(type="RuntimeDefault"),
            ),
            container_security_context=k8s.V1SecurityContext(
                allow_privilege_escalation=False,
                privileged=False,
                read_only_root_filesystem=True,
                capabilities=k8s.V1Capabilities(drop=["ALL"]),
            ),
            # The pod does not call the Kubernetes API.
            automount_service_account_token=False,
            volumes=[
                k8s.V1Volume(name="tmp", empty_dir=k8s.V1EmptyDirVolumeSource(size_limit=resources.ephemeral_storage))
            ],
            volume_mounts=[k8s.V1VolumeMount(name="tmp", mount_path="/tmp")],
            pod_template_file=str(settings.pod_template) if settings.pod_template else None,
            # The trigger enforces Airflow's limits. This limit applies while Airflow is
            # unavailable: Kubernetes then ends the pod and keeps it.
            active_deadline_seconds=int((resources.start_timeout + resources.timeout + BACKSTOP).total_seconds()),
            termination_grace_period=GRACE,
            # Neither a pod that waits for a GPU nor one that runs holds a worker slot.
            deferrable=True,
            # A failed pod is kept for inspection. It also tells the next try which memory size was
            # too small.
            on_finish_action="delete_succeeded_pod",
            # The specification would show the environment.
            log_pod_spec_on_failure=False,
            # The result is the manifest. A sidecar would add a possible failure.
            do_xcom_push=False,
            **kwargs,
        )
        self.storage, self.priority_class = pod_storage(settings), settings.priority_class(step.compute)
        if settings.mlflow_secret:
            self.storage["env_from"] = [*self.storage["env_from"], {"secretRef": {"name": settings.mlflow_secret}}]
        # Airflow already has a property named `resources`.
        self.step, self.compute_class = step, resources

    # --- Find or create the step's pod ---

    def start(self, context: Any, method_name: str, since: str | None = None) -> dict[str, Any]:
        """Create the step's pod or find the existing one, and defer to the triggerer.

        The triggerer resumes the task at ``method_name``.

        Args:
            since: Time of the first try, if the namespace's quota had no room for the pod then.

        Returns:
            The event to continue with, only if the pod has ended already.

        Raises:
            AirflowFailException: The cluster rejects the pod, or its quota had no room for as long
                as a pod may wait for a node.
        """
        try:
            self.pod = self.find_or_create(context)
        except QuotaExceededError as error:
            self.wait_for_quota(error, since)
        pod = self._as_json(self.pod)
        if pod_ends.has_ended(pod):
            return {
                "name": self.pod.metadata.name,
                "namespace": self.pod.metadata.namespace,
                "verdict": PodVerdict.ENDED.value,
                "seen": pod,
                "logged": "",
            }
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
        # Airflow's own limit, in case the triggerer loses its pod. It is longer than all limits of
        # the trigger.
        self.defer(
            trigger=trigger, method_name=method_name, timeout=timedelta(seconds=sum(self.limits.values())) + BACKSTOP
        )
        raise AssertionError("defer raises")

    def wait_for_quota(self, error: "QuotaExceededError", since: str | None) -> NoReturn:
        """Defer and resume at ``pod_wanted``, until other pods have ended and there is room.

        A Job waits automatically.
        """
        began = since or datetime.now(UTC).isoformat()
        if datetime.now(UTC) - datetime.fromisoformat(began) > self.compute_class.schedule_timeout:
            waited = (
                f"{self.step.name}: for {self.compute_class.schedule_timeout} the quota of namespace {self.namespace}"
                f" had no room for its pod: {error}"
            )
            raise AirflowFailException(f"{Kind.UNSCHEDULABLE.value}: {waited}")
        self.log.info("Waiting for room in the quota of namespace %s: %s", self.namespace, error)
        self.defer(trigger=TimeDeltaTrigger(QUOTA_AGAIN), method_name="pod_wanted", kwargs={"since": began})
        raise AssertionError("defer raises")

    @property
    def limits(self) -> dict[str, float]:
        """Return the time limits of a pod in seconds. See ``StepPodTrigger``."""
        limits = {
            "schedule": self.compute_class.schedule_timeout,
            "start": self.compute_class.start_timeout,
            "run": self.compute_class.timeout,
        }
        return {name: limit.total_seconds() for name, limit in limits.items()}

    def find_or_create(self, context: Any) -> k8s.V1Pod:
        """Return the step's pod: reuse an existing one, otherwise create one.

        A pod can be reused if it is running or its end was not processed yet, and if it belongs to
        this or an interrupted try.

        Raises:
            AirflowException: An older pod of the step does not end. A new pod would run
                concurrently with it.
        """
        identity = self._identity_annotations(context)
        for _ in range(10):
            pods = sorted(self.pods_of_step(), key=lambda pod: pod.metadata.creation_timestamp)
            good, stale = pod_ends.sort_out([self._as_json(pod) for pod in pods], identity)
            if stale:
                self._remove([pod for pod in pods if pod.metadata.name in stale])
                continue
            if good:
                reused = next(pod for pod in pods if pod.metadata.name == good)
                self.log.info("Found pod %s of this step (%s): going on with it", good, reused.status.phase)
                return reused
            try:
                return self.client.create_namespaced_pod(
                    self.namespace, self.build_for(context, pods, identity | self._owner_annotations(context))
                )
            except ApiException as error:
                self._raise_for_api_error(error)
                time.sleep(1)
        raise AirflowException(
            f"the pod of {self.step.name} cannot be created: other pods of its name appear and disappear"
        )

    def _raise_for_api_error(self, error: ApiException) -> None:
        """Translate a pod or Job creation error into an Airflow exception.

        Return silently on 409 (name taken). In that case another process has just created it, or
        an old one of that name is being deleted. The caller then searches for it again.
        """
        message = error.reason
        with suppress(ValueError, TypeError, KeyError):
            message = json.loads(error.body)["message"]
        if error.status == 409:
            return
        if error.status == 403 and "exceeded quota" in message:
            raise QuotaExceededError(message)
        # Another try would be refused too.
        if error.status in (400, 403, 404, 422):
            raise AirflowFailException(
                f"the cluster refuses the pod of {self.step.name} in namespace {self.namespace}: {message}."
                f" {HINTS.get(error.status, '')}"
            )
        raise error

    def build_for(self, context: Any, before: list[k8s.V1Pod], annotations: dict[str, str]) -> k8s.V1Pod:
        """Return the pod to create. Earlier pods determine its number and its memory.

        Raises:
            AirflowFailException: The class cannot provide more memory.
        """
        oom_sizes = pod_ends.oom_memory_sizes([self._as_json(pod) for pod in before], annotations)
        memory = self.compute_class.memory_after(oom_sizes)
        if memory is None:
            raise AirflowFailException(out_of_memory(self.step, self.compute_class, oom_sizes[-1]))
        if oom_sizes:
            self.log.info("%s was too little memory: trying %s", oom_sizes[-1], memory)
        number = next_number(before)
        self.name = pod_name(self.step, number)
        self.labels = {**labels_of(self.step), "airloop/number": str(number)}
        self.annotations = annotations
        counted: dict[str, str] = (
            {self.compute_class.gpu_resource: str(self.compute_class.gpus)} if self.compute_class.gpus else {}
        )
        limits = {"memory": memory, "ephemeral-storage": self.compute_class.ephemeral_storage, **counted}
        self.container_resources = k8s.V1ResourceRequirements(
            requests={**limits, "cpu": f"{round(self.compute_class.cpu * 1000)}m"}, limits=limits
        )
        pod = self.build_pod_request_obj(context)
        # Otherwise a service named airloop would put AIRLOOP_PORT into the environment.
        pod.spec.enable_service_links = False
        container = next(container for container in pod.spec.containers if container.name == CONTAINER)
        for part in ("env_from", "env", "volume_mounts"):
            setattr(container, part, [*(getattr(container, part) or []), *self.storage[part]])
        pod.spec.volumes = [*(pod.spec.volumes or []), *self.storage["volumes"]]
        pod.spec.service_account_name = self.storage["service_account_name"] or pod.spec.service_account_name
        pod.spec.priority_class_name = self.priority_class or pod.spec.priority_class_name
        return pod

    def pods_of_step(self) -> list[k8s.V1Pod]:
        """Return all existing pods of this step, from any try or run."""
        pods: list[k8s.V1Pod] = self.client.list_namespaced_pod(
            self.namespace, label_selector=f"airloop/manifest={labels_of(self.step)['airloop/manifest']}"
        ).items
        return pods

    def _identity_annotations(self, context: Any) -> dict[str, str]:
        """Return the annotations that a pod of the current try must carry.

        They identify the same work for the same run since it was last cleared.
        """
        run = context["dag_run"]
        work = hashlib.sha256("\0".join([str(self.image), *self.cmds]).encode()).hexdigest()[:16]
        return {
            "airloop/run": run.run_id,
            "airloop/cleared": str(getattr(run, "clear_number", None) or 0),
            "airloop/work": work,
        }

    def _owner_annotations(self, context: Any) -> dict[str, str]:
        """Return the annotations with the pod's task and result, for the cleanup of pods."""
        return {TASK: task_of(context["ti"]), RESULT: self.step.manifest}

    def _remove(self, pods: list[k8s.V1Pod]) -> None:
        """Delete pods and wait until none of them runs."""
        for pod in pods:
            self.log.info(
                "Deleting pod %s (%s): left by an earlier run or try of this step", pod.metadata.name, pod.status.phase
            )
            # The step had several workers then, and their Job would replace the pod.
            if job := (pod.metadata.labels or {}).get("batch.kubernetes.io/job-name"):
                self._delete_job(job)
            self._delete(pod)
        self._await_gone(pods)

    def _await_gone(self, pods: list[k8s.V1Pod], patience: float = GRACE + 60) -> None:
        deadline = time.monotonic() + patience
        for pod in pods:
            while (there := self._read(pod)) is not None and not pod_ends.has_ended(self._as_json(there)):
                if time.monotonic() > deadline:
                    raise AirflowException(
                        f"pod {pod.metadata.name} of this step is still {pod_ends.is_at(self._as_json(there))},"
                        f" {patience:.0f} s after its deletion. Does that node answer? No new pod may run until then."
                        " If the node is gone for good: kubectl delete node, and clear this task."
                    )
                time.sleep(0.5)

    # --- Process its end ---

    def overtaken(self, event: dict[str, Any]) -> bool:
        """Return whether the event is stale.

        It is stale if the pod has started since the triggerer saw it, or if the event is from a
        time when the step had several workers.
        """
        if "job" in event:
            return True
        if PodVerdict(event["verdict"]) in (PodVerdict.ENDED, PodVerdict.GONE):
            return False
        pod = k8s.V1Pod(
            metadata=k8s.V1ObjectMeta(
                name=event["name"], namespace=event["namespace"], uid=event["seen"]["metadata"]["uid"]
            )
        )
        there = self._read(pod)
        return there is not None and judge(self._as_json(there), self.limits, datetime.now(UTC)) is None

    def settle(self, event: dict[str, Any]) -> dict[str, Any]:
        """Log the remaining output, end the pod, and return it in its final state.

        Raises:
            AirflowFailException: The pod failed, and another try would not help.
            AirflowException: The pod failed, and a retry may help.
        """
        seen, verdict = event["seen"], PodVerdict(event["verdict"])
        self.pod = k8s.V1Pod(
            metadata=k8s.V1ObjectMeta(
                name=event["name"], namespace=event["namespace"], uid=seen.get("metadata", {}).get("uid")
            )
        )
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
        """Return the error of a step whose pod ended in this way.

        Airflow retries it, unless another try would not help.
        """
        hopeless = end.hopeless or (end.kind == Kind.OUT_OF_MEMORY and had_max_memory(self.compute_class, pod))
        message = explain(
            self.pod.metadata.name, end, pod, last, self.step, self.compute_class, nodes=self.client.list_node
        )
        return (AirflowFailException if hopeless else AirflowException)(message)

    def reject(self) -> None:
        """Mark the pod as failed, so that no later try reuses it. Keep it for inspection.

        It either failed, or it succeeded without a result.
        """
        if self._read(self.pod) is not None:
            self.patch_already_checked(self.pod, reraise=False)

    def own_faults(self, context: Any) -> int:
        """Return how many pods of this step failed in this run by their own fault.

        Failures caused by the node, by the cluster or by too little memory do not count.
        """
        identity = self._identity_annotations(context)
        before = [pod for pod in self.pods_of_step() if identity.items() <= (pod.metadata.annotations or {}).items()]
        ends = [pod_ends.end_of(pod) for pod in map(self._as_json, before) if pod_ends.has_ended(pod)]
        return sum(end.kind in pod_ends.OWN_FAULTS for end in ends)

    def accept(self) -> None:
        """Delete the pod after success.

        Its log is in the task's log, its result in the manifest.
        """
        self._delete(self.pod)

    def _kill(self, pod: k8s.V1Pod, verdict: PodVerdict) -> k8s.V1Pod | None:
        """End a pod that cannot succeed.

        A pod that ran is kept for inspection. A pod that never started has no output and might
        start later, so it is deleted.
        """
        if verdict == PodVerdict.HUNG and not pod.metadata.deletion_timestamp:
            self.client.patch_namespaced_pod(
                pod.metadata.name, pod.metadata.namespace, {"spec": {"activeDeadlineSeconds": 1}}
            )
            # The kubelet checks deadlines every ten seconds.
            deadline = time.monotonic() + GRACE + 30
            while time.monotonic() < deadline:
                if (pod := self._read(pod)) is None or pod_ends.has_ended(self._as_json(pod)):
                    return pod
                time.sleep(0.5)
        self._delete(pod)
        return self._read(pod)

    def _rest_of_log(self, logged: str, name: str | None = None) -> list[str]:
        """Log the lines that the triggerer has not logged.

        Return the last lines of the whole log.
        """
        lines = self._log_of(name or self.pod.metadata.name)
        for _, line in lines_after(lines, logged):
            self.log.info("%s", line)
        return [line for _, line in lines_after(lines, "")][-LAST_LINES:]

    def _log_of(self, name: str) -> list[str]:
        try:
            answer = self.client.read_namespaced_pod_log(
                name, self.namespace, container=CONTAINER, timestamps=True, _preload_content=False
            )
        # The pod never ran, is gone, or its node does not respond.
        except ApiException:
            return []
        lines: list[str] = answer.data.decode(errors="replace").splitlines()
        return lines

    def _keep_times(self, pod: dict[str, Any], end: End) -> None:
        """Record the pod's cost for the step's MLflow run.

        This is bookkeeping: an error here must not fail a step that worked.
        """
        from include.training import usage

        try:
            usage.keep(self.step.manifest, usage.cost_of(pod, end.kind.value, gpus=self.compute_class.gpus))
            usage.log(self.step.project, self.step.request, self.step.manifest)
        except Exception:
            self.log.warning("What pod %s cost is not in MLflow", self.pod.metadata.name, exc_info=True)

    def _read(self, pod: k8s.V1Pod) -> k8s.V1Pod | None:
        """Return the current pod, or None if it is gone."""
        try:
            current = self.client.read_namespaced_pod(pod.metadata.name, pod.metadata.namespace)
        except ApiException as error:
            if error.status == 404:
                return None
            raise
        return current if pod.metadata.uid in (None, current.metadata.uid) else None

    def _delete(self, pod: k8s.V1Pod) -> None:
        """Request the deletion of the pod, but not of a later pod of the same name."""
        try:
            self.client.delete_namespaced_pod(
                pod.metadata.name,
                pod.metadata.namespace,
                body=k8s.V1DeleteOptions(preconditions=k8s.V1Preconditions(uid=pod.metadata.uid)),
            )
        except ApiException as error:
            if error.status not in (404, 409):
                raise

    def _delete_job(self, name: str, uid: str | None = None) -> None:
        """Request the deletion of a Job, with its pods and all other objects that it owns."""
        try:
            self.hook.batch_v1_client.delete_namespaced_job(
                name,
                self.namespace,
                body=k8s.V1DeleteOptions(
                    propagation_policy="Background", preconditions=k8s.V1Preconditions(uid=uid) if uid else None
                ),
            )
        except ApiException as error:
            if error.status not in (404, 409):
                raise

    def _as_json(self, pod: Any) -> dict[str, Any]:
        plain: dict[str, Any] = self._api.sanitize_for_serialization(pod)
        return plain

    @cached_property
    def _api(self) -> Any:
        return self.client.api_client
