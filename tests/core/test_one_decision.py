"""One decision per episode: GRPO, RLOO and REINFORCE with the group's baseline are the bandit method, to the bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.core.toy_language import Language, Toy
from upslope import GRPO, REINFORCE, RLOO, Ascent
from upslope import functional as F
from upslope.algorithms.grpo import RELATIVES, group_centered
from upslope.records import Rollout
from upslope.reference import SoftmaxPolicy

WORD = Language(length=1, ends=False)
GROUPS, SIZE = 8, 4
ADVANTAGES = {"leave-one-out": F.leave_one_out, "group mean": group_centered}


def compared(name: str, rollout: Rollout) -> torch.Tensor:
    """``R − b``, ``[groups, G]``: b the mean of the others or of the group, by its definition."""
    score = rollout.reward.squeeze(-1)
    total = score.sum(-1, keepdim=True)
    return score - ((total - score) / (SIZE - 1) if name == "leave-one-out" else total / SIZE)


def drawn(policy: Toy, seed: int = 0) -> Rollout:
    """Groups of one-token completions. Rewards are multiples of 3, so that means over 4 and over the other 3 are exact."""
    rollout = WORD.rollout(policy, index=WORD.drawn((GROUPS, SIZE), seed), unit="group")
    score = 3.0 * torch.randint(-2, 5, (GROUPS, SIZE, 1), generator=torch.Generator().manual_seed(seed)).double()
    return replace(rollout, reward=score)


def with_baseline(rollout: Rollout, advantage: torch.Tensor) -> Rollout:
    """The same pulls with a value: what their group leads one to expect of each. The unit stays the group: terms add in one order."""
    value = rollout.reward - advantage.unsqueeze(-1)
    return replace(rollout, value=value, next_value=torch.zeros_like(value))


def methods(name: str, update: Ascent) -> dict[str, tuple[GRPO | RLOO | REINFORCE, bool]]:
    """Algorithms that compare with the group in this way, and whether they need its mean as a value."""
    found: dict[str, tuple[GRPO | RLOO | REINFORCE, bool]] = {
        "grpo": (GRPO(advantage=ADVANTAGES[name], update=update), False),
        "reinforce": (REINFORCE(gamma=1.0, normalize_advantage=False, value_coef=0.0, update=update), True),
    }
    if name == "leave-one-out":
        found["rloo"] = (RLOO(update=update), False)
    else:
        found["dr-grpo"] = (GRPO(**RELATIVES["dr-grpo"], update=update), False)
    return found


@pytest.mark.parametrize("name", ADVANTAGES)
def test_one_token_methods_have_the_gradient_of_the_bandit(name: str) -> None:
    """``∇ mean_i (R_i − b_i) log π(A_i)``, written out; and to rounding ``mean_i (R_i − b_i)(e_A − p)`` by hand."""
    policy = WORD.policy(1)
    rollout = drawn(policy)
    advantage = compared(name, rollout)
    action = rollout.inputs["token"].squeeze(-1)
    log_prob = torch.log_softmax(policy.logits[torch.zeros_like(action)], -1).gather(-1, action.unsqueeze(-1)).squeeze(-1)
    (bandit,) = torch.autograd.grad((advantage * log_prob).sum() / (GROUPS * SIZE), policy.logits)
    for label, (algorithm, as_value) in methods(name, Ascent()).items():
        given = with_baseline(rollout, advantage) if as_value else rollout
        value, _ = algorithm.objective(policy, algorithm.estimate(policy, given))
        (found,) = torch.autograd.grad(value, policy.logits)
        assert torch.equal(found, bandit), label
    by_hand, one = SoftmaxPolicy(1, 4), np.ones(1)
    by_hand.theta = policy.logits.detach().numpy()
    terms = zip(action.flatten().tolist(), advantage.flatten().tolist(), strict=True)
    score = sum(weight * by_hand.grad_log_prob(one, a, by_hand.get_probs(one)) for a, weight in terms)
    np.testing.assert_allclose(bandit.numpy(), score / (GROUPS * SIZE), rtol=0, atol=1e-14)
    assert bandit.abs().max() > 0.05


@pytest.mark.parametrize("name", ADVANTAGES)
def test_their_first_update_leaves_the_same_parameters(name: str) -> None:
    ends: dict[str, torch.Tensor] = {}
    for label, (algorithm, as_value) in methods(name, Ascent(learning_rate=0.05, max_grad_norm=1.0)).items():
        policy = WORD.policy(1)
        rollout = drawn(policy)
        given = with_baseline(rollout, compared(name, rollout)) if as_value else rollout
        algorithm.update(algorithm, policy, algorithm.estimate(policy, given), algorithm.update.start(policy, seed=0))
        ends[label] = policy.logits.detach()
    assert len(ends) == 3 and all(torch.equal(end, ends["grpo"]) for end in ends.values())
    assert not torch.equal(ends["grpo"], WORD.policy(1).logits)


def test_dividing_by_the_spread_is_the_bandit_with_scaled_rewards() -> None:
    """GRPO as printed: the same form, with ``(R − mean) / (std + eps)`` in place of ``R − b``."""
    policy = WORD.policy(1)
    rollout = drawn(policy)
    advantage = F.group_relative(rollout.reward.squeeze(-1))
    log_prob = policy.evaluate(**rollout.inputs).log_prob.squeeze(-1)
    (bandit,) = torch.autograd.grad((advantage * log_prob).sum() / (GROUPS * SIZE), policy.logits)
    value, _ = GRPO().objective(policy, GRPO().estimate(policy, rollout))
    assert torch.equal(torch.autograd.grad(value, policy.logits)[0], bandit)
