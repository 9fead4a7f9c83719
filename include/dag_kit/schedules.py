"""The schedules of the stages that have a clock of their own.

Unpausing such a DAG does not start a run. The first run is at the next tick of the schedule.
"""

from airflow.sdk import Asset, AssetOrTimeSchedule, CronTriggerTimetable

from include.assets import predictions, retrain_request
from include.projects.base import Project


def clock(cron: str) -> CronTriggerTimetable:
    """Return a timetable of the cron expression, in UTC."""
    return CronTriggerTimetable(cron, timezone="UTC", run_immediately=False)


def ingest_schedule(project: Project) -> CronTriggerTimetable | None:
    """Return the project's ingest schedule, or None if only people and feeds start ``ingest``."""
    return clock(project.ingest_schedule) if project.ingest_schedule else None


def train_schedule(project: Project) -> Asset | AssetOrTimeSchedule:
    """Return retrain requests and, if the project defines one, its cron schedule."""
    return _asset_or_clock(retrain_request(project), project.retrain.schedule)


def monitor_schedule(project: Project) -> Asset | AssetOrTimeSchedule:
    """Return new predictions and, if the project defines one, its cron schedule."""
    return _asset_or_clock(predictions(project), project.monitor_schedule)


def _asset_or_clock(asset: Asset, cron: str | None) -> Asset | AssetOrTimeSchedule:
    return AssetOrTimeSchedule(timetable=clock(cron), assets=asset) if cron else asset
