"""Text from outside, made fit for messages, names and databases: Postgres stores no NUL, and nothing stores a lone surrogate."""

LONGEST = 100  # characters of a value in a message


def printable(text: str) -> str:
    """The text with what cannot be stored or shown as an escape, e.g. ``\\x00`` or ``\\udcff``; line ends and tabs stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode("ascii") for c in text)


def in_line(text: str) -> str:
    """The same on one line: line ends and tabs are escapes too. Printable text stays as it is, so the name of a file stays unique."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def shown(value: object) -> str:
    """A value for a message: its repr, cut off where it is long."""
    text = printable(repr(value))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} characters)"


def brief(value: object) -> str:
    """A value for a message, without quotes."""
    text = in_line(str(value))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def said(error: BaseException) -> str:
    """An exception in one line: its type and message."""
    text = printable(" ".join(str(error).split()))
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
