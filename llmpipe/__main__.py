"""Run the command line as `python -m llmpipe`."""

import sys

from llmpipe.cli import main

if __name__ == "__main__":
    sys.exit(main())
