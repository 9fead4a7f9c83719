"""No library sends telemetry, wherever it is imported first.

The tests use new processes in which no telemetry has been disabled yet.
"""

import json
import os
import subprocess
import sys

import pytest

from include.settings import REPOSITORY, TELEMETRY_OFF

pytestmark = pytest.mark.slow

SAYS = """
import json, os, threading, psutil
print(json.dumps({
    "threads": [t.name for t in threading.enumerate() if t is not threading.main_thread()],
    "connections": [str(c) for c in psutil.Process().net_connections()],
    "home": [os.path.join(folder, file) for folder, _, files in os.walk(os.environ["HOME"]) for file in files if "Microsoft" in folder],
}))
"""  # noqa: E501
# The first importer of a library, in the service and in the scheduler. The scheduler's workers are
# forks of it.
FIRST = {
    "serving": "import serving.models.graph",
    "an edge client": "import sys; sys.path.insert(0, 'include/edge/client'); import client",
    "the scheduler": (
        "import sys; sys.argv = ['airflow', 'scheduler']; import airflow_local_settings; import onnxruntime"
    ),
}


@pytest.mark.parametrize("who", FIRST)
def test_no_library_starts_a_thread_to_tell_of_us(who, tmp_path):
    # ONNX Runtime sends no telemetry when it detects a test.
    loud = {*TELEMETRY_OFF, "CI", "ORT_RUNNING_UNIT_TESTS"}
    environment = {name: value for name, value in os.environ.items() if name not in loud} | {
        "HOME": str(tmp_path),
        "AIRFLOW_HOME": str(tmp_path / "airflow"),
        "AIRLOOP_HOME": str(tmp_path / "airloop"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join(
            [str(REPOSITORY), str(REPOSITORY / "config"), str(REPOSITORY / "include" / "edge")]
        ),
    }
    ran = subprocess.run(
        [sys.executable, "-c", FIRST[who] + SAYS],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert json.loads(ran.stdout.splitlines()[-1]) == {"threads": [], "connections": [], "home": []}
