"""Where a benchmark writes what it found: ``bench/results/<name>.json``, with the machine, the date and the versions it holds for."""

import json
import os
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "bench" / "results"


def write(name: str, found: dict[str, Any], packages: Iterable[str]) -> Path:
    """Write a result that can be committed: nothing in it names this machine or its folders.

    Args:
        name: of the benchmark; the file's stem.
        found: what it measured, as JSON can hold it.
        packages: distributions whose versions the figures depend on.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    target = RESULTS / f"{name}.json"
    head = {"benchmark": name, "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), "machine": machine(), "versions": versions(packages)}
    text = json.dumps(head | found, indent=1, allow_nan=False)
    leaks = [secret for secret in (str(REPOSITORY), str(Path.home()), platform.node()) if len(secret) > 3 and secret in text]
    if leaks:
        raise ValueError(f"bench/results/{name}.json would tell of this machine: {leaks}")
    target.write_text(text + "\n")
    return target


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, cores, memory (GiB), the load of the last minute."""
    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "load_1min": round(os.getloadavg()[0], 2),
    }


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def quiet_enough(limit: float) -> bool:
    """Whether the machine has little else to do: load of the last minute below ``limit`` a core."""
    return os.getloadavg()[0] < limit * len(os.sched_getaffinity(0))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
