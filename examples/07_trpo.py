"""TRPO keeps its promise: after every update the KL between the old and the new policy, computed anew here, is within the bound."""

from upslope import NPG, TRPO, NaturalGradient, TrustRegion, control, train

MAX_KL = 0.02
SETTINGS = {"max_kl": MAX_KL, "damping": 1e-3, "num_value_epochs": 20}


def divergences(algorithm, iterations=8):
    """``mean_s KL(π_old(·|s) ‖ π_new(·|s))`` of every update of a short training, and the return at its end."""
    envs = control.make("CartPole-v1", num_envs=8, seed=0)
    policy = control.MLPPolicy.for_envs(envs, seed=0)
    old, found = policy.frozen(), []

    def measure(state):
        nonlocal old
        inputs, mask = state.rollout.inputs, state.rollout.mask
        kl = old.distribution(**inputs).kl(policy.distribution(**inputs))
        found.append(kl[mask].mean().item())
        old = policy.frozen()

    train(algorithm, policy, control.Steps(envs, num_steps=128), iterations=iterations, callbacks=measure, seed=0)
    return found, control.evaluate(policy, "CartPole-v1", episodes=5, seed=100).return_mean


for name, algorithm in {
    "natural gradient": NPG(gae_lambda=0.98, update=NaturalGradient(**SETTINGS)),
    "trust region": TRPO(gae_lambda=0.98, update=TrustRegion(**SETTINGS)),
}.items():
    kl, returned = divergences(algorithm)
    outside = sum(value > MAX_KL for value in kl)
    print(f"{name:<17} largest KL {max(kl):.4f}, bound {MAX_KL}, {outside} of {len(kl)} updates outside; greedy return {returned:.0f}")
    assert name != "trust region" or outside == 0
