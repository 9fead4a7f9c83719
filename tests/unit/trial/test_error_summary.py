"""An error is reported with the line of the project's code that causes it."""

import json
import traceback

import pytest

from include.settings import REPOSITORY, get_settings
from include.trial import error_summary as summary_module
from include.trial.error_summary import error_summary, traceback_summary


@pytest.fixture
def ours(tmp_path, monkeypatch):
    monkeypatch.setattr(summary_module, "REPOSITORY", tmp_path)
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
    assert error_summary(error).startswith("features.py, line 2, in compute: JSONDecodeError: ")
    assert traceback_summary("".join(traceback.format_exception(error))).startswith(
        "features.py, line 2: json.decoder.JSONDecodeError: "
    )


def test_a_line_that_is_no_python_is_named(ours):
    error = error_of(ours / "train.py", "a = 1\nb = (\n")
    assert error_summary(error) == "train.py, line 2: SyntaxError: '(' was never closed"
    assert (
        traceback_summary("".join(traceback.format_exception(error)))
        == "train.py, line 2: SyntaxError: '(' was never closed"
    )


def test_an_error_from_elsewhere_is_told_as_it_is():
    assert error_summary(ValueError("nothing of ours")) == "ValueError: nothing of ours"
    assert error_summary(KeyError()) == "KeyError"
    assert traceback_summary("somebody says something") == "somebody says something"


def test_libraries_installed_below_the_repository_are_not_ours():
    assert not summary_module._is_ours(str(REPOSITORY / ".venv/lib/python3.11/site-packages/feast/x.py"))
    assert summary_module._is_ours(str(REPOSITORY / "include/settings/model.py"))


def test_a_line_of_a_project_outside_of_the_repository_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("AIRLOOP_PROJECTS", str(tmp_path))
    get_settings.cache_clear()
    error = error_of(tmp_path / "features.py", "def compute():\n    json.loads('{')\n\ncompute()\n")
    assert error_summary(error).startswith(f"{tmp_path}/features.py, line 2, in compute: JSONDecodeError: ")
    monkeypatch.undo()
    get_settings.cache_clear()
