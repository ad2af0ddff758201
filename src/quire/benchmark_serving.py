"""`python -m quire.benchmark_serving` is `quire bench serve`."""

import sys

from quire.entrypoints.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["bench", "serve", *sys.argv[1:]]))
