"""The ledger's tables as the newest migration leaves them; a test compares. A change here needs a migration of its own in ``migrations/versions``."""

from sqlalchemy import JSON, Column, Index, MetaData, String, Table, Text

METADATA = MetaData()
# Times are ISO strings, see include.times.
FILES = Table(
    "ingested_files",
    METADATA,
    Column("project", String(40), primary_key=True),
    Column("source", String(40), primary_key=True),
    Column("sha256", String(64), primary_key=True),
    Column("file", Text, nullable=False),
    Column("status", String(20), nullable=False),  # ingested | refused
    Column("counts", JSON, nullable=False),  # rows, table, quarantine, refused
    Column("reasons", JSON, nullable=False),  # [{rule, count, message}]
    Column("cutoff", String(20), nullable=False),
    Column("recorded_at", String(20), nullable=False),
)
STAGES = Table(
    "stages",
    METADATA,
    Column("project", String(40), primary_key=True),
    Column("stage", String(40), primary_key=True),
    Column("cutoff", String(20), primary_key=True),
    Column("dag_run", String(250), nullable=False),
    Column("summary", JSON, nullable=False),
    Column("recorded_at", String(20), nullable=False),
)
REQUESTS = Table(
    "retrain_requests",
    METADATA,
    Column("id", String(16), primary_key=True),
    Column("project", String(40), nullable=False),
    Column("cutoff", String(20), nullable=False),
    Column("reason", Text, nullable=False),  # drift | schedule | first_model | ... or a person's own words
    Column("asked_by", String(250), nullable=False),  # a DAG run
    Column("episode", String(16)),
    Column("parameters", JSON, nullable=False),
    Column("state", String(20), nullable=False),  # open | claimed | refused | passed | deployed | rolled_back
    Column("dag_run", String(250)),
    Column("outcome", JSON, nullable=False),
    Column("recorded_at", String(20), nullable=False),
)
# A run works on one request at most, also when a try that was taken for dead claims beside the next one.
Index("one_request_a_run", REQUESTS.c.project, REQUESTS.c.dag_run, unique=True)
EPISODES = Table(
    "drift_episodes",
    METADATA,
    Column("id", String(16), primary_key=True),
    Column("project", String(40), nullable=False),
    Column("opened", String(20), nullable=False),
    Column("closed", String(20)),
    Column("evidence", JSON, nullable=False),
)
# At most one open episode a project, whoever races: the database refuses the second one.
Index("one_open_episode", EPISODES.c.project, unique=True, sqlite_where=EPISODES.c.closed.is_(None), postgresql_where=EPISODES.c.closed.is_(None))
DECISIONS = Table(
    "decisions",
    METADATA,
    Column("project", String(40), primary_key=True),
    Column("what", String(40), primary_key=True),  # monitor | gate | deploy | freeze | ...
    Column("subject", Text, primary_key=True),  # what was decided about: a cutoff, a request, a version
    Column("verdict", String(40), nullable=False),
    Column("reasons", JSON, nullable=False),
    Column("cutoff", String(20), nullable=False),
    Column("recorded_at", String(20), nullable=False),
)
CLOCKS = Table("clocks", METADATA, Column("project", String(40), primary_key=True), Column("now", String(20), nullable=False))
FREEZES = Table(
    "freezes",
    METADATA,
    Column("project", String(40), primary_key=True),  # * for all of them
    Column("by", Text, nullable=False),
    Column("why", Text, nullable=False),
    Column("since", String(20), nullable=False),  # the wall clock's: a freeze is about people
)
