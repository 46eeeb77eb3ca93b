"""check_policy holds that a policy samples and scores with one distribution."""

import pytest
import torch
from gymnasium import spaces
from torch import nn

from upslope import UsageError, control, tabular
from upslope import functional as F
from upslope.control.heads import SquashedGaussian
from upslope.records import Evaluation, Sample
from upslope.testing import ContractError, check_policy

SEEN = {"observation": torch.tensor([[0, 1], [2, 0], [1, 1]])}
MDP = tabular.random_mdp(num_states=3)


def softmax():
    policy = tabular.network_policy(MDP, (4,), seed=0, critic=True)
    return policy


def test_shipped_policies_hold():
    check_policy(softmax(), SEEN)
    check_policy(tabular.tabular_policy(MDP), SEEN)
    generator = torch.Generator().manual_seed(0)
    for env_id, features in (("CartPole-v1", 4), ("Pendulum-v1", 3)):
        envs = control.make(env_id, num_envs=1)
        policy = control.MLPPolicy.for_envs(envs, seed=0, hidden_sizes=(8,))
        check_policy(policy, {"observation": torch.randn(3, 2, features, generator=generator)})


class Wrapped(nn.Module):
    """A sound policy, changed in one place."""

    def __init__(self):
        super().__init__()
        self.inner = softmax()
        self.register_buffer("count", torch.zeros(()))
        self.distribution = self.inner.distribution

    def sample(self, inputs, *, generator=None):
        return self.inner.sample(inputs, generator=generator)

    def evaluate(self, *, observation, action):
        return self.inner.evaluate(observation=observation, action=action)


class Global(Wrapped):
    def sample(self, inputs, *, generator=None):
        return self.inner.sample(inputs)


class Touches(Wrapped):
    def sample(self, inputs, *, generator=None):
        torch.rand(())
        return self.inner.sample(inputs, generator=generator)


class Tuples(Wrapped):
    def sample(self, inputs, *, generator=None):
        found = self.inner.sample(inputs, generator=generator)
        return found.action, found.log_prob


class Temperature(Wrapped):
    """Samples at another temperature than it scores."""

    def sample(self, inputs, *, generator=None):
        hot = self.inner.distribution(observation=inputs["observation"]).parameters / 2
        action = torch.distributions.Categorical(logits=hot).probs.cumsum(-1)
        action = (action < torch.rand(*action.shape[:-1], 1, generator=generator)).sum(-1)
        return Sample(action=action, log_prob=hot.log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1).detach())


class Dropout(Wrapped):
    def evaluate(self, *, observation, action):
        found = self.inner.evaluate(observation=observation, action=action)
        noise = torch.rand(found.log_prob.shape, dtype=found.log_prob.dtype)
        return Evaluation(log_prob=found.log_prob + 1e-3 * noise, entropy=found.entropy)


class BatchNorm(Wrapped):
    def evaluate(self, *, observation, action):
        found = self.inner.evaluate(observation=observation, action=action)
        return Evaluation(log_prob=found.log_prob, entropy=found.entropy, value=found.value - found.value.mean())


class Detached(Wrapped):
    def evaluate(self, *, observation, action):
        found = self.inner.evaluate(observation=observation, action=action)
        return Evaluation(log_prob=found.log_prob.detach(), entropy=found.entropy)


class Counts(Wrapped):
    def evaluate(self, *, observation, action):
        self.count += 1
        return self.inner.evaluate(observation=observation, action=action)


class Unnormalized(Wrapped):
    def sample(self, inputs, *, generator=None):
        found = self.inner.sample(inputs, generator=generator)
        return Sample(action=found.action, log_prob=found.log_prob + 0.1)

    def evaluate(self, *, observation, action):
        found = self.inner.evaluate(observation=observation, action=action)
        return Evaluation(log_prob=found.log_prob + 0.1, entropy=found.entropy)


class Entropy(Wrapped):
    def evaluate(self, *, observation, action):
        found = self.inner.evaluate(observation=observation, action=action)
        return Evaluation(log_prob=found.log_prob, entropy=-found.entropy)


class Summed(Wrapped):
    def evaluate(self, *, observation, action):
        found = self.inner.evaluate(observation=observation, action=action)
        return Evaluation(log_prob=found.log_prob.sum(-1), entropy=found.entropy)


class Gradient(Wrapped):
    """Part of the score is lost: the normalizer is detached."""

    def evaluate(self, *, observation, action):
        logits = self.inner.distribution(observation=observation).parameters
        log_prob = logits.gather(-1, action.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1).detach()
        return Evaluation(log_prob=log_prob, entropy=self.inner.distribution(observation=observation).entropy())


class Gaussian(nn.Module):
    """``a ~ N(μ, σ²)`` with a sum over two dimensions; ``wrong`` scores with another σ than it samples."""

    def __init__(self, wrong=False):
        super().__init__()
        self.mean = nn.Linear(3, 2)
        self.log_std = nn.Parameter(torch.zeros(2))
        self.wrong = wrong

    def log_prob(self, observation, action):
        z = (action - self.mean(observation)) / self.log_std.exp()
        return (-0.5 * z.square() - self.log_std - 0.919).sum(-1)

    @torch.no_grad()
    def sample(self, inputs, *, generator=None):
        mean = self.mean(inputs["observation"])
        spread = (1.5 if self.wrong else 1.0) * self.log_std.exp()
        action = mean + spread * torch.randn(mean.shape, generator=generator)
        return Sample(action=action, log_prob=self.log_prob(inputs["observation"], action))

    def evaluate(self, *, observation, action):
        log_prob = self.log_prob(observation, action)
        return Evaluation(log_prob=log_prob, entropy=(self.log_std + 1.419).sum().expand(log_prob.shape))


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (Global, "the same generator gave other actions"),
        (Touches, "moved torch's global random state"),
        (Tuples, "sample returned an object of type tuple"),
        (Temperature, "sample and evaluate disagree on log_prob"),
        (Dropout, "two evaluations of the same actions differ in log_prob"),
        (BatchNorm, "a row's value depends on the other rows"),
        (Detached, "does not depend on the parameters"),
        (Counts, "changed buffer count"),
        (Unnormalized, "probabilities of the 3 actions sum to 1 ± 0.105"),
        (Entropy, "the entropy is off by"),
        (Summed, "evaluate's log_prob has shape"),
        (Gradient, "the mean of ∇log π is"),
        (object, "object has no sample"),
    ],
)
def test_a_broken_contract_is_named(policy, message):
    with pytest.raises(ContractError, match=message) as error:
        check_policy(policy(), SEEN)
    assert "\n" not in str(error.value)


def test_continuous_actions():
    seen = {"observation": torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))}
    check_policy(Gaussian(), seen)
    with pytest.raises(ContractError, match="the mean of ∇log π over 1536 samples is not 0"):
        check_policy(Gaussian(wrong=True), seen)


class Squashed(Gaussian):
    """``a = tanh u`` with ``u ~ N(μ, σ²)``, and a is what is kept."""

    def __init__(self, size=1, *, slope=True, entropy="right"):
        super().__init__()
        self.mean, self.log_std = nn.Linear(3, size), nn.Parameter(torch.full((size,), -0.3))
        self.slope, self.entropy = slope, entropy

    def log_prob(self, observation, action):
        found = F.gaussian_log_prob(self.mean(observation), self.log_std, action.atanh())
        return found - (1 - action.square()).log().sum(-1) if self.slope else found

    @torch.no_grad()
    def sample(self, inputs, *, generator=None):
        action = F.gaussian_sample(self.mean(inputs["observation"]), self.log_std, generator).tanh()
        return Sample(action=action, log_prob=self.log_prob(inputs["observation"], action))

    def evaluate(self, *, observation, action):
        mean, log_prob = self.mean(observation), self.log_prob(observation, action)
        head = SquashedGaussian(mean.shape[-1], (-1.0,), (1.0,))
        entropy = head.entropy(torch.cat([mean, self.log_std.expand_as(mean)], -1))
        if self.entropy == "of the Gaussian":
            entropy = F.gaussian_entropy(self.log_std).expand(log_prob.shape)
        return Evaluation(log_prob=log_prob, entropy=-log_prob if self.entropy == "of the action" else entropy)


class Unsquashed(Squashed):
    """The mean of −log π is this entropy, so that only the density tells that the tanh is missing from log π."""

    def evaluate(self, *, observation, action):
        found = super().evaluate(observation=observation, action=action)
        return Evaluation(log_prob=found.log_prob, entropy=F.gaussian_entropy(self.log_std).expand(found.log_prob.shape))


@pytest.mark.parametrize("size", [1, 3])
def test_squashed_actions(size):
    torch.manual_seed(0)
    seen = {"observation": torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))}
    check_policy(Squashed(size), seen)
    with pytest.raises(ContractError, match=r"the entropy is .*change of variables of a squashed action \(tanh\)"):
        check_policy(Squashed(size, entropy="of the Gaussian"), seen)
    with pytest.raises(ContractError, match=r"the entropy is .*change of variables of a squashed action \(tanh\)"):
        check_policy(Squashed(size, slope=False), seen)
    with pytest.raises(ContractError, match=r"log_prob is not the density .* log N\(u\) − Σ log\(1 − tanh² u\)"):
        check_policy(Unsquashed(size, slope=False), seen)
    with pytest.raises(ContractError, match="the entropy of one state differs with the action that is scored"):
        check_policy(Squashed(size, entropy="of the action"), seen)


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("distribution", ["gaussian", "squashed", "beta"])
def test_the_shipped_densities(distribution, size):
    spaces_ = spaces.Box(-1, 1, (3,)), spaces.Box(-1, 3, (size,))
    policy = control.MLPPolicy.for_envs(spaces_, seed=0, hidden_sizes=(8,), distribution=distribution)
    with torch.no_grad():
        for p in policy.parameters():
            p += 0.4 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    check_policy(policy, {"observation": torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))})


def test_bad_input():
    with pytest.raises(UsageError, match="inputs: expected tensors"):
        check_policy(softmax(), {"observation": torch.tensor([0, 1])})
    with pytest.raises(UsageError, match="sample raised KeyError"):
        check_policy(softmax(), {"state": SEEN["observation"]})
