"""check_estimator names what is wrong with an estimator, and is silent about what the library ships."""

import pytest
import torch

from tests.check.planted import LAW, SOUND, log_prob, returns, total
from tests.check.shipped import shipped
from upslope import PPO, REINFORCE, UsageError
from upslope import functional as F
from upslope.testing import LAWS, ContractError, check_estimator
from upslope.testing.laws import BY_DESIGN

SHIPPED = shipped()


@pytest.mark.parametrize("name", LAW)
def test_a_planted_error_is_named(name):
    estimator, options, law = LAW[name]
    report = check_estimator(estimator, **options)
    assert [finding.law for finding in report.broken] == [law]
    assert LAWS[law] in str(report)
    with pytest.raises(ContractError, match=law.replace("(", r"\(").replace(")", r"\)")):
        report.raise_for_law()


def test_every_law_has_a_planted_error():
    assert {law for _, _, law in LAW.values()} == set(LAWS) - {"not finite", "biased by no known law"}


@pytest.mark.parametrize("name", SOUND)
def test_sound_estimators_break_nothing(name):
    estimator, options = SOUND[name]
    report = check_estimator(estimator, **options)
    assert report.findings == ()
    # the exact expectation is the exact gradient to rounding; discounted_reinforce computes γ^t in float32
    assert report.bias[report.objective] <= 1e-7 and report.unbiased


@pytest.mark.parametrize("name", SHIPPED)
def test_no_shipped_estimator_breaks_a_law(name):
    assert check_estimator(SHIPPED[name]).raise_for_law().broken == ()
