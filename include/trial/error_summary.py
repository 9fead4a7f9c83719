"""Find the line of this repository, or of the projects, that an error comes from."""

import re
import traceback
from pathlib import Path

from include.projects import folders
from include.settings import REPOSITORY, get_settings

FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')


def error_summary(error: BaseException) -> str:
    """Return ``file, line n: Type: message`` for an error.

    The line is the innermost of our own lines in the traceback, or the line with the syntax error.
    """
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_short(error.filename)}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_ours(frame.filename)]
    return f"{_short(ours[-1].filename)}, line {ours[-1].lineno}, in {ours[-1].name}: {text}" if ours else text


def traceback_summary(printed: str) -> str:
    """Return the same for a traceback that another process has printed."""
    lines = [line for line in printed.strip().splitlines() if line.strip()]
    ours = [match for match in FRAME.finditer(printed) if _is_ours(match["file"])]
    return (
        f"{_short(ours[-1]['file'])}, line {ours[-1]['line']}: {lines[-1].strip()}"
        if ours and lines
        else printed.strip()
    )


def _is_ours(file: str) -> bool:
    path = Path(file)
    ours = any(path.is_relative_to(folder) for folder in (REPOSITORY, get_settings().dags_folder, *folders()))
    return ours and "site-packages" not in path.parts and not path.is_relative_to(REPOSITORY / ".venv")


def _short(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(REPOSITORY)) if path.is_relative_to(REPOSITORY) else file
