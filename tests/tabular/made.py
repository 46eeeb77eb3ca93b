"""What several tests share: random problems with a policy that is not uniform."""

import torch

from upslope import tabular


def scrambled(policy, seed=0):
    """The policy with standard normal parameters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return policy


def case(seed, *, critic=False, **options):
    """``(mdp, policy)`` number ``seed``: three living states, two actions unless given."""
    mdp = tabular.random_mdp(**{"num_states": 3, "num_actions": 2, **options}, seed=seed)
    return mdp, scrambled(tabular.tabular_policy(mdp, critic=critic), seed)


def equal(found, expected, tolerance=1e-10):
    """Same shape, and entries that differ by no more than ``tolerance`` times the largest (or 1)."""
    found, expected = found.detach(), torch.as_tensor(expected, dtype=found.dtype).detach()
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= tolerance * max(1.0, float(expected.abs().max()))
