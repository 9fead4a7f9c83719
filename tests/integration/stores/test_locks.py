"""The deployment lock is exclusive on Postgres and SQLite, and ends when its holder is killed."""

import os
import signal
import subprocess
import sys
import time

import pytest

from include import ledger
from include.settings import REPOSITORY, get_settings

HOLD = """
import sys, time
from include import ledger
with ledger.one_at_a_time("flights"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(params=["sqlite", "postgres"])
def settings(request, tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    if request.param == "postgres":
        from include.stack.stores.databases import make_databases

        made = request.getfixturevalue("real_settings")
        make_databases(made)
        url = made.environment()["AIRLOOP_LEDGER_URL"]
    monkeypatch.setenv("AIRLOOP_HOME", str(tmp_path))
    monkeypatch.setenv("AIRLOOP_LEDGER_URL", url)
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


def test_one_waits_for_the_other_and_not_for_the_dead(settings):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(ledger.LockTimeoutError, match="somebody else has been changing what is deployed for 0.3 s"),
            ledger.one_at_a_time("flights", timeout_s=0.3),
        ):
            pass
        with ledger.one_at_a_time("another", timeout_s=60):  # each project has its own lock
            pass
        began = time.monotonic()
        holder.send_signal(signal.SIGKILL)
        with ledger.one_at_a_time("flights", timeout_s=120):
            print(f"free {time.monotonic() - began:.1f} s after kill -9")
    finally:
        holder.kill()
        holder.wait()
