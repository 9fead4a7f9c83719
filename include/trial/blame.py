"""Which line of this repository an error comes from."""

import re
import traceback
from pathlib import Path

from include.settings import REPOSITORY, get_settings

FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')


def blame(error: BaseException) -> str:
    """``file, line n: Type: message``: the innermost of our own lines that took part, or the line that is no Python."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_short(error.filename)}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_ours(frame.filename)]
    return f"{_short(ours[-1].filename)}, line {ours[-1].lineno}, in {ours[-1].name}: {text}" if ours else text


def blame_text(printed: str) -> str:
    """The same of a traceback that somebody else has printed."""
    lines = [line for line in printed.strip().splitlines() if line.strip()]
    ours = [found for found in FRAME.finditer(printed) if _is_ours(found["file"])]
    return f"{_short(ours[-1]['file'])}, line {ours[-1]['line']}: {lines[-1].strip()}" if ours and lines else printed.strip()


def _is_ours(file: str) -> bool:
    path = Path(file)
    ours = path.is_relative_to(REPOSITORY) or path.is_relative_to(get_settings().dags_folder)
    return ours and "site-packages" not in path.parts and not path.is_relative_to(REPOSITORY / ".venv")


def _short(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(REPOSITORY)) if path.is_relative_to(REPOSITORY) else file
