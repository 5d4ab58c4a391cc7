"""`python -m labutils` is the command line."""

import sys

from labutils.cli import main

sys.exit(main())
