"""Measure how many mutants the tests kill. `make mutate [ROOM=gate] [SAMPLE=60]`

mutmut changes one operator, constant, argument or call at a time in the packages with automatic
decisions: gate, monitoring, ledger, rollout, dag_kit, data rules and serving access. A failing test
kills a mutant. All mutants take hours, so the default is a random sample of each package. SEED
determines the sample, and `SAMPLE=0` runs all mutants. The result, with all surviving mutants, is
written to bench/results/mutants.json.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import result
from bench.result import REPOSITORY

MUTMUT = "mutmut==3.8.1"
AIM = 0.9
TIMEOUT_S = 7200
# Folders and files that the tests of a room need.
COPIED = ("bench", "config", "dags", "deploy", "docs", "feature_repo", "include", "plugins", "serving", "tests")
FILES = (
    "pyproject.toml",
    "requirements.txt",
    "README.md",
    "Makefile",
    ".env.embedded.example",
    ".env.compose.example",
    ".env.kubernetes.example",
)


@dataclass(frozen=True)
class Room:
    """Source files and their tests.

    ``without`` is the pytest expression that excludes tests with external servers.
    """

    code: tuple[str, ...]
    tests: tuple[str, ...]
    without: str = "not postgres"


ROOMS = {
    "gate": Room(("include/registry/gate.py",), ("tests/unit/registry",)),
    "monitoring": Room(
        ("include/monitoring/controller.py", "include/monitoring/episodes.py", "include/monitoring/intervals.py"),
        ("tests/unit/monitoring",),
    ),
    "ledger": Room(
        ("include/ledger/*.py",),
        ("tests/unit/ledger", "tests/unit/operations/test_cutoffs.py", "tests/unit/loop/test_liveness.py"),
    ),
    # Without the pages overview.py and report.py, which tests/integration/rollout_page tests in
    # Airflow's own app.
    "rollout": Room(
        tuple(
            f"include/rollout/{name}.py"
            for name in (
                "analysis",
                "document",
                "evidence",
                "manual_rollback",
                "overdue",
                "promotion",
                "records",
                "restoring",
                "served",
                "steps",
            )
        ),
        ("tests/unit/rollout",),
    ),
    # The rest of dag_kit is tested on a cluster (the Job of a fit with workers), in separate
    # processes (try, users, the checkup) or in a running Airflow (pages). mutmut cannot see these.
    "dag_kit": Room(
        tuple(
            f"include/dag_kit/{name}.py"
            for name in (
                "compute",
                "cutoffs",
                "defaults",
                "forked_process",
                "requests",
                "retries",
                "rollout_steps",
                "storage",
                "pods/ends",
                "pods/group_ends",
                "pods/group_trigger",
                "pods/names",
                "pods/operator",
                "pods/sweep",
                "tasks/monitor",
            )
        ),
        ("tests/unit/dag_kit",),
    ),
    "rules": Room(("include/data/rules.py", "include/data/judging.py"), ("tests/unit/data",)),
    "access": Room(
        ("serving/access/callers.py", "serving/access/buckets.py"),
        tuple(f"tests/serving/access/test_{name}.py" for name in ("access", "admission", "callers")),
        # mutmut runs the tests twice in one process. This test needs a new one for its counters.
        without="not postgres and not callers_name",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--room", choices=ROOMS, action="append", help="Only this one; the others keep their last result."
    )
    parser.add_argument("--sample", type=int, default=60, help="Mutants of each room; 0: all.")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    library = _library()
    before = _before()
    for name in given.room or list(ROOMS):
        before |= {name: _try(name, ROOMS[name], library, given.sample, given.seed)}
        killed, tried = before[name]["killed"], before[name]["tried"]
        print(
            f"{name}: {killed} of {tried} killed ({killed / tried:.0%}), of {before[name]['mutants']} mutants",
            flush=True,
        )
    killed, tried = (sum(of[key] for of in before.values()) for key in ("killed", "tried"))
    result.write(
        "mutants",
        {"tool": MUTMUT, "killed_share": round(killed / tried, 3), "aims": {"killed_share": AIM}, "rooms": before},
        ("pytest",),
    )
    print(f"all: {killed} of {tried} killed ({killed / tried:.1%}; aim {AIM:.0%})")


def _library() -> Path:
    """Install mutmut into a separate folder, without its own copy of pytest.

    Return the folder.
    """
    place = REPOSITORY / "data" / "mutants" / "library"
    if not (place / "mutmut").exists():
        subprocess.run(["uv", "pip", "install", "--quiet", "--target", str(place), MUTMUT], check=True)
        for double in ("pytest", "_pytest", "py.py", "pluggy", "iniconfig", "packaging", "rich", "click"):
            entry = place / double
            shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)
    return place


def _try(name: str, room: Room, library: Path, sample: int, seed: int) -> dict[str, Any]:
    work = REPOSITORY / "data" / "mutants" / name
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    for folder in COPIED:
        shutil.copytree(REPOSITORY / folder, work / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in FILES:
        shutil.copy(REPOSITORY / file, work / file)
    others = sorted(set(COPIED) - {"include", "serving", "tests"})
    lines = [
        "[mutmut]",
        *_list("source_paths", ("include", "serving")),
        *_list("only_mutate", _files(room)),
        *_list("also_copy", (*others, *FILES)),
    ]
    lines += [
        *_list("pytest_add_cli_args_test_selection", room.tests),
        *_list("pytest_add_cli_args", ("-p", "no:cacheprovider", "-k", room.without)),
    ]
    lines += ["timeout_multiplier = 20", "timeout_constant = 20"]
    (work / "setup.cfg").write_text("\n".join(lines) + "\n")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(work / "mutants"), str(library))),
        "AIRLOOP_TEST_LIVENESS_EXAMPLES": "20",
    }

    def mutmut(*arguments: str) -> subprocess.CompletedProcess:
        log = work / "mutmut.log"
        with log.open("a") as output:
            return subprocess.run(
                [sys.executable, "-m", "mutmut", "run", *arguments],
                cwd=work,
                env=environment,
                stdout=output,
                stderr=output,
                timeout=TIMEOUT_S,
                check=False,
            )

    # An unknown name creates the mutants, runs the tests once, and ends.
    mutmut("no mutant has this name")
    names = sorted(_outcomes(work))
    if not names:
        raise SystemExit(f"{name}: no mutants were made, or the tests fail without one: {work / 'mutmut.log'}")
    chosen = names if not sample or sample >= len(names) else sorted(random.Random(seed).sample(names, sample))
    mutmut(*chosen)
    exit_codes = {mutant: _outcomes(work).get(mutant) for mutant in chosen}
    if unknown := [mutant for mutant, code in exit_codes.items() if code is None]:
        raise SystemExit(f"{name}: {len(unknown)} mutants were not tried, such as {unknown[0]}: {work / 'mutmut.log'}")
    survived = sorted(mutant for mutant, code in exit_codes.items() if code in (0, 5, 33))
    return {
        "mutants": len(names), "tried": len(chosen), "killed": len(chosen) - len(survived), "survived": survived,
        "seed": seed, "untested": sorted(mutant for mutant, code in exit_codes.items() if code in (5, 33)),
    }  # fmt: skip


def _files(room: Room) -> list[str]:
    """Return the source files of a room.

    mutmut's own patterns reach into folders, such as those of migrations, which Alembic loads by
    path.
    """
    return sorted(str(file.relative_to(REPOSITORY)) for pattern in room.code for file in REPOSITORY.glob(pattern))


def _outcomes(work: Path) -> dict[str, int | None]:
    """Return the exit status of the tests for each mutant.

    0 means that the mutant survived, 5 and 33 that no test covers it, None that it was not run.
    """
    exit_codes: dict[str, int | None] = {}
    for meta in (work / "mutants").rglob("*.meta"):
        exit_codes |= json.loads(meta.read_text())["exit_code_by_key"]
    return exit_codes


def _list(key: str, values: tuple[str, ...] | list[str]) -> list[str]:
    return [f"{key} =", *(f"    {value}" for value in values)]


def _before() -> dict[str, Any]:
    file = REPOSITORY / "bench" / "results" / "mutants.json"
    return json.loads(file.read_text())["rooms"] if file.exists() else {}


if __name__ == "__main__":
    main()
