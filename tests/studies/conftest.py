"""The studies are commands too."""

from tests.cli.conftest import cli, copied, trained

__all__ = ["cli", "copied", "trained"]
