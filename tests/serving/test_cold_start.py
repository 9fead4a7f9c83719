"""A fresh process answers soon and does not import slow libraries.

It uses a real MLflow server, and its cache is empty.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.serving.harness import NAME, Process, Registry, expected, serving_process
from tests.serving.test_service import RAW, server

pytestmark = pytest.mark.stack
__all__ = ["server"]


def cpu_seconds(process: Process) -> float:
    """Return the CPU time of a process and its threads."""
    fields = Path(f"/proc/{process._process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cpu_of_imports() -> float:
    """Return the CPU time of a process that only imports the libraries that serving needs."""
    program = "import time, fastapi, numpy, onnxruntime, pyarrow, uvicorn; print(time.process_time())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return float(done.stdout)


def test_the_first_answer_on_raw_features(server, features, tmp_path):
    """The first answer on raw features takes at most 2.5 times the CPU time of the imports.

    Measured: 1.6 times. An import of MLflow alone would add another 2.8.
    """
    before = cpu_of_imports()
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
        imports = max(before, cpu_of_imports())
        assert cpu < 2.5 * imports, f"{cpu:.2f} s, and {imports:.2f} s for the imports alone"
        service.wait("/ready", 120)
        assert (
            service.get(f"/models/{NAME}/predict", {"instances": [{"shop": "a", "customer": 7, "hour": 9}]})[0] == 200
        )
        loaded = Path(f"/proc/{service._process.pid}/maps").read_text()
        assert "pandas" not in loaded and "/mlflow" not in loaded  # their compiled libraries
    finally:
        service.end()
