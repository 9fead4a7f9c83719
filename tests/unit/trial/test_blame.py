"""An error is told with the line of ours that it comes from."""

import json
import traceback

import pytest

from include.settings import REPOSITORY
from include.trial import blame as blaming
from include.trial.blame import blame, blame_text


@pytest.fixture
def ours(tmp_path, monkeypatch):
    monkeypatch.setattr(blaming, "REPOSITORY", tmp_path)
    return tmp_path


def error_of(file, text) -> BaseException:
    file.write_text(text)
    try:
        exec(compile(text, str(file), "exec"), {"json": json})
    except BaseException as error:
        return error
    raise AssertionError("no error")


def test_the_innermost_of_our_lines_is_named_not_the_librarys(ours):
    error = error_of(ours / "features.py", "def compute():\n    json.loads('{')\n\ncompute()\n")
    assert blame(error).startswith("features.py, line 2, in compute: JSONDecodeError: ")
    assert blame_text("".join(traceback.format_exception(error))).startswith("features.py, line 2: json.decoder.JSONDecodeError: ")


def test_a_line_that_is_no_python_is_named(ours):
    error = error_of(ours / "train.py", "a = 1\nb = (\n")
    assert blame(error) == "train.py, line 2: SyntaxError: '(' was never closed"
    assert blame_text("".join(traceback.format_exception(error))) == "train.py, line 2: SyntaxError: '(' was never closed"


def test_an_error_from_elsewhere_is_told_as_it_is():
    assert blame(ValueError("nothing of ours")) == "ValueError: nothing of ours"
    assert blame(KeyError()) == "KeyError"
    assert blame_text("somebody says something") == "somebody says something"


def test_libraries_installed_below_the_repository_are_not_ours():
    assert not blaming._is_ours(str(REPOSITORY / ".venv/lib/python3.11/site-packages/feast/x.py"))
    assert blaming._is_ours(str(REPOSITORY / "include/settings.py"))
