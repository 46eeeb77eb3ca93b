"""The compiled objective and the compiled step below a user's own network, against the readable update."""

import copy
import math
import re
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import nn

from tests.fast.cases import close, close_to_rounding, make_batch, make_policy, twice, vector
from upslope import A2C, NPG, PPO, REINFORCE, TRPO, Ascent, Diverged, RunFault, UsageError, control
from upslope import functional as F
from upslope.fast.twins import fast_update
from upslope.fast.update import HeadAscent, HeadUpdate, critic_stretch
from upslope.updates import AscentState
from upslope.updates.state import MAX_SKIPPED

pytest.importorskip("llvmlite")
SEVERAL = Ascent(learning_rate=3e-3, num_epochs=3, num_minibatches=4)


class Network(nn.Module):
    """A trunk that actor and critic share, with a layer that the kernels do not know and one parameter that nothing reaches."""

    def __init__(self, inputs, outputs, critic):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(inputs, 12), nn.GELU(), nn.LayerNorm(12))
        self.actor, self.critic = nn.Linear(12, outputs), nn.Linear(12, 1) if critic else None
        self.unused = nn.Parameter(torch.zeros(3))

    def forward(self, observation):
        features = self.trunk(observation)
        return self.actor(features), None if self.critic is None else self.critic(features).squeeze(-1)


def own_policy(head="categorical", *, outputs=3, critic=True):
    like = make_policy(head, outputs=outputs)
    spaces = like.observation_space, like.action_space
    policy = control.ActorCritic(lambda inputs, size: Network(inputs, size, critic), spaces, log_std=0.0, seed=3)
    with torch.no_grad():
        for p in policy.parameters():
            p += 0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    return policy


def own_batch(policy, *arguments, **options):
    """As the cases make it, for a policy without ``actor``."""
    gaussian = policy.log_std is not None
    like = make_policy("gaussian" if gaussian else "categorical", outputs=policy.log_std.numel() if gaussian else policy.head.n)
    batch = make_batch(like, *arguments, **options)
    with torch.no_grad():
        new = policy.evaluate(**batch.inputs)
    hide = ~batch.mask
    value = None if new.value is None else new.value.masked_fill(hide, 0.0)
    return replace(batch, behavior_log_prob=new.log_prob.masked_fill(hide, 0.0), value=value)


def assert_equal_twins(algorithm, policy, batch, kind=HeadUpdate):
    outcomes = []
    for fast, own in zip((True, False), twice(policy), strict=True):
        step = fast_update(algorithm, own) if fast else algorithm.update
        assert isinstance(step, kind if fast else Ascent)
        state = algorithm.update.start(own, seed=5)
        outcomes.append((own, state, step(algorithm, own, batch, state)))
    (ours, our_state, our_metrics), (theirs, their_state, their_metrics) = outcomes
    assert close(vector(ours), vector(theirs), atol=4e-6)
    assert our_state.num_updates == their_state.num_updates > 0
    for a, b in zip(our_state.moments[0], their_state.moments[0], strict=True):
        assert close_to_rounding(a, b)
    assert our_metrics.keys() == their_metrics.keys()
    for name, value in our_metrics.items():
        assert close(value, their_metrics[name], atol=2e-6 * max(1.0, abs(value))), name  # sums of float32 terms
    return our_metrics


ALGORITHMS = {
    "ppo": PPO(update=SEVERAL),
    "everything": PPO(
        update=replace(SEVERAL, max_grad_norm=None),
        value_clip_range=0.1,
        dual_clip=1.2,
        entropy_coef=0.05,
        clip_range=(0.1, 0.02),
        value_coef=0.7,
    ),
    "importance": PPO(update=SEVERAL, surrogate=F.importance_weighted),
    "truncated score": PPO(update=SEVERAL, surrogate=F.truncated_score, clip_range=0.05),
    "a2c": A2C(entropy_coef=0.02),
    "reinforce": REINFORCE(),
    "no baseline": REINFORCE(baseline=False, update=replace(SEVERAL, num_epochs=1)),
}


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS.keys())
@pytest.mark.parametrize("head", ["categorical", "gaussian"])
def test_objectives(head, algorithm):
    policy = own_policy(head)
    assert_equal_twins(algorithm, policy, own_batch(policy, (150,)))


class Masking(Network):
    """It decides itself what is legal, and says so in its logits."""

    def __init__(self, inputs, outputs, critic, never):
        super().__init__(inputs, outputs, critic)
        self.never = never

    def forward(self, observation):
        logits, value = super().forward(observation)
        illegal = torch.zeros_like(logits, dtype=torch.bool)
        illegal[..., 1] = observation[..., 0] > 0
        return logits.masked_fill(illegal, self.never), value


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    "algorithm",
    [
        *(PPO(entropy_coef=0.1, update=SEVERAL), PPO(kl_coef=1.0, update=SEVERAL), PPO(surrogate=F.truncated_score, update=SEVERAL)),
        *(A2C(entropy_coef=0.1), REINFORCE(entropy_coef=0.1), TRPO(entropy_coef=0.1), NPG()),
    ],
    ids=["ppo", "kl", "truncated score", "a2c", "reinforce", "trpo", "npg"],
)
def test_logits_of_minus_infinity_are_impossible_actions(algorithm, fast):
    """As −1e8, whose probability is 0 too, and no NaN anywhere."""
    outcomes = []
    for never in (-1e8, -torch.inf):
        like = own_policy()
        spaces = like.observation_space, like.action_space
        policy = control.ActorCritic(partial(Masking, critic=True, never=never), spaces, seed=3)
        policy.load_state_dict(like.state_dict())
        before, batch = vector(policy), own_batch(policy, (150,))
        if isinstance(algorithm, PPO) and algorithm.kl_coef > 0:
            batch = replace(batch, behavior_parameters=policy.distribution(**batch.inputs).parameters.detach())
        # the recorded action is one that may be taken
        taken = torch.where((batch.inputs["observation"][..., 0] > 0) & (batch.inputs["action"] == 1), 2, batch.inputs["action"])
        batch = replace(batch, inputs={**batch.inputs, "action": taken})
        behavior = policy.evaluate(**batch.inputs).log_prob.detach().masked_fill(~batch.mask, 0.0)
        batch = replace(batch, behavior_log_prob=behavior)
        step = fast_update(algorithm, policy) if fast else algorithm.update
        metrics = step(algorithm, policy, batch, algorithm.update.start(policy, seed=5))
        assert all(math.isfinite(number) for number in metrics.values()), metrics
        assert metrics.get("accepted", 1.0) == 1.0 and not close(before, vector(policy), atol=1e-4)
        outcomes.append((vector(policy), metrics))
    (vectors, theirs), (found, ours) = outcomes
    assert torch.equal(found, vectors) and ours == theirs


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("algorithm", [PPO(), A2C(), REINFORCE(), TRPO()], ids=["ppo", "a2c", "reinforce", "trpo"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_state_without_a_legal_action_is_named(algorithm, fast, masked):
    """Whether the network rules all actions out, or all that the environment's mask leaves."""

    class Hopeless(Network):
        def forward(self, observation):
            logits, value = super().forward(observation)
            rows = (observation[..., :1] == 7.0).expand_as(logits).clone()
            if masked:
                rows[..., 2:] = False
            return logits.masked_fill(rows, -torch.inf), value

    like = own_policy()
    policy = control.ActorCritic(partial(Hopeless, critic=True), (like.observation_space, like.action_space), seed=3)
    batch = own_batch(policy, (50,), masked=0.0, zero_weight=0.0, action_mask=masked)
    inputs = {name: tensor.clone() for name, tensor in batch.inputs.items()}
    for row in (20, 31):
        inputs["observation"][row, 0] = 7.0
        inputs["action"][row] = 0
        if masked:
            inputs["action_mask"][row] = torch.arange(inputs["action_mask"].shape[-1]) < 2
    if isinstance(algorithm, PPO | A2C | REINFORCE):
        algorithm = replace(algorithm, update=replace(algorithm.update, num_epochs=1, num_minibatches=1))
    step = fast_update(algorithm, policy) if fast else algorithm.update
    with pytest.raises(RunFault) as info:
        step(algorithm, policy, replace(batch, inputs=inputs), algorithm.update.start(policy, seed=0))
    found = str(info.value)
    words = r"no legal action: .* logit of −∞ in 2 of 50 steps, for one where the observation is \[7, .*\] \(gradient step 1\); leave"
    assert re.match(words, found), found


@pytest.mark.parametrize(
    "critic, stretch", [((0, 1, 1, 0), (2, 7)), ((0, 0, 0, 1), (9, 5)), ((), (0, 0)), ((0, 0, 0, 0), (0, 0)), ((1, 0, 1, 0), None)]
)
def test_the_stretch_of_the_critic_that_is_clipped_by_itself(critic, stretch):
    parameters = tuple(nn.Parameter(torch.zeros(size)) for size in (2, 3, 4, 5))
    state = AscentState.of(parameters, None, seed=0, learning_rate=0.1, critic=tuple(map(bool, critic)))
    assert critic_stretch(state) == stretch


def test_a_critic_that_is_clipped_by_itself():
    like = own_policy()
    spaces = like.observation_space, like.action_space
    policy = control.ActorCritic(lambda inputs, size: Network(inputs, size, True), spaces, seed=3)
    batch = own_batch(policy)
    outcomes = []
    for fast in (True, False):
        own = control.ActorCritic(lambda inputs, size: Network(inputs, size, True), spaces, seed=3)
        own.critic_parameters = lambda own=own: tuple(own.network.critic.parameters())
        algorithm = PPO(value_coef=30.0, update=replace(SEVERAL, max_grad_norm=0.1))
        step = fast_update(algorithm, own) if fast else algorithm.update
        state = algorithm.update.start(own, seed=5)
        assert any(state.critic)
        step(algorithm, own, batch, state)
        outcomes.append(vector(own))
    assert close(*outcomes, atol=4e-6)


def test_action_masks():
    policy = own_policy(outputs=6)
    batch = own_batch(policy, (90,), action_mask=True)
    assert_equal_twins(PPO(update=SEVERAL, entropy_coef=0.1), policy, batch)


@pytest.mark.parametrize("unit,shape", [("sequence", (9, 5)), ("group", (4, 3, 5))])
def test_units(unit, shape):
    policy = own_policy("gaussian")
    batch = own_batch(policy, shape, unit=unit, masked=0.3)
    assert_equal_twins(PPO(update=Ascent(learning_rate=3e-3, num_epochs=2, num_minibatches=2)), policy, batch)


def test_without_a_critic():
    policy = own_policy(critic=False)
    assert_equal_twins(REINFORCE(baseline=False), policy, own_batch(policy))
    with pytest.raises(UsageError, match="value"):
        fast_update(A2C(), policy)(A2C(), policy, replace(own_batch(policy), value=None), A2C().update.start(policy, seed=0))


def test_target_kl_stops_both_at_the_same_minibatch():
    policy = own_policy()
    algorithm = PPO(surrogate=F.importance_weighted, update=Ascent(num_epochs=20, num_minibatches=2, learning_rate=3e-3, target_kl=0.01))
    metrics = assert_equal_twins(algorithm, policy, own_batch(policy, (150,)))
    assert 2 < metrics["num_minibatches"] < 40


def mine(log_prob, behavior_log_prob, advantage, mask, clip_range):
    return (log_prob - behavior_log_prob).exp() * advantage


def cumulative(log_prob, behavior_log_prob, advantage, mask, clip_range):
    return (log_prob - behavior_log_prob).exp() * advantage.cumsum(-1)


@dataclass(frozen=True, kw_only=True)
class OwnObjective(PPO):
    def objective(self, policy, batch):
        value, metrics = super().objective(policy, batch)
        return 2.0 * value, metrics


@pytest.mark.parametrize("algorithm", [PPO(surrogate=mine, update=SEVERAL), OwnObjective(update=SEVERAL)])
@pytest.mark.parametrize("head", ["categorical", "gaussian"])
def test_an_own_objective_is_compiled_too(head, algorithm, monkeypatch):
    monkeypatch.setattr(HeadAscent.__bases__[0], "backward", readable := Counted(Ascent.backward))
    monkeypatch.setattr("upslope.fast.agreement.fingerprint", lambda functions: None)  # counting is an edit, but changes nothing
    policy = own_policy(head)
    algorithm = replace(algorithm, update=replace(SEVERAL, target_kl=None))
    assert_equal_twins(algorithm, policy, own_batch(policy))
    assert readable.calls == 12, "the update itself calls it, the twin does not"


@pytest.mark.parametrize("algorithm", [PPO(kl_coef=1.0, update=SEVERAL), PPO(surrogate=cumulative, update=SEVERAL)])
def test_what_cannot_be_compiled_runs_as_it_is_written(algorithm):
    policy = own_policy()
    assert_equal_twins(algorithm, policy, own_batch(policy))


class Counted:
    """A method, and how often it was called."""

    def __init__(self, method):
        self.method, self.calls = method, 0

    def __get__(self, instance, owner):
        def call(*arguments, **options):
            self.calls += 1
            return self.method(instance, *arguments, **options)

        return call


class Doubled(control.ActorCritic):
    def evaluate(self, **inputs):
        new = super().evaluate(**inputs)
        return replace(new, log_prob=2.0 * new.log_prob)


def test_a_policy_that_scores_in_its_own_way_is_asked():
    like = own_policy()
    policy = Doubled(like.network, (like.observation_space, like.action_space))
    algorithm = PPO()
    assert fast_update(algorithm, policy) is algorithm.update


def test_micro_batches_change_nothing_and_save_memory(monkeypatch):
    monkeypatch.setattr(HeadAscent, "slopes", None)  # it works on whole minibatches
    policy = own_policy()
    algorithm = PPO(update=replace(SEVERAL, micro_batch_size=7))
    assert_equal_twins(algorithm, policy, own_batch(policy))


@pytest.mark.parametrize("kind", ["double", "columns"])
def test_what_the_kernel_cannot_read_goes_to_the_readable_objective(kind, monkeypatch):
    policy = own_policy()
    batch = own_batch(policy)
    if kind == "columns":
        batch = replace(batch, advantage=batch.advantage.double())
    else:
        forward = Network.forward
        monkeypatch.setattr(Network, "forward", lambda self, x: tuple(t.double() for t in forward(self, x)))
    seen = []
    monkeypatch.setattr(HeadAscent, "slopes", lambda *arguments: seen.append(arguments))
    assert_equal_twins(PPO(), policy, batch)
    assert not seen


def test_faults_are_the_same():
    policy = own_policy()
    batch = own_batch(policy, masked=0.0, zero_weight=0.0)
    away = replace(batch, behavior_log_prob=batch.behavior_log_prob - 0.1)
    broken = replace(batch, advantage=batch.advantage.clone())
    broken.advantage[3] = torch.nan
    algorithm = PPO(update=Ascent())
    for given, error in ((away, RunFault), (broken, Diverged)):
        said = []
        for fast in (True, False):
            own = copy.deepcopy(policy)
            step = fast_update(algorithm, own) if fast else algorithm.update
            state = algorithm.update.start(own, seed=0)
            state.skipped = MAX_SKIPPED - 1
            with pytest.raises(error) as info:
                step(algorithm, own, given, state)
            said.append(str(info.value))
        assert said[0] == said[1]


def test_parameters_that_were_moved_away_are_brought_back():
    policy = own_policy()
    algorithm = PPO(update=SEVERAL)
    before, (ours, theirs), batch = vector(policy), twice(policy), own_batch(policy)
    for own, step in ((ours, fast_update(algorithm, ours)), (theirs, algorithm.update)):
        state = algorithm.update.start(own, seed=5)
        for p in own.parameters():
            p.data = p.data.clone()
        step(algorithm, own, batch, state)
    assert close(vector(ours), vector(theirs), atol=4e-6)
    assert not close(vector(ours), before, atol=1e-4)
