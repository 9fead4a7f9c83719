"""HTML pages for users, with all values escaped.

Each page has a policy that forbids loading anything and running other scripts. ``Markup`` is text
that is already HTML. Everything else is escaped when it is inserted. Code that makes pages fills
templates with ``fill`` and never builds HTML from strings.
"""

import base64
import hashlib
import json
import string
from collections.abc import Iterable, Sequence
from typing import Any

from markupsafe import Markup as Markup
from upath import UPath

from include.data import storage
from include.printable import one_line

SCRIPTS_SUFFIX = ".scripts.json"


def fill(template: str, *values: Any, **named: Any) -> Markup:
    """Fill the template's ``{}``, escaping values that are not Markup.

    An escaped value is safe in elements and in quoted attributes.
    """
    return Markup(template).format(*values, **named)


def join(parts: Iterable[Any], separator: str = "") -> Markup:
    """Join the parts; those that are not Markup are escaped."""
    return Markup(separator).join(parts)


def markdown(value: Any) -> str:
    """Return a value as text within Markdown, also in a cell of a table.

    It is one line, and cannot contain formatting, links, images or HTML.
    """
    return "".join(f"\\{c}" if c in string.punctuation else c for c in one_line(value))


def script_hash(script: str) -> str:
    """Return the hash that allows an inline script in a Content-Security-Policy.

    An example is ``sha256-...``.
    """
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def policy(scripts: Sequence[str] = (), *, forms: bool = False) -> str:
    """Return the Content-Security-Policy of a page.

    It allows inline styles, images and fonts within the page, and the scripts with these hashes.
    Nothing is loaded from other locations, and inline handlers (``onerror=``) do not run. With
    ``forms``, forms may be sent to the page's own server.
    """
    allowed = " ".join(f"'{one}'" for one in scripts) or "'none'"
    targets = "'self'" if forms else "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; font-src data:;"
        f" connect-src 'none'; form-action {targets}; base-uri 'none'"
    )


def document(title: str, *sections: Any, style: str = "", scripts: Sequence[str] = (), forms: bool = False) -> Markup:
    """Return a whole page.

    Args:
        title: text.
        sections: its body. Sections that are not Markup are escaped.
        style: trusted CSS.
        scripts: hashes of the inline scripts among the sections.
        forms: whether it has forms, for its own server.
    """
    head = fill(
        '<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>{}</title><style>{}</style>',
        policy(scripts, forms=forms), title, Markup(style),
    )  # fmt: skip
    return fill('<!doctype html><html lang="en"><head>{}</head><body>{}</body></html>\n', head, join(sections))


def embedded(page: str, title: str) -> Markup:
    """Return a frame that contains a whole page, so that one report is one file.

    A sandboxed page cannot open another one with its reader's login.
    """
    return fill('<iframe sandbox title="{}" srcdoc="{}"></iframe>', title, str(page))


def write_report_page(folder: UPath, page: str, *, name: str = "index.html", scripts: Sequence[str] = ()) -> None:
    """Write a page of a task's report, and next to it the hashes of its scripts.

    The Report tab runs only these scripts.
    """
    if scripts:
        storage.write(folder / f"{name}{SCRIPTS_SUFFIX}", json.dumps(list(scripts)))
    storage.write(folder / name, str(page))
