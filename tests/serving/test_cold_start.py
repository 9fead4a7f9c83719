"""How soon a fresh process answers, with a real MLflow server and nothing in its cache; and that it imports none of what takes long."""

import os
import time
from pathlib import Path

import pytest

from tests.serving.stand import NAME, Process, Registry, expected, serving_process
from tests.serving.test_service import RAW, server

pytestmark = pytest.mark.stack
__all__ = ["server"]


def cpu_seconds(process: Process) -> float:
    """What a process and its threads have used."""
    fields = Path(f"/proc/{process._process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_the_first_answer_on_raw_features(server, features, tmp_path):
    """Under 2 s of this process's own work: what it takes on a machine that nobody else uses. The wall clock is printed."""
    registry = Registry(server.url, tmp_path)
    registry.add(bias=1)
    service = serving_process(tmp_path, server.url, features)
    try:
        body = {"instances": [RAW]}
        while (answer := service.get(f"/models/{NAME}/predict", body))[0] != 200:
            assert time.monotonic() - service.started < 120, service.log.read_text()
            time.sleep(0.01)
        wall, cpu = time.monotonic() - service.started, cpu_seconds(service)
        print(f"first answer on raw features after {wall:.2f} s, {cpu:.2f} s of them its own")
        assert answer[1]["predictions"][0]["prediction"] == expected(RAW, 1)
        assert cpu < 2
        service.wait("/ready", 120)
        assert service.get(f"/models/{NAME}/predict", {"instances": [{"shop": "a", "customer": 7, "hour": 9}]})[0] == 200
        loaded = Path(f"/proc/{service._process.pid}/maps").read_text()
        assert "pandas" not in loaded and "/mlflow" not in loaded  # the libraries behind them, that is
    finally:
        service.end()
