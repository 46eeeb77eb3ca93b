"""REINFORCE on the short corridor: what crediting an action with the past costs, and what a baseline saves.

All three estimators have the same expectation, ∇J. They differ in how far a sample lies from it:

full trajectory   Σ_t ∇log π_t · R(τ)            to go   Σ_t ∇log π_t · G_t            baseline   Σ_t ∇log π_t · (G_t − V)

A past reward cannot be changed by a later action, and V is the same for all actions: neither changes the mean.
"""

from upslope import REINFORCE, Ascent, tabular, train
from upslope.algorithms.reinforce import full_trajectory, to_go
from upslope.studies.variance import Reference, measure

corridor = tabular.short_corridor()
plain = {"gamma": 1.0, "normalize_advantage": False, "update": Ascent(learning_rate=0.06, max_grad_norm=None)}
estimators = {
    "full trajectory": REINFORCE(returns=full_trajectory, baseline=False, **plain),
    "to go": REINFORCE(returns=to_go, baseline=False, **plain),
    "to go, baseline": REINFORCE(returns=to_go, baseline=True, value_coef=0.0, **plain),
}

# The same 200 episodes for all three, at a policy that stands still and with the value of its first state as the baseline.
policy = tabular.tabular_policy(corridor, critic=True)
policy.value.table.data.fill_(tabular.exact.objective(corridor, policy, gamma=1.0).item())
episodes = tabular.Episodes(corridor, 200, seed=0)(policy)
exact = Reference.exact(tabular.gradient(corridor, policy, gamma=1.0))
for row in measure(estimators, policy, episodes, exact):
    distance = f"{row.bias:.2f} from the exact gradient (by chance up to {row.bias_by_chance:.2f})"
    print(f"{row.estimator:<16} variance {row.variance:6,.0f}, mean {distance}")

# Learning from 8 episodes at a time, beginning with p(right) = 0.1. J is computed, not sampled; the best that there is is −11.66.
learner = tabular.tabular_policy(corridor, critic=True)
learner.preferences.table.data[0] = learner.preferences.table.new_tensor([1.1, -1.1])
learner.value.table.data.fill_(-20.0)


def report(state):
    """A line for every tenth update."""
    if state.iteration == 1 or state.iteration % 10 == 0:
        right, value = learner.probabilities()[0, 1].item(), tabular.exact.objective(corridor, learner, gamma=1.0).item()
        print(f"update {state.iteration:>2}: returns {state.metrics['episode_return']:6.1f}, p(right) = {right:.2f}, J = {value:6.2f}")


train(estimators["to go, baseline"], learner, tabular.Episodes(corridor, 8, seed=1), iterations=40, callbacks=report)
