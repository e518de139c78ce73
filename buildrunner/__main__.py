"""``python -m buildrunner`` is the same as ``buildrunner``."""

import sys

from buildrunner.cli.main import main

sys.exit(main())
