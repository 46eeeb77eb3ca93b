"""The public names, and what importing them costs."""

import subprocess
import sys

import upslope


def test_every_public_name_is_there():
    for name in upslope.__all__:
        assert getattr(upslope, name) is not None
    assert set(upslope.__all__) <= set(dir(upslope))


def test_importing_upslope_loads_nothing_heavy():
    heavy = ("gymnasium", "matplotlib", "transformers", "numba", "scipy", "rich", "PIL", "torch")
    code = f"import sys, upslope; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_core_loads_no_world():
    names = "('gymnasium', 'matplotlib', 'numba')"
    code = f"import sys; from upslope import PPO, tabular, train, testing; tabular.MDP; print([m for m in {names} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
