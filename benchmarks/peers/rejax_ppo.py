"""rejax's PPO on gymnax's CartPole-v1, with the settings that rejax ships for it, under the shared protocol.

    python rejax_ppo.py --seed 0
    python rejax_ppo.py --seed 0 --cache FOLDER     # with JAX's compilation cache on disk

Everything that rejax's own `train` compiles is compiled here too: initialization, one block of iterations, one evaluation. They are three
programs instead of one, because a run that stops when it is solved has to look at its returns. The evaluation takes the most likely action
(rejax's own samples). `train_seconds` counts the compilation of the training program; `train_seconds_without_compilation` does not.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import jax
import rejax
from protocol import EVALUATION_EPISODES, EVALUATION_PERIOD, Progress
from rejax.evaluate import evaluate as rejax_evaluate

# rejax, configs/gymnax/cartpole.yaml, commit d751095.
SETTINGS: dict[str, Any] = {
    "env": "CartPole-v1", "agent_kwargs": {"activation": "tanh"}, "num_envs": 5, "num_steps": 100, "num_epochs": 5, "num_minibatches": 5,
    "learning_rate": 0.00075, "max_grad_norm": 0.5, "total_timesteps": 100_000, "gamma": 0.99, "gae_lambda": 0.95, "clip_eps": 0.2,
    "ent_coef": 0.01, "vf_coef": 0.5,
}  # fmt: skip
STEPS_PER_ITERATION = SETTINGS["num_envs"] * SETTINGS["num_steps"]


def programs(algorithm: Any) -> tuple[Any, Any, Any]:
    """The three functions to compile: initial state from a key, a number of iterations, the greedy mean return."""

    def advance(state: Any, iterations: Any) -> Any:
        return jax.lax.fori_loop(0, iterations, lambda _, s: algorithm.train_iteration(s), state)

    def greedy(state: Any, key: Any) -> Any:
        def act(observation: Any, _: Any) -> Any:
            policy = algorithm.actor.apply(state.actor_ts.params, observation[None], method="_action_dist")
            return policy.mode()[0]

        return rejax_evaluate(act, key, algorithm.env, algorithm.env_params, EVALUATION_EPISODES)[1].mean()

    return jax.jit(algorithm.init_state), jax.jit(advance), jax.jit(greedy)


def main() -> None:
    parser = argparse.ArgumentParser(description="rejax PPO under the shared protocol.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--total-steps", type=int, default=SETTINGS["total_timesteps"])
    parser.add_argument("--until-return", type=float, default=475.0)
    parser.add_argument("--cache", help="folder of JAX's compilation cache; without it every run compiles")
    args = parser.parse_args()
    if args.cache:
        jax.config.update("jax_compilation_cache_dir", args.cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

    init, advance, greedy = programs(rejax.get_algo("ppo").create(**SETTINGS))
    state = jax.block_until_ready(init(jax.random.key(args.seed)))
    progress = Progress(args.until_return, lambda seed: float(greedy(state, jax.random.key(seed))))
    progress.start()
    before = time.perf_counter()
    advance = advance.lower(state, 0).compile()
    compile_seconds = time.perf_counter() - before
    steps = 0
    while steps < args.total_steps and not progress.solved:
        # The first whole iteration at or past the next multiple of 2,048.
        iterations = -(-(min((steps // EVALUATION_PERIOD + 1) * EVALUATION_PERIOD, args.total_steps) - steps) // STEPS_PER_ITERATION)
        state = jax.block_until_ready(advance(state, iterations))
        steps += iterations * STEPS_PER_ITERATION
        progress.after_update(steps)
    progress.report(
        seed=args.seed,
        system="rejax",
        task="cartpole",
        train_seconds_without_compilation=round(progress.train_seconds - compile_seconds, 4),
    )


if __name__ == "__main__":
    main()
