"""Write docs/adr/README.md from the decision records:

``make docs``. A test compares the page with the records.
"""

import re

from include.settings import REPOSITORY

FOLDER = REPOSITORY / "docs" / "adr"
HEAD = """# Decisions

Each record states the context, the decision and its consequences. A record is accepted unless its text names the record
that replaced it. Number 25 does not exist. Write a new record for a decision that a maintainer could want to undo. Half
a page is enough.

| number | decision |
|---|---|
"""


def page() -> str:
    """Return the page."""
    lines = []
    for file in sorted(FOLDER.glob("[0-9]*.md")):
        title = re.match(r"# (\d+)\. (.+)", file.read_text())
        if title is None:
            raise ValueError(f"{file.relative_to(REPOSITORY)}: the first line must be '# <number>. <title>'")
        lines.append(f"| {title[1]} | [{title[2]}]({file.name}) |\n")
    return HEAD + "".join(lines)


if __name__ == "__main__":
    (FOLDER / "README.md").write_text(page())
    print("docs/adr/README.md is written")
