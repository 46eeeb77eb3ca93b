"""The pytest fixture, in a pytest of its own; and what having the plugin costs a pytest that does not use it."""

import subprocess
import sys

import upslope.testing  # noqa: F401  torch must not be imported anew by the inner pytest

pytest_plugins = ("pytester",)

TESTS = """
import torch
from upslope import PPO, functional, tabular


def sound(policy, rollout):
    new = policy.evaluate(**rollout.inputs).log_prob
    return (new * rollout.reward.sum(-1, keepdim=True)).where(rollout.mask, 0.0).sum(-1).mean()


def test_mine(upslope_check):
    assert upslope_check.estimator(sound).unbiased


def test_wrong(upslope_check):
    upslope_check.estimator(lambda policy, rollout: -sound(policy, rollout))


def test_others(upslope_check):
    upslope_check.surrogate(functional.clipped_surrogate)
    upslope_check.algorithm(PPO())
    upslope_check.policy(tabular.tabular_policy(tabular.bandit()), {"observation": torch.zeros(2, 1, dtype=torch.int64)})
"""


def test_the_fixture(pytester):
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_inprocess("-p", "upslope.pytest_plugin", "-p", "no:cacheprovider", "-W", "error")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*ContractError: *: wrong sign: it points down*"])


def test_it_is_imported_for_nothing_heavy():
    code = "import sys, upslope.pytest_plugin; print([m for m in ('torch', 'numpy', 'gymnasium') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
