"""Finite Markov decision processes, where everything can be computed exactly: values, visits, gradients, expectations of estimators.

Gymnasium is needed by :mod:`upslope.tabular.envs` only.
"""

from upslope.tabular import average, exact
from upslope.tabular.chains import chain, policy_table
from upslope.tabular.collect import Episodes, Steps
from upslope.tabular.enumeration import enumerate_rollouts, expected_gradient, flat_gradient
from upslope.tabular.gradients import ascend, gradient, gradient_by_autograd, gradient_by_differences, gradient_by_enumeration, product_rule
from upslope.tabular.mdp import MDP
from upslope.tabular.planning import policy_evaluation, policy_iteration, value_iteration
from upslope.tabular.policies import Linear, Softmax, SoftmaxPolicy, Table, linear_policy, network_policy, polynomial_policy, tabular_policy
from upslope.tabular.prediction import Episode, episodes, monte_carlo, td, td_offline
from upslope.tabular.problems import bandit, gridworld, loop, random_mdp, ring, short_corridor

__all__ = ["MDP", "Episode", "Episodes", "Linear", "Softmax", "SoftmaxPolicy", "Steps", "Table", "ascend", "average", "bandit", "chain"]
__all__ += ["enumerate_rollouts", "episodes", "exact", "expected_gradient", "flat_gradient", "gradient", "gradient_by_autograd"]
__all__ += ["gradient_by_differences", "gradient_by_enumeration", "gridworld", "linear_policy", "loop", "monte_carlo", "network_policy"]
__all__ += ["policy_evaluation", "policy_iteration", "policy_table", "polynomial_policy", "product_rule", "random_mdp", "ring"]
__all__ += ["short_corridor", "tabular_policy", "td", "td_offline", "value_iteration"]
