"""Make text from untrusted sources safe to print on a terminal and in a log."""

import unicodedata

# Control characters (terminals execute sequences that begin with ESC), and characters that are
# invisible or change the order of the displayed text.
_UNSAFE = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs"})


def printable(text: object, *, keep: str = "") -> str:
    """Return the text with control and formatting characters as escapes, e.g. ``\\x1b``.

    Characters in ``keep`` stay unchanged.
    """
    return "".join(
        c if c in keep or unicodedata.category(c) not in _UNSAFE else c.encode("unicode_escape").decode()
        for c in str(text)
    )


def one_line(text: object) -> str:
    """Return the text in one line.

    Runs of white space become one space. Other control characters become escapes.
    """
    return printable(" ".join(str(text).split()))
