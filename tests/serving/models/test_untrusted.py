"""The parser of untrusted documents returns plain JSON within its limits, or one printable line."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.models.onnx_file import OnnxFileError, operators
from serving.models.untrusted import DocumentError, parse, parse_object, printable
from tests.serving.harness import graph


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 17 + "]" * 17, "nested deeper than 16 levels"),
        ("[" * 100_000, "nested deeper than 16 levels"),
        ("NaN", "NaN is not a JSON number"),
        ("[-Infinity]", "-Infinity is not"),
        ("1e999", "does not fit into 64 bits"),
        ("9" * 10_000, "does not fit into 64 bits"),
        (str(2**63), "does not fit"),
        ('{"a": 1, "a": 2}', "key 'a' is given twice"),
        ('"\\ud800"', "is not valid Unicode"),
        ("\ud800", "not JSON"),
        (b"\xff", "not JSON"),
        ('{"\\u0000": 1}', "holds a NUL"),
        ("{", "not JSON"),
        (" " * (128 * 1024) + "1", "at most 131072 are read"),
        (7, "must be text"),
        (None, "must be text"),
    ],
)
def test_what_breaks_a_limit_is_refused_with_its_reason(content, message):
    with pytest.raises(DocumentError) as error:
        parse(content, "the tag")
    assert str(error.value).startswith("the tag: ") and message in str(error.value)
    assert str(error.value).isprintable() and len(str(error.value)) < 700


def test_what_is_within_the_limits_is_given_as_json_gives_it():
    document = {"a": [1, 2.5, True, None, "é", -(2**63), 2**63 - 1], "b": {"c": {}}}
    assert parse(json.dumps(document), "it") == parse(json.dumps(document).encode(), "it") == document
    with pytest.raises(DocumentError, match="it: must be a JSON object, is an array"):
        parse_object("[]", "it")


@given(
    st.text(st.characters())
    | st.binary()
    | st.recursive(st.floats() | st.text(st.characters()), st.lists, max_leaves=30).map(json.dumps)
)
def test_nothing_else_is_ever_raised(content):
    try:
        json.dumps(parse(content, "it"), allow_nan=False, ensure_ascii=False).encode()
    except DocumentError as error:
        assert str(error).isprintable()


@given(st.text(st.characters()), st.integers(10, 100))
def test_printable_text_is_printable_and_short(text, most):
    shown = printable(text, most)
    assert shown.isprintable() and len(shown) <= most
    shown.encode()


@given(st.binary(max_size=200), st.integers(0, len(graph())), st.binary(max_size=20))
def test_any_bytes_are_a_graph_or_refused(content, at, inserted):
    for some in (content, graph()[:at] + inserted + graph()[at:]):
        with suppress(OnnxFileError):
            operators(some)
