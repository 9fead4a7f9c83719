"""Links lead to files that exist, the README is short, and the index of decisions is complete."""

import re
from pathlib import Path

import pytest

from docs.adr_index import FOLDER, page
from docs.prose_check import count
from include.settings import REPOSITORY

DOCUMENTS = sorted(
    file
    for file in (*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md"), *REPOSITORY.glob("deploy/**/*.md"))
    if ".venv" not in file.parts
)
MOST_WORDS = 700


def test_the_index_of_decisions_is_what_the_records_say():
    assert (FOLDER / "README.md").read_text() == page()


def test_the_readme_is_short():
    assert len((REPOSITORY / "README.md").read_text().split()) <= MOST_WORDS


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_links_lead_to_files(document: Path):
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.S | re.M)
    targets = [target for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", text) if not re.match(r"[a-z]+:", target)]
    assert [target for target in targets if not (document.parent / target).exists()] == []


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ('"""Serve whoever calls."""', "whoever"),
        ('raise ValueError("the store is away")', "away"),
        ("x = 1  # what becomes of it", "fused relative clause"),
        ('fail("for want of labels")', "archaic"),
    ],
)
def test_the_prose_check_reads_docstrings_messages_and_comments(tmp_path, source, rule):
    (tmp_path / "module.py").write_text(source)
    (tmp_path / "page.md").write_text("`whoever` is code here\n```\nwhoever\n```\nPlain words.\n")
    words, hits, places = count(tmp_path)
    assert words > 0 and hits.total() == hits[rule] == 1 and places[rule][0].startswith("module.py:1")
