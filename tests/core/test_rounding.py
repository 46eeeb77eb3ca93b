"""Stochastic rounding to bfloat16: to one of the two neighbors, and on average to nothing but the number itself."""

import pytest
import torch

from upslope.updates.state import stochastically_rounded


@pytest.mark.parametrize("value", [1.0 + 2.0**-9, -0.1, 3.3e-7, 1234.567, -(2.0**-130) * 1.3])
def test_it_is_unbiased(value):
    draws = 20_000
    exact = torch.full((draws,), value)
    found = stochastically_rounded(exact, torch.Generator().manual_seed(0)).double()
    low, high = sorted(set(found.tolist()))
    assert low < exact[0].double() < high
    share = (exact[0].double() - low) / (high - low)
    deviation = (share * (1 - share) / draws).sqrt()
    assert abs((found == high).double().mean() - share) < 4 * deviation  # rounding to the nearest is off by a hundred of these
    assert (low, high) == (torch.tensor(low).bfloat16().double(), torch.tensor(high).bfloat16().double())
    spacing = torch.nextafter(torch.tensor(low).bfloat16(), torch.tensor(float("inf")).bfloat16())
    assert spacing.double() == high


def test_what_bfloat16_holds_stays():
    exact = torch.tensor([0.0, -0.0, 1.0, -2.5, 2.0**-126, 3.0e38]).bfloat16().float()
    assert torch.equal(stochastically_rounded(exact, torch.Generator().manual_seed(0)).float(), exact)
