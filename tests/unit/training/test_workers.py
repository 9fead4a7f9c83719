"""Several worker processes fit one model with torchrun and gloo, with a SIGKILL in the middle.

The candidates differ only in the number of their workers. They belong to a project in a copy of the
library.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest

from include.outages import EX_DATAERR
from include.projects.flights import project as flights
from include.settings import REPOSITORY, get_settings
from include.training.checkpoint import Checkpoints
from include.training.launch import GAVE_UP
from include.training.workers import Workers
from tests.unit.training import made_up

pytestmark = pytest.mark.slow

EPOCHS = 30
TINY = f"""
from include.projects.base import Candidate
from include.projects.flights import project as flights

parameters = {{"hidden": 16, "epochs": {EPOCHS}, "batch_size": 250, "dropout": 0.2}}
networks = [Candidate(name=f"network_{{n}}", trainer="torch_mlp", workers=n, parameters=parameters) for n in (1, 2, 3)]
trees = Candidate(name="trees", trainer="hist_gradient_boosting", workers=2)
project = flights.model_copy(update={{"name": "tiny", "candidates": (*networks, trees)}})
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """Copy the library with one more project and return its folder."""
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(REPOSITORY / "include", root / "include", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "include" / "projects" / "tiny").mkdir()
    (root / "include" / "projects" / "tiny" / "__init__.py").write_text(TINY)
    return root


@pytest.fixture(scope="module")
def training_set(copy):
    """Return 1,905 rows to fit.

    The last batch of an epoch has 155 rows, which cannot be divided evenly among three workers.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRLOOP_HOME", str(copy / "home"))
        get_settings.cache_clear()
        rows = made_up.examples(flights, days=30, a_day=119)
        uri = made_up.write(
            flights.model_copy(update={"name": "tiny"}), {"id": "abc", "cutoff": "2013-02-10T00:00:00Z"}, rows
        )
    get_settings.cache_clear()
    return uri


class Step:
    """A running ``python -m include.training fit``."""

    def __init__(self, copy: Path, training_set: str, candidate: str, name: str, **settings: str):
        self.manifest = copy / "manifests" / f"{name}.json"
        self.log: list[str] = []
        line = [
            "fit",
            "--project",
            "tiny",
            "--candidate",
            candidate,
            "--request",
            name,
            "--training-set",
            training_set,
            "--manifest",
            str(self.manifest),
        ]
        given = {k: v for k, v in os.environ.items() if not k.startswith("AIRLOOP_")}
        environment = given | {
            "AIRLOOP_HOME": str(copy / "home"),
            "PYTHONPATH": str(copy),
            "PYTHONDONTWRITEBYTECODE": "",
            **settings,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", "include.training", *line],
            cwd=copy,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def read_until(self, text: str) -> None:
        for line in self.process.stdout:
            self.log.append(line)
            if text in line:
                return
        raise AssertionError(f"ended without '{text}':\n{self.output}")

    def worker(self, rank: int) -> psutil.Process:
        workers = psutil.Process(self.process.pid).children()
        return next(w for w in workers if w.environ().get("RANK") == str(rank))

    def end(self) -> dict:
        self.log += self.process.stdout
        assert self.process.wait() == 0, self.output
        return self.made()

    def made(self) -> dict:
        return json.loads(self.manifest.read_text())

    @property
    def output(self) -> str:
        return "".join(self.log)

    @property
    def checkpoints(self) -> Path:
        return self.manifest.with_suffix(".checkpoint")


@pytest.fixture
def step(copy, training_set, request):
    """Return a function that starts a fit. Running fits are ended after the test."""
    started = []

    def start(candidate: str, name: str = "", **settings: str) -> Step:
        started.append(
            Step(
                copy,
                training_set,
                candidate,
                f"{request.node.name}-{name or candidate}".replace("[", "-").replace("]", ""),
                **settings,
            )
        )
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            os.killpg(one.process.pid, signal.SIGKILL)
        one.process.stdout.close()
        one.process.wait()


@pytest.fixture(scope="module")
def whole(copy, training_set):
    """Return name -> manifest of each candidate's undisturbed fit."""
    made = {}
    for count in (1, 2, 3):
        one = Step(copy, training_set, f"network_{count}", f"whole-{count}")
        made[f"network_{count}"] = one.end()
        assert "resuming" not in one.output and not one.checkpoints.exists()
        assert one.output.count(f"epoch {EPOCHS}/{EPOCHS}") == 1  # one worker reports for all
    return made


def graph(made: dict) -> bytes:
    return (Path(made["bundle"]) / "model.onnx").read_bytes()


def weights(made: dict) -> np.ndarray:
    constants = onnx.load_from_string(graph(made)).graph.initializer
    return np.concatenate(
        [onnx.numpy_helper.to_array(c).ravel() for c in constants if c.data_type == onnx.TensorProto.FLOAT]
    )


@pytest.mark.parametrize("count", [2, 3])
def test_many_workers_learn_what_one_learns(whole, count):
    one, many = whole["network_1"], whole[f"network_{count}"]
    assert (one["workers"], many["workers"]) == (1, count)
    losses, others = one["history"]["training_loss"], many["history"]["training_loss"]
    assert len(losses) == EPOCHS and losses[-1] < 0.8 * losses[0]
    assert np.allclose(losses, others, rtol=1e-5, atol=0)
    assert np.allclose(weights(one), weights(many), rtol=0, atol=1e-3)
    # Sums in another order are rounded differently. Identical graphs would mean that one worker did
    # both fits.
    assert graph(one) != graph(many)


@pytest.mark.parametrize(("count", "rank"), [(2, 0), (3, 2)])
def test_a_worker_is_killed_and_the_model_is_the_same_bit_for_bit(step, whole, count, rank):
    fit = step(f"network_{count}", AIRLOOP_CHECKPOINT_EVERY_STEPS="3")
    fit.read_until("epoch 7/")
    fit.worker(rank).kill()
    made = fit.end()
    assert "resuming from epoch" in fit.output and "resuming from epoch 1/" not in fit.output
    assert graph(made) == graph(whole[f"network_{count}"]) and made["history"] == whole[f"network_{count}"]["history"]
    assert not fit.checkpoints.exists()


@pytest.mark.parametrize("count", [1, 2])
def test_all_is_killed_and_the_next_try_goes_on_to_the_same_model(step, whole, count):
    killed = step(f"network_{count}", "same", AIRLOOP_CHECKPOINT_EVERY_STEPS="3")
    killed.read_until("epoch 7/")
    workers = psutil.Process(killed.process.pid).children(recursive=True)
    assert len(workers) == (count if count > 1 else 0)
    os.kill(killed.process.pid, signal.SIGKILL)
    killed.process.wait()
    assert psutil.wait_procs(workers, timeout=10)[1] == []  # they die with their parent
    assert not killed.manifest.exists() and killed.checkpoints.exists()

    again = step(f"network_{count}", "same")
    made = again.end()
    assert "resuming from epoch" in again.output and "resuming from epoch 1/" not in again.output
    assert graph(made) == graph(whole[f"network_{count}"]) and made["history"] == whole[f"network_{count}"]["history"]
    assert not again.checkpoints.exists()

    third = step(f"network_{count}", "same")
    third.end()
    assert "finished before; nothing to do" in third.output


def test_a_worker_that_is_lost_again_and_again_is_given_up_with_its_number(step):
    fit = step("network_2", AIRLOOP_WORKER_RESTARTS="1")
    for _ in range(2):
        fit.read_until("epoch 2/" if not fit.log else "resuming")
        fit.worker(1).kill()
    fit.log += fit.process.stdout
    assert fit.process.wait() == GAVE_UP
    assert "WorkersFailedError: worker 1 of 2 ended with exit code -9, also after 1 restarts" in fit.log[-1]


def test_a_checkpoint_of_other_inputs_is_not_used(step):
    first = step("network_1", "same")
    first.read_until("epoch 3/")
    first.process.kill()
    first.process.wait()
    other = step("network_2", "same")  # the same manifest, but another candidate
    other.end()
    assert "resuming" not in other.output


def test_a_trainer_that_knows_no_workers_is_refused_by_name(step):
    fit = step("trees")
    fit.log += fit.process.stdout
    assert fit.process.wait() == EX_DATAERR
    assert (
        "candidate 'trees' asks for 2 workers, but its trainer 'hist_gradient_boosting' has one only; several have"
        " torch_mlp" in fit.log[-1]
    )


@pytest.mark.parametrize(("size", "count"), [(1, 7), (2, 7), (3, 7), (3, 2), (4, 0)])
def test_slices_are_the_whole_batch_once(size, count):
    slices = [Workers(rank, size).share(count) for rank in range(size)]
    assert [i for s in slices for i in range(count)[s]] == list(range(count))
    assert max(s.stop - s.start for s in slices) - min(s.stop - s.start for s in slices) <= 1


def test_a_checkpoint_is_whole_or_not_there(tmp_path, capsys):
    import torch

    kept = Checkpoints.from_manifest(tmp_path / "fit.json", {"a": 1})
    assert kept.state(kept.load()) is None
    kept.save({"step": 3, "weights": torch.arange(4)})
    kept.save({"step": 4, "weights": torch.arange(4)})
    assert [f.name for f in (tmp_path / "fit.checkpoint").iterdir()] == ["state.pt"]
    assert kept.state(kept.load())["step"] == 4
    assert Checkpoints.from_manifest(tmp_path / "fit.json", {"a": 2}).state(kept.load()) is None
    assert capsys.readouterr().out == ""
    assert kept.state(kept.load()[:-100]) is None and "cannot be read" in capsys.readouterr().out
    kept.remove()
    kept.remove()
    assert list(tmp_path.iterdir()) == []
