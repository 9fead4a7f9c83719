"""`airloop check` reads files in the landing zone before the first ingest.

It reports what ingest would refuse or lose.
"""

import gzip

import pytest

from include import ledger
from include.checks import landed
from include.checks.check import check
from include.data import layout, storage
from include.projects import get_project
from include.settings import get_settings

ROWS = "order_id,customer,product,amount,pieces,ordered_at\n" + "".join(
    f"o{n},c1,p1,{n}.5,1,2024-01-02T03:04:05Z\n" for n in range(10)
)


def put(parcels, name: str, content: str | bytes) -> None:
    project = get_project(parcels.name)
    storage.write(layout.landing(project, project.source("orders")) / name, content)


def findings_of(project):
    return [(one.rule, one.stage, one.warning, str(one)) for one in check(get_settings(), project.name).findings]


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", ROWS), ("a.csv.gz", gzip.compress(ROWS.encode())), (".part.csv", "no file yet")]
)
def test_a_good_file_is_looked_at_without_a_word(parcels, name, content):
    put(parcels, name, content)
    report = check(get_settings(), parcels.name)
    assert report.findings == [] and any("(orders 1)" in line for line in report.looked_at) == (
        not name.startswith(".")
    )


BAD = {
    "another delimiter": (ROWS.replace(",", ";"), "would be refused", "delimiter"),
    "another encoding": (ROWS.encode("utf-16"), "would be refused", "UTF-16"),
    "a column that is missing": (ROWS.replace("pieces", "piece"), "would be refused", "pieces"),
    "times without a zone": (
        ROWS.replace("05Z", "05"),
        "more than tolerance=0.2, so the file would be refused",
        "10 of 10 rows",
    ),
    "one bad number": (ROWS.replace("3.5", "x"), "would go to quarantine", "1 of 10 rows"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_ingest_would_refuse_or_lose_is_a_warning(parcels, what):
    content, *words = BAD[what]
    put(parcels, "a.csv", content)
    ((_, stage, warning, message),) = findings_of(parcels)
    assert (stage, warning) == ("ingest", True) and all(
        word in message for word in ("/parcels/__init__.py, line", "landing/orders/a.csv", *words)
    ), message


def test_a_few_files_are_looked_at_and_none_that_was_ingested(parcels):
    for number in range(6):
        put(parcels, f"{number}.csv", "x\n1\n")
    assert len(findings_of(parcels)) == landed.FILES
    for number in range(6):
        ledger.record_file(
            parcels.name,
            "orders",
            str(number),
            file=f"{number}.csv",
            status="refused",
            counts={},
            reasons=[],
            cutoff="2024-01-01T00:00:00Z",
        )
    assert findings_of(parcels) == []
