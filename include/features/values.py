"""Check values of a project's functions: labels, and numbers that models cannot distinguish.

It does not import Feast.
"""

import logging

import numpy as np
import pandas as pd

from include.projects import file_name
from include.projects.base import Project, TaskKind

LOG = logging.getLogger(__name__)


class WrongLabelsError(ValueError):
    """Raised when labels are not valid for the project's kind."""


def check_labels(project: Project, labels: pd.Series) -> None:
    """Refuse labels that are invalid for the project's kind.

    A binary project's labels are 0 and 1, others are finite.

    Raises:
        WrongLabelsError: the message has a value, the number of invalid labels, and the fix.
    """
    try:
        values = labels.to_numpy(dtype="float64", na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise WrongLabelsError(f"project {project.name}: a label is not a number ({error}); {_fix(project)}") from None
    binary = project.kind == TaskKind.BINARY
    wrong = ~np.isin(values, (0, 1)) if binary else ~np.isfinite(values)
    if wrong.any():
        distinct = ", ".join(f"{value:g}" for value in np.unique(values[wrong])[:3])
        valid = "0 or 1, as kind is binary" if binary else "finite numbers"
        raise WrongLabelsError(
            f"project {project.name}: {int(wrong.sum())} of {len(values)} labels are not {valid}, such as {distinct};"
            f" {_fix(project)}"
        )


def _fix(project: Project) -> str:
    also = ", or declare kind=TaskKind.REGRESSION" if project.kind == TaskKind.BINARY else ""
    return (
        f"mend what examples() of {file_name(project.name, 'features')} gives as label, or the rows of source"
        f" '{project.label_source}'{also}"
    )


def warn_of_merged(project: Project, rows: pd.DataFrame) -> dict[str, int]:
    """Warn of numeric inputs with distinct values that become equal as float32, the models' type.

    Return the number of lost values by column.
    """
    lost = {}
    for column in project.inputs.numeric:
        if column in rows and (count := merged_by_float32(rows[column])):
            lost[column] = count
            LOG.warning("project %s: %s", project.name, merged_words(column, count))
    return lost


def merged_by_float32(column: pd.Series) -> int:
    """Return how many integers of a column become equal to another one as float32.

    These are ids above 2**24. Fractions are not checked, because rounding them is expected.
    """
    values = column.dropna().unique()
    try:
        exact = np.asarray(values, dtype="float64")
    except (TypeError, ValueError):
        return 0
    if (
        not len(exact)
        or not np.isfinite(exact).all()
        or np.abs(exact).max() <= 2**24
        or (exact != np.floor(exact)).any()
    ):
        return 0
    distinct = {int(value) for value in values}
    return len(distinct) - len(np.unique(exact.astype("float32")))


def merged_words(column: str, count: int) -> str:
    """Return the warning for such a column."""
    return (
        f"numeric input '{column}' has {count} whole numbers that are another one as float32, which models are given:"
        " an id belongs into inputs.categorical"
    )
