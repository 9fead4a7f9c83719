"""Checks that need data, on the newest ingested rows.

They cover known_at, examples and labels. They also compare the feature rows of a run over one day
with those of a run over all days.
"""

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np
import pandas as pd

from include.checks import feast_objects
from include.checks.finding import Files, Finding, named
from include.data import tables
from include.features.known import KnownTables
from include.projects import place_of
from include.projects.base import Project, TaskKind
from include.times import iso

# Limits for all sources together. The sample ends with the newest row.
ROWS, LONGEST = 30_000, timedelta(days=60)
DAY = timedelta(days=1)
# A time near 1970 is a number with another unit that was parsed as a time.
OLDEST = datetime(1971, 1, 1, tzinfo=UTC)


class Sample(NamedTuple):
    """The newest rows: those that became known in (floor, cutoff]."""

    known: KnownTables
    rows: int

    def __str__(self) -> str:
        assert self.known.floor is not None
        return f"{self.rows:,} rows known from {iso(self.known.floor)} to {iso(self.known.cutoff)}"


def sample_of(project: Project, root: str) -> Sample | None:
    """Return the newest rows below a folder of the project's data, or None if it has no rows."""
    ends: list[tuple[datetime, datetime]] = []
    rows = 0
    for source in project.sources:
        table = tables.open_table(f"{root}/tables/{source.name}")
        if table is None or source.known_at not in {one.name for one in table.schema().fields}:
            continue
        actions = tables.file_ranges(table, source.known_at)
        ends += [(low, high) for _, low, high in actions]
        rows += sum(count for count, _, _ in actions)
    if not ends:
        return None
    # If known_at is in the future, it is wrong, and the check reports it. The sample ends now.
    cutoff = min(max(high for _, high in ends), datetime.now(UTC))
    span = max(cutoff - min(low for low, _ in ends), DAY)
    floor = cutoff - min(LONGEST, max(3 * DAY, span * min(1.0, ROWS / max(rows, 1))))
    return Sample(KnownTables(project, cutoff, root=root, floor=floor), int(rows * min(1.0, (cutoff - floor) / span)))


Check = Callable[[Project, Sample, Files], Iterable[Finding]]


def findings(project: Project, sample: Sample) -> list[Finding]:
    """Return all faults that the sample shows."""
    files = Files(project)
    faults = list(_known_at(project, sample, files))
    faults += _ran(files, "examples", _examples, project, sample)
    faults += _ran(files, "compute", _increments, project, sample)
    return faults


def _ran(files: Files, function: str, check: Check, project: Project, sample: Sample) -> list[Finding]:
    """Return the findings of a check of a project's own function, or a finding that it fails."""
    try:
        return list(check(project, sample, files))
    # The project's own code may raise any error.
    except Exception as error:
        place = place_of(error, project.name)
        what = f"{function}() fails on {sample}: {type(error).__name__}: {error}"
        finding = files.finding("features", function, function, what, stage="build_features")
        return [finding._replace(line=int(place.rpartition(" ")[2])) if place and "features.py" in place else finding]


def _known_at(project: Project, sample: Sample, files: Files) -> Iterator[Finding]:
    now = pd.Timestamp.now("UTC")
    for source in project.sources:
        table = tables.open_table(f"{sample.known.root}/tables/{source.name}")
        if table is None:
            continue
        if missing := [
            column for column in source.columns if column not in {one.name for one in table.schema().fields}
        ]:
            what = (
                f"source '{source.name}' declares column {named(missing)}, which its table lacks: ingest again into an"
                " empty table"
            )
            yield files.finding("__init__", "sources", missing[0], what, stage="build_features")
            continue
        ranges = tables.file_ranges(table, source.known_at)
        low, high = min(low for _, low, _ in ranges), max(high for _, _, high in ranges)
        if high > now:
            what = (
                f"source '{source.name}': known_at ('{source.known_at}') reaches {iso(high)}, which is in the future: a"
                " row cannot have become known by then"
            )
            yield files.finding("__init__", "known_at", source.known_at, what, stage="ingest")
        if low < OLDEST:
            what = (
                f"source '{source.name}': known_at ('{source.known_at}') begins at {iso(low)}: is it a number of"
                " another unit?"
            )
            yield files.finding("__init__", "known_at", source.known_at, what, stage="ingest")


def _examples(project: Project, sample: Sample, files: Files) -> Iterator[Finding]:
    known, floor = sample.known, sample.known.floor
    examples = project.module("features").examples(known, since=floor, until=known.cutoff, cutoff=known.cutoff)
    wanted = dict.fromkeys(
        [
            *project.example_key,
            *project.entities,
            "event_timestamp",
            *project.request_features,
            "label",
            "label_known_at",
        ]
    )
    for column in wanted:
        if column not in examples:
            what = f"examples() gives no column '{column}'; it gives {named(map(str, examples.columns))}"
            yield files.finding(
                "features", "examples", column, what, valid=[str(one) for one in examples if one not in wanted]
            )
    if examples.empty:
        return
    yield from _times(project, sample, files, examples)
    if "label" in examples:
        yield from _labels(project, files, examples)
    yield from _numbers(project, files, examples)
    if set(project.example_key) <= set(examples) and "event_timestamp" in examples:
        twice = int(examples.duplicated([*project.example_key, "event_timestamp"]).sum())
        if twice:
            what = (
                f"{twice} of {len(examples)} examples have the example_key and event_timestamp of another one: "
                f"{named(project.example_key)} names no one thing"
            )
            yield files.finding("__init__", "example_key", project.example_key[0], what)


def _times(project: Project, sample: Sample, files: Files, examples: pd.DataFrame) -> Iterator[Finding]:
    for column in ("event_timestamp", "label_known_at"):
        if (
            column in examples
            and examples[column].notna().any()
            and not isinstance(examples[column].dtype, pd.DatetimeTZDtype)
        ):
            what = (
                f"column '{column}' of examples() is {examples[column].dtype}, and must be a time with a time zone:"
                " pd.to_datetime(..., utc=True)"
            )
            yield files.finding("features", "examples", column, what)
            return
    if "event_timestamp" not in examples or "label_known_at" not in examples:
        return
    late = int((examples["event_timestamp"] > pd.Timestamp(sample.known.cutoff)).sum())
    if late:
        what = f"{late} of {len(examples)} examples have an event_timestamp after `until`: they are predicted later"
        yield files.finding("features", "examples", "event_timestamp", what)
    early = int((examples["label_known_at"] <= examples["event_timestamp"]).sum())
    if early:
        source = project.source(project.label_source)
        what = (
            f"{early} of {int(examples['label_known_at'].notna().sum())} outcomes became known (label_known_at) before"
            f" they are predicted (event_timestamp): is '{source.known_at}' when source '{source.name}' knew them?"
        )
        yield files.finding("__init__", "known_at", source.known_at, what)


def _labels(project: Project, files: Files, examples: pd.DataFrame) -> Iterator[Finding]:
    try:
        labels = examples["label"].astype("float64").dropna()
    except (TypeError, ValueError) as error:
        yield files.finding("features", "label", "label", f"the label is not a number: {error}")
        return
    wrong = labels[~labels.isin([0, 1])] if project.kind == TaskKind.BINARY else labels[~np.isfinite(labels)]
    if len(wrong):
        valid = "0 or 1" if project.kind == TaskKind.BINARY else "a finite number"
        what = f"{len(wrong)} of {len(labels)} labels are not {valid}, such as {wrong.iloc[0]:g}"
        yield files.finding("features", "label", "label", what)


def _numbers(project: Project, files: Files, examples: pd.DataFrame) -> Iterator[Finding]:
    from include.features.values import merged_by_float32, merged_words
    from include.training.inputs import as_numbers

    for column in project.inputs.numeric:
        if column in examples:
            try:
                as_numbers(examples[column])
            except ValueError as error:
                yield files.finding("features", "inputs", column, str(error))
                continue
            if count := merged_by_float32(examples[column]):
                yield files.finding("__init__", "float32", column, merged_words(column, count), warning=True)


def _increments(project: Project, sample: Sample, files: Files) -> Iterator[Finding]:
    """Compare the feature rows of the last day, computed over all days and over that day alone."""
    known, since = sample.known, sample.known.cutoff - DAY
    compute = project.module("features").compute
    whole, alone = compute(known, since=None, cutoff=known.cutoff), compute(known, since=since, cutoff=known.cutoff)
    if wrong := sorted(set(whole) ^ set(project.feature_views)):
        valid = set(whole) - set(project.feature_views)
        what = (
            f"compute() gives views {named(sorted(whole))}, the project declares feature_views"
            f" {named(project.feature_views)}"
        )
        yield files.finding("features", "compute", wrong[0], what, valid=valid - {wrong[0]}, stage="build_features")
    declared = {view.name: view for view in feast_objects.declared(project.name).views}
    for name in sorted(declared.keys() & whole.keys() & alone.keys()):
        view, rows, new = declared[name], whole[name], alone[name]
        columns = [*view.join_keys, "event_timestamp", *view.features]
        if missing := [column for column in columns if column not in rows]:
            others = [str(one) for one in rows if one not in columns]
            what = f"compute() gives no column {named(missing)} in view '{name}', which {files.name('feast')} declares"
            yield files.finding("features", "compute", missing[0], what, valid=others, stage="build_features")
            continue
        if not isinstance(rows["event_timestamp"].dtype, pd.DatetimeTZDtype):
            what = (
                f"event_timestamp of view '{name}' is {rows['event_timestamp'].dtype}, and must be a time with a time"
                " zone: pd.to_datetime(..., utc=True)"
            )
            yield files.finding("features", "compute", "event_timestamp", what, stage="build_features")
            continue
        yield from _differences(name, view, rows[rows["event_timestamp"] > pd.Timestamp(since)], new, files)


def _differences(
    name: str, view: feast_objects.View, rows: pd.DataFrame, new: pd.DataFrame, files: Files
) -> Iterator[Finding]:
    keys = [*view.join_keys, "event_timestamp"]
    both = rows[[*keys, *view.features]].merge(
        new[[*keys, *view.features]], on=keys, how="outer", indicator=True, suffixes=("", "__alone")
    )
    lead = f"view '{name}' of the last day differs when compute(since=...) is given that day alone"
    fix = "what compute() reads must begin earlier than `since` by the longest window"
    if len(lacking := both[both["_merge"] == "left_only"]):
        yield files.finding(
            "features",
            "incremental features",
            name,
            f"{lead}: it lacks {len(lacking)} of {len(rows)} rows; {fix}",
            stage="build_features",
        )
    if len(more := both[both["_merge"] == "right_only"]):
        yield files.finding(
            "features",
            "incremental features",
            name,
            f"{lead}: it has {len(more)} more rows; {fix}",
            stage="build_features",
        )
    matched = both[both["_merge"] == "both"]
    for feature in view.features:
        left, right = (
            matched[column].to_numpy(dtype="float64", na_value=np.nan) for column in (feature, f"{feature}__alone")
        )
        off = ~np.isclose(left, right, rtol=1e-6, atol=1e-9, equal_nan=True)
        if off.any():
            row = int(np.argmax(off))
            what = (
                f"{lead}: feature '{feature}' in {int(off.sum())} of {len(off)} rows, such as {right[row]:g} instead of"
                f" {left[row]:g}; {fix}"
            )
            yield files.finding("features", "incremental features", feature, what, stage="build_features")
