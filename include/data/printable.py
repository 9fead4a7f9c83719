"""Make external text suitable for messages, names and databases.

Postgres cannot store a NUL, and no database can store a lone surrogate.
"""

LONGEST = 100  # characters of a value in a message


def printable(text: str) -> str:
    """Return the text with unstorable and unprintable characters escaped.

    Examples are ``\\x00`` and ``\\udcff``. Line ends and tabs are kept.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode("ascii") for c in text)


def in_line(text: str) -> str:
    """Return the text like ``printable`` on one line: line ends and tabs are escaped too.

    Printable text is unchanged, so the name of a file stays unique.
    """
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def shown(value: object) -> str:
    """Return a value for a message: its repr, truncated if it is long."""
    text = printable(repr(value))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} characters)"


def brief(value: object) -> str:
    """Return a value for a message, without quotes."""
    text = in_line(str(value))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def error_text(error: BaseException) -> str:
    """Return an exception in one line: its type and message."""
    text = printable(" ".join(str(error).split()))
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
