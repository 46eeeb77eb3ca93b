"""The exact policy gradient four ways, on a problem so small that nothing has to be sampled; and ten lines that climb it."""

import torch

from upslope import tabular
from upslope.tabular import exact

# Three living states, two actions, at most four steps: all that can happen can be listed.
mdp = tabular.random_mdp(num_states=3, num_actions=2, seed=0, time_limit=4)
policy = tabular.tabular_policy(mdp)  # softmax of a preference for each state and action
ends = mdp.unrolled()  # time is part of the state here, so that the limit is an end of the problem

theorem = tabular.gradient(ends, policy, gamma=0.9)  # Σ_s η(s) Σ_a Q(s, a) ∇π(a|s)
for name, other in {
    "autograd through J = startᵀ (I − γP)⁻¹ r": tabular.gradient_by_autograd(ends, policy, gamma=0.9),
    "finite differences of J": tabular.gradient_by_differences(ends, policy, gamma=0.9),
    "all trajectories, Σ P(τ) R(τ) ∇log P(τ)": tabular.gradient_by_enumeration(mdp, policy, gamma=0.9),
}.items():
    print(f"{name:<42} differs from the theorem by {(other - theorem).abs().max():.0e}")

# A policy decides how often each state is visited, yet the theorem does without the derivative of the visits.
through_visits, through_reward = tabular.product_rule(ends, policy, gamma=0.9)
print(f"Σ ∇η r has length {through_visits.norm():.3f}, Σ η ∇r {through_reward.norm():.3f}, ", end="")
print(f"and their sum is the theorem's to {(through_visits + through_reward - theorem).abs().max():.0e}")

# The short corridor: three states that look the same, and in the middle one left and right are switched. Each step costs 1.
corridor = tabular.short_corridor()
policy = tabular.tabular_policy(corridor)
for step in range(41):
    if step % 10 == 0:
        right, value = policy.probabilities()[0, 1].item(), exact.objective(corridor, policy, gamma=1.0).item()
        print(f"after {step:>2} steps of exact ascent: p(right) = {right:.4f}, J = {value:.4f}")
    (gradient,) = tabular.gradient(corridor, policy, gamma=1.0).split(2)
    with torch.no_grad():
        policy.preferences.table += 0.01 * gradient
best = 2 - 2**0.5
print(f"the best of all policies:      p(right) = {best:.4f}, J = {-(6 + 4 * 2**0.5):.4f}")
