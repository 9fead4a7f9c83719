"""Write benchmark results to ``bench/results/<name>.json``.

Each file also contains the machine, the date and the package versions.
"""

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


def write(name: str, figures: dict[str, Any], packages: Iterable[str]) -> Path:
    """Write a result file that can be committed, and return its path.

    Args:
        name: Name of the benchmark and stem of the file.
        figures: The measurements, as JSON values.
        packages: Distributions whose versions affect the measurements.

    Raises:
        ValueError: The text contains the name of this machine or of its folders.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    target = RESULTS / f"{name}.json"
    head = {
        "benchmark": name,
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": machine(),
        "versions": versions(packages),
    }
    text = json.dumps(head | figures, indent=1, allow_nan=False)
    leaks = [
        secret for secret in (str(REPOSITORY), str(Path.home()), platform.node()) if len(secret) > 3 and secret in text
    ]
    if leaks:
        raise ValueError(f"bench/results/{name}.json would tell of this machine: {leaks}")
    target.write_text(text + "\n")
    return target


def machine() -> dict[str, Any]:
    """Return the machine's processor, cores, memory (GiB) and load of the last minute."""
    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "load_1min": round(os.getloadavg()[0], 2),
    }


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    numbers: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        try:
            numbers[package] = version(package)
        except PackageNotFoundError:
            numbers[package] = None
    return numbers


def quiet_enough(limit: float) -> bool:
    """Return True if the load of the last minute is below ``limit`` per core."""
    return os.getloadavg()[0] < limit * len(os.sched_getaffinity(0))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
