"""Batches: units, minibatches that add up, and records that refuse wrong shapes."""

import pytest
import torch

from tests.core.toy import Bandit, Pulls
from upslope import A2C, GRPO, PPO, REINFORCE, RLOO, TRPO, Ascent, OffPolicyGradient, train
from upslope.errors import UsageError
from upslope.records import Batch, Rollout


def batch_of(unit: str = "step") -> Batch:
    policy = Bandit()
    return PPO().estimate(policy, Pulls(unit=unit)(policy))


def test_units_are_steps_or_sequences_and_empty_ones_are_left_out():
    batch = batch_of()
    assert batch.mask.shape == (4, 6)
    assert batch.by_unit().mask.shape == (int(batch.mask.sum()),)
    assert batch_of("sequence").by_unit().mask.shape == (4, 6)
    with pytest.raises(ValueError, match="unit 'group' needs at least 2 axes"):
        Batch(
            inputs={}, behavior_log_prob=torch.zeros(3), mask=torch.ones(3, dtype=torch.bool), weight=torch.ones(3), unit="group"
        ).by_unit()


@pytest.mark.parametrize("unit", ["step", "sequence"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_minibatch_gradients_scaled_by_their_share_average_to_the_whole_gradient(unit, count):
    policy = Bandit(torch.float64)
    algorithm = PPO()
    batch = algorithm.estimate(policy, Pulls(unit=unit)(policy)).by_unit()
    whole = gradient(algorithm, policy, batch)
    parts = list(batch.minibatches(torch.randperm(batch.num_units, generator=torch.Generator().manual_seed(1)), count))
    total = sum(gradient(algorithm, policy, part) * (part.num_units / batch.num_units) for part in parts)
    assert torch.allclose(total, whole, rtol=0, atol=1e-12)


def gradient(algorithm, policy, batch):
    policy.zero_grad()
    algorithm.objective(policy, batch)[0].backward()
    return torch.cat([p.grad.reshape(-1) for p in policy.parameters()])


def test_masked_rows_carry_no_gradient_whatever_they_hold():
    policy, algorithm = Bandit(torch.float64), PPO()
    batch = algorithm.estimate(policy, Pulls(unit="sequence")(policy))
    clean = gradient(algorithm, policy, batch)
    for name in ("advantage", "returns", "behavior_log_prob"):
        getattr(batch, name)[~batch.mask] = float("nan")
    assert torch.equal(gradient(algorithm, policy, batch), clean)


@pytest.mark.parametrize("kind", [PPO, A2C, REINFORCE, GRPO, RLOO, OffPolicyGradient, TRPO])
def test_an_estimate_that_an_objective_misses_is_named(kind):
    class WithoutAdvantage(kind):
        def estimate(self, policy, rollout):
            return Batch.of(rollout, returns=rollout.reward)

    algorithm = WithoutAdvantage()
    with pytest.raises(UsageError, match=r"batch: the objective needs advantage, and estimate\(\) gave none; return Batch\.of\(rollout"):
        train(algorithm, Bandit(), Pulls(), iterations=1)


def test_a_rollout_refuses_a_trailing_axis():
    flags = torch.zeros(2, 3, dtype=torch.bool)
    good = {"inputs": {"action": torch.zeros(2, 3)}, "reward": torch.zeros(2, 3), "terminated": flags, "truncated": flags, "mask": ~flags}
    Rollout(**good, behavior_log_prob=torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"rollout\.behavior_log_prob: expected shape \(2, 3\).*found \(2, 3, 1\)"):
        Rollout(**good, behavior_log_prob=torch.zeros(2, 3, 1))
    with pytest.raises(ValueError, match=r"rollout\.inputs\['action'\]"):
        Rollout(**{**good, "inputs": {"action": torch.zeros(3, 2)}}, behavior_log_prob=torch.zeros(2, 3))


def test_a_rollout_refuses_a_reward_or_an_end_where_there_was_no_decision():
    flags = torch.zeros(2, 3, dtype=torch.bool)
    mask = torch.tensor([[True, True, False]] * 2)
    good = {"inputs": {}, "reward": torch.zeros(2, 3), "terminated": flags, "truncated": flags, "mask": mask}
    for name, wrong in {"reward": torch.ones(2, 3), "terminated": ~flags, "truncated": ~flags}.items():
        with pytest.raises(ValueError, match="masked"):
            Rollout(**{**good, name: wrong}, behavior_log_prob=torch.zeros(2, 3))


class OnlyObjective:
    update = Ascent()

    def objective(self, policy, batch):
        return policy.logits.sum(), {}


@pytest.mark.parametrize(
    "algorithm,policy,message",
    [
        (
            OnlyObjective(),
            Bandit(),
            r"^algorithm: OnlyObjective has no estimate; expected estimate\(policy: Policy, rollout: Rollout\) -> Batch",
        ),
        (PPO(), torch.nn.Linear(1, 1), r"^policy: Linear has no evaluate; expected evaluate\(\*\*inputs\) -> Evaluation, as Policy says$"),
        (PPO(update=None), Bandit(), r"^algorithm\.update: NoneType has no start; expected start\(policy: Policy, \*, seed: int\)"),
    ],
    ids=["algorithm", "policy", "update"],
)
def test_a_member_that_is_missing_is_named_before_the_first_step(algorithm, policy, message):
    calls = []
    with pytest.raises(UsageError, match=message):
        train(algorithm, policy, lambda policy: calls.append(policy), iterations=1)
    assert calls == []
