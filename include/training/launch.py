"""Start the workers of a fit with torchrun's machinery.

They are child processes on one machine, or this pod's worker among the pods of an indexed Job. A
worker runs the same command line with two more arguments that identify the launcher. If one is
lost, all are restarted and resume from the last checkpoint.
"""

import os
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from include.projects.base import Candidate
from include.settings import Settings, get_settings
from include.training.workers import OTHERS_LOST

# EX_SOFTWARE of sysexits.h: restarting the workers will not help. The Job of an indexed fit fails
# immediately with this exit code.
GAVE_UP = 70


class WorkersFailedError(RuntimeError):
    """Raised when a worker fails by its own fault, or is killed, more often than allowed."""

    exit_code = GAVE_UP


class WorkersLostError(WorkersFailedError):
    """Raised when workers in other pods are lost, perhaps with the rendezvous store.

    This worker is not at fault and may be restarted.
    """

    exit_code = OTHERS_LOST


def launch(arguments: Sequence[str], candidate: Candidate) -> None:
    """Run ``python -m include.training <arguments>`` in all workers of a candidate.

    Return when all have succeeded.

    Raises:
        WorkersFailedError: a worker failed. The message names the first one and its exit code.
        WorkersLostError: the workers here failed only because others were lost.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousClosedError, RendezvousConnectionError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    settings, count = get_settings(), candidate.workers
    with tempfile.TemporaryDirectory(prefix="airloop-workers-") as folder:
        among = _among_pods(settings, count) if settings.rendezvous else _on_one_machine(folder, count)
        config = LaunchConfig(
            rdzv_backend="c10d",
            max_restarts=settings.worker_restarts,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            **among,
        )
        print(
            f"{candidate.name}: {config.nproc_per_node} of {count} workers here, restarted up to {config.max_restarts}"
            " times",
            flush=True,
        )
        more = ["--launched-by", str(os.getpid()), *([] if settings.rendezvous else ["--meeting", folder])]
        try:
            elastic_launch(config, sys.executable)("-u", "-m", "include.training", *arguments, *more)
        except ChildFailedError as error:
            own = {rank: failure for rank, failure in error.failures.items() if failure.exitcode != OTHERS_LOST}
            if not own:
                raise WorkersLostError("other workers were lost, and did not come back in time") from None
            rank, failure = min(own.items(), key=lambda item: item[1].timestamp)
            again = (
                f"also after {config.max_restarts} restarts" if config.max_restarts else "and may not be started again"
            )
            raise WorkersFailedError(
                f"worker {rank} of {count} ended with exit code {failure.exitcode}, {again}; its own lines are above"
            ) from None
        except (RendezvousClosedError, RendezvousConnectionError) as error:
            raise WorkersLostError(
                f"the first worker's pod is gone, and the rendezvous store with it: {error}"
            ) from None


def _on_one_machine(folder: str, count: int) -> dict[str, Any]:
    """Return the configuration for one machine: a file store and the loopback device.

    torch's TCP store would listen on every address, without a password.
    """
    os.environ |= {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    meeting = {
        "rdzv_endpoint": f"{folder}/launcher",
        "rdzv_configs": {"store_type": "file"},
        "local_addr": "127.0.0.1",
        "run_id": "one-machine",
    }
    return {"min_nodes": 1, "max_nodes": 1, "nproc_per_node": count, **meeting}


def _among_pods(settings: Settings, count: int) -> dict[str, Any]:
    """Return the configuration for one worker a pod.

    The workers meet in the store of the pod with index 0. Its address is the rendezvous. Ranks
    follow the order of addresses.

    A pod that restarts, perhaps on another node, rejoins the others, which wait for it. If the
    first pod is lost, its store is lost too. The others then end, and the Job restarts all of them.
    """
    # By default, torch's agents share one store for the workers of all rounds. Only the first round
    # publishes its address, so a restarted pod never learns it.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    meeting = {
        "rdzv_endpoint": settings.rendezvous,
        "run_id": settings.rendezvous,
        "local_addr": settings.worker_address,
    }
    patience = settings.rendezvous_timeout
    configs = {"is_host": settings.worker_index == 0, "join_timeout": patience, "read_timeout": patience}
    return {"min_nodes": count, "max_nodes": count, "nproc_per_node": 1, **meeting, "rdzv_configs": configs}
