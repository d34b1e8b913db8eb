"""``python -m maskcl``: the command line, for ``torchrun -m maskcl`` and the like."""

import sys

from maskcl.cli import main

if __name__ == "__main__":
    sys.exit(main())
