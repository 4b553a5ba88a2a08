"""``python -m fastvicreg``."""

import sys

from fastvicreg.cli import main

if __name__ == "__main__":
    sys.exit(main())
