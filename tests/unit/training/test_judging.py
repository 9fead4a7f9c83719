"""Which rows are used to judge which model."""

from datetime import timedelta

import numpy as np
import pandas as pd
import pytest

from include.training import judging


def at(day, hour=0):
    return pd.Timestamp(2013, 1, 1, tz="UTC") + pd.Timedelta(days=day - 1, hours=hour)


@pytest.fixture
def examples():
    """Return one example a day for 60 days, at noon.

    Its outcome is known six hours later, except for day 40: three days later.
    """
    rows = pd.DataFrame(
        {
            "day": range(1, 61),
            "event_timestamp": [at(d, 12) for d in range(1, 61)],
            "label_known_at": [at(d, 18) for d in range(1, 61)],
        }
    )
    rows.loc[rows["day"] == 40, "label_known_at"] = at(43, 12)
    return rows


def test_the_newest_examples_are_held_out(examples):
    assert judging.split_at(examples, timedelta(days=20), None) == at(40, 12)


def test_nothing_that_the_champion_was_fitted_on_is_judged(examples):
    assert judging.split_at(examples, timedelta(days=20), at(50)) == at(50)
    assert judging.split_at(examples, timedelta(days=20), at(10)) == at(40, 12)


def test_without_examples_there_is_no_split(examples):
    with pytest.raises(ValueError, match="no outcome is known yet"):
        judging.split_at(examples.iloc[:0], timedelta(days=20), None)


def test_a_row_is_fitted_on_or_judged_or_neither(examples):
    split = at(40, 12) + pd.Timedelta(hours=1)
    fitted, judged = judging.fit_rows(examples, split), judging.judged_rows(examples, [split])
    assert fitted["day"].tolist() == list(range(1, 40))
    # Day 40 was predicted before the split and known after it, so it belongs to neither part.
    assert judged["day"].tolist() == list(range(41, 61))


def test_an_outcome_known_just_at_the_split_is_fitted_on(examples):
    assert judging.fit_rows(examples, at(5, 18))["day"].max() == 5
    assert judging.fit_rows(examples, at(5, 18), since=at(3, 12))["day"].tolist() == [4, 5]


def test_the_latest_fit_decides_what_is_judged(examples):
    assert judging.judged_rows(examples, [at(20), at(55), at(30)])["day"].min() == 55


def test_the_interval_of_the_difference_holds_the_difference_and_widens_with_fewer_days():
    generator = np.random.default_rng(0)
    label = generator.integers(0, 2, 4000).astype(float)
    good, bad = label * 0.3 + generator.uniform(0, 1, 4000), label * 0.1 + generator.uniform(0, 1, 4000)
    widths = []
    for days in (100, 10):
        interval = judging.difference_by_day("auc", np.arange(4000) % days, label, good, bad)
        assert interval["days"] == days and 0 < interval["low"] < interval["difference"] < interval["high"]
        widths.append(interval["high"] - interval["low"])
    assert judging.difference_by_day("auc", np.arange(4000) % 10, label, good, bad) == interval  # the same again
    one_day = judging.difference_by_day("auc", np.zeros(4000), label, good, bad)
    assert np.isnan(one_day["low"]) and one_day["difference"] > 0
