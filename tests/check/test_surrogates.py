"""check_surrogate: a clip may only hold back what has moved far enough already."""

from functools import partial

import pytest
import torch

from tests.check.planted import clipped, clipped_for_bad_ones_only, worse_of_two
from upslope import functional as F
from upslope.algorithms import grpo, ppo
from upslope.testing import MISTAKES, ContractError, check_surrogate


@pytest.mark.parametrize("surrogate", [clipped, worse_of_two])
def test_a_clip_on_the_wrong_side_is_named(surrogate):
    def hidden(new, old, advantage, mask, clip_range):
        return surrogate(new.where(mask, 0.0), old.where(mask, 0.0), advantage.where(mask, 0.0), mask, clip_range)

    with pytest.raises(ContractError, match=r"clip on the wrong side, no gradient for A > 0 at ratio 0\.5") as error:
        check_surrogate(hidden)
    assert error.value.mistake in MISTAKES and "\n" not in str(error.value)


def test_a_clip_on_the_wrong_side_of_the_bad_ones_only():
    def hidden(new, old, advantage, mask, clip_range):
        return clipped_for_bad_ones_only(new.where(mask, 0.0), old.where(mask, 0.0), advantage.where(mask, 0.0), mask, clip_range)

    def whatever_the_range(new, old, advantage, mask, clip_range):
        return hidden(new, old, advantage, mask, 0.3)

    for surrogate in (hidden, whatever_the_range):
        with pytest.raises(ContractError, match="clip on the wrong side, no gradient for A < 0 just above ratio 1"):
            check_surrogate(surrogate)


@pytest.mark.parametrize("dual_clip", [1.01, 1.2, 1.28, 1.5, 2.0, 3.0])
def test_a_dual_clip_is_no_fault(dual_clip):
    check_surrogate(partial(F.clipped_surrogate, dual_clip=dual_clip))


def soft_adaptive(new, old, advantage, mask, clip_range):
    """SAPO: ``4/τ σ(τ (ratio − 1)) A`` with another temperature for each sign; two Python numbers in ``torch.where`` are float32."""
    ratio, advantage = (new.where(mask, 0.0) - old.where(mask, 0.0)).exp(), advantage.where(mask, 0.0)
    temperature = torch.where(advantage > 0, 1.0, 1.05)
    return 4 / temperature * (temperature * (ratio - 1)).sigmoid() * advantage


def test_a_constant_in_float32_is_no_fault():
    check_surrogate(soft_adaptive)
    with pytest.raises(ContractError, match="not advantage"):
        check_surrogate(lambda *arguments: 1.001 * soft_adaptive(*arguments))


@pytest.mark.parametrize("surrogate", {**ppo.SURROGATES, **grpo.SURROGATES}.values())
def test_shipped_surrogates_hold(surrogate):
    check_surrogate(surrogate)
