"""Text of strangers, made safe to print: on a terminal and in a log."""

import unicodedata

# Control characters (a terminal obeys those after ESC), and those that reorder what is shown or are not shown at all.
_UNSAFE = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs"})


def printable(text: object, *, keep: str = "") -> str:
    """The text with each control and formatting character as an escape, e.g. ``\\x1b``; characters in ``keep`` stay."""
    return "".join(c if c in keep or unicodedata.category(c) not in _UNSAFE else c.encode("unicode_escape").decode() for c in str(text))


def one_line(text: object) -> str:
    """The text in one line: runs of white space are one space, other control characters are escapes."""
    return printable(" ".join(str(text).split()))
