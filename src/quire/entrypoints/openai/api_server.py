"""`python -m quire.entrypoints.openai.api_server` is `quire serve`."""

import sys

from quire.entrypoints.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
