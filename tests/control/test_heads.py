"""Heads: densities against torch.distributions, normalization, masks, and what the environment gets."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, distributions

from upslope.control.heads import Bernoulli, Beta, Categorical, Distribution, Gaussian, Head, MultiCategorical, SquashedGaussian, head_for
from upslope.errors import UsageError

LOW, HIGH = (-1.0, -2.0, 0.5), (1.0, 3.0, 0.75)
HEADS: dict[str, Head] = {
    "categorical": Categorical(5),
    "one action": Categorical(1),
    "multi": MultiCategorical((3, 2, 4)),
    "bernoulli": Bernoulli(3),
    "gaussian": Gaussian(3, LOW, HIGH),
    "squashed": SquashedGaussian(3, LOW, HIGH),
    "beta": Beta(3, LOW, HIGH),
}


def parameters_for(head: Head, *lead: int, seed: int = 0) -> Tensor:
    return torch.randn(*lead, head.num_parameters, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def torch_distributions(head: Head, z: Tensor) -> list[distributions.Distribution]:
    """The same distribution made of PyTorch's own: independent factors over the last axis of the action."""
    if isinstance(head, Categorical):
        return [distributions.Categorical(logits=z)]
    if isinstance(head, MultiCategorical):
        return [distributions.Categorical(logits=part) for part in z.split(head.nvec, -1)]
    if isinstance(head, Bernoulli):
        return [distributions.Bernoulli(logits=part) for part in z.unbind(-1)]
    first, second = z.chunk(2, -1)
    pairs = zip(first.unbind(-1), second.unbind(-1), strict=True)
    if isinstance(head, Beta):
        soft = torch.nn.functional.softplus
        return [distributions.Beta(1 + soft(a), 1 + soft(b)) for a, b in pairs]
    return [distributions.Normal(mean, log_std.exp()) for mean, log_std in pairs]


def columns(head: Head, action: Tensor) -> list[Tensor]:
    return [action] if isinstance(head, Categorical) else list(action.unbind(-1))


def added(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).sum(0)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("lead", [(7,), (2, 5), (4, 1), (3, 2, 2)])
def test_log_prob_entropy_and_kl_equal_torch_distributions(name: str, lead: tuple[int, ...]) -> None:
    head = HEADS[name]
    p, q = parameters_for(head, *lead), parameters_for(head, *lead, seed=1)
    action = head.sample(p, torch.Generator().manual_seed(2))
    if isinstance(head, SquashedGaussian):
        action = action.clamp(-4, 4)  # where the naive form below is right in float64
    theirs, others = torch_distributions(head, p), torch_distributions(head, q)
    log_prob = added([d.log_prob(a.double()) for d, a in zip(theirs, columns(head, action), strict=True)])
    if isinstance(head, SquashedGaussian):
        log_prob -= torch.log1p(-action.tanh().square()).sum(-1)
    else:
        torch.testing.assert_close(head.entropy(p), added([d.entropy() for d in theirs]), rtol=1e-9, atol=1e-9)
    kl = added([distributions.kl_divergence(a, b) for a, b in zip(theirs, others, strict=True)])
    torch.testing.assert_close(head.log_prob(p, action), log_prob, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(head.kl(p, q), kl, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(head.kl(p, p), torch.zeros(lead, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("lead", [(7,), (2, 5), (4, 1), ()])
def test_shapes_and_dtypes(name: str, lead: tuple[int, ...]) -> None:
    """One number per decision: a stray axis would broadcast [N] against [N, 1] into [N, N]."""
    head = HEADS[name]
    p = parameters_for(head, *lead).float()
    action = head.sample(p, torch.Generator().manual_seed(0))
    assert action.shape == (*lead, *head.stored_shape) == head.mode(p).shape
    continuous = isinstance(head, Gaussian)
    assert action.dtype == head.mode(p).dtype == (torch.float32 if continuous else torch.int64)
    for number in (head.log_prob(p, action), head.entropy(p), head.kl(p, p)):
        assert number.shape == lead
        assert number.dtype == torch.float32


@pytest.mark.parametrize("name", ["categorical", "multi", "bernoulli"])
def test_discrete_samples_have_the_probabilities_of_log_prob(name: str) -> None:
    head = HEADS[name]
    p = parameters_for(head)
    n = 40_000
    drawn = head.sample(p.expand(n, -1), torch.Generator().manual_seed(4))
    actions, counts = drawn.unique(dim=0, return_counts=True)
    probability = head.log_prob(p.expand(len(actions), -1), actions).exp()
    # sampling noise: five standard errors of a frequency
    assert ((counts / n - probability).abs() < 5 * (probability * (1 - probability) / n).sqrt()).all()
    assert abs(float(probability.sum()) - 1) < 1e-2  # every action with some probability was seen


@pytest.mark.parametrize("name", ["gaussian", "squashed", "beta"])
def test_continuous_samples_have_the_density_of_log_prob(name: str) -> None:
    """E[−log π(a)] over samples is the entropy."""
    head = HEADS[name]
    p = parameters_for(head)
    n = 40_000
    drawn = head.sample(p.expand(n, -1), torch.Generator().manual_seed(5))
    surprise = -head.log_prob(p.expand(n, -1), drawn)
    # sampling noise: five standard errors of the mean
    assert abs(float(surprise.mean() - head.entropy(p))) < 5 * float(surprise.std()) / math.sqrt(n)
    for column, theirs in zip(drawn.unbind(-1), torch_distributions(head, p), strict=True):
        assert abs(float(column.mean() - theirs.mean)) < 5 * float(theirs.stddev) / math.sqrt(n)


def grid(head: type[Gaussian], z: Tensor) -> tuple[Tensor, Tensor]:
    """Stored actions of a one-dimensional head on a fine grid and their densities, with respect to the environment's action in [−1, 1]."""
    one = head(1, (-1.0,), (1.0,))
    if head is Beta:
        a = torch.linspace(1e-7, 1 - 1e-7, 200_001, dtype=torch.float64)
        return a, one.log_prob(z.expand(len(a), -1), a.unsqueeze(-1)).exp()
    u = torch.linspace(-14, 14, 200_001, dtype=torch.float64)  # evenly spaced in u: the density's peak may be very near −1
    return u.tanh(), one.log_prob(z.expand(len(u), -1), u.unsqueeze(-1)).exp()


@pytest.mark.parametrize("head", [SquashedGaussian, Beta])
@pytest.mark.parametrize("z", [(0.0, 0.0), (0.7, -1.0), (-1.5, 0.4)])
def test_bounded_densities_integrate_to_one(head: type[Gaussian], z: tuple[float, float]) -> None:
    a, density = grid(head, torch.tensor(z, dtype=torch.float64))
    assert float(torch.trapezoid(density, a)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("mean", [0.0, 0.5, -2.0])
@pytest.mark.parametrize("std", [0.1, 0.6, 1.0, 2.0])
def test_squashed_entropy_equals_the_integral(mean: float, std: float) -> None:
    z = torch.tensor([mean, math.log(std)], dtype=torch.float64)
    head = SquashedGaussian(1, (-1.0,), (1.0,))
    u = torch.linspace(mean - 12 * std, mean + 12 * std, 100_001, dtype=torch.float64)
    log_a = head.log_prob(z.expand(len(u), -1), u.unsqueeze(-1))  # density of a; that of u is π(a) (1 − a²)
    density_u = distributions.Normal(mean, std).log_prob(u).exp()
    assert float(head.entropy(z)) == pytest.approx(float(-torch.trapezoid(density_u * log_a, u)), abs=2e-6)


def test_squashed_entropy_gradient_is_that_of_the_integral() -> None:
    z = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    head = SquashedGaussian(1, (-1.0,), (1.0,))
    (gradient,) = torch.autograd.grad(head.entropy(z), z)
    step = 1e-5
    for index in range(2):
        up, down = z.detach().clone(), z.detach().clone()
        up[index] += step
        down[index] -= step
        assert float(gradient[index]) == pytest.approx(float(head.entropy(up) - head.entropy(down)) / (2 * step), abs=1e-8)


def test_squashed_log_prob_is_stable_far_beyond_what_an_action_can_hold() -> None:
    """tanh(20) is 1 in float32 and in float64; log(1 − tanh²u) from it would be −∞, from u it is log 4 − 2u."""
    head = SquashedGaussian(1, (-1.0,), (1.0,))
    for u in (4.0, 9.0, 20.0, -20.0, 200.0):
        z = torch.tensor([[u, 0.0]], requires_grad=True)
        log_prob = head.log_prob(z, torch.tensor([[u]]))
        log_prob.sum().backward()
        exact = -0.5 * math.log(2 * math.pi) - (2 * math.log(2) - 2 * abs(u) - 2 * math.log1p(math.exp(-2 * abs(u))))
        assert float(log_prob.detach()) == pytest.approx(exact, rel=1e-6)
        assert z.grad is not None and z.grad.isfinite().all()


def test_the_unclipped_action_is_stored_and_scored() -> None:
    """The score of what is stored averages to zero, E[∇ log π] = 0; scored after clipping it does not."""
    head = Gaussian(1, (-1.0,), (1.0,))
    z = torch.tensor([0.8, 0.0], requires_grad=True)
    drawn = head.sample(z.detach().expand(4000, -1), torch.Generator().manual_seed(6))
    assert (drawn.abs() > 1).any()
    assert np.abs(head.to_env(drawn)).max() == 1
    u = torch.linspace(-8, 9.6, 20_001)
    weight = head.log_prob(z.detach().expand(len(u), -1), u.unsqueeze(-1)).exp() * (u[1] - u[0])

    def mean_score(action: Tensor) -> Tensor:
        return torch.autograd.grad((weight * head.log_prob(z.expand(len(u), -1), action.unsqueeze(-1))).sum(), z)[0]

    torch.testing.assert_close(mean_score(u), torch.zeros(2), rtol=0, atol=1e-5)
    assert mean_score(u.clamp(-1, 1))[0] < -0.1


# ------------------------------------------------------------------------------------------------------------------- masks


MASKED = {"categorical": Categorical(5), "multi": MultiCategorical((2, 3))}
MASKS = {"categorical": [0, 1, 0, 1, 1], "multi": [0, 1, 1, 0, 1]}


@pytest.fixture(params=MASKED)
def masked(request: pytest.FixtureRequest) -> tuple[Head, Tensor, Tensor]:
    head = MASKED[request.param]
    p = parameters_for(head)
    p[0] = 30.0  # the illegal action would win by far
    return head, p, torch.tensor(MASKS[request.param]).bool()


def legal_subset(head: Head, mask: Tensor) -> tuple[Head, Tensor]:
    """The head over legal actions only, and where each legal action sits."""
    if isinstance(head, Categorical):
        return Categorical(int(mask.sum())), mask.nonzero().squeeze(-1)
    assert isinstance(head, MultiCategorical)
    return MultiCategorical(tuple(int(m.sum()) for m in mask.split(head.nvec))), mask.nonzero().squeeze(-1)


def test_masked_actions_are_never_drawn_nor_greedy(masked: tuple[Head, Tensor, Tensor]) -> None:
    head, p, mask = masked
    drawn = head.sample(p.expand(2000, -1), torch.Generator().manual_seed(7), mask.expand(2000, -1))
    offsets = torch.tensor([0, 2]) if isinstance(head, MultiCategorical) else torch.tensor(0)
    assert mask[drawn + offsets].all()
    assert mask[head.mode(p, mask) + offsets].all()
    legal_probability = head.log_prob(p.expand(2000, -1), drawn, mask.expand(2000, -1))
    assert legal_probability.isfinite().all()


def test_masked_numbers_are_those_of_the_legal_actions_alone(masked: tuple[Head, Tensor, Tensor]) -> None:
    head, p, mask = masked
    q = parameters_for(head, seed=8)
    small, kept = legal_subset(head, mask)
    torch.testing.assert_close(head.entropy(p, mask), small.entropy(p[kept]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(head.kl(p, q, mask), small.kl(p[kept], q[kept]), rtol=1e-12, atol=1e-12)
    action = head.mode(p, mask)
    torch.testing.assert_close(head.log_prob(p, action, mask), small.log_prob(p[kept], small.mode(p[kept])), rtol=1e-12, atol=1e-12)


def test_masked_logits_get_no_gradient(masked: tuple[Head, Tensor, Tensor]) -> None:
    head, p, mask = masked
    z, other = p.clone().requires_grad_(), parameters_for(head, seed=9)
    log_prob, entropy = head.log_prob(z, head.mode(p, mask), mask), head.entropy(z, mask)
    (gradient,) = torch.autograd.grad(log_prob + entropy + head.kl(z, other, mask), z)
    assert gradient.isfinite().all()
    assert (gradient[~mask] == 0).all()
    assert (gradient[mask] != 0).any()


def test_one_legal_action_is_certain() -> None:
    head, mask = Categorical(4), torch.tensor([False, False, True, False])
    p = parameters_for(head).requires_grad_()
    assert int(head.sample(p.detach(), None, mask)) == int(head.mode(p, mask)) == 2
    log_prob, entropy = head.log_prob(p, torch.tensor(2), mask), head.entropy(p, mask)
    (gradient,) = torch.autograd.grad(log_prob + entropy, p)
    assert log_prob.tolist() == entropy.tolist() == 0
    assert (gradient == 0).all()


# ---------------------------------------------------------------------------------------------------- to the environment


def box(low: object, high: object, dtype: type = np.float32) -> spaces.Box:
    return spaces.Box(np.array(low, dtype), np.array(high, dtype), dtype=dtype)


ACTION_SPACES = [
    (spaces.Discrete(4), "gaussian"),
    (spaces.Discrete(4, start=-2), "gaussian"),
    (spaces.MultiDiscrete([3, 2]), "gaussian"),
    (spaces.MultiDiscrete([3, 2], start=[5, -1]), "gaussian"),
    (spaces.MultiDiscrete(np.array([[3, 2], [2, 4]])), "gaussian"),
    (spaces.MultiBinary(3), "gaussian"),
    (spaces.MultiBinary([2, 3]), "gaussian"),
    *[
        (space, name)
        for name in ("gaussian", "squashed", "beta")
        for space in (box([-1, 0.1], [2, 0.3]), box([[-1, 0.1]], [[2, 0.3]], np.float64), box(-0.1, 0.7))
    ],
    (spaces.Box(-np.inf, np.inf, (2,)), "gaussian"),
]


@pytest.mark.parametrize(("space", "distribution"), ACTION_SPACES, ids=str)
def test_the_environment_gets_actions_of_its_space(space: spaces.Space, distribution: str) -> None:
    head = head_for(space, distribution)  # pyright: ignore[reportArgumentType]
    p = 4 * parameters_for(head, 200).float()
    stored = head.sample(p, torch.Generator().manual_seed(0))
    assert head.log_prob(p, stored).isfinite().all()
    for action in (*head.to_env(stored), *head.to_env(head.mode(p))):
        assert space.contains(np.asarray(action)), (action, space)


def test_discrete_start_is_added_for_the_environment_only() -> None:
    head = head_for(spaces.Discrete(3, start=7))
    assert head.to_env(torch.tensor([0, 2])).tolist() == [7, 9]
    assert head_for(spaces.MultiDiscrete([3, 3], start=[7, -1])).to_env(torch.tensor([[0, 2]])).tolist() == [[7, 1]]


def test_a_gaussian_acts_in_units_of_its_range() -> None:
    """−1, 0 and 1 are lower bound, middle and upper bound; what has no two finite bounds keeps the environment's units, from one on."""
    top = float(np.finfo(np.float32).max)
    space = box([100, -1e-3, -np.inf, 1000, -top, 5, -top], [200, 1e-3, np.inf, np.inf, top, 5, -3])
    low, middle, high, far = (torch.full((1, 7), a) for a in (-1.0, 0.0, 1.0, 7.5))
    head = head_for(space)
    tiny = np.float32(1e-3)
    np.testing.assert_array_equal(head.to_env(low), np.float32([[100, -tiny, -1, 1000, -1, 5, -5]]))
    np.testing.assert_array_equal(head.to_env(middle), np.float32([[150, 0, 0, 1001, 0, 5, -4]]))
    np.testing.assert_array_equal(head.to_env(high), np.float32([[200, tiny, 1, 1002, 1, 5, -3]]))
    np.testing.assert_array_equal(head.to_env(far), np.float32([[200, tiny, 7.5, 1008.5, 7.5, 5, -3]]))
    np.testing.assert_array_equal(head_for(space, scaled=False).to_env(far), np.float32([[100, tiny, 7.5, 1000, 7.5, 5, -3]]))
    a = torch.randn(300, 2)
    plain = head_for(box([-1, -1], [1, 1]))  # nothing to scale: the action itself, bit for bit
    np.testing.assert_array_equal(plain.to_env(a), a.clamp(-1, 1).numpy())
    odd = box([0.1, -0.7], [0.3, 1e7])
    given = head_for(odd).to_env(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
    np.testing.assert_array_equal(given, np.stack([odd.low, odd.high]))


def test_squash_and_beta_stretch_to_the_bounds() -> None:
    space = box([-1, 10], [3, 20])
    squashed, beta = head_for(space, "squashed"), head_for(space, "beta")
    np.testing.assert_array_equal(squashed.to_env(torch.tensor([[0.0, 0.0], [50.0, -50.0]])), np.float32([[1, 15], [3, 10]]))
    np.testing.assert_array_equal(beta.to_env(torch.tensor([[0.5, 0.25], [1.0, 0.0]])), np.float32([[1, 12.5], [3, 10]]))


def test_modes() -> None:
    for name in ("categorical", "multi", "bernoulli"):
        head = HEADS[name]
        p = parameters_for(head, 50)
        drawn = torch.stack([head.sample(p, torch.Generator().manual_seed(seed)) for seed in range(60)])
        assert (head.log_prob(p, head.mode(p)) >= head.log_prob(p.expand(60, -1, -1), drawn) - 1e-12).all()
    beta, z = Beta(1, (0.0,), (1.0,)), torch.tensor([1.3, 0.2], dtype=torch.float64)
    a, density = grid(Beta, z)
    assert float(beta.mode(z)) == pytest.approx(float(a[density.argmax()]), abs=1e-5)
    gaussian = Gaussian(2, (-1.0,) * 2, (1.0,) * 2)
    assert gaussian.mode(torch.tensor([0.3, -4.0, 1.0, 1.0])).tolist() == pytest.approx([0.3, -4.0])


def test_beta_is_finite_for_extreme_parameters() -> None:
    head = Beta(1, (0.0,), (1.0,))
    p = torch.tensor([[-40.0, -40.0], [60.0, -40.0], [-40.0, 60.0], [60.0, 60.0]], requires_grad=True)
    action = head.sample(p.detach(), torch.Generator().manual_seed(0))
    log_prob, entropy = head.log_prob(p, action), head.entropy(p)
    (log_prob + entropy).sum().backward()
    assert torch.isfinite(torch.stack([log_prob, entropy])).all()
    assert p.grad is not None and p.grad.isfinite().all()
    assert head.mode(p).isfinite().all()


@pytest.mark.parametrize(
    ("space", "distribution", "words"),
    [
        (spaces.Text(4), "gaussian", "not supported; supported are Discrete"),
        (spaces.Dict(a=spaces.Discrete(2)), "gaussian", "not supported"),
        (spaces.Tuple([spaces.Discrete(2)]), "gaussian", "not supported"),
        (spaces.Box(0, 5, (2,), np.int64), "gaussian", "Box of int64"),
        (spaces.Box(-np.inf, np.inf, (2,)), "squashed", "needs bounds on both sides"),
        (spaces.Box(0, np.inf, (2,)), "beta", "needs bounds on both sides"),
        (spaces.Box(0, 1, (0,)), "gaussian", "no action"),
        (spaces.Box(0, 1, (2,)), "gausian", "did you mean 'gaussian'"),
    ],
    ids=str,
)
def test_what_is_not_supported_is_said_in_one_line(space: spaces.Space, distribution: str, words: str) -> None:
    with pytest.raises(UsageError) as error:
        head_for(space, distribution)  # pyright: ignore[reportArgumentType]
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_an_action_with_a_stray_axis_is_refused() -> None:
    p = parameters_for(Categorical(5), 6)
    with pytest.raises(ValueError, match="action"):
        Categorical(5).log_prob(p, torch.zeros(6, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="action"):
        HEADS["gaussian"].log_prob(parameters_for(HEADS["gaussian"], 6), torch.zeros(6, 1))


def test_distribution_binds_a_head_to_its_parameters_and_mask() -> None:
    head, mask = Categorical(5), torch.tensor([True, True, False, True, False])
    p, q = parameters_for(head), parameters_for(head, seed=1)
    one, other = Distribution(head, p, mask), Distribution(head, q, mask)
    assert torch.equal(one.kl(other), head.kl(p, q, mask))
    assert torch.equal(one.entropy(), head.entropy(p, mask))
    assert torch.equal(one.mode(), head.mode(p, mask))
    action = one.sample(torch.Generator().manual_seed(0))
    assert torch.equal(action, head.sample(p, torch.Generator().manual_seed(0), mask))
    assert torch.equal(one.log_prob(action), head.log_prob(p, action, mask))
