"""Write what a project's feed publishes to the landing zone, as its upstream systems would.

A feed only makes files: names and contents. So a project's code needs no access to the store.
"""

from datetime import datetime

from upath import UPath

from include.data import layout, storage
from include.projects.base import Project


def drop(project: Project, *, since: datetime, until: datetime) -> int:
    """Write every file that the feed published in (since, until].

    A reader sees a whole file or none. The same call writes the same bytes.

    Returns:
        The number of files.
    """
    feed, count = project.module("feed"), 0
    for source in project.sources:
        for name, content in feed.files(source, since=since, until=until):
            storage.write(layout.landing(project, source) / name, content)
            count += 1
    return count


def drop_bad(project: Project, kind: str, *, since: datetime, until: datetime) -> UPath:
    """Write one bad file, made of rows that the feed published in (since, until].

    Raises:
        ValueError: the kind is unknown, or nothing was published. The message lists the kinds.
    """
    source, name, content = project.module("feed").bad_file(project, kind, since=since, until=until)
    return storage.write(layout.landing(project, source) / name, content)
