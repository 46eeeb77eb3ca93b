"""Divergences: exact values and their gradients, and what the three sampled estimates are good for, by enumeration."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.functional.made import SEEDS, Array, autograd, close, finite_difference, near, tensor
from upslope import functional as F
from upslope.reference import divergences as reference

LOGITS = torch.tensor([0.3, -0.8, 1.1, 0.0], dtype=torch.float64)
OTHER = torch.tensor([-0.2, 0.4, 0.6, 1.0], dtype=torch.float64)
Estimate = Callable[[Tensor, Tensor], Tensor]


def gradient(f: Callable[[Tensor], Tensor]) -> Tensor:
    """Gradient at ``LOGITS``."""
    logits = LOGITS.clone().requires_grad_()
    f(logits).backward()
    assert logits.grad is not None
    return logits.grad


def on_policy(estimate: Estimate) -> Callable[[Tensor], Tensor]:
    """``E_a~π [estimate]`` over all actions, with the probabilities constant, as in sampling."""
    return lambda z: (z.softmax(-1).detach() * estimate(z.log_softmax(-1), OTHER.log_softmax(-1))).sum()


def exact(logits: Tensor) -> Tensor:
    return F.categorical_kl(logits, OTHER)


def reversed_exact(logits: Tensor) -> Tensor:
    return F.categorical_kl(OTHER, logits)


@given(SEEDS)
def test_sampled_estimates(seed: int) -> None:
    a, b = np.random.default_rng(seed).standard_normal((2, 5))
    for name in ("kl_k1", "kl_k2", "kl_k3"):
        pairs = [getattr(reference, name)(x, y) for x, y in zip(a, b, strict=True)]

        def total(x: Tensor, name: str = name) -> Tensor:
            return getattr(F, name)(x, tensor(b)).sum()

        close(getattr(F, name)(tensor(a), tensor(b)), np.array([value for value, _ in pairs]))
        close(autograd(total, a)[0], np.array([slope for _, slope in pairs]))
        near(finite_difference(total, a)[0], np.array([slope for _, slope in pairs]))


def test_k1_and_k3_have_the_divergence_as_their_mean() -> None:
    close(on_policy(F.kl_k1)(LOGITS), exact(LOGITS))
    close(on_policy(F.kl_k3)(LOGITS), exact(LOGITS))
    assert abs(on_policy(F.kl_k2)(LOGITS) - exact(LOGITS)) > 1e-3  # k2 is biased


def test_the_approximate_kl_of_ppo_is_that_of_the_old_policy() -> None:
    """``kl_k3(behavior, new)`` on samples of the old policy: ratio − 1 − log ratio, mean KL(π_old‖π)."""
    old, new = OTHER.log_softmax(-1), LOGITS.log_softmax(-1)
    ratio = (new - old).exp()
    close(F.kl_k3(old, new), ratio - 1 - ratio.log())
    close((old.exp() * F.kl_k3(old, new)).sum(), F.categorical_kl(OTHER, LOGITS))


def test_gradients_of_the_estimates_on_policy() -> None:
    close(gradient(on_policy(F.kl_k1)), torch.zeros(4, dtype=torch.float64))
    close(gradient(on_policy(F.kl_k2)), gradient(exact))
    close(gradient(on_policy(F.kl_k3)), gradient(reversed_exact))
    assert (gradient(exact) - gradient(reversed_exact)).abs().max() > 1e-2


@pytest.mark.parametrize("estimate", [F.kl_k1, F.kl_k3])
def test_off_policy_a_differentiated_weight_gives_the_gradient_of_the_divergence(estimate: Estimate) -> None:
    behavior = torch.tensor([0.9, 0.1, -0.5, 0.2], dtype=torch.float64).log_softmax(-1)

    def weighted(logits: Tensor, *, stopped: bool) -> Tensor:
        log_prob = logits.log_softmax(-1)
        ratio = (log_prob - behavior).exp()
        return (behavior.exp() * (ratio.detach() if stopped else ratio) * estimate(log_prob, OTHER.log_softmax(-1))).sum()

    close(weighted(LOGITS, stopped=False), exact(LOGITS))
    close(gradient(lambda z: weighted(z, stopped=False)), gradient(exact))
    close(gradient(lambda z: weighted(z, stopped=True)), gradient(on_policy(estimate)))


def test_of_a_sequence_only_the_sum_has_the_right_gradient() -> None:
    """Two tokens from one table of logits per prefix: per-token k2 has ∇KL of each token but freezes the prefix."""
    generator = torch.Generator().manual_seed(0)
    other = torch.randn(4, 3, generator=generator, dtype=torch.float64)  # row 0: first token; row 1 + a: after a
    start = torch.randn(4, 3, generator=generator, dtype=torch.float64)

    def tokens(logits: Tensor) -> Tensor:
        """``[9, 2]`` log-probabilities of both tokens of all nine sequences."""
        log_prob = logits.log_softmax(-1)
        return torch.stack([torch.stack([log_prob[0, a], log_prob[1 + a, b]]) for a in range(3) for b in range(3)])

    def divergence(logits: Tensor) -> Tensor:
        first = logits[0].softmax(-1)
        return F.categorical_kl(logits[0], other[0]) + (first * F.categorical_kl(logits[1:], other[1:])).sum()

    def expectation(logits: Tensor, *, per_token: bool) -> Tensor:
        own, reference_tokens = tokens(logits), tokens(other)
        share = own.sum(-1).exp().detach()
        k2 = F.kl_k2(own, reference_tokens).sum(-1) if per_token else F.kl_k2(own.sum(-1), reference_tokens.sum(-1))
        return (share * k2).sum()

    def at_start(f: Callable[[Tensor], Tensor]) -> Array:
        return autograd(f, start.numpy())[0]

    exact_gradient = at_start(divergence)
    close(at_start(lambda z: expectation(z, per_token=False)), exact_gradient)
    frozen = at_start(lambda z: expectation(z, per_token=True))
    close(frozen[1:], exact_gradient[1:])
    assert np.abs(frozen[0] - exact_gradient[0]).max() > 1e-2


@given(SEEDS, st.integers(1, 5), st.booleans())
def test_categorical_kl(seed: int, size: int, masked: bool) -> None:
    generator = np.random.default_rng(seed)
    p, q = generator.normal(0.0, 3.0, (2, size))
    certain = generator.integers(size)  # impossible for p, and sometimes for q too
    impossible = (generator.random(size) < generator.choice([0.0, 0.4])) & (np.arange(size) != certain)
    p[impossible], q[impossible & (generator.random(size) < 0.5)] = -np.inf, -np.inf
    mask = None
    if masked:
        mask = generator.random(size) < 0.6
        mask[certain] = True
    value, d_p, d_q = reference.categorical_kl(p, q, mask)

    def kl(x: Tensor, y: Tensor) -> Tensor:
        return F.categorical_kl(x, y, None if mask is None else tensor(mask))

    close(kl(tensor(p), tensor(q)), np.array(value))
    for found, difference, expected in zip(autograd(kl, p, q), finite_difference(kl, p, q), (d_p, d_q), strict=True):
        close(found, expected)
        near(difference, expected)


@pytest.mark.parametrize(("name", "count"), [("bernoulli_kl", 2), ("gaussian_kl", 4), ("beta_kl", 4)])
@given(seed=SEEDS, size=st.integers(1, 3))
def test_exact_divergences(name: str, count: int, seed: int, size: int) -> None:
    inputs = list(np.random.default_rng(seed).standard_normal((count, size)))
    value, *gradients = getattr(reference, name)(*inputs)
    function = getattr(F, name)
    assert function(*map(tensor, inputs)).shape == ()
    close(function(*map(tensor, inputs)), np.array(value))
    found, differences = autograd(function, *inputs), finite_difference(function, *inputs)
    for by_torch, by_difference, by_hand in zip(found, differences, gradients, strict=True):
        close(by_torch, by_hand, 1e-8 if name == "beta_kl" else 1e-10)  # torch's trigamma is good to about 1e-9
        near(by_difference, by_hand)
    same = inputs[: count // 2] * 2
    close(function(*map(tensor, same)), np.array(0.0))


@given(SEEDS)
def test_coins_that_are_sure(seed: int) -> None:
    generator = np.random.default_rng(seed)
    p, q = generator.normal(0.0, 3.0, (2, 4))
    p[:2] = generator.choice([-np.inf, np.inf], 2)
    q[0] = p[0]
    value, d_p, d_q = reference.bernoulli_kl(p, q)
    close(F.bernoulli_kl(tensor(p), tensor(q)), np.array(value))
    for found, expected in zip(autograd(F.bernoulli_kl, p, q), (d_p, d_q), strict=True):
        close(found, expected)


@pytest.mark.parametrize("name", ["categorical_kl", "bernoulli_kl"])
def test_what_only_p_does_makes_the_divergence_infinite(name: str) -> None:
    for never in (-np.inf, -1e5):  # a logit of −∞, and one whose probability is 0 in float64
        p, q = np.array([0.3, -0.2, 0.0]), np.array([0.1, never, 0.4])
        expected = getattr(reference, name)(p, q)[0]
        close(getattr(F, name)(tensor(p), tensor(q)), np.array(expected))
        assert expected == np.inf if never == -np.inf else 1e4 < expected < np.inf
        close(getattr(F, name)(tensor(q), tensor(p)), np.array(getattr(reference, name)(q, p)[0]))  # the other way round it is finite


def test_divergences_agree_with_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q, r, s = torch.randn(4, 5, 3, generator=generator, dtype=torch.float64).unbind()
    of = torch.distributions
    kl = of.kl_divergence
    close(F.categorical_kl(p, q), kl(of.Categorical(logits=p), of.Categorical(logits=q)))
    close(F.bernoulli_kl(p, q), kl(of.Bernoulli(logits=p), of.Bernoulli(logits=q)).sum(-1))
    close(F.gaussian_kl(p, q, r, s), kl(of.Normal(p, q.exp()), of.Normal(r, s.exp())).sum(-1))
    close(F.gaussian_kl(p, q[0], r, s[0]), F.gaussian_kl(p, q[0].expand_as(p), r, s[0].expand_as(p)))
    close(F.beta_kl(p, q, r, s), kl(of.Beta(p.exp(), q.exp()), of.Beta(r.exp(), s.exp())).sum(-1))


def test_certain_policies_do_not_give_nan() -> None:
    sure, unsure = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True), torch.zeros(1, 3)
    value = F.categorical_kl(sure, unsure) + F.bernoulli_kl(sure, unsure)
    value.sum().backward()
    assert value.isfinite().all()
    assert sure.grad is not None
    assert sure.grad.isfinite().all()


def test_masked_entries_take_no_part() -> None:
    log_prob = torch.tensor([0.5, torch.inf, torch.nan], requires_grad=True)
    mask = torch.tensor([True, False, False])
    for estimate in (F.kl_k1, F.kl_k2, F.kl_k3):
        log_prob.grad = None
        value = estimate(log_prob, torch.tensor([0.1, torch.nan, 0.0]), mask)
        value.sum().backward()
        assert value[1:].tolist() == [0.0, 0.0]
        assert log_prob.grad is not None
        assert log_prob.grad[1:].tolist() == [0.0, 0.0]
