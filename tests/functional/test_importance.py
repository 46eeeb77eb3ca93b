"""Importance sampling and V-trace against their definitions, the identities that hold on-policy, and exact values."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.functional.made import FRACTIONS, Array, Recording, close, record, recordings, tensor
from upslope import functional as F
from upslope.reference import importance as reference

ENDS = ("terminated", "truncated", "mask")
ALL = ("reward", "value", "next_value", *ENDS)
CAPS = st.sampled_from([(1.0, 1.0), (2.0, 1.0), (3.0, 0.5), (math.inf, 1.5), (math.inf, math.inf)])


def log_probs(recording: Recording, seed: int = 0) -> dict[str, Array]:
    """log π and log b of made-up actions, among them some that π never takes; anything at all on masked rows."""
    generator = np.random.default_rng([seed, recording.reward.size])
    shape = recording.reward.shape
    behavior = np.log(generator.uniform(0.1, 1.0, shape))
    log_prob = np.log(generator.uniform(0.1, 1.0, shape))
    log_prob[generator.random(shape) < 0.1] = -np.inf
    if recording.mask is not None:
        hidden = ~recording.mask
        log_prob[hidden] = generator.choice([np.nan, np.inf, -np.inf], hidden.sum())
        behavior[hidden] = generator.choice([np.nan, np.inf, -np.inf], hidden.sum())
    return {"log_prob": log_prob, "behavior_log_prob": behavior}


def both(name: str, recording: Recording, names: tuple[str, ...], **options: float) -> None:
    scores = log_probs(recording)
    found = getattr(F, name)(**recording.tensors(*names), **{k: tensor(x) for k, x in scores.items()}, **options)
    expected = getattr(reference, name)(**recording.arrays(*names), **scores, **options)
    for f, e in zip(*((x if isinstance(x, tuple) else (x,)) for x in (found, expected)), strict=True):
        assert f.dtype is torch.float64
        close(f, e)


@given(recordings)
def test_products_of_ratios(recording: Recording) -> None:
    both("cumulative_ratio", recording, ENDS)
    both("trajectory_ratio", recording, ENDS)


@given(recordings, FRACTIONS)
def test_per_decision_returns(recording: Recording, gamma: float) -> None:
    both("per_decision_returns", recording, ("reward", *ENDS), gamma=gamma)
    both("per_decision_returns", recording, ("reward", "next_value", *ENDS), gamma=gamma)


@given(recordings, FRACTIONS, FRACTIONS, CAPS)
def test_vtrace(recording: Recording, gamma: float, trace_lambda: float, caps: tuple[float, float]) -> None:
    options = {"gamma": gamma, "trace_lambda": trace_lambda, "ratio_cap": caps[0], "trace_cap": caps[1]}
    both("vtrace", recording.consistent(), ALL, **options)


@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 200])
def test_long_rows(length: int) -> None:
    recording = record((2, length), length, masked=True, end_rate=0.05).consistent()
    both("cumulative_ratio", recording, ENDS)
    both("trajectory_ratio", recording, ENDS)
    both("vtrace", recording, ALL, gamma=0.99, trace_lambda=0.95, ratio_cap=2.0)


@given(recordings, FRACTIONS, st.sampled_from([(1.0, 1.0), (5.0, 1.0), (math.inf, math.inf)]))
def test_on_policy_vtrace_is_the_lambda_return_and_gae(recording: Recording, trace_lambda: float, caps: tuple[float, float]) -> None:
    x = recording.consistent().tensors(*ALL)
    same = {"log_prob": -x["reward"].square(), "behavior_log_prob": -x["reward"].square()}
    target, advantage = F.vtrace(**x, **same, gamma=0.9, trace_lambda=trace_lambda, ratio_cap=caps[0], trace_cap=caps[1])
    close(target, F.lambda_returns(**x, gamma=0.9, trace_lambda=trace_lambda), 1e-10)
    close(advantage, F.gae(**x, gamma=0.9, gae_lambda=trace_lambda), 1e-10)


@given(recordings)
def test_without_a_critic_and_without_caps_vtrace_is_per_decision_importance_sampling(recording: Recording) -> None:
    x = recording.tensors("reward", *ENDS)
    scores = {k: tensor(v) for k, v in log_probs(recording).items()}
    zero = torch.zeros_like(x["reward"])
    options: dict[str, Any] = {"value": zero, "next_value": zero, "ratio_cap": math.inf, "trace_cap": math.inf}
    close(F.vtrace(**x, **scores, gamma=0.9, **options)[0], F.per_decision_returns(**x, **scores, gamma=0.9))


@given(recordings)
def test_per_decision_returns_are_the_returns_of_weighted_rewards(recording: Recording) -> None:
    """At the first step of an episode; the last cumulative ratio is the trajectory's."""
    x = recording.tensors("reward", *ENDS)
    scores = {k: tensor(v) for k, v in log_probs(recording).items()}
    ends = {k: v for k, v in x.items() if k != "reward"}
    cumulative = F.cumulative_ratio(**scores, **ends)
    plain = F.returns_to_go(**{**x, "reward": cumulative * x["reward"]}, gamma=0.9)
    first = F.discount_weight(**ends, gamma=0.5) == 1.0
    close(F.per_decision_returns(**x, **scores, gamma=0.9)[first], plain[first])
    left = F.returns_to_go(torch.where(x.get("mask", first | True), 1.0, 0.0), **ends, gamma=1.0)
    close(cumulative[left == 1], F.trajectory_ratio(**scores, **ends)[left == 1])


def test_an_action_that_the_policy_never_takes_ends_the_weight_of_its_episode_only() -> None:
    log_prob = torch.tensor([[0.0, -math.inf, 0.0, -1.0]], requires_grad=True)
    ended = torch.tensor([[False, False, True, False]])
    scores = (log_prob, torch.zeros(1, 4), ended, torch.zeros_like(ended))
    cumulative, trajectory = F.cumulative_ratio(*scores), F.trajectory_ratio(*scores)
    close(cumulative, torch.tensor([[1.0, 0.0, 0.0, math.exp(-1)]]), 1e-6)  # float32
    close(trajectory, torch.tensor([[0.0, 0.0, 0.0, math.exp(-1)]]), 1e-6)
    (cumulative.sum() + trajectory.sum()).backward()
    assert log_prob.grad is not None and log_prob.grad.isfinite().all()


def test_gradients_and_what_stays_out_of_them() -> None:
    recording = record((3, 6), 3, masked=True)
    scores = {k: tensor(np.where(np.isfinite(v), v, -0.5)).requires_grad_() for k, v in log_probs(recording).items()}
    x = recording.tensors("reward", *ENDS)
    ends = {k: v for k, v in x.items() if k != "reward"}

    def cumulative(log_prob: torch.Tensor, behavior: torch.Tensor) -> torch.Tensor:
        return F.cumulative_ratio(log_prob, behavior, **ends)

    def trajectory(log_prob: torch.Tensor, behavior: torch.Tensor) -> torch.Tensor:
        return F.trajectory_ratio(log_prob, behavior, **ends)

    def returns(log_prob: torch.Tensor, behavior: torch.Tensor) -> torch.Tensor:
        return F.per_decision_returns(**x, log_prob=log_prob, behavior_log_prob=behavior, gamma=0.9)

    for f in (cumulative, trajectory, returns):
        assert torch.autograd.gradcheck(f, tuple(scores.values()))
        for leaf in scores.values():
            leaf.grad = None
        f(*scores.values()).sum().backward()
        for leaf in scores.values():
            assert leaf.grad is not None
            assert (leaf.grad[~x["mask"]] == 0).all()
    values = recording.consistent().tensors("value", "next_value")
    target, advantage = F.vtrace(**x, **values, **scores, gamma=0.9)
    assert not target.requires_grad and not advantage.requires_grad


def test_terminated_wins_over_truncated() -> None:
    one, both_flags = torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)
    target, advantage = F.vtrace(one, one, 7 * one, one, one, both_flags, both_flags, 0.9)
    assert (target.item(), advantage.item()) == (1.0, 0.0)
    assert F.per_decision_returns(one, one, one, both_flags, both_flags, 0.9, next_value=7 * one).item() == 1.0
    target, advantage = F.vtrace(one, one, 7 * one, one, one, ~both_flags, both_flags, 0.9)
    assert (target.item(), advantage.item()) == (pytest.approx(7.3), pytest.approx(6.3))


def test_no_steps_at_all() -> None:
    empty, none = torch.zeros(3, 0), torch.zeros(3, 0, dtype=torch.bool)
    assert F.vtrace(empty, empty, empty, empty, empty, none, none, 0.9)[1].shape == (3, 0)
    assert F.cumulative_ratio(empty, empty, none, none, none).shape == (3, 0)


def test_caps_and_shapes_are_checked() -> None:
    one, never = torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.bool)
    for caps in ((1.0, 2.0), (1.0, 0.0), (-1.0, -1.0)):
        with pytest.raises(ValueError, match="trace_cap: expected a positive number, at most ratio_cap"):
            F.vtrace(one, one, one, one, one, never, never, 0.9, 1.0, *caps)
    with pytest.raises(ValueError, match="behavior_log_prob: expected shape"):
        F.cumulative_ratio(one, one[:, :1], never, never)
    with pytest.raises(ValueError, match=r"terminated: expected dtype torch.bool"):
        F.trajectory_ratio(one, one, one, never)


def made_problem() -> tuple[Array, Array, Array, Array]:
    generator = np.random.default_rng(1)
    transition, reward = generator.dirichlet([1.0, 1.0], (2, 2)), generator.standard_normal((2, 2))
    return transition, reward, *generator.dirichlet([2.0, 2.0], (2, 2))


def enumerate_steps(transition: Array, behavior: Array, length: int) -> list[tuple[float, tuple[int, ...], tuple[int, ...]]]:
    """(probability, states, actions) of everything that can happen from state 0; one state more than actions."""
    found: list[tuple[float, tuple[int, ...], tuple[int, ...]]] = []
    for actions in itertools.product((0, 1), repeat=length):
        for later in itertools.product((0, 1), repeat=length):
            states = (0, *later)
            steps = zip(states, actions, later, strict=False)
            found.append((math.prod(behavior[s, a] * transition[s, a, n] for s, a, n in steps), states, actions))
    return found


@pytest.mark.parametrize("trace_lambda", [0.0, 0.6, 1.0])
def test_expectations_over_all_trajectories(trace_lambda: float) -> None:
    """E_b of per-decision returns is V^π; V-trace's expected correction vanishes at the value of the policy ∝ min(ρ̄ b, π)."""
    transition, reward, policy, behavior = made_problem()
    gamma, cap = 0.9, 1.1

    def value_of(chosen: Array) -> Array:
        return np.linalg.solve(np.eye(2) - gamma * np.einsum("sa,sap->sp", chosen, transition), (chosen * reward).sum(1))

    between = np.minimum(cap * behavior, policy)
    fixed_point = value_of(between / between.sum(1, keepdims=True))
    everything = enumerate_steps(transition, behavior, 3)
    states, actions = np.array([s for _, s, _ in everything]), np.array([a for *_, a in everything])
    now, after = states[:, :-1], states[:, 1:]
    probability = np.array([p for p, *_ in everything])
    assert probability.sum() == pytest.approx(1.0, abs=1e-12)
    none = torch.zeros(actions.shape, dtype=torch.bool)
    common = (tensor(np.log(policy[now, actions])), tensor(np.log(behavior[now, actions])), none, none, gamma)
    r = tensor(reward[now, actions])
    exact = value_of(policy)
    returns = F.per_decision_returns(r, *common, next_value=tensor(exact[after]))
    assert float(probability @ returns[:, 0].numpy()) == pytest.approx(exact[0], abs=1e-10)
    target, _ = F.vtrace(r, tensor(fixed_point[now]), tensor(fixed_point[after]), *common, trace_lambda, cap)
    assert float(probability @ target[:, 0].numpy()) == pytest.approx(fixed_point[0], abs=1e-10)
    assert abs(exact[0] - fixed_point[0]) > 0.01
