"""What the ladder climbs on (:data:`TASKS`) and its steps (:data:`RUNGS`): a formula each, settings, and where to read and check it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Values = Mapping[str, Any]

MEANS = (2.9, 3.4, 3.6, 3.8, 4.0, 4.1, 4.3, 4.5, 4.9, 5.6)
"""What the bandit's arms pay: about 4, as in Sutton & Barto's Figure 2.5, so that a baseline has something to take away."""
LEFT_FIRST = 19.0
"""Odds of left to right where the corridor begins, p(right) = 0.05, as in Sutton & Barto's section 13.3."""


@dataclass(frozen=True)
class Task:
    """A problem, the budget of one run in environment steps, and how its runs are looked at.

    ``problem`` names the function of :mod:`upslope.tabular.problems` where everything is known exactly; ``odds`` are those of
    the first action where the policy begins. Returns below ``floor`` are cut off in pictures. Gradients are measured on ``episodes``
    episodes in groups of ``group_size``. ``shared`` settings are those of every rung.
    """

    name: str
    env_id: str
    title: str
    budget: int
    best: float
    floor: float
    episodes: int
    shared: Values
    problem: str = ""
    odds: float = 1.0
    group_size: int = 8


TASKS = {
    "bandit": Task(
        name="bandit",
        env_id="upslope/Bandit-v0",
        title=f"a bandit with {len(MEANS)} arms that pay {min(MEANS):g} to {max(MEANS):g}",
        budget=1_000,
        best=max(MEANS),
        floor=min(MEANS),
        episodes=1_024,
        shared={"env_kwargs": {"means": list(MEANS)}, "gamma": 1.0, "features": "linear"},
        problem="bandit",
    ),
    "corridor": Task(
        name="corridor",
        env_id="upslope/ShortCorridor-v0",
        title="the short corridor: three states that look the same, and left and right switched in the middle one",
        budget=8_000,
        best=-(6.0 + 4.0 * 2.0**0.5),
        floor=-90.0,
        episodes=256,
        shared={"gamma": 1.0, "features": "linear"},
        problem="short_corridor",
        odds=LEFT_FIRST,
    ),
    "CartPole-v1": Task(
        name="CartPole-v1",
        env_id="CartPole-v1",
        title="CartPole: balance a pole for up to 500 steps",
        budget=20_000,
        best=500.0,
        floor=0.0,
        episodes=256,
        shared={"gamma": 0.99},
    ),
}
"""The names that the command line knows."""


@dataclass(frozen=True)
class Rung:
    """One method: the formula that changed (HTML, the new part in ``<b>``), what it buys and costs, file and test, settings by task.

    ``estimator`` is what :mod:`upslope.studies.estimators` calls its gradient, without λ. Of methods that learn at every step it is the sum
    of their steps while parameters stand still, which is A2C's with the same λ; of TRPO and PPO it is the first step's.
    """

    key: str
    name: str
    algorithm: str
    formula: str
    buys: str
    costs: str
    file: str
    test: str
    estimator: str
    settings: Values
    tuned: Mapping[str, Values]
    own_scale: bool = False
    coincides: Mapping[str, str] = field(default_factory=dict[str, str])


SCORE = "∇ log π(<i>a<sub>t</sub></i> | <i>s<sub>t</sub></i>)"
SUM = "<i>ĝ</i> = Σ<sub><i>t</i></sub> "
PLAIN = {"normalize_advantage": False, "max_grad_norm": None}
"""Nothing but the formula: no normalized advantages, no clipped gradients."""
TILES: Values = {
    "features": "tiles",
    "num_tilings": 8,
    "num_tiles": 6,
    "feature_low": (-2.4, -3.0, -0.21, -3.5),
    "feature_high": (2.4, 3.0, 0.21, 3.5),
    "discount_weight": False,
}
TABLE: Values = {"num_steps": 64}
ONE_DECISION = "An episode is one decision here, so this is the same estimator as the rung before."


def rate(num_envs: int, learning_rate: float, **others: Any) -> Values:
    """The settings that nearly every rung tunes."""
    return {"num_envs": num_envs, "learning_rate": learning_rate, **others}


def groups(size: int, count: int, learning_rate: float, **others: Any) -> Values:
    """The same for methods that compare the episodes of a group."""
    return {"group_size": size, "num_groups": count, "learning_rate": learning_rate, **others}


RUNGS = (
    Rung(
        "reinforce",
        "REINFORCE",
        "reinforce",
        f"{SUM}{SCORE} · <b><i>R</i>(τ)</b>",
        "Unbiased, and needs nothing but samples of actions and returns.",
        "Every action answers for all rewards of its episode, also for those that came before it.",
        "src/upslope/algorithms/reinforce.py",
        "tests/tabular/test_gradients.py::test_the_unbiased_rows",
        "reinforce-full-trajectory",
        {**PLAIN, "returns": "full-trajectory", "baseline": False},
        {"bandit": rate(16, 0.1), "corridor": rate(8, 0.1), "CartPole-v1": rate(8, 0.005)},
    ),
    Rung(
        "to-go",
        "Rewards to go",
        "reinforce",
        f"{SUM}{SCORE} · <b><i>G<sub>t</sub></i></b>",
        "An action no longer answers for the past: noise that has nothing to do with it is gone, and the expectation stays.",
        "Nothing where γ = 1; below, this form, which everybody ships, leaves out the weight γ<sup><i>t</i></sup> of later steps.",
        "src/upslope/algorithms/reinforce.py",
        "tests/core/test_algorithms.py::test_the_four_return_forms",
        "reinforce-to-go",
        {**PLAIN, "returns": "to-go", "baseline": False},
        {"bandit": rate(16, 0.1), "corridor": rate(8, 0.1), "CartPole-v1": rate(8, 0.005)},
        coincides={"bandit": ONE_DECISION},
    ),
    Rung(
        "baseline",
        "Baseline",
        "reinforce",
        f"{SUM}{SCORE} · (<i>G<sub>t</sub></i> <b>− V(<i>s<sub>t</sub></i>)</b>)",
        "Only what is better or worse than expected moves the policy; the expectation stays, whatever V is.",
        "A second function to learn.",
        "src/upslope/algorithms/reinforce.py",
        "tests/tabular/test_gradients.py::test_a_baseline_changes_nothing_in_expectation",
        "reinforce-to-go-baseline",
        {**PLAIN, "returns": "to-go", "baseline": True},
        {"bandit": rate(16, 0.1), "corridor": rate(8, 0.1), "CartPole-v1": rate(8, 0.005)},
    ),
    Rung(
        "actor-critic",
        "Actor–critic, one step",
        "actor-critic",
        f"{SUM}{SCORE} · (<b><i>r<sub>t</sub></i> + γ V(<i>s<sub>t</sub></i><sub>+1</sub>)</b> − V(<i>s<sub>t</sub></i>))",
        "Learns at every step, without waiting for the end; one step's chance instead of a whole episode's.",
        "Believes its critic: where V is wrong, or states look alike, the gradient is biased.",
        "src/upslope/algorithms/actor_critic.py",
        "tests/core/test_actor_critic.py::test_one_step_is_the_box",
        "a2c",
        {"trace_decay": 0.0, "value_trace_decay": 0.0},
        {
            "bandit": {**TABLE, "learning_rate": 0.1, "value_learning_rate": 0.1},
            "corridor": {**TABLE, "learning_rate": 0.001, "value_learning_rate": 0.02},
            "CartPole-v1": {**TILES, "learning_rate": 0.003, "value_learning_rate": 0.05},
        },
    ),
    Rung(
        "traces",
        "Eligibility traces",
        "actor-critic",
        "<i>ĝ</i> = Σ<sub><i>t</i></sub> δ<sub><i>t</i></sub> <b><i>z<sub>t</sub></i></b>,"
        " <b><i>z<sub>t</sub></i> = γλ <i>z<sub>t</sub></i><sub>−1</sub> + ∇ log π(<i>a<sub>t</sub></i> | <i>s<sub>t</sub></i>)</b>",
        "λ between one step and the whole return: news reach earlier actions at once, and the critic is believed less.",
        "More noise than one step, and a number to choose.",
        "src/upslope/algorithms/actor_critic.py",
        "tests/core/test_actor_critic.py::test_traces_are_the_box",
        "a2c",
        {},
        {
            "bandit": {**TABLE, "learning_rate": 0.1, "value_learning_rate": 0.1, "trace_decay": 0.8, "value_trace_decay": 0.8},
            "corridor": {**TABLE, "learning_rate": 0.0005, "value_learning_rate": 0.02, "trace_decay": 0.9, "value_trace_decay": 0.9},
            "CartPole-v1": {**TILES, "learning_rate": 0.003, "value_learning_rate": 0.05, "trace_decay": 0.8, "value_trace_decay": 0.8},
        },
        coincides={"bandit": ONE_DECISION},
    ),
    Rung(
        "trpo",
        "TRPO",
        "trpo",
        "Δθ ∝ <b><i>F</i><sup>−1</sup></b><i>ĝ</i>, <b>KL(π<sub>old</sub> ‖ π) ≤ δ</b>; Â = GAE(γ, λ)",
        "A step is measured in what the policy does, not in its parameters; no step is too long.",
        "Fisher products and a line search for one step on each batch.",
        "src/upslope/algorithms/trpo.py",
        "tests/core/test_trust_region.py::test_no_accepted_step_of_a_training_leaves_the_region",
        "a2c",
        {"normalize_advantage": False, "gae_lambda": 0.95},
        {
            "bandit": {"num_envs": 16, "num_steps": 4, "max_kl": 0.05, "value_learning_rate": 0.1, "num_value_minibatches": 1},
            "corridor": {"num_envs": 8, "num_steps": 64, "max_kl": 0.02, "gae_lambda": 1.0, "value_learning_rate": 1.0},
            "CartPole-v1": {"num_envs": 8, "num_steps": 64, "max_kl": 0.02, "value_learning_rate": 0.003},
        },
    ),
    Rung(
        "ppo",
        "PPO",
        "ppo",
        "max Σ<sub><i>t</i></sub> <b>min(ρ<sub><i>t</i></sub> Â<sub><i>t</i></sub>,"
        " clip(ρ<sub><i>t</i></sub>, 1 − ε, 1 + ε) Â<sub><i>t</i></sub>)</b>,"
        " ρ<sub><i>t</i></sub> = π / π<sub>old</sub>",
        "Several steps on each batch, with first derivatives only.",
        "The bound is gone: the clip stops pushing, it does not hold back.",
        "src/upslope/algorithms/ppo.py",
        "tests/functional/test_surrogates.py::test_the_clip_by_hand",
        "ppo",
        {**PLAIN, "gae_lambda": 0.95},
        {
            "bandit": rate(16, 0.05, num_steps=4, num_minibatches=1, num_epochs=4),
            "corridor": rate(8, 0.03, num_steps=64, num_minibatches=4, num_epochs=4, gae_lambda=1.0),
            "CartPole-v1": rate(8, 0.001, num_steps=32, num_minibatches=4, num_epochs=10, gamma=0.98),
        },
    ),
    Rung(
        "rloo",
        "RLOO",
        "rloo",
        "Â<sub><i>i</i></sub> = <i>R<sub>i</sub></i> <b>− mean of the other <i>R<sub>j</sub></i> in the group</b>",
        "No critic: episodes from the same start are each other's baseline, and the expectation stays.",
        "One number for a whole episode, so an action answers for all of it again.",
        "src/upslope/algorithms/rloo.py",
        "tests/functional/test_statistics.py::test_leave_one_out_is_unbiased_and_the_group_mean_shrinks",
        "rloo",
        {"max_grad_norm": None},
        {"bandit": groups(8, 2, 0.2, max_steps=1), "corridor": groups(8, 1, 0.1, max_steps=1000), "CartPole-v1": groups(8, 2, 0.02)},
    ),
    Rung(
        "grpo",
        "GRPO",
        "grpo",
        "Â<sub><i>i</i></sub> = (<i>R<sub>i</sub></i> − mean of the group) <b>/ std of the group</b>, and PPO's clip",
        "Every group counts the same, however far apart its returns are.",
        "Dividing by the spread is another objective: easy and hard starts weigh more than those in between.",
        "src/upslope/algorithms/grpo.py",
        "tests/core/test_one_decision.py::test_dividing_by_the_spread_is_the_bandit_with_scaled_rewards",
        "grpo",
        {"max_grad_norm": None, "average_over": "sequences"},
        {"bandit": groups(8, 2, 0.2), "corridor": groups(8, 1, 0.1), "CartPole-v1": groups(8, 4, 0.02)},
        own_scale=True,
    ),
)


def settings_for(task: Task, rung: Rung) -> Values:
    """Everything that this rung sets on this task, by flat names."""
    found = {**task.shared, **rung.settings, **rung.tuned[task.name]}
    if rung.algorithm in ("grpo", "rloo"):  # they look at whole episodes, which nothing discounts
        del found["gamma"]
    return found
