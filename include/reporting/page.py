"""Pages with a title, tables and images. Every value is escaped (``include.data.pages``)."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from upath import UPath

from include.data import storage
from include.data.pages import Markup, document, fill, join, write_report_page

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
table{border-collapse:collapse;margin:1rem 0}th,td{padding:.3rem .8rem;border-bottom:1px solid #ddd;text-align:left}
td.n{text-align:right;font-variant-numeric:tabular-nums}img{max-width:30rem;margin:.5rem}.yes{color:#176d2b}.no{color:#b3261e;font-weight:600}"""  # noqa: E501


def page(title: str, *sections: str, style: str = "", forms: bool = False) -> Markup:
    """Return a whole page.

    A section that is not Markup is escaped. ``forms`` are for pages of the plugins, which send them
    to their own server.
    """
    return document(title, fill("<h1>{}</h1>", title), *sections, style=_STYLE + style, forms=forms)


def paragraph(text: str, kind: str = "") -> Markup:
    """Return a paragraph. ``kind`` is "yes" (good news), "no" (bad news) or empty."""
    return fill('<p class="{}">{}</p>', kind, text)


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> Markup:
    head = join(fill("<th>{}</th>", heading) for heading in headings)
    body = join(fill("<tr>{}</tr>", join(_cell(value) for value in row)) for row in rows)
    return fill("<table><tr>{}</tr>{}</table>", head, body)


def images(pngs: Mapping[str, bytes]) -> Markup:
    return join(
        fill('<img alt="{}" src="data:image/png;base64,{}">', name, base64.b64encode(png).decode())
        for name, png in pngs.items()
    )


def write_page(folder: str | UPath, content: str) -> None:
    """Write the page as ``index.html`` of a folder, which the task's Report tab shows."""
    write_report_page(storage.path(folder), content)


def _cell(value: Any) -> Markup:
    if isinstance(value, bool):
        word = "yes" if value else "no"
        return fill('<td class="{}">{}</td>', word, word)
    if isinstance(value, float):
        return fill('<td class="n">{:.4f}</td>', value)
    return (
        fill('<td class="n">{:,}</td>', value)
        if isinstance(value, int)
        else fill("<td>{}</td>", "" if value is None else str(value))
    )
