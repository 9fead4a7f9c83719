"""Flights: one hour before scheduled departure, predict an arrival more than 15 minutes late."""

from datetime import timedelta

from include.projects.base import (
    Candidate,
    GatePolicy,
    Inputs,
    Metric,
    Project,
    Reference,
    RetrainPolicy,
    Source,
    TaskKind,
)

FLIGHT = ("carrier", "flight", "scheduled_departure")

project = Project(
    name="flights",
    owner="airline-operations",
    email="airline-operations@example.com",
    goal=(
        "Rebook passengers with tight connections before they board: tell an hour ahead which flights will arrive late."
    ),
    success=(
        "Pooled AUC of the served predictions on all flights with an outcome, and late flights counted right within 3"
        " points."
    ),
    kind=TaskKind.BINARY,
    metric=Metric(name="auc", higher_is_better=True),
    entities=("origin", "carrier", "dest", "route", "tailnum"),
    feature_views=(
        "origin_departures",
        "origin_delays",
        "carrier_departures",
        "carrier_delays",
        "destination_delays",
        "route_delays",
        "origin_weather",
        "plane",
    ),
    request_features=("hour", "minute", "weekday", "distance", "scheduled_minutes"),
    example_key=FLIGHT,
    inputs=Inputs(
        numeric=(
            # the schedule
            "hour",
            "minute",
            "weekday",
            "distance",
            "scheduled_minutes",
            # recent performance of the origin: today and the last weeks
            "origin_departure_delay_1h",
            "origin_departure_delay_3h",
            "origin_departure_delay_24h",
            "origin_departure_late_rate_1h",
            "origin_departure_late_rate_3h",
            "origin_departure_count_1h",
            "origin_arrival_delay_1h",
            "origin_arrival_delay_3h",
            "origin_arrival_delay_24h",
            "origin_arrival_count_1h",
            "origin_arrival_late_rate_3h",
            "origin_arrival_late_rate_24h",
            "origin_arrival_late_rate_7d",
            "origin_arrival_late_rate_28d",
            # carrier, destination, route
            "carrier_departure_delay_3h",
            "carrier_departure_late_rate_3h",
            "carrier_departure_late_rate_24h",
            "carrier_arrival_delay_3h",
            "carrier_arrival_late_rate_24h",
            "carrier_arrival_late_rate_7d",
            "carrier_arrival_late_rate_28d",
            "destination_arrival_late_rate_24h",
            "destination_arrival_late_rate_7d",
            "destination_arrival_late_rate_28d",
            "route_arrival_late_rate_7d",
            "route_arrival_late_rate_28d",
            # weather at the origin
            "temp",
            "dewp",
            "humid",
            "wind_dir",
            "wind_speed",
            "wind_gust",
            "precip",
            "pressure",
            "visib",
            # the plane
            "plane_year",
            "plane_seats",
        ),
        categorical=("origin", "carrier"),
    ),
    baseline_rule="origin_departure_delay_3h",
    sources=(
        Source(
            name="schedule",
            columns={
                "carrier": "string",
                "flight": "int64",
                "scheduled_departure": "timestamp",
                "scheduled_arrival": "timestamp",
                "origin": "string",
                "dest": "string",
                "distance": "float64",
                "local_departure": "string",
                "published_at": "timestamp",
            },
            key=FLIGHT,
            known_at="published_at",
        ),
        Source(
            # The plane is known only on the day of the flight.
            name="rotation",
            columns={
                "carrier": "string",
                "flight": "int64",
                "scheduled_departure": "timestamp",
                "tailnum": "string",
                "published_at": "timestamp",
            },
            key=FLIGHT,
            known_at="published_at",
            references=Reference(source="schedule", columns=FLIGHT),
        ),
        Source(
            name="weather",
            format="json",
            columns={
                "origin": "string",
                "observed_at": "timestamp",
                "temp": "float64",
                "dewp": "float64",
                "humid": "float64",
                "wind_dir": "float64",
                "wind_speed": "float64",
                "wind_gust": "float64",
                "precip": "float64",
                "pressure": "float64",
                "visib": "float64",
                "published_at": "timestamp",
            },
            key=("origin", "observed_at"),
            known_at="published_at",
            nullable=("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"),
        ),
        Source(
            name="planes",
            columns={
                "tailnum": "string",
                "year": "float64",
                "manufacturer": "string",
                "model": "string",
                "seats": "int64",
                "published_at": "timestamp",
            },
            key=("tailnum",),
            known_at="published_at",
            nullable=("year",),
        ),
        Source(
            # The departure delay is known when the flight leaves.
            name="departures",
            columns={
                "carrier": "string",
                "flight": "int64",
                "scheduled_departure": "timestamp",
                "dep_delay": "float64",
                "departed_at": "timestamp",
            },
            key=FLIGHT,
            known_at="departed_at",
            references=Reference(source="schedule", columns=FLIGHT),
        ),
        Source(
            name="actuals",  # the labels, as they become known
            columns={
                "carrier": "string",
                "flight": "int64",
                "scheduled_departure": "timestamp",
                "status": "string",
                "arr_delay": "float64",
                "known_at": "timestamp",
            },
            key=FLIGHT,
            known_at="known_at",
            nullable=("arr_delay",),  # cancelled and diverted flights have no outcome
            references=Reference(source="schedule", columns=FLIGHT),
        ),
    ),
    label_source="actuals",
    candidates=(
        Candidate(
            name="hist_gradient_boosting",
            trainer="hist_gradient_boosting",
            parameters={"learning_rate": 0.1, "max_iter": 120, "max_leaf_nodes": 31, "l2_regularization": 1.0},
        ),
        Candidate(
            name="torch_mlp",
            trainer="torch_mlp",
            parameters={"hidden": 64, "epochs": 4, "learning_rate": 0.002, "batch_size": 2048},
        ),
    ),
    gate=GatePolicy(
        min_rows=5000, floor=0.65, min_improvement=0.004, beat_baseline_by=0.005, holdout=timedelta(days=14)
    ),
    retrain=RetrainPolicy(
        window=timedelta(days=28),
        min_labels=5000,
        max_metric_loss=0.0,
        max_bias=0.01,
        max_age=timedelta(days=60),
        cooldown=timedelta(days=20),
    ),
)
