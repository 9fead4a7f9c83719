"""Great Expectations: one checkpoint over a frame, the failing rows, and its Data Docs page."""

import logging
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from include.data.printable import shown

ROW = "__row"
# Set before its import, which logs hundreds of lines.
logging.getLogger("great_expectations").setLevel(logging.WARNING)


@dataclass(frozen=True)
class Broken:
    """An expectation that was not met.

    Attributes:
        rule: its name and column.
        detail: the expected values and an example of a found value.
        rows: positions in the frame. Empty if it is about the table as a whole.
        warning: it is reported, and does not exclude rows.
        expectation: the expectation itself.
    """

    rule: str
    detail: str
    rows: list[int]
    warning: bool
    expectation: Any = None

    @property
    def message(self) -> str:
        return (
            f"{self.rule} does not hold for {len(self.rows) or 'the table as a whole'}{' rows' if self.rows else ''}:"
            f" {self.detail}"
        )


@dataclass(frozen=True)
class Validation:
    broken: list[Broken]
    expectations: int
    page: str


def validate(name: str, rows: pd.DataFrame, suite: list[Any]) -> Validation:
    """Run a checkpoint of expectations over a frame.

    Args:
        name: the suite's name, as shown in the Data Docs.
        rows: the rows to validate.
        suite: Great Expectations' expectations. Those of severity ``warning`` are reported and do
            not quarantine rows.

    Returns:
        The failed expectations with the positions of their rows, and the Data Docs page of the run
            (HTML without scripts, all values escaped).
    """
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    from include.data.data_docs import data_docs_page

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    batch = (
        context.data_sources.add_pandas("landing").add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
    )
    definition = context.validation_definitions.add(
        gx.ValidationDefinition(
            name=name, data=batch, suite=context.suites.add(gx.ExpectationSuite(name=name, expectations=suite))
        )
    )
    checkpoint = context.checkpoints.add(
        gx.Checkpoint(
            name=name,
            validation_definitions=[definition],
            result_format={"result_format": "COMPLETE", "unexpected_index_column_names": [ROW]},
        )
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcome = checkpoint.run(batch_parameters={"dataframe": rows.assign(**{ROW: range(len(rows))})})
    result = next(iter(outcome.run_results.values()))
    broken = [_broken(r) for r in result.results if not r.success]
    for r in result.results:  # the page shows values and examples, not every row
        for bulky in ("unexpected_index_list", "unexpected_list", "unexpected_index_query"):
            r.result.pop(bulky, None)
        observed = r.result.get("observed_value")
        if isinstance(observed, np.generic):
            # The renderer cannot write numpy's numbers.
            r.result["observed_value"] = observed.item()
    return Validation(broken, len(result.results), data_docs_page(result))


def _broken(result: Any) -> Broken:
    configuration = result.expectation_config
    settings = {k: v for k, v in configuration.kwargs.items() if k not in {"batch_id", "column"} and v is not None}
    column = configuration.kwargs.get("column")
    rule = configuration.type.removeprefix("expect_") + (f"({column})" if column else "")
    errors = result.exception_info or {}
    # There is one, or one for each metric of the expectation.
    for error in [errors] if "raised_exception" in errors else errors.values():
        if error.get("raised_exception"):
            raise RuntimeError(
                f"expectation {rule} could not be evaluated: {error.get('exception_message')}; mend it in"
                " expectations.py"
            )
    rows = [int(entry[ROW]) for entry in result.result.get("unexpected_index_list") or []]
    examples = result.result.get("partial_unexpected_list") or []
    observation = f", e.g. {shown(examples[0])}" if examples else f", observed {result.result.get('observed_value')!r}"
    requirement = ", ".join(f"{k}={v}" for k, v in settings.items())
    return Broken(
        rule,
        f"{requirement or 'holds'} is expected{observation}",
        rows,
        _severity(configuration) != "critical",
        configuration.to_domain_obj(),
    )


def _severity(configuration: Any) -> str:
    severity = getattr(configuration, "severity", None) or "critical"
    return str(getattr(severity, "value", severity)).lower()
