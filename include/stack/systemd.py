"""Create unit files for systemd, which run the same services as `airloop up`.

systemd restarts the services and starts them at boot.
"""

import getpass
import sys
from pathlib import Path

from include.settings import REPOSITORY, Settings, settings_file
from include.stack.services import KEEPER, services

TARGET = "airloop.target"


class UnitError(ValueError):
    """Raised when settings or paths cannot be used in a unit file. The message names them."""


def units(settings: Settings, user: str | None = None) -> dict[str, str]:
    """Return the unit files: name -> content. ``airloop.target`` starts all of them.

    Args:
        user: The user that the services run as. None: the current user.

    Raises:
        UnitError: A path has a character that systemd would interpret.
    """
    user = user or getpass.getuser()
    file = settings_file()
    for path in (REPOSITORY, settings.home, *([file] if file else [])):
        if wrong := sorted(set(str(path)) & set("%\n\"'\\$ ")):
            raise UnitError(f"{path}: a path in a unit file must not have {' or '.join(map(repr, wrong))}; move it")
    common = [
        f"User={user}",
        f"WorkingDirectory={REPOSITORY}",
        f"Environment=PYTHONPATH={REPOSITORY} AIRLOOP_HOME={settings.home}",
        *([f"Environment=AIRLOOP_ENV_FILE={file}"] if file else []),
    ]
    names = [service.name for service in services(settings) if service.name != KEEPER]
    python = Path(sys.executable)
    made = {
        TARGET: _unit(
            "Airloop",
            [f"Wants={' '.join(f'airloop-{name}.service' for name in names)}"],
            {"Install": ["WantedBy=multi-user.target"]},
        ),
        "airloop-migrate.service": _unit(
            "Airloop: bring the databases up to this version",
            ["After=network-online.target", "Wants=network-online.target"],
            {"Service": ["Type=oneshot", "RemainAfterExit=yes", *common, f"ExecStart={python} -m include.cli migrate"]},
        ),
    }
    for name in names:
        # systemd before 254 ignores the two lines of the back-off and logs a warning.
        made[f"airloop-{name}.service"] = _unit(
            f"Airloop: {name}",
            [
                f"PartOf={TARGET}",
                "After=airloop-migrate.service",
                "Requires=airloop-migrate.service",
                "StartLimitIntervalSec=0",
            ],
            {
                "Service": [
                    *common,
                    f"ExecStart={python} -m include.stack.component {name}",
                    "Restart=always",
                    "RestartSec=5",
                    "RestartSteps=8",
                    "RestartMaxDelaySec=300",
                    "KillMode=mixed",
                    "TimeoutStopSec=60",
                ],
                "Install": [f"WantedBy={TARGET}"],
            },
        )
    return made


def _unit(description: str, lines: list[str], sections: dict[str, list[str]]) -> str:
    parts = {"Unit": [f"Description={description}", *lines], **sections}
    return "\n".join(f"[{name}]\n" + "".join(f"{line}\n" for line in content) for name, content in parts.items())
