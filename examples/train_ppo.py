"""Train PPO on CartPole in a few lines, then play it greedily."""

from upslope import PPO, Ascent, control, train

envs = control.make("CartPole-v1", num_envs=8, seed=0)
policy = control.MLPPolicy.for_envs(envs, seed=0)
collect = control.Steps(envs, num_steps=32)
algorithm = PPO(gamma=0.98, update=Ascent(learning_rate=3e-3, num_epochs=10, num_minibatches=4))

state = train(algorithm, policy, collect, iterations=80, seed=0)
result = control.evaluate(policy, "CartPole-v1", episodes=20, seed=100)
print(f"{state.total_steps} steps in {state.train_seconds:.2f} s: greedy return {result.return_mean:.1f} ± {result.return_std:.1f}")
