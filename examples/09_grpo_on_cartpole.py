"""GRPO on CartPole: the file that trains language models, where a prompt is a start and a completion an episode."""

from upslope import GRPO, Ascent, control, train

# Eight episodes from each of four starts; an episode is compared with the seven others that began where it did. No critic is learned.
envs = control.make("CartPole-v1", num_envs=32, seed=0)
policy = control.MLPPolicy.for_envs(envs, critic=False, seed=0)
collect = control.GroupedEpisodes(envs, group_size=8)

rollout = collect(policy)
print("episodes are", " × ".join(map(str, rollout.mask.shape)), "(groups, episodes of a group, steps of the longest)")
algorithm = GRPO(average_over="constant", update=Ascent(learning_rate=2e-2, num_epochs=10, num_minibatches=2, max_grad_norm=0.5, eps=1e-5))
batch = algorithm.estimate(policy, rollout)
lengths, advantages = rollout.mask[0].sum(-1).tolist(), batch.advantage[0, :, 0].tolist()
print("the first group's returns   ", "  ".join(f"{length:5d}" for length in lengths))
print("their advantages            ", "  ".join(f"{advantage:+5.2f}" for advantage in advantages))


def report(state):
    """A line for every third update; stop once all episodes last."""
    returned = state.metrics["episode_return"]
    if state.iteration % 3 == 0:
        print(
            f"update {state.iteration:>2}: {state.total_steps:>6,} steps, mean return {returned:5.1f}, KL {state.metrics['approx_kl']:.3f}"
        )
    return returned >= 475


train(algorithm, policy, collect, iterations=24, seed=0, callbacks=report)
result = control.evaluate(policy, "CartPole-v1", episodes=20, seed=100)
print(f"greedy return {result.return_mean:.1f} ± {result.return_std:.1f}")
