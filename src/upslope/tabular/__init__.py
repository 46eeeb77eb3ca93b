"""Finite Markov decision processes, where everything can be computed exactly: values, visits, gradients, expectations of estimators.

Gymnasium is needed by :mod:`upslope.tabular.envs` only.
"""

from upslope.tabular import exact
from upslope.tabular.chains import chain, policy_table
from upslope.tabular.enumeration import enumerate_rollouts, expected_gradient, flat_gradient
from upslope.tabular.gradients import (
    gradient,
    gradient_by_autograd,
    gradient_by_differences,
    gradient_by_enumeration,
    product_rule,
)
from upslope.tabular.mdp import MDP
from upslope.tabular.policies import (
    Softmax,
    SoftmaxPolicy,
    Table,
    linear_policy,
    network_policy,
    polynomial_policy,
    tabular_policy,
)
from upslope.tabular.problems import bandit, gridworld, loop, random_mdp, ring, short_corridor

__all__ = [
    "MDP",
    "Softmax",
    "SoftmaxPolicy",
    "Table",
    "bandit",
    "chain",
    "enumerate_rollouts",
    "exact",
    "expected_gradient",
    "flat_gradient",
    "gradient",
    "gradient_by_autograd",
    "gradient_by_differences",
    "gradient_by_enumeration",
    "gridworld",
    "linear_policy",
    "loop",
    "network_policy",
    "policy_table",
    "polynomial_policy",
    "product_rule",
    "random_mdp",
    "ring",
    "short_corridor",
    "tabular_policy",
]
