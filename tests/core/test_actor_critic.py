"""Online actor–critic against the boxes in plain loops, and the identities of FORMULAS section 5."""

import numpy as np
import pytest
import torch

from tests.core.recorded_steps import Linear, Recorded, start, transitions
from upslope import ContinuingActorCritic, Diverged, Evaluation, OnlineActorCritic, UsageError
from upslope.reference import actor_critic as reference
from upslope.reference.distributions import softmax

RATES = {"learning_rate": 0.05, "value_learning_rate": 0.1}
DECAYS = {"trace_decay": 0.7, "value_trace_decay": 0.4}


def learned(algorithm, recorded):
    """``(theta, w, state)`` after learning from these transitions."""
    policy = Linear(*start())
    state = algorithm.start(policy)
    algorithm.learn(policy, Recorded(recorded), state)
    return policy.theta.detach().numpy(), policy.w.detach().numpy(), state


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ends", ["-", "t", "c", "tc-", "cctt-"])
def test_one_step_is_the_box(ends):
    theta, w, _ = learned(OnlineActorCritic(gamma=0.9, **RATES), transitions(ends))
    expected = reference.one_step(*start(), transitions(ends), gamma=0.9, **RATES)
    close(theta, expected[0])
    close(w, expected[1])


@pytest.mark.parametrize("ends", ["-", "t", "c", "tc-", "cctt-"])
def test_traces_are_the_box(ends):
    theta, w, _ = learned(OnlineActorCritic(gamma=0.9, **RATES, **DECAYS), transitions(ends))
    expected = reference.with_traces(*start(), transitions(ends), gamma=0.9, **RATES, **DECAYS)
    close(theta, expected[0])
    close(w, expected[1])


@pytest.mark.parametrize("ends", ["-", "c", "cc-"])
def test_continuing_is_the_box(ends):
    algorithm = ContinuingActorCritic(average_reward_rate=0.02, **RATES, **DECAYS)
    theta, w, state = learned(algorithm, transitions(ends))
    expected = reference.continuing(*start(), transitions(ends), average_reward_rate=0.02, **RATES, **DECAYS)
    close(theta, expected[0])
    close(w, expected[1])
    assert state.average_reward == pytest.approx(expected[2], abs=1e-12)


def test_a_decay_of_0_is_one_step_to_the_bit():
    recorded = transitions("tctt-", length=40)
    theta, w, _ = learned(OnlineActorCritic(gamma=0.9, **RATES), recorded)
    policy, weight = Linear(*start()), 1.0
    for step in recorded:  # the one-step box without a trace, in the same arithmetic
        x, after = torch.tensor(step.x)[None], torch.tensor(step.next_x)[None]
        new = policy.evaluate(x, torch.tensor([step.action]))
        score = torch.autograd.grad(new.log_prob.sum(), policy.theta, retain_graph=True)[0]
        slope = torch.autograd.grad(new.value.sum(), policy.w)[0]
        with torch.no_grad():
            next_value = 0.0 if step.terminated else float(after @ policy.w)
            td_error = step.reward + 0.9 * next_value - new.value.item()
            policy.w.add_(slope, alpha=RATES["value_learning_rate"] * td_error)
            policy.theta.add_(weight * score, alpha=RATES["learning_rate"] * td_error)
        weight = 1.0 if step.terminated or step.truncated else weight * 0.9
    assert np.array_equal(theta, policy.theta.detach().numpy())
    assert np.array_equal(w, policy.w.detach().numpy())
    expected = reference.one_step(*start(), recorded, gamma=0.9, **RATES)
    zero = reference.with_traces(*start(), recorded, gamma=0.9, trace_decay=0.0, value_trace_decay=0.0, **RATES)
    assert all(np.array_equal(a, b) for a, b in zip(expected, zero, strict=True))


@pytest.mark.parametrize("discount_weight", [True, False])
@pytest.mark.parametrize("end", ["t", "c"])
def test_offline_updates_at_a_decay_of_1_are_monte_carlo(discount_weight, end):
    """``Σ_t γ^t ∇log π_t (G_t − v̂_t)`` and ``Σ_t ∇v̂_t (G_t − v̂_t)``, where G bootstraps at a cut."""
    gamma, recorded = 0.9, transitions(end, length=12)
    rates = {"learning_rate": 1.0, "value_learning_rate": 1.0, "trace_decay": 1.0, "value_trace_decay": 1.0}
    algorithm = OnlineActorCritic(gamma=gamma, discount_weight=discount_weight, **rates)
    theta, w = start()
    policy = Linear(theta, w)
    state = algorithm.start(policy)
    state.targets = [torch.zeros_like(p) for p in policy.parameters()]
    algorithm.learn(policy, Recorded(recorded), state)
    assert np.array_equal(policy.theta.detach().numpy(), theta)  # the policy stood still
    credit = 0.0 if end == "t" else float(recorded[-1].next_x @ w)
    sums = [np.zeros_like(theta), np.zeros_like(w)]
    for t in reversed(range(len(recorded))):
        x, action, reward = recorded[t][:3]
        credit = reward + gamma * credit
        advantage = credit - x @ w
        score = np.outer(x, np.eye(3)[action] - softmax(x @ theta))
        sums[0] += (gamma**t if discount_weight else 1.0) * score * advantage
        sums[1] += x * advantage
    for target, wanted in zip(state.targets, sums, strict=True):
        np.testing.assert_allclose(target.numpy(), wanted, rtol=0, atol=1e-10)


def test_the_length_of_an_iteration_changes_nothing():
    recorded = transitions("tct", length=7)
    whole = learned(OnlineActorCritic(gamma=0.9, **RATES, **DECAYS), recorded)
    policy, algorithm, stream = Linear(*start()), OnlineActorCritic(gamma=0.9, **RATES, **DECAYS), Recorded(recorded)
    state = algorithm.start(policy)
    stream.num_steps = 3
    for _ in range(7):
        algorithm.learn(policy, stream, state)
    assert np.array_equal(whole[0], policy.theta.detach().numpy())


def test_a_network_with_a_shared_trunk_moves_along_both_traces():
    class Shared(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.trunk, self.actor = torch.nn.Linear(4, 5).double(), torch.nn.Linear(5, 3).double()
            self.critic = torch.nn.Linear(5, 1).double()

        def evaluate(self, observation, action):
            hidden = torch.tanh(self.trunk(observation))
            log_prob = self.actor(hidden).log_softmax(-1)[0, action]
            return Evaluation(log_prob=log_prob, entropy=log_prob, value=self.critic(hidden).squeeze(-1))

    policy = Shared()
    algorithm = OnlineActorCritic(gamma=0.9, **RATES, **DECAYS)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    state = algorithm.start(policy)
    algorithm.learn(policy, Recorded(transitions("-", length=4)), state)
    assert all(not torch.equal(before[name], p) for name, p in policy.named_parameters())
    traces = zip(before, state.trace.z, state.value_trace.z, strict=True)
    reached = {name: (z is not None, v is not None) for name, z, v in traces}
    assert reached["trunk.weight"] == (True, True)
    assert reached["actor.weight"] == (True, False)
    assert reached["critic.weight"] == (False, True)


@pytest.mark.parametrize(
    "cls, name, value",
    [
        (OnlineActorCritic, "trace_decay", 1.5),
        (OnlineActorCritic, "value_trace_decay", -0.1),
        (OnlineActorCritic, "gamma", 2.0),
        (OnlineActorCritic, "learning_rate", -1.0),
        (ContinuingActorCritic, "trace_decay", 1.01),
        (ContinuingActorCritic, "average_reward_rate", -1.0),
    ],
)
def test_bad_settings_are_named(cls, name, value):
    with pytest.raises(UsageError, match=f"^{name}: expected a number .*found {value}"):
        cls(**{name: value})


def test_an_end_has_no_average_reward():
    with pytest.raises(UsageError, match="env: it terminated"):
        learned(ContinuingActorCritic(), transitions("t"))


def test_a_td_error_that_is_not_finite_stops_before_it_spoils_the_policy():
    policy = Linear(*start())
    algorithm = OnlineActorCritic(learning_rate=1e150, value_learning_rate=1e150)
    with pytest.raises(Diverged, match="the TD error is not finite at step"):
        algorithm.learn(policy, Recorded(transitions("-", length=100)), algorithm.start(policy))


def test_a_policy_without_a_critic_is_refused():
    policy = Linear(*start())
    critic = policy.evaluate
    policy.evaluate = lambda **inputs: type(critic(**inputs))(log_prob=critic(**inputs).log_prob, entropy=critic(**inputs).entropy)
    with pytest.raises(UsageError, match="value"):
        OnlineActorCritic().learn(policy, Recorded(transitions("t")), OnlineActorCritic().start(policy))
