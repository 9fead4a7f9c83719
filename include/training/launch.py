"""Starts the workers of a fit, by torchrun's own machinery: as child processes on one machine, or this pod's one among the pods of an indexed Job.

A worker runs the very command line that was to be run, with two more arguments that say who started it. If one is lost, all are started
again and go on from the last checkpoint.
"""

import os
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from include.projects.base import Candidate
from include.settings import Settings, get_settings
from include.training.workers import OTHERS_LOST

GAVE_UP = 70  # EX_SOFTWARE of sysexits.h: starting the workers again will not help; the Job of an indexed fit fails on it at once


class WorkersFailed(RuntimeError):
    """A worker failed by its own fault, or was killed, more often than is put up with."""

    exit_code = GAVE_UP


class WorkersLost(WorkersFailed):
    """Those in other pods are gone, perhaps with the store in which all meet: nothing is wrong with this one, which may be started again."""

    exit_code = OTHERS_LOST


def launch(arguments: Sequence[str], candidate: Candidate) -> None:
    """Run ``python -m include.training <arguments>`` in all workers of a candidate, and wait until they have ended well.

    Raises:
        WorkersFailed: which worker failed first, and how.
        WorkersLost: the workers here failed only because others were lost.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousClosedError, RendezvousConnectionError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    settings, count = get_settings(), candidate.workers
    with tempfile.TemporaryDirectory(prefix="airloop-workers-") as folder:
        among = _among_pods(settings, count) if settings.rendezvous else _on_one_machine(folder, count)
        config = LaunchConfig(rdzv_backend="c10d", max_restarts=settings.worker_restarts, logs_specs=DefaultLogsSpecs(log_dir=folder), **among)
        print(f"{candidate.name}: {config.nproc_per_node} of {count} workers here, restarted up to {config.max_restarts} times", flush=True)
        more = ["--launched-by", str(os.getpid()), *([] if settings.rendezvous else ["--meeting", folder])]
        try:
            elastic_launch(config, sys.executable)("-u", "-m", "include.training", *arguments, *more)
        except ChildFailedError as error:
            own = {rank: failure for rank, failure in error.failures.items() if failure.exitcode != OTHERS_LOST}
            if not own:
                raise WorkersLost("other workers were lost, and did not come back in time") from None
            rank, failure = min(own.items(), key=lambda item: item[1].timestamp)
            again = f"also after {config.max_restarts} restarts" if config.max_restarts else "and may not be started again"
            raise WorkersFailed(f"worker {rank} of {count} ended with exit code {failure.exitcode}, {again}; its own lines are above") from None
        except (RendezvousClosedError, RendezvousConnectionError) as error:
            raise WorkersLost(f"the first worker's pod is gone, and with it the store in which all meet: {error}") from None


def _on_one_machine(folder: str, count: int) -> dict[str, Any]:
    """A file to meet in and the loopback device to talk over: torch's TCP store would listen on every address, without a password."""
    os.environ |= {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    meeting = {"rdzv_endpoint": f"{folder}/launcher", "rdzv_configs": {"store_type": "file"}, "local_addr": "127.0.0.1", "run_id": "one-machine"}
    return {"min_nodes": 1, "max_nodes": 1, "nproc_per_node": count, **meeting}


def _among_pods(settings: Settings, count: int) -> dict[str, Any]:
    """One worker a pod. They meet in the store of the pod with index 0; its address is the rendezvous. Ranks are given by the order of addresses.

    A pod that comes again, on another node perhaps, joins the others, which wait for it. If the first one is lost, so is the store: the others
    end, and the Job starts all of them again.
    """
    # torch's agents would keep one store for the workers of all rounds, whose address only the first round tells: a pod that comes again never learns it.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    meeting = {"rdzv_endpoint": settings.rendezvous, "run_id": settings.rendezvous, "local_addr": settings.worker_address}
    patience = settings.rendezvous_timeout
    configs = {"is_host": settings.worker_index == 0, "join_timeout": patience, "read_timeout": patience}
    return {"min_nodes": count, "max_nodes": count, "nproc_per_node": 1, **meeting, "rdzv_configs": configs}
