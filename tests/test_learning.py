"""Methods learn: several seeds each, greedy policy on fresh episodes."""

import pytest

from upslope import A2C, PPO, REINFORCE, Ascent, control, train

pytestmark = pytest.mark.learning

METHODS = {
    "ppo": (PPO(gamma=0.98, update=Ascent(learning_rate=3e-3, num_epochs=10, num_minibatches=4)), control.Steps, 32, 20),
    "a2c": (A2C(gamma=0.98, gae_lambda=0.95, normalize_advantage=True, update=Ascent(learning_rate=3e-3)), control.Steps, 16, 40),
    "reinforce": (REINFORCE(update=Ascent(learning_rate=5e-3)), control.Episodes, 8, 4),
}
"""Algorithm, collector and its size, iterations between looks."""


@pytest.mark.parametrize("name, seed", [("ppo", 0), ("ppo", 1), ("a2c", 0), ("reinforce", 0)])
def test_cartpole_is_solved(name, seed):
    algorithm, collector, size, every = METHODS[name]
    envs = control.make("CartPole-v1", num_envs=8, seed=seed)
    policy = control.MLPPolicy.for_envs(envs, seed=seed)
    best = 0.0

    def solved(state):
        nonlocal best
        if state.iteration % every == 0:
            best = control.evaluate(policy, "CartPole-v1", episodes=10, seed=1000 * state.iteration).return_mean
        return best >= 475

    state = train(algorithm, policy, collector(envs, size), total_steps=200_000, callbacks=[solved], seed=seed)
    assert best >= 475, f"{best} after {state.total_steps} steps"


def test_a_tiny_language_model_learns_to_add(tmp_path):
    """From one command: imitation to about a half, then GRPO lifts the accuracy on problems that neither has seen."""
    from upslope.run.config import RunConfig
    from upslope.run.folder import Output

    run = RunConfig.of("grpo", model="tiny", task="addition", seed=1, iterations=40, eval_every=40)
    summary = run.run(Output(out=tmp_path / "run", quiet=True)).summary
    assert summary is not None and summary["accuracy_before"] <= 0.7
    assert summary["accuracy"] >= summary["accuracy_before"] + 0.05, summary  # 0.16 to 0.30, whatever the processor
