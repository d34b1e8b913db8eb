"""``python -m maskcl.cli``: the command line without an installed script."""

import sys

from maskcl.cli import main

sys.exit(main())
