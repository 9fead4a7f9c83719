"""Self-contained HTML pages for people: a title, tables, images."""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from upath import UPath

from include.data import storage

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
table{border-collapse:collapse;margin:1rem 0}th,td{padding:.3rem .8rem;border-bottom:1px solid #ddd;text-align:left}
td.n{text-align:right;font-variant-numeric:tabular-nums}img{max-width:30rem;margin:.5rem}.yes{color:#176d2b}.no{color:#b3261e;font-weight:600}"""


def page(title: str, *sections: str) -> str:
    head = f'<meta charset="utf-8"><title>{_text(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en">{head}<h1>{_text(title)}</h1>{"".join(sections)}</html>\n'


def paragraph(text: str, kind: str = "") -> str:
    """``kind`` is "yes" (good news), "no" (bad news) or nothing."""
    return f'<p class="{kind}">{_text(text)}</p>'


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    head = "".join(f"<th>{_text(h)}</th>" for h in headings)
    body = "".join("<tr>" + "".join(_cell(value) for value in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def images(pngs: Mapping[str, bytes]) -> str:
    return "".join(f'<img alt="{_text(name)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">' for name, png in pngs.items())


def write_page(folder: str | UPath, content: str) -> None:
    """As ``index.html`` of a folder: what a task's Report tab shows."""
    storage.write(storage.path(folder) / "index.html", content)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return f'<td class="{"yes" if value else "no"}">{"yes" if value else "no"}</td>'
    if isinstance(value, float):
        return f'<td class="n">{value:.4f}</td>'
    return f'<td class="n">{value:,}</td>' if isinstance(value, int) else f"<td>{_text('' if value is None else str(value))}</td>"


def _text(value: str) -> str:
    return html.escape(value)
