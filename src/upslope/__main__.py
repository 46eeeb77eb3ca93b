"""``python -m upslope``."""

import sys
from os import getcwd

if __name__ == "__main__":
    # `python -m` looks for every module, Python's included, in the current folder first: undone before anything is imported
    try:
        here = getcwd()
    except OSError:  # the current folder is gone
        here = ""
    if not getattr(sys.flags, "safe_path", False) and sys.path[:1] in ([""], [here]):
        del sys.path[0]
    from upslope.cli.main import entry

    entry()
