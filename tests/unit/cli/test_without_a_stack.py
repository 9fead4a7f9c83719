"""Every command on a new machine without a stack ends soon with a message and no traceback."""

import io
import json
import os
import socket
import sqlite3
import sys
import threading
import time

import pytest
import typer

from include import cli, ledger
from include.cli import boundary, exits
from include.settings import get_settings
from include.stack.processes import Command, ProcessBook

# Command -> arguments, exit status, and words of its output.
COMMANDS = {
    "status": ([], 1, "stopped"),
    "run": (["flights", "ingest"], 2, "Airflow does not answer at http://127.0.0.1:"),
    "retrain": (["flights"], 2, "Airflow does not answer at http://127.0.0.1:"),
    "replay": (["flights", "--since", "2013-03-01", "--until", "2013-02-01"], 2, "is not before --until 2013-02-01"),
    "rollout": (["flights"], 2, "MLflow does not answer at http://127.0.0.1:"),
    "rollback": (["flights", "--reason", "x"], 2, "serving keeps answering as it does"),
    "restore-champion": (["flights", "--reason", "x"], 2, "MLflow does not answer at http://127.0.0.1:"),
    "adopt": (["flights", "--reason", "x"], 2, "MLflow does not answer at http://127.0.0.1:"),
    "export": (["flights"], 2, "MLflow does not answer at http://127.0.0.1:"),
    "freeze": (["flights", "--why", "an audit"], 0, "an audit"),
    "thaw": (["flights"], 0, "was not frozen"),
    "backup": (["{home}/x.zip"], 2, "no backup was made: there is no database"),
    "restore": (["{home}/nothing.zip"], 2, "this archive does not exist"),
    "verify": (["{home}/nothing.zip", "--key", "{home}/nothing.pem"], 2, "does not exist"),
    "sync-pools": ([], 2, "Airflow does not answer at http://127.0.0.1:"),
    "users list": ([], 2, "AIRLOOP_AUTH_MANAGER is simple"),
    "users add": (["jo", "--role", "viewer"], 2, "AIRLOOP_AUTH_MANAGER is simple"),
    "users remove": (["jo"], 2, "AIRLOOP_AUTH_MANAGER is simple"),
    "users sync": ([], 2, "AIRLOOP_AUTH_MANAGER is simple"),
    "create-databases": ([], 2, "AIRLOOP_DATABASE_ADMIN_URL is not set"),
    "down": ([], 0, ""),
    "new-project": (["9bad"], 2, "'9bad' cannot be a project's name"),
    "init-env": (["--file", "{home}/.env"], 0, "AIRLOOP_"),
    "kubernetes-secrets": ([], 2, "AIRLOOP_"),
    "materialize": (["nobody"], 2, "no project 'nobody'"),
    "check": (["nobody"], 2, "no project 'nobody'"),
    "rewind": (["flights", "--reason", "x", "--dry-run"], 0, "nothing is of a cutoff after"),
    "try": (["nobody", "ingest"], 2, "no project 'nobody'"),
}
# They start services or create databases. tests/integration covers them.
ELSEWHERE = {"up", "demo", "doctor", "migrate"}


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name, port in (("AIRFLOW", 1), ("MLFLOW", 2), ("SERVING", 3)):
        monkeypatch.setenv(f"AIRLOOP_{name}_PORT", str(50000 + port))
    monkeypatch.setenv("AIRLOOP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AIRLOOP_ENV_FILE", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # a registry of another test
    get_settings.cache_clear()
    yield tmp_path
    get_settings.cache_clear()


@pytest.fixture
def airloop(home, monkeypatch, capsys):
    def call(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["airloop", *(word.format(home=home) for word in words)])
        monkeypatch.setattr(exits, "has_printed", False)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out + captured.err

    return call


def names(group, before: str = "") -> set[str]:
    command_names = set()
    for name, command in group.commands.items():
        command_names |= names(command, f"{before}{name} ") if hasattr(command, "commands") else {f"{before}{name}"}
    return command_names


def test_every_command_is_here():
    assert names(typer.main.get_command(cli.app)) == COMMANDS.keys() | ELSEWHERE | cli.RENAMED.keys()


@pytest.mark.parametrize("command", COMMANDS)
def test_it_ends_with_a_sentence(airloop, command):
    arguments, status, words = COMMANDS[command]
    code, output = airloop(*command.split(), *arguments)
    assert (code, words in " ".join(output.split())) == (status, True), output
    assert "Traceback" not in output and len(output.splitlines()) < 50


def with_a_reason(group, before: str = "") -> list[str]:
    """Return the commands that have an option ``--reason``."""
    command_names: list[str] = []
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            command_names += with_a_reason(command, f"{before}{name} ")
        elif any("--reason" in option.opts for option in command.params):
            command_names.append(f"{before}{name}")
    return command_names


@pytest.mark.parametrize("command", with_a_reason(typer.main.get_command(cli.app)))
def test_an_empty_reason_is_refused(airloop, command):
    code, output = airloop(*command.split(), "flights", "--reason", "  ")
    assert code == 2 and "it is empty. State the reason" in output


@pytest.fixture
def hanging(monkeypatch):
    """Run servers that accept connections and never answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        for name in ("AIRFLOW", "MLFLOW"):
            monkeypatch.setenv(f"AIRLOOP_{name}_PORT", str(server.getsockname()[1]))
        get_settings.cache_clear()
        monkeypatch.setattr(exits, "SERVER_SECONDS", 0.3)
        yield


@pytest.mark.parametrize("command", [c for c, (_, _, words) in COMMANDS.items() if "answer" in words])
def test_a_server_that_hangs_is_named(home, hanging, airloop, command):
    arguments, status, words = COMMANDS[command]
    code, output = airloop(*command.split(), *arguments)
    assert code == status and "does not answer" in output and words in " ".join(output.split())


def test_a_wrong_clock_is_set_back_after_a_question_and_put_on_record(airloop, monkeypatch):
    ledger.set_clock("flights", "2031-01-01T00:00:00Z")
    wanted = ("rewind", "flights", "--reason", "a typing error")
    code, seen = airloop(*wanted)
    assert code == 2 and "give with --to the time" in seen
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    code, seen = airloop(*wanted, "--to", "2013-02-01")
    assert (
        code == 1
        and "the clock of the replay stands at 2031" in seen
        and ledger.iso(ledger.now("flights")).startswith("2031")
    )
    code, seen = airloop(*wanted, "--to", "2013-02-01", "--yes", "--by", "jo")
    assert code == 0 and "Next: `airloop run flights build_features --cutoff 2013-02-01T00:00:00`" in seen
    assert ledger.iso(ledger.now("flights")) == "2013-02-01T00:00:00Z"
    (record,) = ledger.decisions("flights", "rewind")
    assert record["subject"].endswith("by jo") and record["reasons"][0] == "a typing error"


def test_nothing_is_taken_back_while_a_scheduler_may_run_stages_unseen(airloop):
    ledger.set_clock("flights", "2031-01-01T00:00:00Z")
    book = ProcessBook(get_settings().home, get_settings().home)
    scheduler = book.start(Command("scheduler", ["sleep", "60"], dict(os.environ)))
    command = ("rewind", "flights", "--reason", "a typing error", "--to", "2013-02-01", "--yes")
    try:
        code, seen = airloop(*command)
        assert code == 2 and "it is not known whether a stage of flights is running" in " ".join(seen.split())
        assert ledger.iso(ledger.now("flights")).startswith("2031")
    finally:
        book.stop([scheduler], forget=False)
    assert airloop(*command)[0] == 0, "its scheduler died"


@pytest.mark.parametrize("command", [["status", "--json"], ["sync-pools", "--json"]])
def test_what_programs_read_is_json(airloop, command):
    _, output = airloop(*command)
    assert json.loads(output)


def test_a_damaged_ledger_is_named_and_how_to_restore_it(airloop, home):
    file = home / "home" / "ledger.db"
    file.parent.mkdir(exist_ok=True)
    place = get_settings().ledger
    assert str(home) in place
    target = place.removeprefix("sqlite:///")
    file.parent.joinpath(target).parent.mkdir(parents=True, exist_ok=True)
    file.parent.joinpath(target).write_bytes(b"this was a database" * 1000)
    code, output = airloop("freeze", "flights", "--reason", "x")
    assert code == 2 and "not a database" in output and "restores a backup" in output and "Traceback" not in output


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (sqlite3.DatabaseError("file is not a database"), "the database refuses"),
        (ConnectionRefusedError(111, "Connection refused"), "a server does not answer"),
        (PermissionError(13, "Permission denied", "/x/y"), "/x/y: Permission denied"),
        (KeyError("a fault of ours"), None),
        (ZeroDivisionError(), None),
    ],
)
def test_expected_errors_and_faults(home, error, words):
    message = boundary.expected(error)
    assert message is None if words is None else words in message


def test_a_fault_of_ours_keeps_its_traceback(home):
    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        boundary.run(fail, "status")


def test_an_interrupted_command_says_so(home, capsys):
    def wait():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        boundary.run(wait, "status")
    assert ended.value.code == boundary.INTERRUPTED and "can be run again" in capsys.readouterr().err


def test_a_command_that_has_said_nothing_for_long_says_that_it_works(home, capsys, monkeypatch):
    monkeypatch.setattr(boundary, "PATIENCE", 0.05)
    monkeypatch.setattr(exits, "has_printed", False)
    boundary.run(lambda: time.sleep(0.3), "rollout")
    assert "airloop rollout: still at work" in capsys.readouterr().err
    monkeypatch.setattr(exits, "has_printed", True)
    boundary.run(lambda: time.sleep(0.3), "rollout")
    assert capsys.readouterr().err == ""
    assert threading.active_count() < 50


def test_the_version(airloop):
    code, output = airloop("--version")
    assert code == 0 and output.startswith("airloop 0.")


@pytest.mark.parametrize(("former", "name"), sorted(cli.RENAMED.items()))
def test_a_former_name_of_a_command_still_works_and_names_the_new_one(airloop, former, name):
    arguments, status, words = COMMANDS[name]
    code, output = airloop(former, *arguments)
    text = " ".join(output.split())
    assert code == status and words in text
    assert f"airloop {former} is now called airloop {name}" in text
