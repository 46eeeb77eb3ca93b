"""The generic update against textbook Adam, micro-batches, stops, schedules and refusals."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.core.toy import Bandit, Pulls
from upslope import A2C, PPO, REINFORCE, Ascent, Diverged, RunFault, UsageError
from upslope.updates import FlatParameters, linear
from upslope.updates.state import MAX_SKIPPED


def vector(policy: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in policy.parameters()]).clone()


def updated(algorithm, dtype=torch.float32, unit="step", updates=2):
    policy = Bandit(dtype)
    collect = Pulls(unit=unit)
    state = algorithm.update.start(policy, seed=3)
    for _ in range(updates):
        metrics = algorithm.update(algorithm, policy, algorithm.estimate(policy, collect(policy)), state)
    return vector(policy), metrics, state


def by_hand(algorithm, updates=2):
    """The same with torch's Adam, clip_grad_norm_ and an explicit minus sign, minibatches included."""
    policy, collect, update = Bandit(), Pulls(), algorithm.update
    adam = torch.optim.Adam(policy.parameters(), lr=update.learning_rate, eps=update.eps)
    generator = torch.Generator().manual_seed(3)
    for _ in range(updates):
        batch = algorithm.estimate(policy, collect(policy)).by_unit()
        for _ in range(update.num_epochs):
            for units in torch.randperm(batch.num_units, generator=generator).tensor_split(update.num_minibatches):
                adam.zero_grad()
                part = batch.select(units)
                loss = -algorithm.objective(policy, part)[0] * batch.num_units / len(units)
                loss.backward()
                nn.utils.clip_grad_norm_(policy.parameters(), update.max_grad_norm)
                adam.step()
    return vector(policy)


@pytest.mark.parametrize(
    "algorithm",
    [
        PPO(update=Ascent(learning_rate=0.01, num_epochs=3, num_minibatches=3)),
        PPO(update=Ascent(learning_rate=0.01, max_grad_norm=0.01)),
        A2C(update=Ascent(learning_rate=0.01)),
        REINFORCE(update=Ascent(learning_rate=0.01)),
    ],
)
def test_an_update_is_adam_on_minus_the_objective(algorithm):
    ours, _, state = updated(algorithm)
    assert state.flat is not None
    assert torch.allclose(ours, by_hand(algorithm), rtol=0, atol=1e-6)


def test_one_step_climbs():
    algorithm = PPO(update=Ascent(learning_rate=1e-3))
    policy = Bandit(torch.float64)
    batch = algorithm.estimate(policy, Pulls()(policy))
    before = algorithm.objective(policy, batch)[0].item()
    algorithm.update(algorithm, policy, batch, algorithm.update.start(policy, seed=0))
    assert algorithm.objective(policy, batch)[0].item() > before


@pytest.mark.parametrize("unit,size", [("step", 1), ("step", 5), ("sequence", 1), ("sequence", 3)])
def test_micro_batches_never_change_a_result(unit, size):
    whole, metrics, _ = updated(PPO(update=Ascent(num_minibatches=2)), torch.float64, unit)
    pieces, piece_metrics, _ = updated(PPO(update=Ascent(num_minibatches=2, micro_batch_size=size)), torch.float64, unit)
    assert torch.allclose(whole, pieces, rtol=0, atol=1e-12)
    assert piece_metrics == pytest.approx(metrics, abs=1e-12)  # rows are of unlike lengths: their means weigh by steps, not by rows


class Twice(nn.Module):
    """Two parameters that only ever appear as a sum: autograd hands out one gradient for both. Float64, so nothing is flat."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)) for _ in range(2))
        self.value = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    sample, inner = Bandit.sample, Bandit.evaluate

    @property
    def logits(self):
        return self.a + self.b

    def evaluate(self, **inputs):
        return self.inner(**inputs)


@pytest.mark.parametrize("size", [None, 3])
def test_a_gradient_that_two_parameters_share_is_counted_once_for_each(size):
    """Gradients are clipped and added in place, so each parameter needs its own."""
    policy, adam_policy = Twice(), Twice()
    algorithm = PPO(update=Ascent(learning_rate=0.01, max_grad_norm=0.01, micro_batch_size=size))
    batch = algorithm.estimate(policy, Pulls()(policy)).by_unit()
    algorithm.update(algorithm, policy, batch, algorithm.update.start(policy, seed=0))
    adam = torch.optim.Adam(adam_policy.parameters(), lr=0.01, eps=algorithm.update.eps)
    (-algorithm.objective(adam_policy, batch)[0]).backward()
    nn.utils.clip_grad_norm_(adam_policy.parameters(), 0.01)
    adam.step()
    torch.testing.assert_close(vector(policy), vector(adam_policy), rtol=0, atol=1e-9)


def test_the_epochs_stop_once_the_kl_exceeds_its_target():
    eager = Ascent(learning_rate=0.5, num_epochs=50, target_kl=None)
    _, without, _ = updated(PPO(update=eager), updates=1)
    _, with_target, _ = updated(PPO(update=Ascent(learning_rate=0.5, num_epochs=50, target_kl=0.01)), updates=1)
    assert without["num_minibatches"] == 50
    assert 1 <= with_target["num_minibatches"] < 50


def test_a_first_ratio_other_than_one_is_a_fault():
    policy, algorithm = Bandit(), PPO()
    batch = algorithm.estimate(policy, Pulls()(policy))
    with torch.no_grad():
        policy.logits += torch.tensor([0.1, 0.0, -0.1])
    with pytest.raises(RunFault, match="expected 1 on the first minibatch"):
        algorithm.update(algorithm, policy, batch, algorithm.update.start(policy, seed=0))


def test_a_non_finite_objective_stops_before_the_step_and_names_the_tensor():
    policy, algorithm = Bandit(), PPO(update=Ascent())
    batch = algorithm.estimate(policy, Pulls()(policy))
    batch.returns[0, 0] = math.inf
    before, state = vector(policy), algorithm.update.start(policy, seed=0)
    state.skipped = MAX_SKIPPED - 1
    with pytest.raises(Diverged, match="returns is not finite at gradient step 1") as caught:
        algorithm.update(algorithm, policy, batch, state)
    assert torch.equal(vector(policy), before)
    assert torch.isinf(caught.value.batch.returns).sum() == 1


def test_a_step_that_is_not_finite_is_left_out_and_the_fifth_in_a_row_ends_the_run():
    policy, algorithm = Bandit(), PPO(update=Ascent(num_minibatches=8, target_kl=None))
    good = algorithm.estimate(policy, Pulls()(policy))
    one = replace(good, returns=good.returns.clone())
    one.returns[0, 0] = math.inf
    state = algorithm.update.start(policy, seed=0)
    metrics = algorithm.update(algorithm, policy, one, state)
    assert (metrics["skipped_steps"], metrics["num_minibatches"], state.num_updates) == (1.0, 7.0, 7)
    assert all(map(math.isfinite, metrics.values()))
    state.skipped = 0
    every = replace(good, returns=torch.full_like(good.returns, math.inf))
    before = vector(policy)
    with pytest.raises(Diverged):
        algorithm.update(algorithm, policy, every, state)
    assert state.skipped == MAX_SKIPPED
    assert torch.equal(vector(policy), before)


def test_the_schedule_moves_the_learning_rate():
    update = Ascent(learning_rate=0.1, schedule=linear)
    state = update.start(Bandit(), seed=0)
    update.set_fraction(state, 0.75)
    assert state.learning_rate == pytest.approx(0.025)


def test_flat_parameters_are_views_and_follow_only_plain_modules():
    module = nn.Linear(3, 2)
    before = vector(module)
    flat = FlatParameters.of(module)
    assert torch.equal(flat.data, before)
    flat.data.zero_()
    assert not module.weight.any()
    module.weight.data = torch.ones(2, 3)
    flat.rebind()
    assert flat.data[:6].eq(1).all() and not flat.data[6:].any()
    flat.data.fill_(2.0)
    assert module.weight.eq(2).all() and module.bias.eq(2).all()
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    assert FlatParameters.of(tied) is None
    assert FlatParameters.of(nn.Linear(2, 2, dtype=torch.float64)) is None


@pytest.mark.parametrize(
    "build,message",
    [
        (lambda: Ascent(learning_rate=-1.0), "learning_rate: expected a number ≥ 0, found -1.0"),
        (lambda: Ascent(num_epochs=0), "num_epochs: expected an integer from 1 to 1000000"),
        (lambda: Ascent(target_kl=0.0), "target_kl: expected a number > 0 or none"),
        (lambda: PPO(gamma=1.5), "gamma: expected a number in \\[0, 1\\], found 1.5"),
        (lambda: PPO(clip_range=(0.2, -0.1)), "clip_range"),
        (lambda: PPO(dual_clip=0.5), "dual_clip: expected a number > 1"),
        (lambda: PPO(adaptive_kl=0.01), "adaptive_kl: it adapts kl_coef, which is 0"),
        (lambda: A2C(value_coef=-1.0), "value_coef: expected a number ≥ 0"),
        (lambda: Ascent().start(nn.Identity(), seed=0), "policy: it has no trainable parameter"),
    ],
)
def test_bad_settings_are_refused_in_one_line(build, message):
    with pytest.raises(UsageError, match=message):
        build()
