"""Great Expectations' Data Docs page of a validation, without scripts, with all values escaped.

It does not load anything from other hosts. Great Expectations' own view (1.24) does not escape: its
templates are rendered without autoescape, and cells, column names, the page's title and its links
are inserted unchanged. It also loads 15 files from other hosts. This view renders the same content
blocks with the same templates, but with autoescape. A few templates are replaced: the page itself,
and those that need a script.
"""

from collections.abc import Mapping
from typing import Any

from great_expectations.render.renderer import ValidationResultsPageRenderer
from great_expectations.render.view import DefaultJinjaPageView
from jinja2 import ChoiceLoader, DictLoader, pass_context
from markupsafe import Markup, escape

from include.data.pages import document, fill, join

STYLE = """body{font:14px/1.5 system-ui,sans-serif;color:#1d2329;background:#fff;margin:0 auto;max-width:75rem;padding:1rem}
h1{font-size:1.3rem;font-weight:600;overflow-wrap:anywhere}h5{font-size:1rem;margin:0}h6{font-size:.9rem;margin:0}hr{display:none}
.ge-section{border:1px solid #e4e8ec;border-radius:6px;margin:1rem 0;padding:.8rem 1rem}.alert{background:#f4f6f8;border-radius:4px;padding:.4rem .7rem}
.alert p{margin:.2rem 0}table{border-collapse:collapse;margin:.5rem 0;width:100%}[hidden]{display:none}
th,td{padding:.3rem .6rem;border-bottom:1px solid #e4e8ec;text-align:left;vertical-align:top}td{overflow-wrap:anywhere}
.badge{background:#eef1f4;border-radius:4px;padding:.05rem .35rem;font:12px ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere}
.text-success{color:#1b7f5c}.text-danger{color:#b3261e}.fa-check-circle:before{content:"\\2714"}.fa-times:before{content:"\\2716"}
.fa-exclamation-triangle:before{content:"\\26A0"}i.fas{font-style:normal;font-weight:700}.show-scrollbars{max-height:20rem;overflow:auto}
details{margin:.3rem 0}summary{cursor:pointer;color:#2563eb}"""  # noqa: E501
TEMPLATES = {
    "page.j2": (
        """<h1>{{ page_title }}</h1>
{% for section in sections %}{% set section_loop = loop %}{% include 'section.j2' %}{% endfor %}"""
    ),
    # A collapsible block without a script.
    "collapse.j2": (
        """<details><summary>{{ content_block.get("collapse_toggle_link", "Show more...") | render_content_block }}</summary>
{% include 'content_block_header.j2' %}
{% for block in content_block["collapse"] %}{{ block | render_content_block }}{% endfor %}</details>"""  # noqa: E501
    ),
    # All tabs, one below the other.
    "tabs.j2": (
        """{% for tab in content_block["tabs"] %}<h6>{{ tab.get("tab_name", "") }}</h6>
{{ tab.get("tab_content") | render_content_block }}{% endfor %}"""
    ),
    # A plot needs a script, so its values are shown instead.
    "graph.j2": (
        """<details><summary>Figures</summary><pre>{{ content_block["graph"] | tojson(indent=1) }}</pre></details>"""
    ),
    "bootstrap_table.j2": """<pre>{{ content_block["table_data"] | tojson(indent=1) }}</pre>""",
}


def data_docs_page(result: Any) -> Markup:
    """Return the page of a validation result.

    Args:
        result: an ExpectationSuiteValidationResult.

    Returns:
        A whole page (HTML).
    """
    rendered = ValidationResultsPageRenderer().render(result)
    return document(str(rendered.page_title), _View().render(rendered), style=STYLE)


class _View(DefaultJinjaPageView):
    """Great Expectations' view with autoescape.

    A filter's result is Markup only if this class has escaped its content.
    """

    def __init__(self) -> None:
        super().__init__()
        self.env.autoescape = True
        assert self.env.loader is not None
        self.env.loader = ChoiceLoader([DictLoader(TEMPLATES), self.env.loader])

    def render(self, document: Any, template: str | None = None, **options: Any) -> Markup:
        # The template is autoescaped.
        return Markup(super().render(document, template, **options))

    @pass_context
    def render_content_block(
        self,
        context: Any,
        content_block: Any,
        index: Any = None,
        content_block_id: Any = None,
        render_to_markdown: bool = False,
    ) -> Any:
        """Return the HTML of a block. A value that is not a block is returned unchanged.

        The template then escapes it.
        """
        if isinstance(content_block, list):
            return join(
                (
                    self.render_content_block(context, one, number, content_block_id)
                    if _is_block(one)
                    else fill("<span>{}</span>", str(one))
                )
                for number, one in enumerate(content_block)
            )
        html = super().render_content_block(context, content_block, index, content_block_id, render_to_markdown)
        return Markup(html) if _is_block(content_block) else html

    def render_string_template(self, template: Any) -> Any:
        """Return the HTML of a template with its parameters.

        Great Expectations escapes the parameters, but not the template's own text. That is escaped
        here.
        """
        if not isinstance(template, Mapping):
            return template
        # A line break is the only tag that is kept.
        text = str(escape(template.get("template", ""))).replace("&lt;br&gt;", "\n")
        return Markup(super().render_string_template({**template, "template": text}))

    def render_styling(self, styling: Mapping[str, Any]) -> Markup:
        """Return the attributes of an element: classes, inline styles and others.

        Event handlers and links are removed.
        """
        parts = [fill('class="{}" ', " ".join(styling["classes"]))] if styling.get("classes") else []
        parts += [
            fill('{}="{}" ', name, value)
            for name, value in (styling.get("attributes") or {}).items()
            if _is_plain(name)
        ]
        if styling.get("styles"):
            parts.append(fill('style="{}" ', " ".join(f"{name}:{value};" for name, value in styling["styles"].items())))
        return join(parts)

    def render_styling_from_string_template(self, template: Any) -> Any:
        return (
            self.render_styling(template["styling"]) if isinstance(template, Mapping) and "styling" in template else ""
        )

    def attributes_dict_to_html_string(self, attributes_dict: Mapping[str, Any], prefix: str = "") -> Markup:
        lead = f"{prefix}-" if prefix else ""
        return join(
            fill('{}="{}" ', f"{lead}{name}", value)
            for name, value in attributes_dict.items()
            if _is_plain(f"{lead}{name}")
        )

    def render_markdown(self, markdown: str) -> Markup:
        """Return the notes of an expectation suite as text."""
        return fill('<pre class="badge">{}</pre>', markdown)


def _is_block(value: Any) -> bool:
    return isinstance(value, Mapping) and "content_block_type" in value


def _is_plain(attribute: str) -> bool:
    """Return whether an attribute is only descriptive.

    ``href`` would link to pages that do not exist, and ``on...`` is a script.
    """
    return attribute in ("role", "title") or attribute.startswith(("aria-", "data-"))
