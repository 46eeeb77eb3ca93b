"""Off-policy estimators: their expectation over everything that a behavior policy may do, against exact gradients."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.core.toy import Bandit, Pulls
from upslope import A2C, OffPolicyGradient, RunFault, UsageError
from upslope import functional as F
from upslope.algorithms.off_policy import ESTIMATORS
from upslope.records import Evaluation, Rollout
from upslope.updates import Ascent

STATES, ACTIONS, HORIZON = 2, 2, 3
GENERATOR = torch.Generator().manual_seed(5)
TRANSITION = torch.rand(STATES, ACTIONS, STATES + 1, generator=GENERATOR, dtype=torch.float64)  # the last one ends the episode
TRANSITION = TRANSITION / TRANSITION.sum(-1, keepdim=True)
REWARD = torch.randn(STATES, ACTIONS, generator=GENERATOR, dtype=torch.float64)
BEHAVIOR = torch.tensor([[0.8, 0.2], [0.35, 0.65]], dtype=torch.float64)


class Softmax(nn.Module):
    """One row of preferences for each state."""

    def __init__(self):
        super().__init__()
        self.preferences = nn.Parameter(torch.tensor([[0.4, -0.2], [-0.5, 0.9]], dtype=torch.float64))

    def probabilities(self):
        return self.preferences.softmax(-1)

    def evaluate(self, *, observation, action):
        logits = self.preferences[observation]
        return Evaluation(log_prob=F.categorical_log_prob(logits, action), entropy=F.categorical_entropy(logits))


def values(policy, gamma):
    """``(V [H + 1, S], Q [H, S, A])`` with h steps done, by recursion; nothing is left after ``HORIZON`` steps."""
    value, q = [torch.zeros(STATES, dtype=torch.float64)], []
    for _ in range(HORIZON):
        q.insert(0, REWARD + gamma * TRANSITION[..., :STATES] @ value[0])
        value.insert(0, (policy * q[0]).sum(-1))
    return torch.stack(value), torch.stack(q)


def visits(policy):
    """How likely the state is s after h steps, ``[H, S]``, from state 0."""
    found = [torch.tensor([1.0, 0.0], dtype=torch.float64)]
    for _ in range(HORIZON - 1):
        found.append(torch.einsum("s,sa,san->n", found[-1], policy, TRANSITION[..., :STATES]))
    return torch.stack(found)


def exact_gradient(policy, gamma):
    """∇J by autograd through the recursion."""
    return torch.autograd.grad(values(policy.probabilities(), gamma)[0][0, 0], policy.preferences)[0]


def action_value_gradient(policy, q):
    """``Σ_h Σ_s d^b_h(s) Σ_a Q_h(s, a) ∇π(a|s)``."""
    total = torch.einsum("hs,hsa,sa->", visits(BEHAVIOR), q.detach(), policy.probabilities())
    return torch.autograd.grad(total, policy.preferences)[0]


def everything(gamma, critic=None):
    """Every trajectory that the behavior policy may take, one row each, and how likely it is; the critic's values where one is given."""
    rows = []
    for length in range(1, HORIZON + 1):
        for actions in itertools.product(range(ACTIONS), repeat=length):
            for later in itertools.product(range(STATES), repeat=length - 1):
                states = (0, *later)
                moves = zip(states, actions, (*later, STATES), strict=True)
                probability = math.prod(float(BEHAVIOR[s, a] * TRANSITION[s, a, n]) for s, a, n in moves)
                if length == HORIZON:  # it ends here, wherever it would have gone
                    probability /= float(TRANSITION[states[-1], actions[-1], STATES])
                rows.append((probability, states, actions))
    probability = torch.tensor([p for p, *_ in rows], dtype=torch.float64)
    assert float(probability.sum()) == pytest.approx(1.0, abs=1e-12)
    length = torch.tensor([len(a) for *_, a in rows])
    column = torch.arange(HORIZON)
    mask = column < length.unsqueeze(1)
    observation = torch.tensor([[*s, *[0] * (HORIZON - len(s))] for _, s, _ in rows])
    action = torch.tensor([[*a, *[0] * (HORIZON - len(a))] for *_, a in rows])
    ended = column == length.unsqueeze(1) - 1
    value = next_value = None
    if critic is not None:
        value = critic[column, observation]
        next_value = torch.cat([value[:, 1:], torch.zeros_like(value[:, :1])], 1)
    return probability, Rollout(
        inputs={"observation": observation, "action": action},
        reward=REWARD[observation, action].masked_fill(~mask, 0.0),
        terminated=ended,
        truncated=torch.zeros_like(ended),
        mask=mask,
        behavior_log_prob=BEHAVIOR[observation, action].log(),
        value=value,
        next_value=next_value,
        unit="sequence",
    )


def expected_gradient(policy, gamma, *, critic=None, **settings):
    """E_b of the gradient of the objective at the policy as it is."""
    algorithm = OffPolicyGradient(gamma=gamma, scale_advantage=False, value_coef=0.0, **settings)
    probability, rollout = everything(gamma, critic)
    batch = replace(algorithm.estimate(policy, rollout), returns=None)
    batch = replace(batch, weight=probability.unsqueeze(1) * rollout.mask)
    return torch.autograd.grad(algorithm.objective(policy, batch)[0], policy.preferences)[0]


def close(found, expected):
    assert torch.allclose(found, expected, rtol=0, atol=1e-10), (found, expected)


@pytest.mark.parametrize("gamma", [0.8, 1.0])
@pytest.mark.parametrize("estimator", ["trajectory", "per-decision", "truncated"])
def test_weights_of_whole_episodes_give_the_gradient_of_j(estimator, gamma):
    policy = Softmax()
    exact = exact_gradient(policy, gamma)
    options = {"estimator": ESTIMATORS[estimator], "ratio_cap": None}
    close(expected_gradient(policy, gamma, baseline=False, **options), exact)
    made_up = torch.randn(HORIZON + 1, STATES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    close(expected_gradient(policy, gamma, critic=made_up, **options), exact)


def test_a_cap_that_is_reached_biases_the_truncated_estimator():
    policy = Softmax()
    options = {"estimator": ESTIMATORS["truncated"], "baseline": False}
    exact = exact_gradient(policy, 0.9)
    close(expected_gradient(policy, 0.9, ratio_cap=1e3, **options), exact)
    assert (expected_gradient(policy, 0.9, ratio_cap=1.5, **options) - exact).abs().max() > 0.01


def test_per_step_ratios_give_another_gradient():
    """With the behavior policy's returns that of Σ d^b Σ π Q^b; with an exact critic (V-trace at λ = 0, uncapped) Σ d^b Σ Q^π ∇π."""
    policy, gamma = Softmax(), 0.9
    exact = exact_gradient(policy, gamma)
    with torch.no_grad():
        q_behavior = values(BEHAVIOR, gamma)[1]
        value, q = values(policy.probabilities(), gamma)
    found = expected_gradient(policy, gamma, estimator=ESTIMATORS["per-step"], baseline=False)
    close(found, action_value_gradient(policy, q_behavior))
    assert (found - exact).abs().max() > 0.01
    for trace_lambda in (0.0, 1.0):
        found = expected_gradient(policy, gamma, critic=value, trace_lambda=trace_lambda, ratio_cap=None, trace_cap=None)
        close(found, action_value_gradient(policy, q))
        assert (found - exact).abs().max() > 0.01


def test_on_policy_vtrace_is_a2c():
    policy = Bandit(torch.float64)
    rollout = Pulls()(policy)
    rollout = replace(rollout, value=torch.full((4, 6), 0.7).double(), next_value=torch.full((4, 6), 0.7).double())
    plain = {"gamma": 0.9, "value_coef": 0.3, "entropy_coef": 0.01}
    gradients = []
    for algorithm in (
        A2C(gae_lambda=0.8, normalize_advantage=False, **plain),
        OffPolicyGradient(trace_lambda=0.8, scale_advantage=False, **plain),
    ):
        policy.zero_grad()
        algorithm.objective(policy, algorithm.estimate(policy, rollout))[0].backward()
        gradients.append(torch.cat([p.grad.reshape(-1) for p in policy.parameters()]))
    assert torch.allclose(*gradients, rtol=0, atol=1e-12)


def lagging(shift=0.5):
    """A policy, and a recording by what it was before."""
    policy = Bandit(torch.float64)
    rollout = Pulls()(policy)
    with torch.no_grad():
        policy.logits += torch.tensor([shift, 0.0, -shift])
    return policy, rollout


def test_the_update_starts_where_the_policy_is():
    policy, rollout = lagging()
    before = policy.logits.detach().clone()
    algorithm = OffPolicyGradient(update=Ascent(learning_rate=0.01, num_epochs=3, num_minibatches=2))
    batch = algorithm.estimate(policy, rollout)
    assert torch.equal(batch.behavior_log_prob, policy.evaluate(**rollout.inputs).log_prob.detach())
    metrics = algorithm.update(algorithm, policy, batch, algorithm.update.start(policy, seed=0))  # asserts that the first ratio is 1
    assert metrics["num_minibatches"] == 6
    assert not torch.equal(policy.logits, before)


def test_a_clip_range_bounds_the_way_from_where_the_update_began():
    """``min(ρ Â, clip(ρ) Â)`` with ρ = π/π_old: the same gradient at π_old, none for ratios beyond the range; without it, any way."""
    policy, rollout = lagging()
    free, clipped = OffPolicyGradient(value_coef=0.0), OffPolicyGradient(value_coef=0.0, clip_range=(0.1, 0.3))
    batch = clipped.estimate(policy, rollout)

    def gradient(algorithm):
        objective, metrics = algorithm.objective(policy, batch)
        return torch.autograd.grad(objective, policy.logits)[0], metrics["clip_fraction"]

    assert torch.equal(gradient(free)[0], gradient(clipped)[0])
    with torch.no_grad():
        policy.logits += torch.tensor([1.0, 0.0, -1.0])
    ratio = (policy.evaluate(**rollout.inputs).log_prob - batch.behavior_log_prob).exp()
    advantage = batch.advantage
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.9, 1.3) * advantage)
    expected = torch.autograd.grad((surrogate * batch.weight)[batch.mask].sum(), policy.logits)[0]
    found, clip_fraction = gradient(clipped)
    torch.testing.assert_close(found, expected)
    assert clip_fraction > 0.5 and gradient(free)[1] == 0.0 and not torch.allclose(gradient(free)[0], expected, atol=1e-3)


def test_what_is_logged():
    policy, rollout = lagging()
    ratio = (policy.evaluate(**rollout.inputs).log_prob - rollout.behavior_log_prob).exp().detach()[rollout.mask]
    metrics = OffPolicyGradient().estimate(policy, rollout).metrics
    assert metrics["ratio_mean"] == pytest.approx(ratio.mean().item())
    assert metrics["ratio_max"] == pytest.approx(ratio.max().item())
    assert metrics["capped_fraction"] == pytest.approx((ratio > 1).double().mean().item())
    clipped = ratio.clamp(max=1.0)
    assert metrics["effective_sample_size"] == pytest.approx((clipped.sum() ** 2 / clipped.square().sum()).item())
    metrics = OffPolicyGradient(estimator=ESTIMATORS["per-step"]).estimate(policy, rollout).metrics
    assert metrics["effective_sample_size"] == pytest.approx((ratio.sum() ** 2 / ratio.square().sum()).item())
    assert metrics["capped_fraction"] == 0.0


def test_scaled_advantages_keep_their_directions():
    policy, rollout = lagging()
    plain = OffPolicyGradient(scale_advantage=False).estimate(policy, rollout).advantage[rollout.mask]
    scaled = OffPolicyGradient().estimate(policy, rollout).advantage[rollout.mask]
    assert torch.allclose(scaled, plain / plain.square().mean().sqrt(), rtol=0, atol=1e-12)
    still = replace(rollout, reward=torch.zeros_like(rollout.reward), value=torch.zeros_like(rollout.reward))
    assert not OffPolicyGradient().estimate(policy, still).advantage.any()


def test_who_sampled_is_the_behavior_policy():
    policy, rollout = lagging()
    own = policy.evaluate(**rollout.inputs).log_prob.detach()
    moved = replace(rollout, sampler_log_prob=rollout.behavior_log_prob, behavior_log_prob=own)
    batch, expected = (OffPolicyGradient().estimate(policy, r) for r in (moved, rollout))
    assert torch.equal(batch.advantage, expected.advantage)
    assert batch.sampler_log_prob is None


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_an_action_that_the_policy_never_takes_teaches_nothing(estimator):
    policy, rollout = lagging()
    with torch.no_grad():
        policy.logits[2] = -math.inf
    algorithm = OffPolicyGradient(estimator=ESTIMATORS[estimator], entropy_coef=0.0)
    batch = algorithm.estimate(policy, rollout)
    taken = rollout.inputs["action"] == 2
    assert (taken & rollout.mask).any()
    assert not batch.mask[taken].any() and not batch.weight[taken].any()
    algorithm.objective(policy, batch)[0].backward()
    assert policy.logits.grad[:2].isfinite().all()


def test_bad_input_is_one_clear_line():
    policy, rollout = lagging()
    impossible = rollout.behavior_log_prob.clone()
    impossible[2, 3] = -math.inf
    with pytest.raises(UsageError, match=r"behavior_log_prob: expected finite numbers, found -inf at row \(2, 3\); a recorded action"):
        OffPolicyGradient().estimate(policy, replace(rollout, behavior_log_prob=impossible))
    blind = replace(rollout, value=None, next_value=None)
    for algorithm in (OffPolicyGradient(), OffPolicyGradient(estimator=ESTIMATORS["trajectory"])):
        with pytest.raises(UsageError, match="needs a critic"):
            algorithm.estimate(policy, blind)
    assert OffPolicyGradient(estimator=ESTIMATORS["trajectory"], baseline=False).estimate(policy, blind).returns is None
    far = replace(rollout, behavior_log_prob=torch.full_like(rollout.reward, -300.0))
    with pytest.raises(RunFault, match="importance weights: a product of ratios is no longer finite"):
        OffPolicyGradient(estimator=ESTIMATORS["trajectory"]).estimate(policy, far)
    assert OffPolicyGradient().estimate(policy, far).metrics["capped_fraction"] == 1.0
    for settings, message in (
        ({"gamma": 1.1}, "gamma: expected a number in"),
        ({"trace_lambda": -0.1}, "trace_lambda: expected a number in"),
        ({"ratio_cap": 0.0}, "ratio_cap: expected a number > 0 or none, found 0.0"),
        ({"trace_cap": 2.0}, "trace_cap: expected at most ratio_cap, which is 1.0, found 2.0"),
        ({"trace_cap": None}, "trace_cap: expected at most ratio_cap, which is 1.0, found none"),
        ({"value_coef": -1.0}, "value_coef: expected a number ≥ 0"),
        ({"clip_range": -0.2}, "clip_range: expected low in"),
        ({"clip_range": "0.2"}, "clip_range: expected a number or a tuple"),
    ):
        with pytest.raises(UsageError, match=message):
            OffPolicyGradient(**settings)
