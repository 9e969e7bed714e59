"""``python -m cockpit_lite`` is the command line."""

import sys

from cockpit_lite.cli import main

if __name__ == "__main__":
    sys.exit(main())
