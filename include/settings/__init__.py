"""Airloop's settings: the only package that reads the environment.

Each field has an environment variable of the same name with the prefix ``AIRLOOP_``
(``AIRLOOP_HOME``, ...). These sources are searched in this order, and the first one that has a
value wins:

- the environment variable,
- a file of that name in ``AIRLOOP_SECRETS_DIR``,
- a secret of AWS Secrets Manager (``AIRLOOP_SECRETS_ID``),
- a line of the settings file: ``.env`` in the repository, or the file that ``AIRLOOP_ENV_FILE``
  names (empty: no file).

The defaults are the *embedded* profile: one machine, SQLite and local files, servers on loopback.
"""

from include.settings.errors import SettingsError
from include.settings.git import CODE, git_sha
from include.settings.kubernetes import unpinned
from include.settings.masking import AIRFLOW_SECRET_VARIABLES, CREDENTIALS, known_secrets
from include.settings.model import Settings, get_settings, secret_fields
from include.settings.renamed import RENAMED
from include.settings.repository import REPOSITORY
from include.settings.secrets import PLACEHOLDER, REQUIRED_BY_PART, WEAK_PASSWORDS, Part
from include.settings.sources import TELEMETRY_OFF, export_library_env, settings_file, usual_settings_file

__all__ = [
    "CODE",
    "AIRFLOW_SECRET_VARIABLES",
    "CREDENTIALS",
    "REQUIRED_BY_PART",
    "PLACEHOLDER",
    "TELEMETRY_OFF",
    "RENAMED",
    "REPOSITORY",
    "WEAK_PASSWORDS",
    "Part",
    "Settings",
    "SettingsError",
    "get_settings",
    "git_sha",
    "export_library_env",
    "known_secrets",
    "secret_fields",
    "settings_file",
    "unpinned",
    "usual_settings_file",
]
