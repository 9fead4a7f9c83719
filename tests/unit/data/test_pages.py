"""All content is escaped in one place: in HTML, in Markdown, and in printed text."""

import re

import pytest

from include.data.pages import document, embedded, fill, join, markdown, policy, script_hash
from include.printable import one_line, printable

HOSTILE = "<b>\"'&</b>"
ESCAPED = "&lt;b&gt;&#34;&#39;&amp;&lt;/b&gt;"


def test_values_are_escaped_and_markup_is_not():
    assert (
        fill('<p title="{}">{}</p>', HOSTILE, fill("<i>{}</i>", HOSTILE))
        == f'<p title="{ESCAPED}"><i>{ESCAPED}</i></p>'
    )
    assert join([HOSTILE, fill("<br>")], HOSTILE) == f"{ESCAPED}{HOSTILE}<br>"  # the separator comes from the code
    assert f"<title>{ESCAPED}</title>" in document(HOSTILE, HOSTILE) and f"<body>{ESCAPED}</body>" in document(
        "t", HOSTILE
    )


def test_a_page_within_a_page_cannot_leave_its_attribute():
    inner = document("t", fill("<p>{}</p>", HOSTILE))
    assert re.fullmatch(r'<iframe sandbox title="[^"<>]*" srcdoc="[^"<>]*"></iframe>', embedded(inner, HOSTILE))


def test_a_policy_allows_the_scripts_with_these_hashes_alone():
    assert (
        "script-src 'none'" in policy()
        and "form-action 'none'" in policy()
        and "form-action 'self'" in policy(forms=True)
    )
    assert f"script-src '{script_hash('draw()')}';" in policy([script_hash("draw()")])
    assert (
        script_hash("alert('Hello, world.');") == "sha256-qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng="
    )  # example of W3C's CSP level 2


@pytest.mark.parametrize(
    "text",
    [
        "[x](javascript:1)",
        "![x](http://host/)",
        "<script>1</script>",
        "a | b",
        "`code`",
        "**bold**",
        "&lt;b&gt;",
        "# a\n\n- b",
        "\\",
    ],
)
def test_markdown_makes_text_of_everything(text):
    escaped = markdown(text)
    assert "\n" not in escaped and re.sub(r"\\(.)", r"\1", escaped) == " ".join(text.split())
    import mistune

    rendered = mistune.create_markdown(escape=True, plugins=["table", "strikethrough"])(
        f"| a |\n|---|\n| {escaped} |\n"
    )
    assert set(re.findall(r"</?([a-z0-9]+)", rendered)) <= {"table", "thead", "tbody", "tr", "th", "td"}


def test_what_is_printed_moves_no_cursor_and_adds_no_line():
    assert printable("a\x1b[2J\x9b31m\r\x07\u202eb\nc\tü", keep="\n\t") == "a\\x1b[2J\\x9b31m\\r\\x07\\u202eb\nc\tü"
    assert one_line(" a\n b\x1b]0;title\x07 ") == "a b\\x1b]0;title\\x07"


def test_a_terminal_does_not_obey_a_reason(capsys):
    from include.cli.exits import say

    say("frozen: \x1b[31mred\x1b]52;c;eA==\x07\r\nnext")
    assert capsys.readouterr().out == "frozen: \\x1b[31mred\\x1b]52;c;eA==\\x07\\r\nnext\n"
