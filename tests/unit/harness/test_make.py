"""`make test` runs the tests with servers even if a fast test fails, and fails if either does."""

import os
import shutil
import subprocess

import pytest

from include.settings import REPOSITORY

PYTEST = """#!/bin/sh
case "$*" in *tests/unit*) echo fast; exit $FAST;; *) echo servers; exit $SERVERS;; esac
"""


@pytest.fixture
def programs(tmp_path):
    """Create a folder with programs that stand in for those of the virtual environment."""
    for name in ("ruff", "mypy", "lint-imports", "python", "pytest"):
        (tmp_path / name).write_text(PYTEST if name == "pytest" else "#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("fast", [0, 1])
@pytest.mark.parametrize("servers", [0, 1])
def test_both_tiers_run_whatever_the_first_one_says(programs, fast, servers):
    # This test may run within `make test`, whose flags do not apply here.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "-s", "-o", ".venv/.airloop-set-up", "test", f"BIN={programs}"],
        cwd=REPOSITORY,
        env=environment | {"FAST": str(fast), "SERVERS": str(servers)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split()[:2] == ["fast", "servers"], done.stdout + done.stderr
    assert (done.returncode != 0) == bool(fast or servers)
