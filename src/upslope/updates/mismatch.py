"""Where the sampler computes with other numerics than the policy: π_old is what the policy itself gave before its first step.

An update that makes several steps asks for it once, without a gradient. One that makes a single step need not: its objective's
evaluation says it. See :meth:`upslope.records.Batch.with_old_policy` for what is done with it.
"""

from typing import Any

from torch import Tensor

from upslope.records import Batch, Evaluation, Policy


class EvaluatedPolicy:
    """A policy with its evaluation of one batch, so that an objective that asks for it does not compute it again."""

    def __init__(self, policy: Policy, batch: Batch) -> None:
        self.policy, self.inputs = policy, batch.inputs
        self.evaluation: Evaluation = policy.evaluate(**batch.inputs)

    def evaluate(self, **inputs: Tensor) -> Evaluation:
        """What is known, or the policy's answer for other inputs."""
        known = inputs.keys() == self.inputs.keys() and all(tensor is self.inputs[name] for name, tensor in inputs.items())
        return self.evaluation if known else self.policy.evaluate(**inputs)

    __call__ = evaluate

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)


def at_old_policy(policy: Policy, batch: Batch) -> tuple[Any, Batch]:
    """The policy with its evaluation of this batch, and the batch with that as π_old: for the only step of an update."""
    evaluated = EvaluatedPolicy(policy, batch)
    return evaluated, batch.with_old_policy(evaluated.evaluation.log_prob)
