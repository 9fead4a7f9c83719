"""For all tests: the settings file of whoever runs them has no say."""

import os

os.environ["AIRLOOP_ENV_FILE"] = ""
