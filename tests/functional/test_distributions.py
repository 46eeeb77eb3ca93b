"""Action distributions: values and gradients against the plain loops, densities that integrate to 1, and sampling."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.functional.made import SEEDS, Array, autograd, close, finite_difference, near, tensor
from upslope import functional as F
from upslope.reference import distributions as reference


def agree(function: Callable[..., Tensor], expected: tuple[float | Array, ...], *parameters: Array, tolerance: float = 1e-10) -> None:
    """Value, then one gradient for each parameter vector: by torch, by hand, by finite differences."""
    value, *by_hand = expected
    close(function(*map(tensor, parameters)), np.array(value))
    found, differences = autograd(function, *parameters), finite_difference(function, *parameters)
    for gradient, difference, hand in zip(found, differences, by_hand, strict=True):
        close(gradient, hand, tolerance)
        near(difference, hand)


def logits_and_mask(seed: int, size: int, masked: bool) -> tuple[Array, Array | None, int]:
    generator = np.random.default_rng(seed)
    logits, action = generator.normal(0.0, 3.0, size), int(generator.integers(size))
    logits[(generator.random(size) < generator.choice([0.0, 0.4])) & (np.arange(size) != action)] = -np.inf
    if not masked:
        return logits, None, action
    mask = generator.random(size) < 0.6
    mask[action] = True
    return logits, mask, action


@given(SEEDS, st.integers(1, 6), st.booleans())
def test_categorical(seed: int, size: int, masked: bool) -> None:
    logits, mask, action = logits_and_mask(seed, size, masked)
    shown = None if mask is None else tensor(mask)

    def log_prob(z: Tensor) -> Tensor:
        return F.categorical_log_prob(z, torch.tensor(action), shown)

    def entropy(z: Tensor) -> Tensor:
        return F.categorical_entropy(z, shown)

    agree(log_prob, reference.categorical_log_prob(logits, action, mask), logits)
    agree(entropy, reference.categorical_entropy(logits, mask), logits)


@given(SEEDS, st.integers(1, 4))
def test_bernoulli(seed: int, size: int) -> None:
    generator = np.random.default_rng(seed)
    logits, action = generator.normal(0.0, 3.0, size), generator.integers(0, 2, size)
    sure = generator.random(size) < generator.choice([0.0, 0.4])
    logits[sure] = np.where(action[sure], np.inf, -np.inf)
    agree(lambda z: F.bernoulli_log_prob(z, tensor(action)), reference.bernoulli_log_prob(logits, action), logits)
    agree(F.bernoulli_entropy, reference.bernoulli_entropy(logits), logits)


@given(SEEDS, st.integers(1, 4))
def test_gaussian_and_its_squashed_form(seed: int, size: int) -> None:
    mean, log_std, action = np.random.default_rng(seed).standard_normal((3, size))
    for name in ("gaussian_log_prob", "squashed_gaussian_log_prob"):
        function, expected = getattr(F, name), getattr(reference, name)(mean, log_std, action)
        agree(lambda m, s, f=function: f(m, s, tensor(action)), expected, mean, log_std)
    agree(F.gaussian_entropy, reference.gaussian_entropy(log_std), log_std)


@given(SEEDS, st.integers(1, 4))
def test_beta(seed: int, size: int) -> None:
    generator = np.random.default_rng(seed)
    (log_alpha, log_beta), action = generator.standard_normal((2, size)), generator.uniform(0.02, 0.98, size)
    agree(lambda a, b: F.beta_log_prob(a, b, tensor(action)), reference.beta_log_prob(log_alpha, log_beta, action), log_alpha, log_beta)
    # torch's trigamma, which the entropy's gradient contains, is good to about 1e-9
    agree(F.beta_entropy, reference.beta_entropy(log_alpha, log_beta), log_alpha, log_beta, tolerance=1e-8)


def test_batches_agree_with_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q, x = torch.randn(3, 2, 5, 3, generator=generator, dtype=torch.float64).unbind()
    of, action, coins, unit = torch.distributions, x.argmax(-1), (x > 0).long(), x.sigmoid()
    close(F.categorical_log_prob(p, action), of.Categorical(logits=p).log_prob(action))
    close(F.categorical_entropy(p), of.Categorical(logits=p).entropy())
    close(F.bernoulli_log_prob(p, coins), of.Bernoulli(logits=p).log_prob(coins.double()).sum(-1))
    close(F.bernoulli_entropy(p), of.Bernoulli(logits=p).entropy().sum(-1))
    close(F.gaussian_log_prob(p, q, x), of.Normal(p, q.exp()).log_prob(x).sum(-1))
    close(F.gaussian_log_prob(p, q[0, 0], x), of.Normal(p, q[0, 0].exp()).log_prob(x).sum(-1))
    close(F.gaussian_entropy(q), of.Normal(p, q.exp()).entropy().sum(-1))
    squashed = of.TransformedDistribution(of.Normal(p, q.exp()), [of.TanhTransform(cache_size=1)])
    close(F.squashed_gaussian_log_prob(p, q, x), squashed.log_prob(x.tanh()).sum(-1), 1e-7)  # atanh(tanh x) loses digits
    close(F.beta_log_prob(p, q, unit), of.Beta(p.exp(), q.exp()).log_prob(unit).sum(-1))
    close(F.beta_entropy(p, q), of.Beta(p.exp(), q.exp()).entropy().sum(-1))


def test_the_worked_table_of_preferences() -> None:
    preferences = torch.tensor([3.0, 2.0, 4.0, 5.0, 1.0])
    table = [0.086, 0.032, 0.234, 0.636, 0.012]
    log_prob = F.categorical_log_prob(preferences.expand(5, 5), torch.arange(5))
    assert [round(p, 3) for p in log_prob.exp().tolist()] == table
    assert [round(float(p), 3) for p in reference.softmax(preferences.numpy())] == table


def test_two_actions_are_a_sigmoid_of_the_difference() -> None:
    z = torch.randn(7, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    close(F.categorical_log_prob(z, torch.ones(7, dtype=torch.int64)).exp(), (z[:, 1] - z[:, 0]).sigmoid())


def test_score_identity() -> None:
    """E ∇log π = 0, exactly: over all actions, all coins, and by quadrature for a Gaussian."""
    z = np.array([0.5, -1.0, 2.0, 0.1])
    p = torch.from_numpy(z).softmax(-1)
    close(autograd(lambda x: (p * F.categorical_log_prob(x.expand(4, 4), torch.arange(4))).sum(), z)[0], np.zeros(4))
    coins = torch.cartesian_prod(*[torch.arange(2)] * 4)
    share = F.bernoulli_log_prob(torch.from_numpy(z).expand(16, 4), coins).exp()
    close(share.sum(), np.array(1.0))
    close(autograd(lambda x: (share * F.bernoulli_log_prob(x.expand(16, 4), coins)).sum(), z)[0], np.zeros(4))
    grid = torch.linspace(-9.0, 11.0, 20001, dtype=torch.float64).unsqueeze(-1)

    def score(mean: Tensor, log_std: Tensor) -> Tensor:
        log_prob = F.gaussian_log_prob(mean.expand_as(grid), log_std.expand_as(grid), grid)
        return (log_prob.detach().exp() * log_prob).sum() * 1e-3

    for gradient in autograd(score, np.array([1.0]), np.array([-0.2])):
        close(gradient, np.zeros(1))


def test_entropy_is_minus_the_mean_log_prob() -> None:
    z = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    log_prob = F.categorical_log_prob(z.expand(3, 3), torch.arange(3))
    close(F.categorical_entropy(z), -(log_prob.exp() * log_prob).sum())
    assert F.categorical_entropy(torch.zeros(8)).item() == pytest.approx(math.log(8), abs=1e-6)


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (1.0, -1.0), (-2.0, 0.5)])
def test_squashed_density_integrates_to_one(mean: float, log_std: float) -> None:
    """Over the actions themselves, a in (−1, 1), on a grid that is even in atanh a."""
    u = torch.linspace(-16.0, 16.0, 40001, dtype=torch.float64).unsqueeze(-1)
    m, s = torch.full_like(u, mean), torch.full_like(u, log_std)
    density = F.squashed_gaussian_log_prob(m, s, u).exp()
    actions = u.squeeze(-1).tanh()
    close(torch.trapezoid(density, actions), np.array(1.0), 1e-5)  # the trapezoid rule's own error


def test_squashed_density_is_stable_beyond_0_999() -> None:
    """float32 against float64, and against the textbook form where that still has digits."""
    u = torch.tensor([[4.0], [-4.0], [9.0], [-9.0], [50.0], [-50.0]])
    zero = torch.zeros_like(u, requires_grad=True)
    found = F.squashed_gaussian_log_prob(zero, zero, u)
    close(found, F.squashed_gaussian_log_prob(zero.double(), zero.double(), u.double()).float(), 1e-6)
    textbook = F.gaussian_log_prob(zero.double(), zero.double(), u.double()) - (1 - u.double().tanh() ** 2).log().sum(-1)
    assert u[0].tanh() > 0.999
    close(found[:2].double(), textbook[:2], 1e-6)
    close(found[::2], found[1::2], 1e-6)  # symmetric
    found.sum().backward()
    assert zero.grad is not None
    assert zero.grad.isfinite().all()


@pytest.mark.parametrize(("log_alpha", "log_beta"), [(0.0, 0.0), (1.0, 0.5), (2.0, -0.2)])
def test_beta_density_integrates_to_one(log_alpha: float, log_beta: float) -> None:
    """On a grid that is even in the logit of a, where the ends are reached gently."""
    a = torch.linspace(-40.0, 40.0, 40001, dtype=torch.float64).sigmoid()[1:-1].unsqueeze(-1)
    a = a[a.squeeze(-1) < 1]
    density = F.beta_log_prob(torch.full_like(a, log_alpha), torch.full_like(a, log_beta), a).exp()
    close(torch.trapezoid(density, a.squeeze(-1)), np.array(1.0), 1e-5)  # the trapezoid rule's own error


def test_extreme_logits_stay_finite() -> None:
    z = torch.tensor([[1e4, -1e4, 0.0], [50.0, -50.0, 20.5]], requires_grad=True)
    total = F.categorical_entropy(z) + F.bernoulli_entropy(z) + F.bernoulli_log_prob(z, torch.ones(2, 3, dtype=torch.int64))
    (total + F.categorical_log_prob(z, torch.tensor([1, 0]))).sum().backward()
    assert total.isfinite().all()
    assert z.grad is not None
    assert z.grad.isfinite().all()
    close(F.categorical_entropy(z[:1]), np.zeros(1, dtype=np.float32))


@pytest.mark.parametrize("z", [12.0, 20.5, 25.0, 40.0])
def test_tails_keep_their_digits(z: float) -> None:
    """float64 against the plain loop where a softplus with a cut-off, as torch's, would be wrong by 2e-9."""
    for sign in (1.0, -1.0):
        x, zero = np.array([sign * z]), np.zeros(1)
        entropy = reference.bernoulli_entropy(x)[0]
        assert F.bernoulli_entropy(tensor(x)).item() == pytest.approx(entropy, rel=1e-10, abs=0.0)
        close(F.bernoulli_log_prob(tensor(x), torch.ones(1)), np.array(reference.bernoulli_log_prob(x, np.ones(1))[0]), 1e-14)
        squashed = reference.squashed_gaussian_log_prob(zero, zero, x / 2)[0] - reference.gaussian_log_prob(zero, zero, x / 2)[0]
        plain = F.gaussian_log_prob(tensor(zero), tensor(zero), tensor(x / 2))
        close(F.squashed_gaussian_log_prob(tensor(zero), tensor(zero), tensor(x / 2)) - plain, np.array(squashed), 1e-12)


def test_illegal_actions_have_no_share() -> None:
    z, mask = torch.tensor([[9.0, 1.0, 0.0]], requires_grad=True), torch.tensor([[False, True, True]])
    close(F.categorical_entropy(z, mask), F.categorical_entropy(z[:, 1:]))
    assert F.categorical_log_prob(z, torch.tensor([0]), mask) == -torch.inf
    (F.categorical_entropy(z, mask) + F.categorical_log_prob(z, torch.tensor([1]), mask)).sum().backward()
    assert z.grad is not None
    assert z.grad[0, 0] == 0.0
    assert z.grad.isfinite().all()
    sample = F.categorical_sample(z.detach().expand(1000, 3), torch.Generator().manual_seed(0), mask.expand(1000, 3))
    assert set(sample.tolist()) == {1, 2}


def test_only_one_legal_action() -> None:
    z, mask = torch.tensor([[1.0, 5.0]]), torch.tensor([[True, False]])
    assert F.categorical_log_prob(z, torch.tensor([0]), mask) == 0.0
    assert F.categorical_entropy(z, mask) == 0.0
    assert F.categorical_sample(z, None, mask) == 0


def test_rows_without_any_legal_action_leak_no_gradient() -> None:
    """A reset row's action mask may be all False; its own numbers are hidden, and nobody else's may suffer."""
    z = torch.zeros(2, 3, requires_grad=True)
    mask = torch.tensor([[True] * 3, [False] * 3])
    log_prob = F.categorical_log_prob(z, torch.tensor([0, 0]), mask)
    F.score_function(log_prob, torch.zeros(2), torch.ones(2), torch.tensor([True, False]), None).sum().backward()
    assert z.grad is not None
    assert z.grad[0].isfinite().all()
    assert (z.grad[1] == 0).all()
    assert F.categorical_sample(z.detach(), torch.Generator().manual_seed(0), mask)[1] in range(3)


@given(SEEDS, st.integers(1, 6), st.booleans())
def test_sampling_inverts_the_cumulative_distribution(seed: int, size: int, masked: bool) -> None:
    made = [logits_and_mask(seed + row, size, masked)[:2] for row in range(20)]
    logits = np.stack([z for z, _ in made])
    mask = np.stack([m for _, m in made if m is not None]) if masked else None
    uniform = torch.rand(20, generator=torch.Generator().manual_seed(seed % 2**31), dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed % 2**31)
    found = F.categorical_sample(tensor(logits), generator, None if mask is None else tensor(mask))
    expected = [reference.categorical_sample(logits[i], float(uniform[i]), None if mask is None else mask[i]) for i in range(20)]
    assert found.tolist() == expected
    assert torch.rand(1, generator=generator) == torch.rand(41, generator=torch.Generator().manual_seed(seed % 2**31))[-1]


@pytest.mark.parametrize(("uniform", "expected"), [(0.0, 1), (0.49, 1), (0.51, 3), (1.0 - 2**-24, 3)])
def test_the_ends_of_the_uniform_range_give_legal_actions(monkeypatch: pytest.MonkeyPatch, uniform: float, expected: int) -> None:
    def rand(*shape: int, **_: object) -> Tensor:
        return torch.full(shape[0], uniform)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "rand", rand)
    mask = torch.tensor([False, True, False, True, False])
    assert F.categorical_sample(torch.zeros(1, 5), None, mask.expand(1, 5)).item() == expected
    ten_equal = torch.full((1, 10), 0.1)
    assert F.categorical_sample(ten_equal).item() == min(int(uniform * 10), 9)


def test_probabilities_that_round_to_less_than_one_give_legal_actions(monkeypatch: pytest.MonkeyPatch) -> None:
    """With u just below 1 the rounded sum may not reach it: the draw is then the last legal action, not one beyond."""
    largest = 1.0 - 2**-24
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, largest))
    logits = torch.randn(1000, 50, generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(50) < 40).expand(1000, 50)
    for legal, count in ((None, 50), (mask, 40)):
        total = logits[:, :count].softmax(-1).cumsum(-1)[:, -1]
        assert (total <= largest).any()
        action = F.categorical_sample(logits, None, legal)
        assert (action[total <= largest] == count - 1).all()
        assert (action < count).all()


def test_frequencies_of_samples() -> None:
    """Half a million draws: each share within 4.5 standard errors, which a right sampler leaves once in 1e5."""
    generator = torch.Generator().manual_seed(0)
    z, count = torch.tensor([0.5, -1.0, 2.0]), 500_000
    p = z.softmax(-1)
    share = F.categorical_sample(z.expand(count, 3), generator).bincount(minlength=3) / count
    assert ((share - p).abs() < 4.5 * (p * (1 - p) / count).sqrt()).all()
    coins = F.bernoulli_sample(z.expand(count, 3), generator)
    q = z.sigmoid()
    assert coins.dtype is torch.int64
    assert ((coins.float().mean(0) - q).abs() < 4.5 * (q * (1 - q) / count).sqrt()).all()


def test_moments_of_continuous_samples() -> None:
    generator, count = torch.Generator().manual_seed(0), 200_000
    mean, log_std = torch.tensor([1.0, -3.0]), torch.tensor([-1.0, 0.5])
    x = F.gaussian_sample(mean.expand(count, 2), log_std, generator)
    assert ((x.mean(0) - mean).abs() < 4.5 * log_std.exp() / math.sqrt(count)).all()
    assert ((x.std(0) / log_std.exp() - 1).abs() < 4.5 / math.sqrt(2 * count)).all()
    exact = mean + log_std.exp() * torch.randn(3, 2, generator=torch.Generator().manual_seed(5))
    close(F.gaussian_sample(mean.expand(3, 2), log_std, torch.Generator().manual_seed(5)), exact, 1e-6)
    alpha, beta = torch.tensor([2.0, 0.5]), torch.tensor([5.0, 0.5])
    y = F.beta_sample(alpha.log().expand(count, 2), beta.log().expand(count, 2), generator)
    center, total = alpha / (alpha + beta), alpha + beta
    spread = (center * (1 - center) / (total + 1)).sqrt()
    assert ((y.mean(0) - center).abs() < 4.5 * spread / math.sqrt(count)).all()
    assert ((y.std(0) / spread - 1).abs() < 0.02).all()  # a rough check: 200,000 draws fix a spread to about 0.3 %
    assert y.min() > 0
    assert y.max() < 1


def test_beta_samples_keep_off_the_ends() -> None:
    log_alpha = torch.full((1000,), -6.0)
    sample = F.beta_sample(log_alpha, log_alpha, torch.Generator().manual_seed(0))
    assert F.beta_log_prob(log_alpha, log_alpha, sample).isfinite()
    assert 0 < sample.min() < 1e-5
    assert 1 - 1e-5 < sample.max() < 1


def test_a_generator_is_all_the_randomness() -> None:
    z, log_std = torch.zeros(6, 3), torch.zeros(3)
    for draw in (
        lambda g: F.categorical_sample(z, g),
        lambda g: F.bernoulli_sample(z, g),
        lambda g: F.gaussian_sample(z, log_std, g),
        lambda g: F.beta_sample(z, z, g),
    ):
        state = torch.get_rng_state()
        first, again = (draw(torch.Generator().manual_seed(3)) for _ in range(2))
        assert torch.equal(first, again)
        assert torch.equal(state, torch.get_rng_state())


def test_a_tail_of_probability_zero_is_never_drawn(monkeypatch) -> None:
    """Rounding may leave the last cumulative value below the largest uniform number; what is behind it stays impossible."""
    logits = torch.tensor([[0.3, 0.1, -0.2, 0.25, 0.0, 0.7, 0.4, -200.0]])
    largest = 1.0 - 2.0**-24
    below = 0
    for shift in range(40):
        moved = logits + 0.01 * shift * torch.arange(8)
        moved[0, -1] = -200.0
        below += int(moved.softmax(-1).cumsum(-1)[0, -1] <= largest)
        monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape[0], largest))
        assert F.categorical_sample(moved).item() == 6
        monkeypatch.undo()
    assert below, "the case does not reach what it is there for"


def test_logits_of_minus_infinity_have_an_entropy_and_a_gradient() -> None:
    """A network that hides actions by itself."""
    z = torch.tensor([0.3, -math.inf, 0.1], requires_grad=True)
    entropy = F.categorical_entropy(z)
    (gradient,) = torch.autograd.grad(entropy, z)
    expected = F.categorical_entropy(z.detach()[[0, 2]])
    assert torch.allclose(entropy.detach(), expected)
    assert gradient.isfinite().all() and gradient[1] == 0
