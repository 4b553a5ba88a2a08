"""``python -m fastvicreg``."""

from fastvicreg.cli import entry

if __name__ == "__main__":
    entry()
