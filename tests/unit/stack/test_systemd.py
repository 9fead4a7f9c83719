"""The unit files of `airloop up --systemd` contain nothing that systemd would expand.

Each service has one unit, which is restarted and starts after the migration.
"""

import configparser
from pathlib import Path

import pytest

from include.settings import Settings
from include.stack import component, systemd
from include.stack.services import services


def parsed(content: str) -> configparser.ConfigParser:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # systemd's keys have capitals
    unit.read_string(content)
    return unit


def test_each_service_has_a_unit_that_runs_its_component(tmp_path):
    settings = Settings(home=tmp_path)
    made = systemd.units(settings, user="airloop")
    names = {service.name for service in services(settings)} - {"keeper"}
    assert set(made) == {"airloop.target", "airloop-migrate.service", *(f"airloop-{name}.service" for name in names)}
    for name in names:
        unit = parsed(made[f"airloop-{name}.service"])
        program, *arguments = unit["Service"]["ExecStart"].split()
        assert Path(program).exists() and arguments == ["-m", "include.stack.component", name]
        assert component.command(settings, name, {}).name == name
        assert unit["Service"]["Restart"] == "always" and unit["Service"]["User"] == "airloop"
        assert unit["Unit"]["Requires"] == "airloop-migrate.service" and unit["Install"]["WantedBy"] == "airloop.target"
    assert "password" not in "".join(made.values()).lower() and "SECRET" not in "".join(made.values())


@pytest.mark.parametrize("name", ["100%", "a b", 'say "x"', "$HOME"])
def test_a_path_that_systemd_would_interpret_is_refused_by_name(tmp_path, name):
    with pytest.raises(systemd.UnitError, match="move it"):
        systemd.units(Settings(home=tmp_path / name))
