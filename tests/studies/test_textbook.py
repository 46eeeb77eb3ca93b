"""The vectorized experiments: each lane, given its own column of the random numbers, is the plain trainer of the reference."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from upslope.reference import Bandit, FlooredPolicy, GradientBandit, Reinforce, ShortCorridor
from upslope.studies.textbook import corridor_runs, gradient_bandit_runs


class Recorder:
    """A generator that keeps what it gave; ``lane(i)`` gives column i of it again, one number at a time."""

    def __init__(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)
        self.given: dict[str, list[Any]] = {"random": [], "standard_normal": []}

    def random(self, size: Any) -> Any:
        return self._keep("random", self.generator.random(size))

    def standard_normal(self, size: Any) -> Any:
        return self._keep("standard_normal", self.generator.standard_normal(size))

    def _keep(self, name: str, numbers: Any) -> Any:
        self.given[name].append(numbers)
        return numbers

    def lane(self, index: int, skip_normals: int = 0) -> Any:
        columns = {"random": iter(self.given["random"]), "standard_normal": iter(self.given["standard_normal"][skip_normals:])}

        class Lane:
            def random(self) -> float:
                return float(next(columns["random"])[index])

            def standard_normal(self) -> float:
                return float(next(columns["standard_normal"])[index])

        return Lane()


def test_each_corridor_lane_is_the_plain_trainer() -> None:
    rates = np.array([2.0**-11, 2.0**-13, 2.0**-9, 2.0**-9, 2.0**-10])
    rates_w = np.array([0.0, 0.0, 2.0**-6, 2.0**-6, 2.0**-7])
    recorder = Recorder(1)
    found = corridor_runs(rates, rates_w, 40, cast(Any, recorder))
    assert found.returns.shape == (5, 40)
    for i, (rate, rate_w) in enumerate(zip(rates, rates_w, strict=True)):
        policy = FlooredPolicy(1, floor=0.05)
        policy.theta, policy.generator = np.array([[1.47, -1.47]]), recorder.lane(i)
        trainer = Reinforce(policy, learning_rate=float(rate), baseline_rate=float(rate_w))
        assert trainer.train(ShortCorridor(), 40).tolist() == found.returns[i].tolist()
        assert found.preference[i] == pytest.approx(policy.theta[0, 1] - policy.theta[0, 0], abs=1e-10)
        assert found.baseline[i] == pytest.approx(trainer.w[0], abs=1e-10)
    assert np.abs(found.preference + 2.94).min() > 0.1


@pytest.mark.parametrize("baseline", [True, False])
def test_each_bandit_lane_is_the_plain_trainer(baseline: bool) -> None:
    recorder = Recorder(2)
    found = gradient_bandit_runs(4, 120, 0.3, baseline, cast(Any, recorder), shift=4.0, num_arms=6)
    optimal = np.zeros(120)
    for i in range(4):
        bandit = Bandit(4.0 + recorder.given["standard_normal"][0][:, i])
        learner = GradientBandit(6, learning_rate=0.3, baseline=baseline)
        bandit.generator = learner.generator = recorder.lane(i, skip_normals=1)
        optimal += learner.train(bandit, 120) / 4
        np.testing.assert_allclose(found.preferences[:, i], learner.preferences, rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.optimal, optimal, rtol=0, atol=1e-12)


def test_a_corridor_of_one_policy_returns_its_value() -> None:
    """With rates of 0 the policy stays at p(right) = 0.0502, whose value is −2 (2 − p) / (p (1 − p))."""
    lanes, episodes = 400, 20
    returns = corridor_runs(np.zeros(lanes), np.zeros(lanes), episodes, np.random.default_rng(0)).returns
    p = 1 / (1 + np.exp(2.94))
    assert abs(returns.mean() + 2 * (2 - p) / (p * (1 - p))) < 4 * returns.std() / np.sqrt(lanes * episodes)
