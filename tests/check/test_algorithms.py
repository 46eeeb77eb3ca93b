"""check_algorithm holds what the update rule relies on; it is silent about every algorithm that is shipped."""

from dataclasses import replace

import pytest
import torch

from tests.check.shipped import shipped
from upslope import PPO, RLOO, UsageError
from upslope import functional as F
from upslope.records import Batch
from upslope.testing import ContractError, check_algorithm

ALGORITHMS = [algorithm for algorithm in shipped().values() if hasattr(algorithm, "objective")]


def test_shipped_algorithms_hold():
    for algorithm in ALGORITHMS[::2]:
        check_algorithm(algorithm)


def changed_batch(**changes):
    class Changed(PPO):
        def estimate(self, policy, rollout):
            batch = super().estimate(policy, rollout)
            return replace(batch, **{name: change(batch) for name, change in changes.items()})

    return Changed()


def changed_objective(change, base=PPO):
    class Changed(base):
        def objective(self, policy, batch):
            return change(policy, batch, *super().objective(policy, batch))

    return Changed()


class InPlace(PPO):
    def estimate(self, policy, rollout):
        rollout.reward.add_(1.0)
        return super().estimate(policy, rollout)


class Moves(PPO):
    def estimate(self, policy, rollout):
        with torch.no_grad():
            next(policy.parameters()).add_(1.0)
        return super().estimate(policy, rollout)


class Carries(PPO):
    def estimate(self, policy, rollout):
        return Batch.of(rollout, advantage=policy.evaluate(**rollout.inputs).log_prob, returns=rollout.value)


class Nothing(PPO):
    def estimate(self, policy, rollout):
        return None


class DividesBySpread(RLOO):
    def estimate(self, policy, rollout):
        score = rollout.reward.sum(-1, keepdim=True)
        scaled = (score - score.mean(-2, keepdim=True)) / score.std(-2, correction=0, keepdim=True)
        return Batch.of(rollout, advantage=scaled.expand_as(rollout.reward), average_over="constant")

    def objective(self, policy, batch):
        return F.weighted_sum(policy.evaluate(**batch.inputs).log_prob * batch.advantage, batch.weight), {}


def hidden_nowhere(policy, batch, value, metrics):
    """The score of masked steps as well; ``by_unit`` keeps them where rows stay whole."""
    new = policy.evaluate(**batch.inputs).log_prob
    return value + (new * batch.weight.amax()).sum() - (new * batch.weight).sum(), metrics


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (Nothing(), "estimate returned an object of type NoneType"),
        (InPlace(), "estimate changed rollout.reward in place"),
        (Moves(), "estimate changed the policy's parameters"),
        (Carries(), "batch.advantage carries gradient"),
        (changed_batch(advantage=lambda b: b.advantage / 0.0), "batch.advantage is not finite"),
        (changed_batch(weight=lambda b: b.weight + 0.01), "batch.weight is not 0 on masked steps"),
        (changed_batch(weight=lambda b: b.mask.double()), "batch.weight sums to 7"),
        (changed_batch(behavior_log_prob=lambda b: b.behavior_log_prob - 0.1), r"the ratio is exp\(±0.1\)"),
        (changed_objective(lambda p, b, v, m: v), "objective returns"),
        (changed_objective(lambda p, b, v, m: (v + b.weight, m)), "the objective has shape"),
        (changed_objective(lambda p, b, v, m: (v.detach(), m)), "does not depend on the policy's parameters"),
        (changed_objective(lambda p, b, v, m: (v, {**m, "kl": 0.5})), r"metrics\['kl'\] is float"),
        (changed_objective(lambda p, b, v, m: (v, {**m, "kl": b.advantage})), r"metrics\['kl'\] is \["),
        (changed_objective(lambda p, b, v, m: (v / b.weight.sum(), m)), "ignores batch.weight"),
        (changed_objective(lambda p, b, v, m: (v * b.advantage.square().mean(), m)), "micro-batches do not add up"),
        (changed_objective(hidden_nowhere, RLOO), "masked steps leak"),
        (DividesBySpread(), "the gradient is not finite"),
        (object(), "object has no estimate"),
    ],
)
def test_a_broken_contract_is_named(algorithm, message):
    with pytest.raises(ContractError, match=message) as error:
        check_algorithm(algorithm, group=isinstance(algorithm, RLOO))
    assert "\n" not in str(error.value)


def test_a_class_is_refused():
    with pytest.raises(UsageError, match="the class PPO; give an instance"):
        check_algorithm(PPO)
