"""`python -m quire` is `quire`."""

import sys

from quire.entrypoints.cli.main import main

sys.exit(main())
