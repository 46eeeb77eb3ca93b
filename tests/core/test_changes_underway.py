"""What a callback or a user may do to the objects of a run: nothing is silently undone or passed over, fast paths or not."""

from dataclasses import dataclass, replace

import pytest
import torch
from gymnasium import spaces
from torch import nn

from tests.core.toy import Bandit, Pulls
from upslope import A2C, PPO, REINFORCE, Ascent, Diverged, UsageError, control, train
from upslope.updates.state import MAX_SKIPPED

SPACES = spaces.Box(-1, 1, (3,)), spaces.Discrete(2)
FAST = pytest.mark.parametrize("fast", [True, False], ids=["fast", "readable"])


class Ones:
    """A collector for control policies without a world: random observations, reward 1 for action 1."""

    def __init__(self, rows=32):
        self.generator = torch.Generator().manual_seed(0)
        self.rows = rows

    def __call__(self, policy):
        inputs = {"observation": torch.randn(self.rows, 1, 3, generator=self.generator)}
        drawn = policy.sample(inputs, generator=self.generator)
        like = torch.zeros(self.rows, 1)
        ended = torch.ones(self.rows, 1, dtype=torch.bool)
        return control_rollout(inputs, drawn, like, ended)


def control_rollout(inputs, drawn, like, ended):
    from upslope.records import Rollout

    return Rollout(
        inputs={**inputs, "action": drawn.action},
        reward=drawn.action.float(),
        terminated=ended,
        truncated=~ended,
        mask=ended.clone(),
        behavior_log_prob=drawn.log_prob,
        value=like.clone(),
        next_value=like.clone(),
    )


def make():
    return control.MLPPolicy.for_envs(SPACES, hidden_sizes=(8,), seed=0), PPO(update=Ascent(learning_rate=0.01, num_epochs=2))


@FAST
def test_values_that_a_callback_assigns_stay_and_learn_on(fast):
    policy, algorithm = make()
    weight = policy.actor[0].weight  # neither the first nor the last tensor
    bias = policy.actor[0].bias
    seen = []

    def halve(state):
        seen.append(bias.detach().clone())
        if state.iteration == 2:
            bias.data = bias.detach().clone() + 1.0
            weight.data = weight.detach() * 0.5
            seen.append(bias.detach().clone())

    train(algorithm, policy, Ones(), iterations=4, callbacks=[halve], fast=fast)
    _, before, after, third, _ = seen
    assert torch.equal(after, before + 1.0)
    assert 0 < float((third - after).abs().max()) < 0.1  # neither forgotten nor stuck


@FAST
def test_a_policy_that_is_changed_by_hand_is_asked_as_it_is(fast):
    policy, algorithm = make()
    calls = []

    def hang(state):
        if state.iteration == 1:
            policy.actor[0].register_forward_hook(lambda *_: calls.append("hook"))
        if state.iteration == 2:
            calls.append("-")
            original = policy.evaluate
            policy.evaluate = lambda **inputs: calls.append("own") or original(**inputs)

    train(algorithm, policy, Ones(), iterations=3, callbacks=[hang], fast=fast)
    assert "hook" in calls[: calls.index("-")] and "own" in calls


@dataclass(frozen=True, kw_only=True)
class Mine(PPO):
    calls: list

    def objective(self, policy, batch):
        self.calls.append(1)
        return super().objective(policy, batch)


@FAST
def test_an_algorithm_that_a_callback_exchanges_is_the_one_that_runs(fast):
    policy, algorithm = make()
    mine = Mine(calls=[], update=algorithm.update)

    def exchange(state):
        state.algorithm = mine

    train(algorithm, policy, Ones(), iterations=2, callbacks=[exchange], fast=fast)
    assert len(mine.calls) == 2  # two epochs of one minibatch


@FAST
def test_freezing_underway_is_refused(fast):
    policy, algorithm = make()

    def freeze(state):
        policy.actor.requires_grad_(False)

    with pytest.raises(UsageError, match="frozen after training began"):
        train(algorithm, policy, Ones(), iterations=3, callbacks=[freeze], fast=fast)


@FAST
def test_a_gradient_that_is_not_finite_stops_the_run_before_it_moves_anything(fast):
    def root(log_prob, behavior_log_prob, advantage, mask, clip_range):
        ratio = (log_prob - behavior_log_prob).exp()
        return (ratio - 1.0).square().sqrt() * advantage  # finite, but its derivative at ratio 1 is 0/0

    for policy in (make()[0], control.ActorCritic(lambda n, k: nn.Linear(n, k), SPACES)):
        before = torch.cat([p.detach().reshape(-1) for p in policy.parameters()]).clone()
        algorithm = replace(make()[1], surrogate=root, value_coef=0.0)
        if policy.__class__ is control.ActorCritic:
            algorithm = REINFORCE(baseline=False, normalize_advantage=False, update=Ascent(max_grad_norm=None))
            policy.network.register_parameter("extra", nn.Parameter(torch.zeros(1)))
            policy.network.register_forward_hook(lambda m, _, out: out + (m.extra * 0.0).sqrt())
            before = torch.cat([p.detach().reshape(-1) for p in policy.parameters()]).clone()
        with pytest.raises(Diverged, match="the gradient is not finite at gradient step 1"):
            train(algorithm, policy, Ones(), iterations=MAX_SKIPPED, fast=fast)
        after = torch.cat([p.detach().reshape(-1) for p in policy.parameters()])
        assert torch.equal(before[:-1], after[:-1])  # the last one is the critic's bias, which follows the units of the returns


@FAST
@pytest.mark.parametrize("part", ["actor", "critic"])
def test_one_half_of_an_own_network_may_be_frozen(part, fast):
    class Network(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            self.actor, self.critic = nn.Linear(inputs, outputs), nn.Linear(inputs, 1)

        def forward(self, observation):
            return self.actor(observation), self.critic(observation).squeeze(-1)

    policy = control.ActorCritic(Network, SPACES, seed=0)
    getattr(policy.network, part).requires_grad_(False)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    train(PPO(), policy, Ones(), iterations=1, fast=fast)
    for name, p in policy.named_parameters():
        assert torch.equal(p, before[name]) is (part in name)


@FAST
def test_a_rollout_of_reset_steps_only_teaches_nothing(fast):
    policy, algorithm = make()

    class Resets(Ones):
        def __call__(self, given):
            rollout = super().__call__(given)
            nothing = torch.zeros_like(rollout.mask)
            return replace(rollout, mask=nothing, terminated=nothing, reward=torch.zeros_like(rollout.reward))

    before = policy.actor[0].weight.detach().clone()
    for kind in (algorithm, A2C(), REINFORCE()):
        state = train(kind, policy, Resets(), iterations=1, fast=fast)
        assert state.metrics["num_minibatches"] == 0.0
    assert torch.equal(before, policy.actor[0].weight)


@FAST
def test_a_surrogate_may_be_any_callable(fast):
    @dataclass  # not hashable
    class Scaled:
        factor: float

        def __call__(self, log_prob, behavior_log_prob, advantage, mask, clip_range):
            return self.factor * (log_prob - behavior_log_prob).exp() * advantage

    policy, algorithm = make()
    train(replace(algorithm, surrogate=Scaled(2.0)), policy, Ones(), iterations=1, fast=fast)


def test_micro_batches_of_sequences_report_what_the_whole_reports():
    outcomes = []
    for size in (None, 1, 3):
        policy = Bandit(torch.float64)
        algorithm = PPO(update=Ascent(learning_rate=0.05, num_epochs=3, micro_batch_size=size))
        batch = algorithm.estimate(policy, Pulls(unit="sequence")(policy))
        outcomes.append(algorithm.update(algorithm, policy, batch, algorithm.update.start(policy, seed=0)))
    assert outcomes[0]["approx_kl"] > 1e-6
    for other in outcomes[1:]:
        assert other == pytest.approx(outcomes[0], rel=1e-9, abs=1e-12)


def test_a_policy_need_not_be_a_module():
    class Plain:
        def __init__(self):
            self.inner = Bandit()
            self.sample, self.evaluate, self.parameters = self.inner.sample, self.inner.evaluate, self.inner.parameters

    policy = Plain()
    before = policy.inner.logits.detach().clone()
    train(PPO(), policy, Pulls(), iterations=1)
    assert not torch.equal(before, policy.inner.logits)


def test_an_adaptive_penalty_can_always_come_back():
    algorithm = PPO(kl_coef=1.0, adaptive_kl=1e9)
    policy = Bandit()
    batch = algorithm.estimate(policy, Pulls()(policy))
    for _ in range(1200):
        algorithm = algorithm.adapted(policy, batch)
    assert algorithm.kl_coef == 1e-12


def test_a_distribution_of_another_kind_is_refused_in_words():
    class Torch(Bandit):
        def distribution(self, *, action):
            return torch.distributions.Categorical(logits=self.logits.expand(*action.shape, 3))

    with pytest.raises(UsageError, match="distribution\\(\\) returned Categorical; return a dataclass"):
        train(PPO(kl_coef=1.0), Torch(), Pulls(), iterations=1)


@pytest.mark.parametrize("algorithm", [A2C, REINFORCE])
def test_one_pass_methods_refuse_several(algorithm):
    with pytest.raises(UsageError, match="num_epochs: this algorithm makes one pass"):
        algorithm(update=Ascent(num_epochs=2))


@pytest.mark.parametrize("clip_range", [[0.2, 0.3], (0.2,), True, "0.2"])
def test_a_clip_range_is_a_number_or_a_pair(clip_range):
    with pytest.raises(UsageError, match="clip_range: expected a number or a tuple"):
        PPO(clip_range=clip_range)


def test_advantages_without_spread_are_counted():
    policy, algorithm = Bandit(), PPO()
    rollout = Pulls()(policy)
    assert algorithm.estimate(policy, rollout).metrics["zero_spread"] == 0.0
    same = replace(rollout, reward=torch.zeros_like(rollout.reward))
    assert algorithm.estimate(policy, same).metrics["zero_spread"] == 1.0


def test_one_callback_needs_no_list():
    seen = []
    train(PPO(), Bandit(), Pulls(), iterations=3, callbacks=lambda state: seen.append(state.iteration) or state.iteration == 2)
    assert seen == [1, 2]


def test_a_policy_for_other_spaces_is_refused():
    envs = control.make("CartPole-v1", 2)
    with pytest.raises(UsageError, match="it was made for observation_space"):
        train(PPO(), make()[0], control.Steps(envs, 4), iterations=1)


def test_an_observation_that_is_not_finite_is_not_acted_on():
    with pytest.raises(UsageError, match="not finite"):
        make()[0].act([0.0, float("nan"), 0.0])
