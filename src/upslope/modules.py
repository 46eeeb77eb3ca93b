"""The user's modules, named on the command line: found in the current folder, and never in place of an installed one."""

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

from upslope.errors import UsageError


def find_in_current_folder() -> None:
    """Let modules be found in the current folder, after everything else: a ``random.py`` that lies there must not become Python's.

    For good, since worker processes and later imports need it too, and only once a module is named: a command that names none
    imports nothing from there. There is nothing to find where it is gone, for an environment had changed to a folder of a moment.
    """
    try:
        folder = os.getcwd()
    except OSError:
        return
    if folder not in sys.path and "" not in sys.path:
        sys.path.append(folder)


def import_named(module: str, what: str) -> ModuleType:
    """Import a module that the user named for ``what``; UsageError, with the reason in one line, where it is not there or fails."""
    find_in_current_folder()
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise UsageError(f"{what}: no module named {module!r}, neither in the current folder nor installed") from None
        raise UsageError(f"{what}: importing {module!r} failed: {error}") from error
    except SystemExit as error:
        raise UsageError(f"{what}: importing {module!r} ended Python (sys.exit): guard it with if __name__ == '__main__'") from error
    except Exception as error:
        message = " ".join(str(error).split())
        raise UsageError(f"{what}: importing {module!r} failed: {type(error).__name__}: {message[:300]}") from error
    return found


def hidden_by(module: ModuleType) -> str:
    """A hint where a module of the current folder has the name of an installed one, which was found instead; else ''."""
    here = Path(f"{module.__name__.replace('.', os.sep)}.py")
    place = getattr(module, "__file__", None)
    if not here.exists() or (place is not None and Path(place).resolve() == here.resolve()):
        return ""
    return f"; {here} in the current folder has the name of a module of Python or of a package, which comes first: rename it"
