"""Evidently's page, with escaped data and a policy that allows only the page's own scripts.

Evidently (0.7) writes the data as JSON into a ``<script>``. A value with ``</script>`` ends it, and
the rest becomes the page's HTML. Here every ``<`` of the JSON is written as a JavaScript escape.
The page's policy names the hashes of the three scripts, so handlers in a value's markup do not run
either.
"""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from include.data.pages import Markup, document, fill, join, script_hash

ROOT = "report"
STYLE = """@font-face{font-family:'Material Icons';font-style:normal;font-weight:400;src:url(data:font/woff2;base64,%s) format('woff2')}
.center-align{text-align:center}.material-icons{font-family:'Material Icons';font-weight:normal;font-style:normal;font-size:24px;line-height:1;
letter-spacing:normal;text-transform:none;display:inline-block;white-space:nowrap;word-wrap:normal;direction:ltr;-webkit-font-smoothing:antialiased}"""  # noqa: E501


class DriftPage(NamedTuple):
    """A whole page (HTML), and the hashes of its inline scripts."""

    html: Markup
    scripts: list[str]


def drift_page(snapshot: Any) -> DriftPage:
    """Return the page of an Evidently snapshot, as one file."""
    with _template_parameters() as captured:
        snapshot.get_html_str(as_iframe=False)
    (parameters,) = captured
    from evidently.legacy.utils.dashboard import STATIC_PATH, NumpyEncoder, dashboard_info_to_json

    data = (
        f"var dashboard = {dashboard_info_to_json(parameters.dashboard_info)};\nvar graphs ="
        f" {json.dumps(parameters.additional_graphs, cls=NumpyEncoder)};"
    )
    library = (Path(STATIC_PATH) / "index.js").read_text(encoding="utf-8")
    # Browsers normalize line ends to \n, so the hash must too.
    library = library.replace("\r\n", "\n").replace("\r", "\n")
    scripts = [
        f"var global = globalThis;\n{data.replace('<', chr(92) + 'u003c')}",
        library,
        f'window.drawDashboard(dashboard, new Map(Object.entries(graphs)), "{ROOT}");',
    ]
    if "</script" in library.lower():
        raise ValueError(
            f"Evidently's {STATIC_PATH}/index.js holds a </script>: it cannot be put into a page. To do: take another"
            " version of evidently."
        )
    font = base64.b64encode((Path(STATIC_PATH) / "material-ui-icons.woff2").read_bytes()).decode()
    hashes = [script_hash(script) for script in scripts]
    # The scripts are Evidently's and the data's JSON without "<", so markup cannot begin in them.
    body = join(
        [fill('<div id="{}"></div>', ROOT), *(fill("<script>{}</script>", Markup(script)) for script in scripts)]
    )
    return DriftPage(document("Data drift", body, style=STYLE % font, scripts=hashes), hashes)


@contextmanager
def _template_parameters() -> Iterator[list[Any]]:
    """Capture the parameters of Evidently's template instead of rendering it."""
    from evidently.core import metric_types

    captured: list[Any] = []
    original = metric_types.file_html_template

    def keep(parameters: Any) -> str:
        captured.append(parameters)
        return ""

    metric_types.file_html_template = keep
    try:
        yield captured
    finally:
        metric_types.file_html_template = original
