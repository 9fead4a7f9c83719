"""A command in a fork of a warm process behaves as in a new interpreter."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from include.dag_kit.forked_process import ForkedProcess

ENVIRONMENT = {"PATH": os.environ["PATH"], "GREETING": "hello"}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "probe.py").write_text(
        "import os, sys, logging\n"
        "logging.basicConfig(level=logging.INFO, format='%(message)s')\n"
        "print(__name__, sys.argv[1:], os.environ.get('GREETING'), os.environ.get('SECRET'), os.getcwd())\n"
        "logging.info('logged')\n"
        "os.write(2, b'raw error\\n')\n"
        "exec(sys.argv[1])\n"
    )

    def start(code):
        # As PYTHONPATH has it in the parent.
        sys.path.insert(0, str(tmp_path))
        try:
            return ForkedProcess("probe", [code], env=ENVIRONMENT, cwd=str(tmp_path))
        finally:
            sys.path.remove(str(tmp_path))

    return start


def test_it_runs_as_main_with_its_own_arguments_environment_and_output(run, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "of the parent")
    child = run("pass")
    lines = child.stdout.read().splitlines()
    assert lines == [f"__main__ ['pass'] hello None {tmp_path}", "logged", "raw error"]
    assert child.wait() == 0 == child.poll()


@pytest.mark.parametrize(
    ("code", "exit_code", "output"),
    [
        ("sys.exit(3)", 3, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit('no such candidate')", 1, "no such candidate"),
        ("raise ValueError('bad rows')", 1, "ValueError: bad rows"),
        ("os.kill(os.getpid(), 9)", -9, ""),
    ],
)
def test_its_end_is_told_as_a_process_tells_it(run, code, exit_code, output):
    child = run(code)
    assert output in child.stdout.read()
    assert child.wait() == exit_code


def test_a_parent_whose_output_is_a_file_object_of_its_own_loses_nothing():
    """A parent with replaced output file objects loses no output.

    Airflow's task runner creates new file objects for descriptors 0, 1 and 2. When the child drops
    them, they must not close the child's descriptors.
    """
    parent = (
        "import os, sys\n"
        "sys.stdout, sys.stderr = os.fdopen(1, 'w'), os.fdopen(2, 'w')\n"
        "from include.dag_kit.forked_process import ForkedProcess\n"
        "child = ForkedProcess('timeit', ['-n', '1', 'pass'], env={}, cwd='/')\n"
        "text = child.stdout.read()\n"
        "sys.exit(0 if child.wait() == 0 and 'best of' in text else f'{child.wait()} {text}')\n"
    )
    ended = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_a_warning_is_shown_and_is_no_error(tmp_path):
    """A warning is shown and is not an error.

    Airflow's task runner shows warnings through a channel that the child closes.
    """
    (tmp_path / "warns.py").write_text("import warnings; warnings.warn('an int was expected'); print('went on')")
    parent = (
        f"import sys, warnings; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from include.dag_kit.forked_process import ForkedProcess\n"
        "def closed(*_, **__): raise OSError('Bad file descriptor')\n"
        "warnings.showwarning = closed\n"
        "child = ForkedProcess('warns', [], env={}, cwd='/')\n"
        "print(child.stdout.read(), child.wait())\n"
    )
    output = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True).stdout
    assert "UserWarning: an int was expected" in output
    assert output.endswith("went on\n 0\n")


def test_it_leads_a_group_that_can_be_killed_as_one(run):
    child = run("import subprocess, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)")
    grandchild = next(int(line) for line in child.stdout if line.strip().isdigit())
    assert child.poll() is None
    os.killpg(child.pid, signal.SIGKILL)
    assert child.wait() == -9
    deadline = time.monotonic() + 10
    while alive(grandchild) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(grandchild)


def test_it_holds_none_of_its_parents_open_files(run, tmp_path):
    with (tmp_path / "open").open("w") as kept:
        os.set_inheritable(kept.fileno(), True)
        fds = "f'/proc/self/fd/{n}'"
        child = run(f"print([os.readlink({fds}) for n in os.listdir('/proc/self/fd') if os.path.exists({fds})])")
        assert str(tmp_path / "open") not in child.stdout.read()
        child.wait()


def test_it_dies_with_its_parent():
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, time\nfrom include.dag_kit.forked_process import ForkedProcess\n"
            "child = ForkedProcess('timeit', ['-n', '1', '-s', 'import time', 'time.sleep(600)'], env={}, cwd='/')\n"
            "print(child.pid, flush=True)\ntime.sleep(600)",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    child = int(parent.stdout.readline())
    assert alive(child)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(child)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
