"""A training step that kills itself with SIGKILL where it would call a chosen function.

Usage: ``python -m tests.integration.dying_step module:function fit ...``
"""

import importlib
import os
import signal
import sys

from include.training.__main__ import main

module, function = sys.argv[1].split(":")
setattr(importlib.import_module(module), function, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
main(sys.argv[2:])
