"""Declare the Feast objects of the project flights. features.py computes their values."""

from feast import FeatureService

from feature_repo.shared import string_entity, view

origin = string_entity("origin", "airport of departure: EWR, JFK or LGA")
carrier = string_entity("carrier", "two-letter code of the airline")
dest = string_entity("dest", "airport of arrival")
route = string_entity("route", "origin-dest")
tailnum = string_entity("tailnum", "tail number of the plane, known on the day")

VIEWS = [
    view(
        "flights",
        "origin_departures",
        origin,
        [
            "origin_departure_delay_1h",
            "origin_departure_delay_3h",
            "origin_departure_delay_24h",
            "origin_departure_late_rate_1h",
            "origin_departure_late_rate_3h",
            "origin_departure_count_1h",
        ],
        "what left the origin lately, every half hour",
    ),
    view(
        "flights",
        "origin_delays",
        origin,
        [
            "origin_arrival_delay_1h",
            "origin_arrival_delay_3h",
            "origin_arrival_delay_24h",
            "origin_arrival_late_rate_3h",
            "origin_arrival_late_rate_24h",
            "origin_arrival_late_rate_7d",
            "origin_arrival_late_rate_28d",
            "origin_arrival_count_1h",
        ],
        "how flights from the origin arrived, every hour",
    ),
    view(
        "flights",
        "carrier_departures",
        carrier,
        [
            "carrier_departure_delay_3h",
            "carrier_departure_late_rate_3h",
            "carrier_departure_late_rate_24h",
        ],
        "how the carrier's flights left, every hour",
    ),
    view(
        "flights",
        "carrier_delays",
        carrier,
        [
            "carrier_arrival_delay_3h",
            "carrier_arrival_late_rate_24h",
            "carrier_arrival_late_rate_7d",
            "carrier_arrival_late_rate_28d",
        ],
        "how the carrier's flights arrived, every hour",
    ),
    view(
        "flights",
        "destination_delays",
        dest,
        [
            "destination_arrival_late_rate_24h",
            "destination_arrival_late_rate_7d",
            "destination_arrival_late_rate_28d",
        ],
        "how flights to the destination arrived, every day",
    ),
    view(
        "flights",
        "route_delays",
        route,
        ["route_arrival_late_rate_7d", "route_arrival_late_rate_28d"],
        "how the route's flights arrived, every day",
    ),
    view(
        "flights",
        "origin_weather",
        origin,
        [
            "temp",
            "dewp",
            "humid",
            "wind_dir",
            "wind_speed",
            "wind_gust",
            "precip",
            "pressure",
            "visib",
        ],
        "the last hourly observation; nulls when it is over six hours old",
    ),
    view("flights", "plane", tailnum, ["plane_year", "plane_seats"], "the plane's register entry"),
]
OBJECTS = [
    origin,
    carrier,
    dest,
    route,
    tailnum,
    *VIEWS,
    FeatureService(name="flights_v1", features=VIEWS, tags={"project": "flights"}),
]
