"""check_demo accepts a log that follows the definitions and detects each kind of defect."""

import numpy as np
import pandas as pd
import pytest

from bench import demo_checks, raw_flights
from bench.demo_store import Version
from bench.raw_flights import WEATHER, Known, Observations, Raw

START = pd.Timestamp("2013-04-01")
FIRST_CUTOFF = np.datetime64("2013-04-01T10:00", "us")
VERSIONS = {"1": Version("1", {"cutoff": "2013-04-01T10:00:00Z", "gate": "passed"}, None)}


@pytest.fixture(scope="module")
def raw() -> Raw:
    """Return two months of 600 made-up flights."""
    random, n = np.random.default_rng(0), 600
    departure = pd.Series(START + pd.to_timedelta(np.sort(random.integers(0, 59 * 24 * 60, n)), unit="min")).astype(
        "datetime64[us]"
    )
    delay = pd.Series(random.normal(10, 30, n).round()).where(random.random(n) > 0.03)
    flights = pd.DataFrame(
        {
            "carrier": random.choice(["UA", "AA"], n),
            "flight": np.arange(n),
            "scheduled_departure": departure,
            "origin": random.choice(["EWR", "JFK"], n),
            "dest": random.choice(["IAH", "MIA"], n),
            "tailnum": random.choice(["N1", "N2", ""], n),
            "hour": departure.dt.hour,
            "minute": departure.dt.minute,
            "weekday": departure.dt.dayofweek,
            "distance": 1000,
            "scheduled_minutes": 120.0,
            "month": departure.dt.month,
            "dep_delay": delay,
            "arr_delay": delay,
        }
    )
    flights["departed_at"] = flights["scheduled_departure"] + pd.to_timedelta(delay, unit="min").astype(
        "timedelta64[us]"
    )
    flights["landed_at"] = flights["departed_at"] + pd.Timedelta("2h")
    flights["predicted_at"], flights["route"] = (
        flights["scheduled_departure"] - raw_flights.LEAD,
        flights["origin"] + "-" + flights["dest"],
    )
    flights["late"] = (delay > 15).where(delay.notna())
    hours = pd.date_range(START, periods=60 * 24, freq="h").to_numpy(dtype="datetime64[us]")
    weather = {origin: Observations(hours, random.random((len(hours), len(WEATHER)))) for origin in ("EWR", "JFK")}
    planes = pd.DataFrame({"year": [1999.0, np.nan], "seats": [100, 200]}, index=["N1", "N2"])
    return Raw(flights, raw_flights.events_of(flights), weather, planes)


@pytest.fixture(scope="module")
def honest_log(raw) -> pd.DataFrame:
    return log_as_of(raw, pd.Timedelta(0))


def log_as_of(raw: Raw, later: pd.Timedelta) -> pd.DataFrame:
    """Return a log with the features of the prediction time, or of a later time (a leak)."""
    flights = raw.flights[raw.flights["predicted_at"] > FIRST_CUTOFF]
    rows = []
    for flight in flights.to_dict("records"):
        at = np.datetime64(flight["predicted_at"] + later, "us")
        rows.append(raw_flights.features(Known(raw, by=at), flight, at))
    columns = [
        "carrier",
        "flight",
        "scheduled_departure",
        "origin",
        "dest",
        "route",
        "tailnum",
        "predicted_at",
        *demo_checks.REQUEST,
    ]
    log = pd.concat([flights[columns].reset_index(drop=True), pd.DataFrame(rows)], axis=1)
    plane = {
        "plane_year": log["tailnum"].map(raw.planes["year"]),
        "plane_seats": log["tailnum"].map(raw.planes["seats"]),
    }
    times = {
        "feature_time_origin_departures": log["predicted_at"].dt.floor("30min"),
        "cutoff": pd.Timestamp("2013-06-01T10:00"),
    }
    return log.assign(**plane, **times, model_version="1", prediction=np.linspace(0, 1, len(log)))


def verdicts(log: pd.DataFrame, raw: Raw, versions=VERSIONS) -> dict[str, bool]:
    rows = demo_checks.joined(log, raw)
    done = [
        demo_checks.complete(rows, raw, FIRST_CUTOFF),
        demo_checks.an_hour_before(rows),
        demo_checks.claimed_times(rows),
        demo_checks.models_in_time(rows, versions),
        demo_checks.request_features(rows, raw),
        *demo_checks.recomputed(rows, raw, 200, 0),
    ]
    return {check.name: bool(check.holds) for check in done}


def broken(log: pd.DataFrame, raw: Raw, versions=VERSIONS) -> set[str]:
    return {name for name, holds in verdicts(log, raw, versions).items() if not holds}


FEATURES = "features equal those recomputed from the raw data of an hour before"
COMPLETE = "every flight has one prediction"


def test_an_honest_log_holds(honest_log, raw):
    assert broken(honest_log, raw) == set()


def test_rows_planted_by_the_demo_are_counted_and_do_no_harm(honest_log, raw):
    planted = honest_log.head(5).assign(flight=lambda rows: rows["flight"] + demo_checks.PLANTED)
    check = demo_checks.complete(demo_checks.joined(pd.concat([honest_log, planted]), raw), raw, FIRST_CUTOFF)
    assert check.holds
    assert check.figures["planted_by_the_demo"] == 5


def changed(column: str, value):
    def change(log: pd.DataFrame) -> pd.DataFrame:
        return log.assign(
            **{column: log[column].where(log.index != 100, value(log[column]) if callable(value) else value)}
        )

    return change


HOUR = pd.Timedelta("1h")


@pytest.mark.parametrize(
    ("change", "red"),
    [
        (lambda log: log.drop(index=100), {COMPLETE}),
        (lambda log: pd.concat([log, log.loc[[100]]]), {COMPLETE}),
        (changed("flight", 9999), {COMPLETE}),
        (
            changed("feature_time_origin_departures", lambda times: times + HOUR),
            {"no feature time after the prediction"},
        ),
        (lambda log: log.assign(cutoff=pd.Timestamp("2013-05-10")), {"no feature time after the prediction"}),
        (changed("model_version", "2"), {"each model's cutoff before its predictions"}),
        (changed("distance", 7), {"schedule and plane as in the raw data"}),
        (changed("tailnum", "N9"), {"schedule and plane as in the raw data"}),
        (changed("plane_seats", 7.0), {"schedule and plane as in the raw data"}),
    ],
    ids=[
        "one missing",
        "one twice",
        "no such flight",
        "a later feature time",
        "not yet due",
        "unknown model",
        "distance",
        "another plane",
        "other seats",
    ],
)
def test_what_is_wrong_turns_its_check_red(honest_log, raw, change, red):
    assert broken(change(honest_log), raw) == red


def test_a_prediction_made_later_than_an_hour_before_is_red(honest_log, raw):
    log = changed("predicted_at", lambda times: times + pd.Timedelta("10min"))(honest_log)
    assert "predicted 60 minutes before scheduled departure" in broken(log, raw)


def test_a_leak_of_an_hour_is_red_though_the_claimed_times_are_fine(raw):
    assert broken(log_as_of(raw, HOUR), raw) == {FEATURES}


def test_one_feature_that_is_off_is_named(honest_log, raw):
    log = honest_log.assign(origin_arrival_late_rate_24h=honest_log["origin_arrival_late_rate_24h"] + 0.01)
    check = demo_checks.recomputed(demo_checks.joined(log, raw), raw, 200, 0)[0]
    assert not check.holds
    assert set(check.figures["different"]) == {"origin_arrival_late_rate_24h"}


@pytest.mark.parametrize(
    "tags",
    [
        {"cutoff": "2013-05-01T10:00:00Z", "gate": "passed"},
        {"cutoff": "2013-04-01T10:00:00Z", "gate": "refused"},
        {"gate": "passed"},
    ],
    ids=["it knew May when it predicted April", "the gate refused it", "nobody knows its cutoff"],
)
def test_a_model_that_should_not_have_served_is_red(honest_log, raw, tags):
    assert broken(honest_log, raw, {"1": Version("1", tags, None)}) == {"each model's cutoff before its predictions"}


def test_an_empty_sample_proves_nothing(honest_log, raw):
    rows = demo_checks.joined(honest_log, raw)
    assert not any(check.holds for check in demo_checks.recomputed(rows[rows["raw_month"] == 12], raw, 200, 0))


def demo_result(auc: float, rows: int) -> dict:
    return {
        "months": [{"month": "2013-05", "rows": rows, "served": {"auc": auc, "brier": 0.2}}],
        "auc_served_may_dec": auc,
    }


@pytest.mark.parametrize(
    ("result", "holds"),
    [(demo_result(0.77, 10), True), (demo_result(0.78, 10), False), (demo_result(0.77, 11), False)],
    ids=["same", "other AUC", "other rows"],
)
def test_the_demos_own_result_is_held_against_ours(result, holds):
    served = {"auc": 0.77, "brier": 0.2}
    assert (
        demo_checks.agrees(
            result, [{"month": "2013-05", "rows": 10, "served": served}], {"rows": 10, "served": served}
        ).holds
        is holds
    )


@pytest.mark.parametrize(
    ("auc", "months", "promotions", "holds"),
    [(0.761, 8, 4, True), (0.759, 8, 2, False), (0.77, 8, 5, False), (float("nan"), 8, 0, False), (0.8, 7, 0, False)],
    ids=["reached", "AUC too low", "too many promotions", "no AUC", "a month is missing"],
)
def test_what_was_wanted_is_said_plainly(auc, months, promotions, holds):
    assert demo_checks.reached({"rows": 1, "served": {"auc": auc}}, months, promotions, promotions).holds is holds
