"""A head that repeats a checked one is not checked again, so the checks must accept it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.http.heads import PLAIN, WATCHED, read_head, remember
from serving.problems import ProblemError

HEADERS = [(b"host", b"a"), (b"accept", b"*/*"), (b"content-length", b"12"), (b"x-api-key", b"k")]
NAMES = st.sampled_from(
    [
        b"host",
        b"accept",
        b"content-length",
        b"transfer-encoding",
        b"x-api-key",
        b"expect",
        b"upgrade",
        b"connection",
        b"traceparent",
    ]
)
VALUES = st.sampled_from(
    [
        b"a",
        b"b",
        b"",
        b"12",
        b"13",
        b"+12",
        b"-1",
        b"0x1",
        b"1_0",
        b"12, 12",
        b"9" * 16,
        "²".encode("latin-1"),
        b"chunked",
        b"100-continue",
        b"*/*",
        b"k",
    ]
)
CHANGES = st.lists(
    st.tuples(st.sampled_from(["set", "insert", "drop", "name"]), st.integers(0, 4), NAMES, VALUES), max_size=3
)


def changed(changes):
    headers = list(HEADERS)
    for how, at, name, value in changes:
        if how == "insert":
            headers.insert(at, (name, value))
        elif at < len(headers):
            headers[at : at + 1] = {"set": [(headers[at][0], value)], "drop": [], "name": [(name, headers[at][1])]}[how]
    return headers


@given(CHANGES)
def test_what_repeats_a_checked_head_is_plainly_right(changes):
    checked = remember(b"POST", "1.1", b"/p", HEADERS, PLAIN)
    headers = changed(changes)
    if checked.repeated_by(b"POST", "1.1", b"/p", headers):
        assert read_head(b"POST", "1.1", b"/p", [header for header in headers if header[0] in WATCHED]) is PLAIN
        assert [header for header in headers if header[0] != b"content-length"] == [
            header for header in HEADERS if header[0] != b"content-length"
        ]


@pytest.mark.parametrize("length", [b"0", b"7", b"123456"])
def test_another_length_repeats_it(length):
    checked = remember(b"POST", "1.1", b"/p", HEADERS, PLAIN)
    assert checked.repeated_by(b"POST", "1.1", b"/p", [*HEADERS[:2], (b"content-length", length), HEADERS[3]])


@pytest.mark.parametrize("line", [(b"PUT", "1.1", b"/p"), (b"POST", "1.0", b"/p"), (b"POST", "1.1", b"/q")])
def test_another_request_line_does_not(line):
    assert not remember(b"POST", "1.1", b"/p", HEADERS, PLAIN).repeated_by(*line, HEADERS)


def test_only_a_plain_head_with_a_length_is_remembered():
    assert remember(b"POST", "1.1", b"/p", [*HEADERS[:2], HEADERS[3]], PLAIN) is None
    traced = [*HEADERS, (b"traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")]
    head = read_head(b"POST", "1.1", b"/p", [header for header in traced if header[0] in WATCHED])
    assert remember(b"POST", "1.1", b"/p", traced, head) is None


def test_the_changes_reach_refusals_too():
    with pytest.raises(ProblemError):
        read_head(
            b"POST",
            "1.1",
            b"/p",
            [header for header in changed([("insert", 0, b"host", b"b")]) if header[0] in WATCHED],
        )
