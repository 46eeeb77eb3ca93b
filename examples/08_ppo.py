"""PPO on CartPole: ten passes over each batch, kept near the policy that sampled it by clipping the ratio of probabilities."""

from upslope import PPO, Ascent, control, train

envs = control.make("CartPole-v1", num_envs=8, seed=0)
policy = control.MLPPolicy.for_envs(envs, seed=0)
collect = control.Steps(envs, num_steps=32)
algorithm = PPO(gamma=0.98, clip_range=0.2, update=Ascent(learning_rate=3e-3, num_epochs=10, num_minibatches=4))


def report(state):
    """What to watch: how far the policy moves, how often the clip holds it back, and what it is worth."""
    if state.iteration % 16 == 0:
        moved, clipped = state.metrics["approx_kl"], state.metrics["clip_fraction"]
        returned = control.evaluate(policy, "CartPole-v1", episodes=5, seed=0).return_mean
        print(f"{state.total_steps:>6,} steps: KL of an update {moved:.4f}, ratios clipped {clipped:.0%}, greedy return {returned:.0f}")


state = train(algorithm, policy, collect, iterations=80, seed=0, callbacks=report)
result = control.evaluate(policy, "CartPole-v1", episodes=20, seed=100)
print(f"{state.train_seconds:.2f} s of training: greedy return {result.return_mean:.1f} ± {result.return_std:.1f}")
