"""A script, not a module: it ends Python when it is imported."""

import sys

sys.exit(0)
