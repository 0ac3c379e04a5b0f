"""`python -m beatray` is the command line."""

import sys

from beatray.cli import main

sys.exit(main())
