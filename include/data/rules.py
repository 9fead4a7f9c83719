"""Rules about rows that apply to every source: time, keys, existing rows, references."""

from datetime import datetime

import numpy as np
import pandas as pd

from include.data import tables
from include.data.printable import brief
from include.projects.base import Project, Source, TaskKind

Fault = tuple[str, str, np.ndarray]
# These repeat known data, and are left out of the table.
HARMLESS = ("duplicated_keys", "repeats_earlier", "corrected_again")
WHAT_TO_DO = {
    "duplicated_keys": "nothing is to be done",
    "repeats_earlier": "nothing is to be done",
    "corrected_again": "nothing is to be done",
    "from_the_future": "is the upstream's clock right?",
    "contradicting_keys": "find out which is right, send that in a new file",
    "contradicts_earlier": "the earlier ones stay; find out which are right",
    "unknown_reference": "if what they refer to comes later, send them again in a new file",
    "wrong_label": "send 0 or 1",
    "unknown_prediction": "are they another project's, or older than `back` of the source?",
    "others_prediction": "send them with a key whose labels_of names that caller",
    "ambiguous_prediction": "say their prediction_id, or also what the requests differed in",
}
END_OF_TIME = pd.Timestamp.max.tz_localize("UTC").floor("us").to_pydatetime()


def from_the_future(source: Source, rows: pd.DataFrame, cutoff: datetime) -> Fault | None:
    """Return rows that became known after the cutoff, or None."""
    late = (rows[source.known_at] > pd.Timestamp(cutoff)).to_numpy(dtype=bool, na_value=False)
    if not late.any():
        return None
    latest = rows.loc[late, source.known_at].max()
    message = f"'{source.known_at}' is after the run's cutoff {cutoff:%Y-%m-%d %H:%M} (latest {latest:%Y-%m-%d %H:%M})"
    return "from_the_future", message, late


def wrong_labels(project: Project, source: Source, rows: pd.DataFrame) -> Fault | None:
    """Return labels of a binary project's predictions other than 0 and 1, or None."""
    if source.predictions is None or project.kind != TaskKind.BINARY:
        return None
    wrong = (rows["label"].notna() & ~rows["label"].isin([0, 1])).to_numpy(dtype=bool, na_value=False)
    if not wrong.any():
        return None
    return (
        "wrong_label",
        f"a label of the binary project {project.name} is 0 or 1, e.g. not {rows.loc[wrong, 'label'].iloc[0]:g}",
        wrong,
    )


def repeated_keys(source: Source, rows: pd.DataFrame, owner: np.ndarray) -> list[Fault]:
    """Return keys that occur twice in one file.

    Of equal rows the first one is kept, of contradicting rows none.

    Args:
        owner: the number of each row's file.
    """
    filed = rows.assign(__file=owner)
    key, faults = ["__file", *source.key], []
    doubled = filed.duplicated(key, keep=False).to_numpy()
    if doubled.any():
        distinct = filed[doubled].drop_duplicates([c for c in filed if c not in source.provenance])
        bad_keys = pd.MultiIndex.from_frame(distinct[distinct.duplicated(key, keep=False)][key])
        contradicting = doubled & pd.MultiIndex.from_frame(filed[key]).isin(bad_keys)
        repeats = doubled & ~contradicting & filed.duplicated(key, keep="first").to_numpy()
        for rule, mask, what in (
            ("contradicting_keys", contradicting, "differ"),
            ("duplicated_keys", repeats, "are the same"),
        ):
            if mask.any():
                faults.append(
                    (
                        rule,
                        f"key {_key_text(source, rows, mask)} occurs more than once in the file, and its rows {what}",
                        mask,
                    )
                )
    return faults


def in_earlier_file(source: Source, rows: pd.DataFrame) -> list[Fault]:
    """Return rows whose key occurs in an earlier file of the same run. The earlier row is kept.

    The rows are in the order of the files.
    """
    key = list(source.key)
    later = rows.duplicated(key, keep="first").to_numpy()
    if not later.any():
        return []
    values = [c for c in source.columns if c not in (source.known_at, *source.provenance)]
    same = later & rows.duplicated(values, keep="first").to_numpy()
    candidates = (("repeats_earlier", same, "repeat"), ("contradicts_earlier", later & ~same, "contradict"))
    return [
        (rule, f"they {what} rows of an earlier file, e.g. key {_key_text(source, rows, mask)}", mask)
        for rule, mask, what in candidates
        if mask.any()
    ]


def corrected_again(source: Source, rows: pd.DataFrame) -> list[Fault]:
    """Return corrections whose key a later file of the same run corrects again.

    The rows are in the order of the files. The later correction counts.
    """
    earlier = rows.duplicated(list(source.key), keep="last").to_numpy()
    if not earlier.any():
        return []
    return [
        ("corrected_again", f"a later file corrects them again, e.g. key {_key_text(source, rows, earlier)}", earlier)
    ]


def known_already(project: Project, source: Source, rows: pd.DataFrame) -> list[Fault]:
    """Return rows whose key is in the table. The earlier row is kept, even if they differ."""
    key = list(source.key)
    there = tables.read(project, source.name, known_by=END_OF_TIME, columns=key)
    mask = pd.MultiIndex.from_frame(rows[key]).isin(pd.MultiIndex.from_frame(there))
    if not mask.any():
        return []
    earlier = tables.read(project, source.name, known_by=END_OF_TIME)
    values = [c for c in source.columns if c not in (*key, source.known_at, *source.provenance)]
    both = (
        rows.loc[mask, [*key, *values]]
        .reset_index()
        .merge(earlier[[*key, *values]], on=key, suffixes=("", "__earlier"))
        .set_index("index")
    )
    same = pd.Series(True, index=both.index)
    for column in values:
        new, old = both[column], both[f"{column}__earlier"]
        same &= (new == old).fillna(False).astype(bool) | (new.isna() & old.isna())
    position = pd.Series(np.arange(len(rows)), index=rows.index)
    faults: list[Fault] = []
    for rule, chosen, what in (
        ("contradicts_earlier", same[~same], "contradict"),
        ("repeats_earlier", same[same], "repeat"),
    ):
        if len(chosen):
            marked = np.zeros(len(rows), dtype=bool)
            marked[position[chosen.index.unique()]] = True
            faults.append(
                (rule, f"they {what} rows ingested earlier, e.g. key {_key_text(source, rows, marked)}", marked)
            )
    return faults


def dangling(project: Project, source: Source, rows: pd.DataFrame) -> Fault | None:
    """Return rows that refer to an unknown row of another source, or None."""
    if source.references is None:
        return None
    columns = list(source.references.columns)
    known = tables.read(project, source.references.source, known_by=END_OF_TIME, columns=columns)
    mask = ~pd.MultiIndex.from_frame(rows[columns]).isin(pd.MultiIndex.from_frame(known))
    if not mask.any():
        return None
    return (
        "unknown_reference",
        f"they are of nothing in '{source.references.source}', e.g. {_key_text(source, rows, mask)}",
        mask,
    )


def _key_text(source: Source, rows: pd.DataFrame, mask: np.ndarray) -> str:
    return ", ".join(f"{c}={brief(rows.loc[mask, c].iloc[0])}" for c in source.key)
