"""`python -m labutils` is the command line."""

import sys

from labutils.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
