"""Where training ends: with exact expected gradients every method goes to its own known optimum on the enumerated language.

``E r − β KL(π‖π_ref)`` has the maximizer ``π* ∝ π_ref e^{r/β}``. Each batch holds every unit, weighted by its probability; the
update is the library's own, with a learning rate that falls to zero.
"""

import pytest
import torch

from tests.core.toy_language import Language, Toy, reweighted
from upslope import DPO, GRPO, PPO, RLOO, Ascent
from upslope import functional as F
from upslope.algorithms.grpo import group_centered
from upslope.updates import linear

BETA = 0.4
ENDS, WORD = Language(), Language(length=1, ends=False)
REWARD_KL = {"kl_coef": BETA, "kl_estimator": "k1", "kl_placement": "reward"}


def ascent(**options):
    return Ascent(**{"learning_rate": 0.2, "schedule": linear, "max_grad_norm": None} | options)


def total_variation(p, q):
    return 0.5 * (p.detach() - q).abs().sum().item()


def trained(algorithm, language, reference, iterations, *, size=None, share=None):
    """The policy after ``iterations`` updates on expected batches of sequences, of groups of ``size``, or of fixed pairs."""
    policy = Toy(len(language.prefixes))
    policy.load_state_dict(reference.state_dict())
    with torch.no_grad():
        policy.value.zero_()
    state = algorithm.update.start(policy, seed=0)
    index = None if size is None else language.groups(size)
    for i in range(iterations):
        algorithm.update.set_fraction(state, i / iterations)
        unit = "pair" if share is not None else "sequence" if index is None else "group"
        rollout = language.rollout(policy, reference, index=index, unit=unit)
        batch = algorithm.estimate(policy, rollout)
        probability = share if share is not None else language.probability(policy).detach()
        if share is None and size is not None:
            probability = language.group_probability(policy, size)
        algorithm.update(algorithm, policy, reweighted(batch, probability), state)
    return policy


def test_ppo_with_the_kl_in_the_reward():
    reference = ENDS.policy(2, 0.7)
    # 1 / all steps per step weighs a batch of every sequence; a critic, GAE, and four clipped epochs
    update = ascent(num_epochs=4, learning_rate=0.1)
    algorithm = PPO(gamma=1.0, gae_lambda=0.9, normalize_advantage=False, reference_kl_coef=BETA, value_coef=0.5, update=update)
    policy = trained(algorithm, ENDS, reference, 60)
    wanted = ENDS.optimum(reference, BETA)
    assert total_variation(ENDS.probability(reference), wanted) > 0.2
    assert total_variation(ENDS.probability(policy), wanted) <= 0.02


@pytest.mark.parametrize(
    "algorithm",
    [
        RLOO(kl_coef=BETA, update=ascent()),
        RLOO(kl_coef=BETA, update=ascent(num_epochs=2)),
        # the group mean shrinks reward and penalty alike, so that the optimum stays
        GRPO(advantage=group_centered, average_over="constant", **REWARD_KL, update=ascent()),
    ],
    ids=["rloo", "rloo, two epochs", "grpo, group-centered"],
)
def test_group_methods_with_the_kl_in_the_reward(algorithm):
    reference = ENDS.policy(2, 0.7)
    policy = trained(algorithm, ENDS, reference, 50, size=2)
    assert total_variation(ENDS.probability(policy), ENDS.optimum(reference, BETA)) <= 0.02


def test_dpo_on_pairs_of_full_support():
    """Pairs in both orders, labels drawn from σ(r_w − r_l), here as expected weights; β is the KL's weight."""
    reference = ENDS.policy(2, 0.7)
    pairs = ENDS.groups(2)
    share = torch.sigmoid(ENDS.reward[pairs[:, 0]] - ENDS.reward[pairs[:, 1]])
    algorithm = DPO(beta=BETA, update=ascent(learning_rate=0.3))
    policy = trained(algorithm, ENDS, reference, 60, size=2, share=share / share.sum())
    assert total_variation(ENDS.probability(policy), ENDS.optimum(reference, BETA)) <= 0.02


def own_fixed_point(reference, beta):
    """``π = β π_ref / (c − r)`` with the c > max r at which it sums to 1, by bisection."""
    low, high = WORD.reward.max().item(), WORD.reward.max().item() + 100.0 * beta
    for _ in range(200):
        c = (low + high) / 2
        low, high = (c, high) if (beta * reference / (c - WORD.reward)).sum() > 1 else (low, c)
    return beta * reference / (c - WORD.reward)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("estimator", ["k2", "k3"])
@pytest.mark.parametrize("advantage", [F.leave_one_out, group_centered])
def test_one_token_grpo_with_the_kl_in_the_objective(advantage, estimator, size):
    """k2 keeps π*, k3 has its own fixed point; the plain group mean turns β into β G/(G − 1)."""
    reference = WORD.policy(2, 0.7)
    algorithm = GRPO(advantage=advantage, kl_coef=BETA, kl_estimator=estimator, average_over="constant", update=ascent())
    policy = trained(algorithm, WORD, reference, 100, size=size)
    beta = BETA if advantage is F.leave_one_out else BETA * size / (size - 1)
    start = WORD.probability(reference).detach()
    wanted = {"k2": WORD.optimum(reference, beta), "k3": own_fixed_point(start, beta)}
    assert total_variation(wanted["k2"], wanted["k3"]) > 0.01
    assert total_variation(WORD.probability(policy), wanted[estimator]) <= 2e-3


def test_dividing_by_the_spread_moves_the_optimum_of_a_kl_in_the_objective_only():
    """With the penalty in the reward all scores are equal at π*, whatever divides them; else the spread of r divides β."""
    reference = WORD.policy(2, 0.7)
    wanted = WORD.optimum(reference, BETA)
    inside = trained(GRPO(**REWARD_KL, average_over="constant", update=ascent()), WORD, reference, 60, size=2)
    beside = trained(GRPO(kl_coef=BETA, kl_estimator="k2", average_over="constant", update=ascent()), WORD, reference, 60, size=2)
    assert total_variation(WORD.probability(inside), wanted) <= 0.01
    assert total_variation(WORD.probability(beside), wanted) > 0.1
