"""``python -m upslope``."""

from __future__ import annotations

from upslope.cli.main import entry

if __name__ == "__main__":
    entry()
